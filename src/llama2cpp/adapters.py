"""LoRA adapters: files of peft's and llama.cpp's, and arrays, as what is computed beside a model's weights."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core
from ._core import FormatError
from .common.arguments import checked, float_array
from .common.not_pickled import NotPickled
from .common.sampling import Sampling
from .inside.html_views import size_text
from .inside.weights import reordered

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"

# What adapter_config.json may ask for beyond factors beside matrices, which would change what is computed.
_UNKNOWN = (
    "use_dora",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "arrow_config",
    "velora_config",
    "monteclora_config",
    "kasa_config",
    "megatron_config",
)
# Ways to begin a training that take something off the model's own weights.
_CHANGED_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")

_PREFIX = "base_model.model."


class HasCore(Protocol):
    """A `Model`, of which this much is needed."""

    @property
    def _core(self) -> _core.Model: ...


@dataclass
class _Factors:
    """What a file has beside one module."""

    a: NDArray[np.float32]  # [rank, columns]
    b: NDArray[np.float32]  # [rows, rank]
    scale: float

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])


class Adapter(NotPickled):
    """A LoRA adapter: for some matrices W of a model, factors A and B so that ``W x + scale * B (A x)`` is computed.

    Got from `Model.load_adapter`, or made of arrays by `from_arrays`. The model's weights stay as they are, quantized
    or not, and the adapter's products are float32. It is given to a session (``model.session(adapter=...)``) or to a
    call (``model.generate(..., adapter=...)``); sequences with different adapters, or none, may share a pass, and each
    gets the bits that it gets alone.

    Examples
    --------
    >>> import llama2cpp, numpy
    >>> model = llama2cpp.load("storyteller")
    >>> rng = numpy.random.default_rng(1)
    >>> a, b = rng.normal(size=(4, 192)), rng.normal(size=(192, 4))
    >>> adapter = llama2cpp.Adapter.from_arrays(model, {"model.layers.2.self_attn.o_proj": (a, b)}, alpha=8)
    >>> adapter
    <llama2cpp.Adapter: rank 4, beside 1 matrix, 6.1 kB>
    >>> texts = [model.generate("Once upon a time", max_tokens=8, temperature=0, adapter=x) for x in (None, adapter)]
    >>> texts[0] == texts[1]
    False
    """

    _instead = "load it again with model.load_adapter(path)"

    def __init__(self, core: _core.Adapter, modules: Sequence[str] = ()) -> None:
        if not isinstance(core, _core.Adapter):
            raise TypeError("Adapter: model.load_adapter(path) opens one, and Adapter.from_arrays makes one of arrays")
        self._core = core
        self._modules = tuple(modules)

    @classmethod
    @checked
    def from_arrays(
        cls,
        model: HasCore,
        arrays: Mapping[str, tuple[ArrayLike, ArrayLike]],
        *,
        alpha: float | None = None,
        rslora: bool = False,
    ) -> Adapter:
        """Make an adapter of factors that are in memory.

        Parameters
        ----------
        model : Model
            What it is for.
        arrays : mapping of str to (array, array)
            For each module the factors A [rank, columns] and B [rows, rank]. Modules are named as in peft,
            ``model.layers.{i}.self_attn.q_proj`` (``k_proj``, ``v_proj``, ``o_proj``) and
            ``model.layers.{i}.mlp.gate_proj`` (``up_proj``, ``down_proj``), and rows of B are in Hugging Face's order.
        alpha : float, optional
            The factors count alpha / rank; 1 if not given.
        rslora : bool
            They count alpha / sqrt(rank).

        Returns
        -------
        Adapter

        Raises
        ------
        ValueError
            For a module that the model does not have or beside which nothing is computed (embeddings, the output,
            norms, experts), factors of other shapes, numbers that are not finite, and on Metal.

        Examples
        --------
        >>> import llama2cpp, numpy
        >>> model = llama2cpp.load("storyteller")
        >>> factors = {f"model.layers.{i}.mlp.down_proj": (numpy.ones((2, 512)), numpy.zeros((192, 2))) for i in (0, 1)}
        >>> adapter = llama2cpp.Adapter.from_arrays(model, factors)
        >>> adapter.rank, adapter.modules
        (2, ('model.layers.0.mlp.down_proj', 'model.layers.1.mlp.down_proj'))
        """
        if not isinstance(getattr(model, "_core", None), _core.Model):
            raise TypeError(f"Adapter.from_arrays: model is {model!r:.60} ({type(model).__name__}), expected a Model")
        found = {}
        for module, pair in arrays.items():
            if not isinstance(module, str) or module != module.encode(errors="ignore").decode():
                raise TypeError(f"Adapter.from_arrays: arrays has the key {module!r:.60}, expected a module's name")
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise ValueError(f"Adapter.from_arrays: {module!r} is {type(pair).__name__}, expected a pair (A, B)")
            a, b = (_factor(factor, module) for factor in pair)
            if a.ndim != 2 or b.ndim != 2 or a.shape[0] < 1 or b.shape[1] != a.shape[0]:
                raise ValueError(
                    f"Adapter.from_arrays: the factors of {module!r} have shapes {list(a.shape)} and {list(b.shape)}, "
                    "expected [rank, columns] and [rows, rank]"
                )
            rank = a.shape[0]
            scale = 1.0 if alpha is None else _scale(alpha, rank, rslora=rslora)
            found[module] = _Factors(a, b, scale)
        try:
            return _made(model, found, gguf=False, architecture="")
        except ValueError as error:
            raise ValueError(f"Adapter.from_arrays: {error}") from None

    @property
    def rank(self) -> int:
        """The rank of its factors; the largest where they have several."""
        return self._core.rank

    @property
    def modules(self) -> tuple[str, ...]:
        """What it is beside, as its file calls it."""
        return self._modules

    @property
    def nbytes(self) -> int:
        """Bytes of its factors."""
        return self._core.bytes

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits of all that it computes: adapters with the same give the same bits."""
        return self._core.fingerprint

    def __copy__(self) -> Adapter:
        return self  # nothing changes it

    def __repr__(self) -> str:
        count = len(self._modules)
        matrices = "1 matrix" if count == 1 else f"{count} matrices"
        return f"<llama2cpp.Adapter: rank {self.rank}, beside {matrices}, {size_text(self.nbytes)}>"


def _factor(given: ArrayLike, module: str) -> NDArray[np.float32]:
    """Give a factor's numbers as float32; those that float32 has not become infinite, and are refused later."""
    try:
        if np.iscomplexobj(given):
            raise TypeError("its numbers are complex")
        with np.errstate(over="ignore"):
            return float_array(given)
    except (ValueError, TypeError) as error:
        raise type(error)(f"Adapter.from_arrays: a factor of {module!r} is no array of numbers: {error}") from None


def check_adapter(function: str, adapter: object, model: HasCore) -> None:
    """Refuse what is no adapter, or one of another model, before anything is computed.

    Parameters
    ----------
    function : str
        What was called, for the message.
    adapter : Adapter or None
        What was given.
    model : Model
        What is to compute with it.

    Raises
    ------
    TypeError
        For what is no adapter.
    ValueError
        For one of another model.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.adapters import check_adapter
    >>> check_adapter("generate", None, llama2cpp.load("storyteller"))
    """
    if adapter is None:
        return
    if not isinstance(adapter, Adapter):
        raise TypeError(
            f"{function}: adapter is {adapter!r:.60} ({type(adapter).__name__}), expected an Adapter: "
            "model.load_adapter(path) makes one"
        )
    if not adapter._core.fits(model._core):
        raise ValueError(f"{function}: the adapter was loaded for another model: load it with this one's load_adapter")


def adapter_of(sampling: Sampling) -> Adapter | None:
    """Give a call's adapter as what it is: `Sampling` knows less of it, since it stands below this module.

    Parameters
    ----------
    sampling : Sampling
        Whose adapter has been checked.

    Returns
    -------
    Adapter or None

    Examples
    --------
    >>> from llama2cpp.adapters import adapter_of
    >>> from llama2cpp.common.sampling import Sampling
    >>> adapter_of(Sampling()) is None
    True
    """
    return cast("Adapter | None", sampling.adapter)


def adapter_files(path: str | PathLike[str]) -> Path:
    """Find an adapter's files, without a model: what is not there is told before a model is opened.

    Parameters
    ----------
    path : str or path
        As for `load_adapter`.

    Returns
    -------
    pathlib.Path
        The folder, or the GGUF file.

    Raises
    ------
    FileNotFoundError
        If there is nothing of this name.
    FormatError
        For a folder that lacks one of peft's two files.
    ValueError
        For an empty path.

    Examples
    --------
    >>> from llama2cpp.adapters import adapter_files
    >>> adapter_files("nowhere")
    Traceback (most recent call last):
        ...
    FileNotFoundError: [Errno 2] No such file or directory: 'nowhere'
    """
    if fspath(path) == "":  # which is the current folder to Path
        raise ValueError("Model.load_adapter: path is '', expected a folder or a file")
    given = Path(path)
    if not given.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(given))
    if given.name == _CONFIG or (given.suffix == ".safetensors" and (given.parent / _CONFIG).exists()):
        given = given.parent
    if given.is_dir():
        if not (given / _CONFIG).exists():
            raise FormatError(f"{given}: expected {_CONFIG} and {_WEIGHTS}, as peft's save_pretrained writes them")
        if not (given / _WEIGHTS).exists() and (given / "adapter_model.bin").exists():
            raise FormatError(f"{given}: adapter_model.bin is not read: save the adapter with peft as safetensors")
    return given


def load_adapter(model: HasCore, path: str | PathLike[str]) -> Adapter:
    """Do what `Model.load_adapter` does.

    Parameters
    ----------
    model : Model
        What it is for.
    path : str or path
        A folder of peft's, or a GGUF file.

    Returns
    -------
    Adapter

    Raises
    ------
    FormatError
        As `Model.load_adapter`.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.adapters import load_adapter
    >>> load_adapter(llama2cpp.load("storyteller"), "nowhere")
    Traceback (most recent call last):
        ...
    FileNotFoundError: [Errno 2] No such file or directory: 'nowhere'
    """
    given = adapter_files(path)
    if given.is_dir():
        return _load_folder(model, given)
    read = _core.read_adapter_file(given)
    if not read["gguf"]:
        raise FormatError(f"{given}: a safetensors file without the {_CONFIG} that peft writes beside it")
    with _naming(given):
        found = _pairs(read["tensors"], ".weight.lora_a", ".weight.lora_b")
        alpha = read["alpha"]
        for module, (a, b) in found.items():
            _check_shapes(module, a, b)
        factors = {
            module: _Factors(a, b, _scale(alpha, a.shape[0]) if alpha else 1.0) for module, (a, b) in found.items()
        }
        return _made(model, factors, gguf=True, architecture=read["architecture"])


def _load_folder(model: HasCore, folder: Path) -> Adapter:
    config_path, weights_path = folder / _CONFIG, folder / _WEIGHTS
    with _naming(config_path):
        config = _Config(_json(config_path))
    read = _core.read_adapter_file(weights_path)
    with _naming(weights_path):
        found = _pairs(read["tensors"], ".lora_A.weight", ".lora_B.weight", config.refuse)
        factors = {}
        for name, (a, b) in found.items():
            module = name.removeprefix(_PREFIX)
            if len(module) > _LONGEST_NAME:
                raise FormatError(f"{module!r:.60} is no module: its name has {len(module)} characters")
            _check_shapes(name, a, b)
            rank = config.rank(module)
            if a.shape[0] != rank:
                raise FormatError(f"{name!r} has rank {a.shape[0]}, and {_CONFIG} says {rank}")
            # A model without its output matrix (peft of AutoModel) has no "model." before its layers.
            own = module if module.startswith("model.") or not module.startswith("layers.") else f"model.{module}"
            if own in factors:
                raise FormatError(f"{module!r} is there twice, by two names")
            factors[own] = _Factors(a, b, config.scale(module, rank))
        return _made(model, factors, gguf=False, architecture="", whole=config.whole_layers)


class _naming:  # noqa: N801  # as contextlib's
    """Put a file's name before errors of what is in it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, ValueError):
            raise FormatError(f"{self._path}: {error}") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_core.read_file(path))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise FormatError(f"expected JSON: {error}") from None
    if not isinstance(found, dict):
        raise FormatError(f"expected a JSON object, found {type(found).__name__}")
    return found


class _Config:
    """adapter_config.json: what is computed with a module's factors. Everything else in it would change that."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        kind = given.get("peft_type")
        if kind != "LORA":
            raise FormatError(f"peft_type is {kind!r}, expected 'LORA': other adapters are not implemented")
        for name in _UNKNOWN:
            if given.get(name):
                raise FormatError(f"{name} is {given[name]!r:.60}, which is not implemented")
        if given.get("fan_in_fan_out"):
            raise FormatError("fan_in_fan_out is true, which no model here has")
        if given.get("bias", "none") != "none":
            raise FormatError(
                f"bias is {given['bias']!r}, expected 'none': adapters that change biases are not implemented"
            )
        begun = given.get("init_lora_weights")
        if isinstance(begun, str) and begun.lower().startswith(_CHANGED_WEIGHTS):
            raise FormatError(
                f"init_lora_weights is {begun!r}: such a training changes the model's own weights; peft's "
                "save_pretrained(path_initial_model_for_weight_conversion=...) writes an adapter of the others"
            )
        self._r = _integer("r", given.get("r"))
        self._alpha = _number("lora_alpha", given.get("lora_alpha"))
        self._rslora = bool(given.get("use_rslora"))
        self._ranks = {k: _integer(f"rank_pattern[{k!r}]", v) for k, v in _mapping(given, "rank_pattern")}
        self._alphas = {k: _number(f"alpha_pattern[{k!r}]", v) for k, v in _mapping(given, "alpha_pattern")}
        for pattern in (*self._ranks, *self._alphas):
            _check_pattern(pattern)
        targets = given.get("target_modules")
        some = any(given.get(name) is not None for name in ("layers_to_transform", "layers_pattern", "exclude_modules"))
        # Whether what it has beside one layer, it has beside all.
        self.whole_layers = (
            isinstance(targets, list) and not some and not any(re.search(r"\d", str(t)) for t in targets)
        )

    def rank(self, module: str) -> int:
        return self._ranks.get(_pattern_of(self._ranks, module), self._r)

    def scale(self, module: str, rank: int) -> float:
        alpha = self._alphas.get(_pattern_of(self._alphas, module), self._alpha)
        return _scale(alpha, rank, rslora=self._rslora)

    def refuse(self, name: str) -> str:
        """Say what a tensor is that is no factor."""
        if "lora_magnitude_vector" in name:
            return "belongs to DoRA, which is not implemented"
        if "lora_embedding_" in name:
            return "is beside embeddings, and adapters are computed beside matrices of layers only"
        return "is no factor of a matrix (lora_A.weight or lora_B.weight), and such changes are not implemented"


# How many repetitions, and in how long a name, Python's matcher is quick to try in every way.
_MOST_REPETITIONS = 3
_LONGEST_NAME = 128
# One thing of a pattern, and how it is repeated.
_THING = re.compile(r"(\\.|\[\^?\]?[^\]]*\]|.)([*+?]|\{\d*,?\d*\})?", re.DOTALL)


def _check_pattern(pattern: str) -> None:
    """Refuse what would take long to match with a module's name, or is no pattern."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise FormatError(f"the pattern {pattern!r:.200} is no regular expression: {error}") from None
    things = _THING.finditer(pattern.replace("(?", "("))  # which marks a kind of group, and repeats nothing
    repeated = [thing.group(1) for thing in things if thing.group(2)]
    if ")" in repeated or len(repeated) > _MOST_REPETITIONS:
        raise FormatError(
            f"the pattern {pattern!r:.200} repeats a group, or more than {_MOST_REPETITIONS} things, which may take "
            "long to match"
        )


def _pattern_of(patterns: Mapping[str, Any], module: str) -> str:
    """Which key is a module's, as peft finds it: the first that matches its name, or its end from a dot on."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)


def _mapping(given: Mapping[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    found = given.get(name)
    if found is not None and not isinstance(found, dict):
        raise FormatError(f"{name} is {found!r:.60}, expected an object")
    yield from (found or {}).items()


def _integer(name: str, given: object) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given < 2**31:
        raise FormatError(f"{name} is {given!r:.60}, expected an integer of 1 or more")
    return given


def _number(name: str, given: object) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not abs(given) < math.inf:
        raise FormatError(f"{name} is {given!r:.60}, expected a number")
    return float(given)


def _scale(alpha: float, rank: int, *, rslora: bool = False) -> float:
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def _pairs(
    tensors: Mapping[str, NDArray[np.float32]],
    down: str,
    up: str,
    refuse: Any = None,  # noqa: ANN401
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Put the two factors of each module together."""
    found: dict[str, dict[str, NDArray[np.float32]]] = {}
    for name, array in tensors.items():
        ending = next((ending for ending in (down, up) if name.endswith(ending)), None)
        if ending is None:
            why = "is no factor of a matrix" if refuse is None else refuse(name)
            raise FormatError(f"tensor {name!r} {why}")
        found.setdefault(name.removesuffix(ending), {})[ending] = array
    for module, factors in found.items():
        for ending in (down, up):
            if ending not in factors:
                raise FormatError(f"tensor {module + ending!r} is missing")
    return {module: (factors[down], factors[up]) for module, factors in found.items()}


def _check_shapes(module: str, a: NDArray[np.float32], b: NDArray[np.float32]) -> None:
    if b.shape[1] != a.shape[0]:
        raise FormatError(
            f"the factors of {module!r} have shapes {list(a.shape)} and {list(b.shape)}, expected [rank, columns] and "
            "[rows, rank]"
        )


def _made(
    model: HasCore, found: Mapping[str, _Factors], *, gguf: bool, architecture: str, whole: bool = False
) -> Adapter:
    """Find the places of all factors, and make the adapter."""
    core = model._core
    if not found:
        raise FormatError("the adapter has no factors of any matrix")
    for module in found:
        if "expert" in module or "_exps" in module:
            raise FormatError(f"{module!r} is a part of experts, beside which adapters are not computed")
    config = core.config
    parts = []
    layers: dict[str, set[int]] = {}
    for (module, factors), targets in zip(
        found.items(), _core.adapter_targets(core, gguf, architecture, list(found)), strict=True
    ):
        rows, cols = sum(target[4] for target in targets), targets[0][5]
        if factors.a.shape[1] != cols or factors.b.shape[0] != rows:
            raise FormatError(
                f"the factors of {module!r} have shapes {list(factors.a.shape)} and {list(factors.b.shape)}, expected "
                f"[{factors.rank}, {cols}] and [{rows}, {factors.rank}] for this model"
            )
        for which, factor in (("A", factors.a), ("B", factors.b)):
            if not np.isfinite(factor).all():
                raise FormatError(f"factor {which} of {module!r} has numbers that are not finite")
        for part, name, layer, first, count, _, turned in targets:
            b = factors.b[first : first + count]
            if turned:  # the rows of each head, in the model's own order
                b = reordered(b, config, to_half_split=config.rope_style == "half_split")
            parts.append((part, layer, factors.scale, np.ascontiguousarray(factors.a), np.ascontiguousarray(b)))
            layers.setdefault(name, set()).add(layer)
    for name, own in layers.items():
        if whole and len(own) < config.n_layers:
            missing = next(i for i in range(config.n_layers) if i not in own)
            raise FormatError(
                f"there are factors of {name} in {len(own)} layers, and none in layer {missing} of the model's "
                f"{config.n_layers}: the adapter is of another model"
            )
    return Adapter(_core.Adapter(core, parts), list(found))
