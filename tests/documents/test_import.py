"""``import llama2cpp`` is light."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

HEAVY = ["typer", "click", "rich", "torch", "transformers", "jinja2", "matplotlib", "asyncio", "urllib.request"]


def test_import_pulls_in_nothing_heavy() -> None:
    code = f"import sys, llama2cpp; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    code = "from llama2cpp import *; import llama2cpp; print(sorted(set(llama2cpp.__all__) - set(globals())))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.skipif((sys.platform, platform.machine()) != ("darwin", "arm64"), reason="Metal is on Apple silicon only")
def test_a_build_for_a_mac_has_metal() -> None:
    """Whether there is a GPU to use it is another question: hosted runners have none."""
    import llama2cpp

    assert llama2cpp.build_info().get("no_metal") != "this build does not have it"
