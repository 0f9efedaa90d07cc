"""Run Llama-family models fast, and see inside them with NumPy.

Examples
--------
>>> import llama2cpp
>>> model = llama2cpp.load("storyteller")
>>> model.generate("Once upon a time", max_tokens=20, temperature=0)
', in a green village, there lived a little boy named Jonas and a little boy named Henry.'
"""

from .command import early_interrupt  # noqa: F401 - before what takes long to import

# isort: split

from typing import TYPE_CHECKING, Any

from . import interventions, metrics, patching, plot
from ._core import Config, ContextFullError, FormatError, Sampler, Tokenizer, __version__, build_info
from .defaults import chat, chat_stream, complete, generate, stream
from .dialogue.conversation import Conversation, Turn
from .generation import Completion
from .inside.cache import ActivationCache
from .inside.hooks import HookPoint
from .inside.html_views import TokenList
from .inside.lens import LogitLens, logit_lens
from .inside.recording import Recording
from .loading import from_arrays, load
from .model import Model
from .serving.engine import Engine, EngineStats
from .serving.measures import Score
from .serving.requests import Request, Usage
from .session import Session

if TYPE_CHECKING:
    from . import export

__all__ = [
    "ActivationCache",
    "Completion",
    "Config",
    "ContextFullError",
    "Conversation",
    "Engine",
    "EngineStats",
    "FormatError",
    "HookPoint",
    "LogitLens",
    "Model",
    "Recording",
    "Request",
    "Sampler",
    "Score",
    "Session",
    "TokenList",
    "Tokenizer",
    "Turn",
    "Usage",
    "__version__",
    "build_info",
    "chat",
    "chat_stream",
    "complete",
    "export",
    "from_arrays",
    "generate",
    "interventions",
    "load",
    "logit_lens",
    "metrics",
    "patching",
    "plot",
    "stream",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name == "export":  # the exporter is loaded when it is first used
        import importlib

        return importlib.import_module("llama2cpp.export")
    from .common.arguments import close_names

    raise AttributeError(f"module 'llama2cpp' has no attribute {name!r}{close_names(name, __all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
