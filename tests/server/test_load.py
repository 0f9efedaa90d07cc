"""A few seconds of load; ``tests/slow.sh load`` has minutes of it."""

from __future__ import annotations

import asyncio
import sys

import pytest
import server_load


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's memory in /proc")
def test_a_little_of_everything(capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(server_load.measure(12, 3))
    assert "exit code 0" in capsys.readouterr().out
