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

from ._core import Config, ContextFullError, FormatError, Sampler, Tokenizer, __version__, build_info

if TYPE_CHECKING:
    from . import analysis, attribution, export, interventions, metrics, patching, plot, utils
    from .activation_data.means import MeanActivations
    from .activation_data.reading import ActivationData, read_activations
    from .adapters import Adapter
    from .common.usage import Usage
    from .decoding import Completion, TextStream
    from .defaults import chat, chat_stream, complete, generate, stream
    from .dialogue.conversation import Conversation, Turn
    from .inside.cache import ActivationCache
    from .inside.explanation import Explanation
    from .inside.factored_matrix import FactoredMatrix
    from .inside.hooks import HookPoint
    from .inside.html_views import TokenList
    from .inside.lens import LogitLens, logit_lens
    from .inside.recording import Recording
    from .lens_bridge import transformer_lens
    from .loading import from_arrays, load
    from .model import Model
    from .serving.engine import Engine, EngineStats
    from .serving.measures import Score
    from .serving.requests import Request
    from .session import Session

# The modules that these come from are imported when they are first used: `import llama2cpp` is quick. The same names as
# above, where type checkers look for them.
_IMPORTED_WHEN_USED = {
    "activation_data.means": ["MeanActivations"],
    "activation_data.reading": ["ActivationData", "read_activations"],
    "adapters": ["Adapter"],
    "common.usage": ["Usage"],
    "decoding": ["Completion", "TextStream"],
    "defaults": ["chat", "chat_stream", "complete", "generate", "stream"],
    "dialogue.conversation": ["Conversation", "Turn"],
    "inside.cache": ["ActivationCache"],
    "inside.explanation": ["Explanation"],
    "inside.factored_matrix": ["FactoredMatrix"],
    "inside.hooks": ["HookPoint"],
    "inside.html_views": ["TokenList"],
    "inside.lens": ["LogitLens", "logit_lens"],
    "inside.recording": ["Recording"],
    "lens_bridge": ["transformer_lens"],
    "loading": ["from_arrays", "load"],
    "model": ["Model"],
    "serving.engine": ["Engine", "EngineStats"],
    "serving.measures": ["Score"],
    "serving.requests": ["Request"],
    "session": ["Session"],
}

__all__ = [
    "ActivationCache",
    "ActivationData",
    "Adapter",
    "Completion",
    "Config",
    "ContextFullError",
    "Conversation",
    "Engine",
    "EngineStats",
    "Explanation",
    "FactoredMatrix",
    "FormatError",
    "HookPoint",
    "LogitLens",
    "MeanActivations",
    "Model",
    "Recording",
    "Request",
    "Sampler",
    "Score",
    "Session",
    "TextStream",
    "TokenList",
    "Tokenizer",
    "Turn",
    "Usage",
    "__version__",
    "analysis",
    "attribution",
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
    "read_activations",
    "stream",
    "transformer_lens",
    "utils",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    import importlib.util

    for module, names in _IMPORTED_WHEN_USED.items():
        if name in names:
            value = getattr(importlib.import_module(f".{module}", __name__), name)
            globals()[name] = value  # the next time it is found without this function
            return value
    if not name.startswith("_") and importlib.util.find_spec(f".{name}", __name__):
        return importlib.import_module(f".{name}", __name__)
    from .common.arguments import close_names

    raise AttributeError(f"module 'llama2cpp' has no attribute {name!r}{close_names(name, __all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
