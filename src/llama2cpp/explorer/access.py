"""Who may use the page: this machine's own, with the token of this start."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.requests import Request

from ..server.errors import ApiError

HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})

# Nothing is loaded from elsewhere or sent there, the page itself holds no script or style, and no other page frames it.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


def check_host(request: Request) -> None:
    """Refuse other names for this machine, and pages of other sites, which a browser tells by their origin."""
    host = urlsplit(f"//{request.headers.get('host', '')}")
    if (host.hostname or "") not in HOSTS:
        raise ApiError(403, f"the host is {host.hostname!r:.80}, and this page is at {', '.join(sorted(HOSTS))}")
    origin = request.headers.get("origin")
    if origin is not None and (urlsplit(origin).scheme, urlsplit(origin).netloc) != ("http", host.netloc):
        raise ApiError(403, f"pages of {origin!r:.80} may not use this one")


def check_token(request: Request, token: str) -> None:
    """Refuse who has not been given this start's token, and what another site's page has made a browser send."""
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
        raise ApiError(403, "the token is missing or wrong: open the address that the command has printed")
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise ApiError(403, "pages of other sites may not use this one")
