"""Run Llama-family models fast, and see inside them with NumPy.

Examples
--------
>>> import llama2cpp
>>> model = llama2cpp.load("stories260K.bin", tokenizer="tok512.bin")
>>> model.generate("Once upon a time", max_tokens=20, temperature=0)
', there was a little girl named Lily. She loved to play outsid'
"""

from . import export, interventions, plot
from ._core import Config, ContextFullError, FormatError, Sampler, Tokenizer, __version__, build_info
from .cache import ActivationCache
from .conversation import Conversation, Turn, chat, chat_stream
from .generation import Completion, generate, stream
from .hooks import HookPoint
from .html_views import TokenList
from .lens import LogitLens, logit_lens
from .model import Model, from_arrays, load
from .recording import Recording
from .session import Session

__all__ = [
    "ActivationCache",
    "Completion",
    "Config",
    "ContextFullError",
    "Conversation",
    "FormatError",
    "HookPoint",
    "LogitLens",
    "Model",
    "Recording",
    "Sampler",
    "Session",
    "TokenList",
    "Tokenizer",
    "Turn",
    "__version__",
    "build_info",
    "chat",
    "chat_stream",
    "export",
    "from_arrays",
    "generate",
    "interventions",
    "load",
    "logit_lens",
    "plot",
    "stream",
]
