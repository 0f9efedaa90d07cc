"""What a program does to its C++ locale reaches no file, no number and no message of ours."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# What std::locale::global(std::locale("")) does on a German desktop: 1.234,5.
GERMAN = """
#include <locale>
struct Punctuation : std::numpunct<char> {
  char do_decimal_point() const override { return ','; }
  char do_thousands_sep() const override { return '.'; }
  std::string do_grouping() const override { return "\\3"; }
};
extern "C" void german() { std::locale::global(std::locale(std::locale(), new Punctuation)); }
"""

# Everything that writes or reads a number as text, once as ever and once under that locale.
SCRIPT = """
import ctypes, hashlib, sys
from pathlib import Path
import llama2cpp

folder, library = Path(sys.argv[1]), sys.argv[2]
if library:
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL).german()

def digest(path):
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()

model = llama2cpp.load(threads=1)
print(model.config.to_dict(), model.generate("Once", max_tokens=5, seed=1))
session = model.session()
session.prefill(model.tokenizer.encode("Once upon a time"))
session.save(folder / "s.session")
print(digest(folder / "s.session"), model.load_session(folder / "s.session").tokens)
targets = [("g.gguf", "q8_0"), ("hf16", "f16"), ("hf8", "llm_int8"), ("p.safetensors", None), ("q.bin", "int8")]
for name, kind in targets:
    llama2cpp.export.convert(model, folder / name, *([kind] if kind else []))
    again = llama2cpp.load(folder / name, threads=1)
    print(name, digest(folder / name), again.config.to_dict(), again.session().prefill([1, 5, 9]).tobytes().hex()[:64])
with model.record(["resid_post"]) as recording:
    model.session().prefill([1, 5, 9])
for call in (lambda: session.step(1234567), lambda: session.rewind(1234567), lambda: model.session(context=2**62)):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_files_and_messages_are_the_same_under_a_locale_that_groups_digits(tmp_path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs a C++ compiler, and the C++ library in common with the extension module")
    (tmp_path / "german.cpp").write_text(GERMAN)
    library = tmp_path / "german.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "german.cpp"], check=True)
    outputs = []
    for name, given in (("plain", ""), ("german", str(library))):
        (tmp_path / name).mkdir()
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / name), given]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        output = done.stdout.replace(str(tmp_path / name), "FOLDER")
        # How much memory there is changes, but a number it is, and with a point.
        outputs.append(re.sub(r"\b(\d+|\d\.\d{3}) GB of memory are available", "X GB are available", output))
    assert "1234567" in outputs[0]
    assert "X GB are available" in outputs[0]
    assert outputs[1] == outputs[0]


# They follow the process's locale, or take a failing allocation for the end of the text, or both.
# src/cpp/core/numbers.cpp calls two of them where the library leaves no choice, and undoes what the locale did.
HEADERS = ["sstream", "fstream", "iostream", "iomanip", "locale", "clocale", "regex"]
CALLS = [
    r"sto(?:f|d|ld|i|l|ll|ul|ull)",
    r"strto(?:f|d|ld)",
    r"ato(?:f|i|l|ll)",
    r"v?[sf]?n?printf",
    r"s?n?scanf",
    r"setlocale",
    r"to(?:upper|lower)",
    r"is(?:space|alpha|alnum|digit|upper|lower|print|punct)",
]
FOLLOWS = re.compile(
    rf"#include <(?:{'|'.join(HEADERS)})>|\b(?:std::)?(?:{'|'.join(CALLS)})\(|\bstd::\w*(?:stream|locale)\w*"
)


def test_nothing_follows_the_locale() -> None:
    files = [file for file in (ROOT / "src" / "cpp").rglob("*") if file.suffix in {".h", ".cpp", ".inl", ".mm"}]
    assert files
    wrong = []
    for file in files:
        if file.name == "numbers.cpp":
            continue
        code = re.sub(r"//.*", "", file.read_text())
        wrong += [f"{file.name}: {text}" for text in FOLLOWS.findall(code)]
        # std::to_string of floats is printf's %f.
        wrong += [f"{file.name}: {text}" for text in re.findall(r"std::to_string\([^)]*\d\.\d[^)]*\)", code)]
    assert wrong == []
