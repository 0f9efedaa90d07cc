"""Fetch Apple's metal-cpp headers, and a library that Apple's tools linked: ``metal_cpp.py FOLDER``.

Both are in the wheel that tests/cpp/metal-cpp.txt pins. They are unpacked in FOLDER/mlx, unless they are there.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

PINNED = Path(__file__).parents[1] / "cpp" / "metal-cpp.txt"
HEADERS = "mlx/include/metal_cpp"
LIBRARY = "mlx/lib/libmlx.dylib"


def fetch(folder: Path) -> None:
    """Download the wheel through pip, which checks the hash, and unpack what is needed of it."""
    version = PINNED.read_text().split("==")[1].split()[0]
    done = folder / f"mlx-metal-{version}"
    if done.exists():
        return
    wheel = ["--no-deps", "--only-binary=:all:", "--platform", "macosx_13_0_arm64", "--python-version", "3.11"]
    pinned = ["--require-hashes", "-r", str(PINNED)]
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", *wheel, *pinned, "-d", str(folder)], check=True)
    (file,) = folder.glob(f"mlx_metal-{version}-*.whl")
    with zipfile.ZipFile(file) as unpacked:
        unpacked.extractall(folder, [n for n in unpacked.namelist() if n.startswith(HEADERS) or n == LIBRARY])
    file.unlink()
    done.touch()


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
