#!/bin/bash
# packaging 22.0 and 25.0 (pip carries a copy): a marker that orders `platform_release` raises InvalidVersion where the
# kernel's release is no version of PEP 440, as most of Linux's are, although the other part of its `and` is false already.
#
# So a build requirement that is meant for "macOS 13 and later" stops the installation on Linux, which does not want it.
# The specification of markers compares as versions only where both sides are such. packaging 26.2 says False.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
cat >"$folder/see.py" <<'PYTHON'
from packaging import __version__
from packaging.markers import Marker

marker = Marker("sys_platform == 'darwin' and platform_release >= '22'")
try:
    seen = str(marker.evaluate({"sys_platform": "linux", "platform_release": "6.5.0-1025-azure"}))
except Exception as error:
    seen = type(error).__name__
print(f"packaging {__version__}: {marker} on Linux 6.5.0-1025-azure: {seen}")
wanted = "False" if int(__version__.split(".")[0]) >= 26 else "InvalidVersion"
assert seen == wanted, f"this has changed: it was {wanted}"
PYTHON
for version in 22.0 25.0 26.2; do
  "$folder/venv/bin/pip" install -q "packaging==$version"
  "$folder/venv/bin/python" "$folder/see.py"
done
