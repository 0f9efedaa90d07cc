"""``python export/export.py`` is ``llama2cpp export``: the code is in src/llama2cpp/export, which is installed."""

import sys

from llama2cpp.command.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "export")
    main()
