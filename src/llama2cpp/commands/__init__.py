"""The parts of the ``llama2cpp`` command, a module each: options, their words, and calls of the package."""
