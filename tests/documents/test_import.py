"""``import llama2cpp`` is light."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ["typer", "click", "rich", "torch", "transformers", "jinja2", "matplotlib", "asyncio", "urllib.request"]


def test_import_pulls_in_nothing_heavy() -> None:
    code = f"import sys, llama2cpp; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    code = "from llama2cpp import *; import llama2cpp; print(sorted(set(llama2cpp.__all__) - set(globals())))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
