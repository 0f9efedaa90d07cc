"""The command: llama2.c's text byte for byte, errors of one line, signals and pipes."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import ROOT
from gptq_files import quantize_folder
from hf_folders import Spec

import llama2cpp

DATA = ROOT / "tests" / "data"
COMMAND = [sys.executable, "-m", "llama2cpp"]
Arguments = list[str | bytes | Path]
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and raw bytes in arguments are POSIX's")


def call(*arguments: str | bytes | Path, stdin: bytes = b"", cwd: Path | None = None) -> tuple[int, bytes, str]:
    result = subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, cwd=cwd, timeout=120)
    return result.returncode, result.stdout, result.stderr.decode()


@pytest.fixture(scope="module")
def run(stories_dir: Path) -> Arguments:
    return ["run", stories_dir / "stories260K.bin", "-z", stories_dir / "tok512.bin"]


# --- run


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("stories260K_t0_n200.txt", "-t 0 -n 200"),
        ("stories260K_t1_p09_s133742_n200.txt", "-t 1.0 -p 0.9 -s 133742 -n 200"),
    ],
)
def test_run_is_llama2c_s(run: Arguments, file: str, options: str) -> None:
    code, text, errors = call(*run, *options.split())
    assert text == (DATA / file).read_bytes()
    assert code == 0
    assert re.fullmatch(r"achieved tok/s: \d+\.\d{6}\n", errors)


def cases() -> list[Any]:
    """Options, standard input and standard output of llama2.c's run, as it gave them; bytes as Latin-1."""
    return [pytest.param(case, id=case["name"]) for case in json.loads((DATA / "llama2c_run.json").read_text())]


@posix
@pytest.mark.parametrize("case", cases())
def test_run_in_corners_is_llama2c_s(run: Arguments, case: dict[str, Any]) -> None:
    options = [option.encode("latin-1") for option in case["options"]]
    code, text, errors = call(*run, *options, stdin=case["stdin"].encode("latin-1"))
    assert text == case["stdout"].encode("latin-1")
    assert code == 0
    assert ("achieved tok/s" in errors) == case["tells_speed"]


def test_a_version_1_file_says_the_same(run: Arguments, stories_dir: Path) -> None:
    _, text, _ = call("run", stories_dir / "stories260K_v1.bin", *run[2:], "-t", "0", "-n", "200")
    assert text == (DATA / "stories260K_t0_n200.txt").read_bytes()


def test_the_default_tokenizer_is_in_this_folder(run: Arguments, tmp_path: Path) -> None:
    code, text, errors = call(*run[:2], cwd=tmp_path)
    assert (code, text) == (1, b"")
    assert "tokenizer.bin" in errors
    (tmp_path / "tokenizer.bin").write_bytes(Path(os.fsdecode(run[3])).read_bytes())
    _, text, _ = call(*run[:2], "-t", "0", "-n", "200", cwd=tmp_path)
    assert text == (DATA / "stories260K_t0_n200.txt").read_bytes()


@pytest.mark.parametrize("options", ["-t 0.001 -s 1", "-t 1 -p 0.0001 -s 1"])
def test_nearly_greedy(run: Arguments, options: str) -> None:
    assert call(*run, *options.split(), "-n", "200")[1] == (DATA / "stories260K_t0_n200.txt").read_bytes()


def test_chat_takes_turns(stories_dir: Path, tmp_path: Path) -> None:
    """A model that answers "Yes" after "]" and ends its turn; the text as llama2.c prints it, oddities and all."""
    tokenizer = llama2cpp.Tokenizer.from_file(stories_dir / "tok512.bin")
    answer = [tokenizer.encode(text, bos=False)[-1] for text in ["]", "Y", "e", "s"]] + [2]
    model = tiny.script(512, dict(itertools.pairwise(answer)), seq_len=120)
    path = tiny.write_v0(tmp_path / "yes.bin", *model)
    options: Arguments = ["-z", stories_dir / "tok512.bin", "-t", "0", "-n", "0", "-m", "chat"]
    _, text, _ = call("run", path, *options, stdin=b"Be nice\nA?\nB?\n" + b"C" * 20)
    turn = b"User: Assistant: Y e s\n<unk>"  # what follows the end of the turn is printed, too
    assert text == b"Enter system prompt (optional): " + 3 * turn + b"User: Assistant: \n"


# --- errors


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-t", "abc"], "'-t'"),
        (["-n", "1.5"], "'-n'"),
        (["-n", "12x"], "'-n'"),
        (["-s", "seed"], "'-s'"),
        (["-t", "nan"], "-t is nan"),
        (["-t", "inf"], "-t is inf"),
        (["-s", str(2**64)], str(2**64)),
        (["-m", "talk"], "generate or chat.*talk"),
        (["-x", "1"], "-x"),
        (["-t"], "-t"),
        (["more"], "more"),
    ],
)
def test_wrong_options_are_one_line(run: Arguments, options: list[str], told: str) -> None:
    code, text, errors = call(*run, *options)
    assert (code, text) == (2, b"")
    assert re.fullmatch(rf"llama2cpp: error: .*{told}.*\n", errors)


def test_wrong_files_are_one_line(run: Arguments, models_dir: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.bin"
    cut.write_bytes(Path(os.fsdecode(run[1])).read_bytes()[:-4])
    wrong: list[tuple[Arguments, str]] = [
        (["run"], "CHECKPOINT"),
        (["run", "nothing.bin", *run[2:]], "nothing.bin: No such file"),
        (["run", run[1], "-z", "nothing.bin"], "nothing.bin: No such file"),
        (["run", run[1], "-z", models_dir / "llama2" / "tokenizer.model"], "512.*32000"),
        (["run", cut, *run[2:]], "cut.bin.*1056540.*1056536|cut.bin.*1056536.*1056540"),
        (["info", tmp_path], "Is a directory|directory|Permission denied"),
        (["generate", run[1], "Once"], "no tokenizer.*-z"),
        (["generate", run[1], "-z", run[3], "Once " * 600], "context|512"),
        (["nonsense"], "nonsense"),
    ]
    for arguments, told in wrong:
        code, text, errors = call(*arguments)
        assert (code, text) == (2 if arguments in (["run"], ["nonsense"]) else 1, b"")
        assert re.fullmatch(rf"llama2cpp: error: .*({told}).*\n", errors), errors


@posix
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_no_room_for_the_output(run: Arguments, unbuffered: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("wb") as full:
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        result = subprocess.run(
            [*COMMAND, *run, "-n", "20"], stdout=full, stderr=subprocess.PIPE, timeout=120, env=environment
        )
    assert result.returncode == 1
    assert re.fullmatch(rb"llama2cpp: .*No space left on device.*\n", result.stderr)


# --- signals and pipes


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that says token 0 over and over, for a context of 200,000."""
    return tiny.write_v0(tmp_path_factory.mktemp("endless") / "endless.bin", *tiny.script(512, {}, seq_len=200_000))


@posix
def test_ctrl_c_while_generating(endless: Path, stories_dir: Path) -> None:
    arguments = [*COMMAND, "run", str(endless), "-z", str(stories_dir / "tok512.bin"), "-n", "0", "-t", "0"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(100)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.stderr.read().strip() == b""
    assert process.returncode == 130


@posix
def test_ctrl_c_at_the_chat_prompt(run: Arguments) -> None:
    with subprocess.Popen(
        [*COMMAND, *run, "-m", "chat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(len("Enter system prompt"))
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().strip() == b""
    assert process.returncode == 130


@posix
@pytest.mark.parametrize("command", ["run", "generate"])
def test_a_closed_pipe_is_quiet(endless: Path, stories_dir: Path, command: str) -> None:
    options = ["-t", "0", "-n", "200000", "-z", str(stories_dir / "tok512.bin")]
    with subprocess.Popen(
        [*COMMAND, command, str(endless), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(100)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode != 0


# --- generate, info, help


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_generate_prints_utf_8(stories: llama2cpp.Model, stories_dir: Path, locale: str) -> None:
    expected = stories.generate("Zoë and 日本 🐶", max_tokens=20, temperature=0, echo=True)
    files: Arguments = [stories_dir / "stories260K.bin", "-z", stories_dir / "tok512.bin"]
    result = subprocess.run(
        [*COMMAND, "generate", *files, "-t", "0", "-n", "20", "Zoë", "and", "日本", "🐶"],
        capture_output=True,
        env=os.environ | {"LC_ALL": locale},
        timeout=120,
    )
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode() == expected + "\n"


def test_generate_takes_all_options(stories: llama2cpp.Model, stories_dir: Path) -> None:
    code, text, _ = call(
        *("generate", stories_dir / "stories260K.bin", "One day", "--tokenizer", stories_dir / "tok512.bin"),
        *("--max-tokens", "40", "--temperature", "1.2", "--top-p", "0.95", "--top-k", "30", "--min-p", "0.01"),
        *("--repetition-penalty", "1.1", "--seed", "3", "--stop", ".", "--stop", "!", "--threads", "1", "--no-echo"),
    )
    expected = stories.generate(
        "One day",
        max_tokens=40,
        temperature=1.2,
        top_p=0.95,
        top_k=30,
        min_p=0.01,
        repetition_penalty=1.1,
        seed=3,
        stop=[".", "!"],
    )
    assert (code, text.decode()) == (0, expected + "\n")


def test_info(stories_dir: Path) -> None:
    code, text, errors = call("info", stories_dir / "stories260K.bin")
    assert (code, errors) == (0, "")
    table = text.decode()
    for fact in ("llama2.c v0", "n_kv_heads", "layers.0-4.feed_forward.w3.weight", "172 x 64", "f32", "220,160"):
        assert fact in table
    # 5 layers of keys and values of 4 heads of 8 floats
    assert re.search(r"keys and values .* f32, 1,280 bytes a token, 655,360 for 512", table)
    assert re.search(r"parameters .* 260,032", table)


@pytest.mark.parametrize("quantized", [False, True])
def test_info_of_a_folder(tmp_path: Path, quantized: bool) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 64}
    folder = Spec(settings=sizes).save(tmp_path / "model")
    if quantized:
        quantize_folder(folder, group_size=64)
    code, text, errors = call("info", folder)
    assert (code, errors) == (0, "")
    table = re.sub(r"[\s\u2500-\u257f]+", " ", text.decode())  # without its frame
    # 4 bits a weight, and for 2 groups of 64 rows a scale of 2 bytes and a zero of half a byte
    tensor = "gptq4 4,416" if quantized else "f32 32,768"
    assert f"model.layers.0.mlp.down_proj.weight 64 x 128 {tensor} " in table
    assert "n_kv_heads 2 " in table
    # panels of 16 rows: of f32, or units of 64 or 128 columns with a header of 64 or 128 bytes (2 scales)
    rows_of_64, rows_of_128 = 64 + 32 + 32 + 64 + 128 + 128, 64
    in_units = rows_of_64 // 16 * (64 + 512) + rows_of_128 // 16 * (128 + 1024)
    matrices = 64 * 64 * 4 + (in_units if quantized else (rows_of_64 * 64 + rows_of_128 * 128) * 4)
    kv = 2 * 2 * 16 * 64 * (2 if quantized else 4)
    assert f"memory {matrices + kv:,} bytes with one full session: matrices packed, {matrices:,}" in table


@pytest.mark.parametrize("command", [[], ["run"], ["generate"], ["info"]])
def test_help_has_examples(command: list[str]) -> None:
    code, text, errors = call(*command, "--help")
    assert (code, errors) == (0, "")
    for line in text.decode().splitlines():
        assert len(line) <= 80
    assert re.search(rf"^ +llama2cpp {' '.join(command) or 'run'} ", text.decode(), re.MULTILINE)


def test_alone_it_shows_its_help() -> None:
    assert call() == call("--help")


def test_version() -> None:
    assert call("--version") == (0, f"{llama2cpp.__version__}\n".encode(), "")
