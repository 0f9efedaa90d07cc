"""A page in the browser that shows a model at work: ``llama2cpp explore``. It needs the extra ``server``."""
