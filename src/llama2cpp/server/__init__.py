"""A server whose requests have the shape of OpenAI's: ``llama2cpp serve``. It needs the extra ``server``."""
