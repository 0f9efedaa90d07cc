"""Turn any checkpoint that `llama2cpp.load` reads into a file for this engine, llama2.c, llama.cpp or transformers.

Examples
--------
>>> import llama2cpp
>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     done = llama2cpp.export.convert("storyteller", f"{folder}/stories.gguf")
...     llama2cpp.load(done.path).generate("Once upon a time", max_tokens=12, temperature=0)
', in a green village, there lived a little boy named'
"""

from .calibration import Calibration
from .comparison import Comparison, TensorDifference, compare
from .conversion import Conversion, convert
from .picture import picture

__all__ = ["Calibration", "Comparison", "Conversion", "TensorDifference", "compare", "convert", "picture"]
