"""``python -m llama2cpp`` is the ``llama2cpp`` command."""

from .command.cli import main

if __name__ == "__main__":
    main()
