"""All writers keep what is promised in src/cpp/core/file_writer.h: one table of them, and a test for each promise."""

from __future__ import annotations

import ast
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from conftest import ROOT, SUPPORT
from writers import Writer, all_writers

import llama2cpp
from llama2cpp import _core
from llama2cpp.common import new_files

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links, modes and signals of POSIX")

NAMES = [
    "session",
    "conversation",
    "conversation with session",
    "cache npz",
    "cache safetensors",
    "file",
    "llama2.c",
    "llama2.c int8",
    "gguf",
    "panels",
    "folder",
    "llm_int8",
    "without exchange",
]
FOLDERS = ("folder", "llm_int8", "without exchange")
FILES = [name for name in NAMES if name not in FOLDERS]
QUICK = ["session", "conversation", "cache npz", "file"]


@pytest.fixture(scope="module")
def writers(stories: llama2cpp.Model) -> dict[str, Writer]:
    found = all_writers(stories)
    assert list(found) == NAMES
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_path_with_a_nul_byte(writers: dict[str, Writer], name: str, tmp_path: Path) -> None:
    writer = writers[name]
    with pytest.raises(ValueError, match="has a NUL byte, which no file's name has") as caught:
        writer.write(tmp_path / f"a\0{writer.name}", 0)
    assert str(caught.value).isprintable()
    assert names(tmp_path) == []


def test_what_is_no_path(tmp_path: Path) -> None:
    for kind in (_core.FileWriter, _core.FolderWriter):
        for path in (5, None, ["a"]):
            with pytest.raises(TypeError, match=r"expected str, bytes or os\.PathLike object, not"):
                kind(path)  # type: ignore[arg-type]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_replaced_keeps_its_permissions(writers: dict[str, Writer], name: str, tmp_path: Path) -> None:
    writer = writers[name]
    target = tmp_path / writer.name
    before = os.umask(0o027)
    try:
        writer.write(target, 0)
    finally:
        os.umask(before)
    assert mode(target) == (0o750 if writer.folder else 0o640)
    for permissions in (0o700, 0o777) if writer.folder else (0o600, 0o666, 0o640):
        target.chmod(permissions)
        writer.write(target, 1)
        assert mode(target) == permissions
    writer.write(target, 0)
    again = writer.read(target)
    writer.write(target, 1)
    assert writer.read(target) != again


def test_a_private_file_is_private_while_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "f").touch(mode=0o600)
    with new_files.new_file(tmp_path / "f") as begun:
        assert mode(begun) == 0o600


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("name", ["session", "folder"])
def test_what_is_replaced_keeps_its_owner(writers: dict[str, Writer], name: str, tmp_path: Path) -> None:
    writer = writers[name]
    target = tmp_path / writer.name
    writer.write(target, 0)
    target.chmod(0o700)
    os.chown(target, 1234, 4321)
    writer.write(target, 1)
    assert (target.stat().st_uid, target.stat().st_gid, mode(target)) == (1234, 4321, 0o700)


@pytest.mark.parametrize("name", NAMES)
def test_links_are_followed(writers: dict[str, Writer], name: str, tmp_path: Path) -> None:
    """Of links of links, from other folders, and to what is not there yet."""
    writer = writers[name]
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    link, real = tmp_path / "here" / writer.name, tmp_path / "there" / f"real-{writer.name}"
    (tmp_path / "middle").symlink_to(Path("there") / real.name)
    link.symlink_to(Path("..") / "middle")
    for version in (0, 1):
        writer.write(link, version)
        assert link.is_symlink()
        assert (tmp_path / "middle").is_symlink()
        assert not real.is_symlink()
        assert writer.read(real) == writer.read(link)
    assert names(tmp_path / "there") == [real.name]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_file_is_refused(writers: dict[str, Writer], name: str, tmp_path: Path) -> None:
    """A device, a pipe, a socket, a folder (a file, for those that write folders), and links to them."""
    writer = writers[name]
    target = tmp_path / writer.name
    with socket.socket(socket.AF_UNIX) as unix:
        here = Path.cwd()
        os.chdir(tmp_path)  # a socket's name is short
        unix.bind("socket")
        os.chdir(here)
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "some").touch()
        (tmp_path / "some folder").mkdir()
        (tmp_path / "some folder" / "x").touch()
        (tmp_path / "loop").symlink_to("loop")
        (tmp_path / "a folder's link").symlink_to("some folder")
        others = ["pipe", "socket", "loop", os.devnull, "some" if writer.folder else "some folder"]
        if name != "without exchange":  # it is `new_folder` that knows what a model's folder holds
            others += ["some folder"] if writer.folder else ["a folder's link"]
        for other in others:
            target.symlink_to(tmp_path / other)
            before = names(tmp_path)
            with pytest.raises(OSError) as caught:  # noqa: PT011 - each has another errno
                writer.write(target, 0)
            assert str(target) in str(caught.value)
            assert names(tmp_path) == before
            target.unlink()
        for make in (os.mkfifo, lambda path: (tmp_path / "socket").rename(path)):
            make(target)
            kind = stat.S_IFMT(target.lstat().st_mode)
            with pytest.raises(OSError, match=r"no (file|folder)|is not replaced"):
                writer.write(target, 0)
            assert stat.S_IFMT(target.lstat().st_mode) == kind
            target.unlink()
    assert (tmp_path / "some folder" / "x").exists()
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


@pytest.mark.parametrize("name", NAMES)
def test_read_only(writers: dict[str, Writer], name: str, tmp_path: Path) -> None:
    """Root could write it, and does not either."""
    writer = writers[name]
    target = tmp_path / writer.name
    writer.write(target, 0)
    before = writer.read(target), names(tmp_path)
    target.chmod(0o555 if writer.folder else 0o444)
    with pytest.raises(PermissionError, match=r"Permission denied \(the (file|folder) is read-only\)") as caught:
        writer.write(target, 1)
    assert caught.value.filename == str(target)
    assert (writer.read(target), names(tmp_path)) == before
    target.chmod(0o755)


@pytest.mark.parametrize("name", NAMES)
def test_the_longest_names(writers: dict[str, Writer], name: str, tmp_path: Path) -> None:
    """As long as the file system's, which is 255 bytes; one more is an error that says so, and nothing is written."""
    writer = writers[name]
    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    room = longest - len(".safetensors") if name == "conversation with session" else longest
    suffix = Path(writer.name).suffix
    for stem in ("x" * (room - len(suffix)), "é" * ((room - len(suffix)) // 2)):
        target = tmp_path / (stem + suffix)
        for version in (0, 1):
            writer.write(target, version)
            assert writer.read(target)
    before = names(tmp_path)
    with pytest.raises(OSError, match="File name too long"):
        writer.write(tmp_path / ("x" * (room + 1 - len(suffix)) + suffix), 0)
    assert names(tmp_path) == before


@pytest.mark.parametrize("name", NAMES)
def test_missing_folders(writers: dict[str, Writer], name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("missing", "file"):
        with pytest.raises(OSError, match=place):
            writers[name].write(tmp_path / place / writers[name].name, 0)
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("name", NAMES)
def test_relative_names(writers: dict[str, Writer], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    writers[name].write(Path(writers[name].name), 0)
    assert writers[name].read(tmp_path / writers[name].name)


def test_the_folder_that_a_process_runs_in_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with new_files.new_file(Path("f")) as begun:
        begun.write_bytes(b"x")
        monkeypatch.chdir(tmp_path / "other")
    assert names(tmp_path) == ["f", "other"]


@pytest.mark.parametrize("name", QUICK)
def test_eight_threads_write_to_one_path(writers: dict[str, Writer], name: str, tmp_path: Path) -> None:
    writer = writers[name]
    target = tmp_path / writer.name
    whole = []
    for version in (0, 1):
        writer.write(target, version)
        whole.append(writer.read(target))
    errors: list[BaseException] = []

    def write(version: int) -> None:
        try:
            for _ in range(200 if name == "conversation" else 20):
                writer.write(target, version)
                assert writer.read(target) in whole
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number % 2,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert names(tmp_path) == [writer.name]


@pytest.mark.parametrize("exchange", [True, False])
def test_threads_and_processes_write_one_folder(exchange: bool, tmp_path: Path) -> None:
    code = f"""
        import sys, threading
        from pathlib import Path
        from llama2cpp import _core
        def write(number):
            for _ in range(25):
                writer = _core.FolderWriter({str(tmp_path / "m")!r}, {exchange})
                for name in ("a", "b"):
                    (writer.temporary_path / name).write_text(str(number) * 1000)
                writer.commit()
        threads = [threading.Thread(target=write, args=(int(sys.argv[1]) + i,)) for i in range(2)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    writing = [subprocess.Popen([*command, str(number)], stderr=subprocess.PIPE) for number in (1, 3, 5)]
    for process in writing:
        assert process.communicate(timeout=300)[1] == b""
        assert process.returncode == 0
    assert names(tmp_path) == ["m"]
    assert names(tmp_path / "m") == ["a", "b"]
    assert (tmp_path / "m" / "a").read_bytes() == (tmp_path / "m" / "b").read_bytes()


def test_killed_at_any_moment(stories_dir: Path) -> None:
    """tests/slow.sh kills each a thousand times."""
    command = [sys.executable, str(SUPPORT / "writers.py"), "4", str(stories_dir)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == NAMES


def kept_open(path: Path, kind: str) -> subprocess.Popen[str]:
    """A process that is in the middle of writing there."""
    code = f"""
        from llama2cpp import _core
        writer = _core.{kind}({str(path)!r})
        print(writer.temporary_path.name, flush=True)
        input()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("kind", ["FileWriter", "FolderWriter"])
def test_leftovers_go_and_the_living_stay(kind: str, tmp_path: Path) -> None:
    with kept_open(tmp_path / "one", kind) as living, kept_open(tmp_path / "two", kind) as dead:
        assert living.stdout is not None
        assert dead.stdout is not None
        first, second = living.stdout.readline().strip(), dead.stdout.readline().strip()
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        assert names(tmp_path) == sorted([first, second])
        foreign = [".llama2cpp-0123456789abcdef.parts", ".llama2cpp-0123456789abcdeg.part", ".llama2cpp-.part"]
        for name in foreign:
            (tmp_path / name).touch()
        os.mkfifo(tmp_path / ".llama2cpp-0123456789abcdef.part")  # a name of ours, and none of our files
        new_files.write_file(tmp_path / "three", b"")
        assert names(tmp_path) == sorted([first, "three", *foreign, ".llama2cpp-0123456789abcdef.part"])
        living.communicate("\n")
    assert first not in names(tmp_path)


def test_a_forked_child_does_not_remove_what_its_parent_writes(tmp_path: Path) -> None:
    code = f"""
        import os, sys
        from llama2cpp import _core
        writer = _core.FileWriter({str(tmp_path / "f")!r})
        child = os.fork()
        if child == 0:
            del writer
            sys.exit()
        os.waitpid(child, 0)
        writer.write(b"whole")
        writer.commit()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=100)
    assert (tmp_path / "f").read_bytes() == b"whole"
    assert names(tmp_path) == ["f"]


def test_an_old_folder_is_never_lost(tmp_path: Path) -> None:
    """Put aside by a process that was killed before the new one had its name."""
    holder = tmp_path / ".llama2cpp-0123456789abcdef.old"
    (holder / "m").mkdir(parents=True)
    (holder / "m" / "config.json").write_text("old")
    new_files.write_file(tmp_path / "other", b"")
    assert (tmp_path / "m" / "config.json").read_text() == "old"
    assert names(tmp_path) == ["m", "other"]
    (holder / "m").mkdir(parents=True)
    (holder / "m" / "config.json").write_text("older")
    new_files.write_file(tmp_path / "other", b"")
    assert (tmp_path / "m" / "config.json").read_text() == "old"  # it has the name, and is newer
    assert names(tmp_path) == ["m", "other"]


def test_what_somebody_puts_into_a_folder_meanwhile_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()

    def write() -> None:
        with new_files.new_folder(tmp_path / "m"):
            (tmp_path / "m" / "config.json").touch()
            (tmp_path / "m" / "notes.txt").touch()

    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        write()
    assert names(tmp_path / "m") == ["config.json", "notes.txt"]
    assert names(tmp_path) == ["m"]


@pytest.mark.parametrize("name", FILES)
def test_a_planted_link_is_not_written_through(writers: dict[str, Writer], name: str, tmp_path: Path) -> None:
    """Names that can be guessed, such as those of earlier versions."""
    writer = writers[name]
    (tmp_path / "victim").write_text("precious")
    planted = [f"{writer.name}.{os.getpid()}.part", f".{writer.name}.part", f".llama2cpp-{os.getpid()}-0.tmp"]
    for link in planted:
        (tmp_path / link).symlink_to("victim")
    writer.write(tmp_path / writer.name, 0)
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_keeps_what_was_there(writers: dict[str, Writer], name: str, tmp_path: Path) -> None:
    """A limit on the size of a file, which this process sets for itself for a moment."""
    import resource

    writer = writers[name]
    target = tmp_path / writer.name
    writer.write(target, 0)
    before = writer.read(target), names(tmp_path)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            writer.write(target, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    if name not in ("without exchange", "conversation with session"):
        assert caught.value.filename == str(target)
    assert (writer.read(target), names(tmp_path)) == before


def test_a_closed_writer_says_so(tmp_path: Path) -> None:
    writer = _core.FileWriter(tmp_path / "f")
    writer.write(memoryview(b"abcd")[1:3])
    with pytest.raises(ValueError, match="not contiguous"):
        writer.write(memoryview(b"abcd")[::2])
    writer.commit()
    assert (tmp_path / "f").read_bytes() == b"bc"
    for call in (writer.commit, lambda: writer.write(b""), lambda: writer.temporary_path):
        with pytest.raises(ValueError, match="the writer is closed"):
            call()
    writer.close()


# Modules that write under a name which `new_files` has given them, or that it will give to what they have made.
GIVEN_A_NAME = {
    "activation_data.shards",
    "inside.cache_file",
    "dialogue.conversation",
    "common.new_files",
    "hub",
    "llm_plugin",  # through new_files
    "export.conversion",
    "export.gguf_file",
    "export.hf_folder",
    "export.hf_shards",
    "export.llama2c_file",
    "export.panel_file",
    "export.report",
    "export.sampling_settings",
    "common.library_tokenizer",  # into a temporary folder of its own
    "plot.figures",  # into memory
}
WRITES = {"write_text", "write_bytes", "savefig", "mkstemp", "mkdtemp", "copyfile", "touch", "symlink_to"}
WRITES |= {"NamedTemporaryFile", "TemporaryDirectory", "tofile", "savez", "save_file"}


def test_nobody_else_writes() -> None:
    """Calls that write, by their names, in all modules of the package."""
    package = ROOT / "src" / "llama2cpp"
    found = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            modes = [value.value for value in node.args if isinstance(value, ast.Constant)]
            opened = called == "open" and any(isinstance(m, str) and set(m) & set("wax+") for m in modes)
            if called in WRITES or opened:
                found.add(".".join(file.relative_to(package).with_suffix("").parts))
    assert found == GIVEN_A_NAME
