"""Where Hugging Face's client keeps what it has downloaded.

The layout is documented and the same for all of its versions, so looking needs no client:
``models--org--repo/snapshots/REVISION/FILE``, with the newest revision's name in ``refs/main``.
"""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path:
    """Give its cache, as the client finds it."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if chosen := os.environ.get(name):
            return _expanded(chosen)
    if home := os.environ.get("HF_HOME"):
        return _expanded(home) / "hub"
    root = os.environ.get("XDG_CACHE_HOME")
    return (_expanded(root) if root else Path.home() / ".cache") / "huggingface" / "hub"


def snapshots(repository: str) -> list[Path]:
    """Give the folders of a repository's downloaded revisions, the one of main first and then the newest."""
    kept = folder() / f"models--{repository.replace('/', '--')}"
    found = [path for path in (kept / "snapshots").glob("*") if path.is_dir()]
    try:
        main = (kept / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        main = ""
    return sorted(found, key=lambda path: (path.name == main, path.stat().st_mtime, path.name), reverse=True)


def _expanded(path: str) -> Path:
    return Path(os.path.expandvars(path)).expanduser()
