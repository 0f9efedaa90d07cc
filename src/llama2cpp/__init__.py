"""Run Llama-family models fast, and see inside them with NumPy.

Examples
--------
>>> import llama2cpp
>>> model = llama2cpp.load("stories260K.bin", tokenizer="tok512.bin")
>>> model.generate("Once upon a time", max_tokens=20, temperature=0)
', there was a little girl named Lily. She loved to play outsid'
"""

from ._core import Config, ContextFullError, FormatError, Sampler, Tokenizer, __version__, build_info
from .conversation import Conversation, Turn, chat, chat_stream
from .generation import Completion, generate, stream
from .model import Model, from_arrays, load
from .session import Session

__all__ = [
    "Completion",
    "Config",
    "ContextFullError",
    "Conversation",
    "FormatError",
    "Model",
    "Sampler",
    "Session",
    "Tokenizer",
    "Turn",
    "__version__",
    "build_info",
    "chat",
    "chat_stream",
    "from_arrays",
    "generate",
    "load",
    "stream",
]
