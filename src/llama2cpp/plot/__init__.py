"""Pictures of what a model does, in matplotlib (``pip install "llama2cpp[notebook]"``).

Each function returns a figure of its own and leaves pyplot's alone; a notebook shows it where it is the last line of a
cell. Pictures have a white ground and dark text whatever style matplotlib is set to, so that they are read on light and
dark pages.

Examples
--------
>>> import llama2cpp
>>> model = llama2cpp.load("storyteller")
>>> logits, cache = model.run_with_cache("Once upon a time")
>>> figure = llama2cpp.plot.attention_patterns(cache, layer=2)
>>> figure.savefig("layer2.png")
"""

from .attention import attention_patterns
from .bars import attributions, next_tokens
from .damage import quantization_damage
from .grids import patching
from .lens import logit_lens
from .token_colors import token_values

__all__ = [
    "attention_patterns",
    "attributions",
    "logit_lens",
    "next_tokens",
    "patching",
    "quantization_damage",
    "token_values",
]
