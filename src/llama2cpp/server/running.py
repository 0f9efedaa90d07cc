"""A server's process: its socket, its signals, its end."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

DRAIN_SECONDS = 120  # that requests have for their ends when the server is told to stop


def listen(host: str, port: int) -> socket.socket:
    """Take a port, before anything is loaded.

    Parameters
    ----------
    host : str
        A name or an address.
    port : int
        0: any free one.

    Returns
    -------
    socket.socket
        On which clients may wait already.

    Raises
    ------
    OSError
        If the port is in use, or the host is none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OSError(f"host={host} is no address of this machine: {error.strerror or error}") from error
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows, where SO_REUSEADDR would share it
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen(1024)
    except OSError as error:
        taken.close()
        raise OSError(
            f"port {port} of {host} cannot be used ({error.strerror}): pass another, or 0 for a free one"
        ) from error
    return taken


def url_of(taken: socket.socket) -> str:
    """Give the address that clients use."""
    host, port = taken.getsockname()[:2]
    return f"http://[{host}]:{port}" if taken.family == socket.AF_INET6 else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """One whose process ends well when it is told to: uvicorn raises the signal again, which kills it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        told = [signal.SIGINT, signal.SIGTERM]
        before = {number: signal.signal(number, self.handle_exit) for number in told}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run(app: ASGIApp, taken: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; requests that are there are answered first.

    Parameters
    ----------
    app : ASGI application
        From `make_app`.
    taken : socket.socket
        From `listen`.
    """
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of clients that have left
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=DRAIN_SECONDS,
        h11_max_incomplete_event_size=1 << 16,
    )
    _Server(config).run(sockets=[taken])
