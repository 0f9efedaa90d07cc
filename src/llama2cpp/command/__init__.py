"""The ``llama2cpp`` command: its subcommands, what they print, and the terminal."""
