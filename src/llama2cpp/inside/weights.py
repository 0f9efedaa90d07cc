"""The weights of a model by name: the file's own names, and TransformerLens's with its shapes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._core import Config
from ..common.arguments import checked, close_names, float_array, index
from ..common.not_pickled import NotPickled
from ..common.parts import EMBEDDING, EXPERT_PARTS, LAYER_PARTS, MODEL_PARTS, OUTPUT, Part, get_part, in_forward_order
from .activation_names import from_first
from .html_views import details_html, size_text, table
from .read_only_arrays import read_only

Array = NDArray[np.float32]

_READ_ONLY = (
    "the weights of a model are read-only: change a copy (weights[name].copy()), and make a model that has it by "
    "model.with_weights({name: copy})"
)

_MODEL = {part.lens: part for part in MODEL_PARTS}
_BLOCK = {part.lens: part for part in in_forward_order(LAYER_PARTS)}
_EXPERTS = {part.lens: part for part in EXPERT_PARTS}
_ALIASES = {name.rpartition(".")[2]: name for name in (EMBEDDING.lens, OUTPUT.lens)}
_ATTRIBUTES = {name.rpartition(".")[2]: name for name in _BLOCK}

# How a matrix [out, in] of a file becomes TransformerLens's.
#   same        as it is
#   transposed  [out, in] -> [in, out]
#   heads       [heads * head_dim, dim] -> [heads, dim, head_dim]; a bias [heads * head_dim] -> [heads, head_dim]
#   o           [dim, heads * head_dim] -> [heads, head_dim, dim]
Form = Literal["same", "transposed", "heads", "o"]

_HEADS: dict[str, Callable[[Config], int]] = {
    "q_dim": lambda config: config.n_heads,
    "kv_dim": lambda config: config.n_kv_heads,
}


def _form(part: Part) -> Form:
    if (part.columns if part.is_vector else part.rows) in _HEADS:
        return "heads"
    if part.kind not in ("matrix", "experts"):
        return "same"
    return "o" if part.columns in _HEADS else "transposed"


def _heads(part: Part, config: Config) -> int:
    """How many heads a part is cut into."""
    return next(_HEADS[size](config) for size in (part.rows, part.columns) if size in _HEADS)


def _find(name: str, n_layers: int) -> tuple[Part, str] | None:
    """Which part a TransformerLens name is, and llama2.c's name of it."""
    name = _ALIASES.get(name, name)
    if name in _MODEL:
        return _MODEL[name], _MODEL[name].at()
    match = re.fullmatch(r"blocks\.(0|[1-9]\d{0,8})\.(.+)", name, flags=re.ASCII)
    if match is None or int(match[1]) >= n_layers:
        return None
    if match[2] not in _BLOCK:
        expert = re.search(r"(?<=\.experts\.)(0|[1-9]\d{0,5})(?=\.)", match[2], flags=re.ASCII)
        part = _EXPERTS.get(match[2] if expert is None else match[2].replace(expert[0], "{}", 1))
        return None if part is None else (part, part.at(int(match[1]), 0 if expert is None else int(expert[0])))
    return _BLOCK[match[2]], _BLOCK[match[2]].at(int(match[1]))


def reordered(array: Array, config: Config, *, to_half_split: bool) -> Array:
    """Take rows [heads * head_dim, ...] from pairs (2j, 2j + 1) to pairs (j, j + rotary / 2), or back.

    Parameters
    ----------
    array : numpy.ndarray
        Rows of queries' or keys' heads.
    config : Config
        Says how wide a head is, and how much of it is turned.
    to_half_split : bool
        Which way.

    Returns
    -------
    numpy.ndarray
        A copy.

    Examples
    --------
    >>> import llama2cpp, numpy
    >>> from llama2cpp.inside.weights import reordered
    >>> config = llama2cpp.load("storyteller").config
    >>> reordered(numpy.arange(32.0), config, to_half_split=True)[:4].tolist()
    [0.0, 2.0, 4.0, 6.0]
    """
    rotary = config.rotary_dim or config.head_dim
    heads = array.reshape(-1, config.head_dim, *array.shape[1:])
    turned = heads[:, :rotary]
    inner = (rotary // 2, 2) if to_half_split else (2, rotary // 2)
    other = np.swapaxes(turned.reshape(-1, *inner, *array.shape[1:]), 1, 2).reshape(turned.shape)
    return np.concatenate((other, heads[:, rotary:]), axis=1).reshape(array.shape)


def _to_lens(array: Array, part: Part, config: Config) -> Array:
    form = _form(part)
    if part.rotary and config.rope_style == "interleaved":
        array = reordered(array, config, to_half_split=True)
    if form == "transposed":
        return np.transpose(array)
    if form == "o":
        by_head: Array = array.reshape(config.dim, _heads(part, config), config.head_dim)
        return np.moveaxis(by_head, 0, 2)
    if form == "heads":
        array = array.reshape(_heads(part, config), config.head_dim, *array.shape[1:])
        return np.swapaxes(array, 1, 2) if array.ndim == 3 else array
    return array


def _from_lens(array: Array, part: Part, config: Config) -> Array:
    form = _form(part)
    if form == "transposed":
        array = np.transpose(array)
    elif form == "o":
        array = np.moveaxis(array, 2, 0).reshape(config.dim, -1)
    elif form == "heads":
        array = np.swapaxes(array, 1, 2) if array.ndim == 3 else array
        array = np.reshape(array, (-1, *array.shape[2:]))
    if part.rotary and config.rope_style == "interleaved":
        array = reordered(array, config, to_half_split=False)
    return array


class _Source:
    """What both views read: a core, and which parts its file has under which name."""

    def __init__(self, core: _core.Model, *, computed: bool = False) -> None:
        self.core = core
        self.config = core.config
        self.tensors = {} if computed else core.file_tensors()
        own = {names[0]: name for name, (names, experts, *_) in self.tensors.items() if len(names) == 1 and not experts}
        # The file's name -> that of what is computed from.
        self.names = {own.get(name, name): name for name in core.weight_names()}
        self.parts = core.part_names()

    def array(self, name: str) -> Array:
        """Decode what the file has by that name, which is one of `names` or `tensors`."""
        if name not in self.tensors:
            return self.core.weight(self.names[name])
        names, experts, turned, without_one = self.tensors[name]
        if without_one:
            return self.core.stored_gain(name)
        if len(names) == 1 and not experts:
            return self.core.weight(names[0])
        arrays = [self.core.weight(each) for each in names]
        if not experts:
            return np.concatenate(arrays)
        each = len(arrays) // experts
        of_expert = [arrays[i : i + each] for i in range(0, len(arrays), each)]
        if not turned:
            return np.stack([np.concatenate(rows) for rows in of_expert])
        # A row of each in turn, and columns first; biases [n] have no columns.
        rows = np.stack([np.stack(one, axis=1).reshape(-1, *one[0].shape[1:]) for one in of_expert])
        return np.ascontiguousarray(np.swapaxes(rows, 1, 2)) if rows.ndim == 3 else rows

    def info(self, name: str) -> dict[str, Any]:
        """How the weights lie that are what the file has by that name, which is one of `tensors`."""
        names, experts, turned, _ = self.tensors[name]
        infos = [self.core.weight_info(each) for each in names]
        rows = sum(info["shape"][0] for info in infos)
        shape = (rows, *infos[0]["shape"][1:])
        if experts:
            of_one = (rows // experts, *shape[1:])
            shape = (experts, *(of_one[::-1] if turned else of_one))
        return {"format": infos[0]["format"], "shape": shape, "bytes": sum(info["bytes"] for info in infos)}

    def show(self, array: Array) -> Array:
        """Refuse writing: it would reach no model, or a file that is mapped for reading."""
        return read_only(array, _READ_ONLY)

    def counted(self, name: str) -> str:
        """Count a layer in a name from the first: that of "blocks.-1.attn.W_Q" is the last."""
        return from_first(name, self.config.n_layers) if isinstance(name, str) else name

    def unknown(self, name: object) -> str:
        """Say that there is no such weight, and which one may be meant."""
        known = [*self.names, *self.lens_names(), *_ALIASES]
        ends = [other for other in known if other.lower().endswith(f".{str(name).lower()}")]  # "W_Q" of some layer
        close = f"; close to it is {ends[0]}" if ends else close_names(name, known)
        some = "" if close else f"; it has {', '.join([*self.names][:3])} and so on: see list(model.weights)"
        return f"the model has no weight {name!r}{close}{some}"

    def lens_names(self) -> Iterator[str]:
        """Give TransformerLens's names of what the model has, in the order of the forward."""
        experts = range(self.config.n_experts or 0)
        names = [*_BLOCK]
        for part in EXPERT_PARTS:
            names += [part.lens.format(e) for e in experts] if part.per_expert else [part.lens]
        layers = (f"blocks.{i}.{name}" for i in range(self.config.n_layers) for name in names)
        first, *last = _MODEL
        for name in (first, *layers, *last):
            if self.place(name) is not None:
                yield name

    def place(self, name: str) -> tuple[Part, str] | None:
        """Find a TransformerLens name's part and its name in the file; None if the model has no such weight."""
        found = _find(name, self.config.n_layers) if isinstance(name, str) else None
        if found is None:
            return None
        part, own = found
        if part is OUTPUT and self.config.tied:
            own = EMBEDDING.at()
        return (part, self.parts[own]) if own in self.parts else None

    def shape(self, name: str) -> tuple[int, ...]:
        """Get the shape of a TransformerLens name's array, without decoding it."""
        part, file_name = self.place(name) or (None, "")
        assert part is not None
        shape = self.core.weight_info(file_name)["shape"]
        return _to_lens(np.broadcast_to(np.float32(0), shape), part, self.config).shape


class LensWeights(NotPickled, Mapping[str, NDArray[np.float32]]):
    """The weights of a model under TransformerLens's names and in its shapes, decoded to float32 when asked for.

    Got from ``model.weights.transformer_lens``; ``model.weights`` takes these names too.

    ================================  =============================  =================================================
    name                              shape                          what it is
    ================================  =============================  =================================================
    ``embed.W_E`` (or ``W_E``)        [vocab_size, dim]              one row for each token
    ``blocks.{i}.ln1.w``              [dim]                          gain before attention; ``ln2.w`` before the MLP
    ``blocks.{i}.attn.W_Q``           [n_heads, dim, head_dim]       queries
    ``blocks.{i}.attn.W_K``, ``W_V``  [n_kv_heads, dim, head_dim]    keys and values; query head h reads head
                                                                     ``h // (n_heads // n_kv_heads)``
    ``blocks.{i}.attn.W_O``           [n_heads, head_dim, dim]       from heads to the residual stream
    ``blocks.{i}.mlp.W_gate``         [dim, hidden_dim]              into the gate, ``hook_pre``
    ``blocks.{i}.mlp.W_in``           [dim, hidden_dim]              into ``hook_pre_linear``
    ``blocks.{i}.mlp.W_out``          [hidden_dim, dim]              from neurons to the residual stream
    ``ln_final.w``                    [dim]                          gain before the output
    ``unembed.W_U`` (or ``W_U``)      [dim, vocab_size]              one column for each token
    ================================  =============================  =================================================

    Where layers have experts: ``mlp.gate.W`` [dim, n_experts] of the router, and for each expert
    ``mlp.experts.{e}.W_gate``, ``W_in`` and ``W_out``; in gpt-oss biases of all of them too, ``mlp.gate.b`` and
    ``mlp.experts.{e}.b_gate``, ``b_in`` and ``b_out``, and ``attn.sinks`` [n_heads]. Where a model has norms of queries
    and keys:
    ``attn.q_norm.w``, ``attn.k_norm.w`` [head_dim], or as long as all heads are together. Biases, where a model has
    some: ``attn.b_Q`` [n_heads, head_dim], ``b_K`` and ``b_V`` [n_kv_heads, head_dim], ``b_O`` [dim],
    ``mlp.b_gate`` and ``b_in`` [hidden_dim], ``b_out`` [dim]. Queries and keys are in half-split order (pairs j and
    j + head_dim / 2), as hooks show them, whatever the file's order is. Nothing is folded into anything: these are
    the numbers of the file. Source of names and shapes: TransformerLens 4.3.

    Examples
    --------
    >>> import llama2cpp
    >>> weights = llama2cpp.load("storyteller").weights.transformer_lens
    >>> weights["blocks.0.attn.W_Q"].shape, weights["blocks.0.attn.W_K"].shape
    ((6, 192, 32), (2, 192, 32))
    >>> list(weights)[:3]
    ['embed.W_E', 'blocks.0.ln1.w', 'blocks.0.attn.W_Q']
    """

    _instead = "dict(weights) holds copies of the arrays, and a model that has a file can be pickled"

    def __init__(self, source: _Source) -> None:
        self._source = source

    def __getitem__(self, name: str) -> Array:
        name = self._source.counted(name)
        found = self._source.place(name)
        if found is None:
            raise KeyError(self._source.unknown(name))
        part, file_name = found
        return self._source.show(_to_lens(self._source.core.weight(file_name), part, self._source.config))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._source.place(self._source.counted(name)) is not None

    def __iter__(self) -> Iterator[str]:
        return self._source.lens_names()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _ipython_key_completions_(self) -> list[str]:
        return [*self, *_ALIASES]

    def __repr__(self) -> str:
        return f"<llama2cpp.LensWeights: {len(self)} matrices>"


class Weights(NotPickled, Mapping[str, NDArray[np.float32]]):
    """The parameter matrices of a model by name, decoded to float32 when asked for.

    Got from ``model.weights``. Iterating gives the names in the file, and of a tensor that holds several weights
    (``qkv_proj`` of a Phi-3, all experts' of a GraniteMoE) a name for each; its own name gives it whole. Numbers are
    the file's: Gemma's gains are without the 1 that is added to them, which TransformerLens's ``ln1.w`` has. Where the
    file holds float32 the array is a view of it. TransformerLens's names (see `transformer_lens`) are taken too.
    Nothing decoded is kept.

    All of them are read-only, because what is written into a view or a decoded copy would change no model: edit
    ``weights[name].copy()`` and give it to `Model.with_weights`. ``torch.from_dlpack`` gets a copy;
    ``torch.from_numpy`` ignores the flag, so use ``torch.tensor(weights[name])``.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> model.weights["layers.0.attention.wk.weight"].shape
    (64, 192)
    >>> model.weights["blocks.0.attn.W_K"].shape
    (2, 192, 32)
    >>> len(model.weights)
    47
    """

    _instead = "dict(weights) holds copies of the arrays, and a model that has a file can be pickled"

    def __init__(self, core: _core.Model) -> None:
        self._source = _Source(core)

    @property
    def transformer_lens(self) -> LensWeights:
        """The same weights under TransformerLens's names only, as a mapping to iterate over."""
        return LensWeights(self._source)

    def __getitem__(self, name: str) -> Array:
        name = self._source.counted(name)
        if name in self._source.names or name in self._source.tensors:
            return self._source.show(self._source.array(name))
        return self.transformer_lens[name]

    def __setitem__(self, name: str, value: object) -> NoReturn:
        raise TypeError(_READ_ONLY)

    def __delitem__(self, name: str) -> NoReturn:
        raise TypeError(_READ_ONLY)

    def __contains__(self, name: object) -> bool:
        counted = self._source.counted(name) if isinstance(name, str) else name
        known = counted in self._source.names or counted in self._source.tensors
        return known or counted in self.transformer_lens

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.names)

    def __len__(self) -> int:
        return len(self._source.names)

    def _ipython_key_completions_(self) -> list[str]:
        return [*self, *self.transformer_lens, *_ALIASES]

    def info(self, name: str) -> dict[str, Any]:
        """How one matrix lies in the file, without decoding it.

        Parameters
        ----------
        name : str
            The name in the file, or TransformerLens's.

        Returns
        -------
        dict
            ``shape`` in the file, [rows, columns] or [columns], ``format`` (such as "f32") and ``bytes`` in the file.

        Raises
        ------
        KeyError
            If the model has no weight of that name.

        Examples
        --------
        >>> import llama2cpp
        >>> llama2cpp.load("storyteller").weights.info("norm.weight")["format"]
        'f32'
        """
        name = self._source.counted(name)
        if name in self._source.names:
            return self._source.core.weight_info(self._source.names[name])
        if name in self._source.tensors:
            return self._source.info(name)
        found = self._source.place(name)
        if found is None:
            raise KeyError(self._source.unknown(name))
        return self._source.core.weight_info(found[1])

    @checked
    def head(self, name: str, head: int) -> Array:
        """Decode one head of a matrix of attention, and nothing else of it.

        Parameters
        ----------
        name : str
            TransformerLens's: "blocks.0.attn.W_Q", ``W_K``, ``W_V``, ``W_O``, or one of the biases ``b_Q``, ``b_K``,
            ``b_V``.
        head : int
            Which; negative counts from the last. ``W_K`` and ``W_V`` have n_kv_heads of them.

        Returns
        -------
        numpy.ndarray
            float32: what ``weights[name][head]`` is. [dim, head_dim], for ``W_O`` [head_dim, dim], [head_dim] for a
            bias.

        Raises
        ------
        KeyError
            If the model has no weight of that name.
        ValueError
            If the weight has no heads, or no such head.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> model.weights.head("blocks.4.attn.W_O", 2).shape
        (32, 192)
        """
        found = self._source.place(self._source.counted(name))
        if found is None:
            raise KeyError(self._source.unknown(name))
        part, file_name = found
        core, config = self._source.core, self._source.config
        form = _form(part)
        if form not in ("heads", "o"):
            raise ValueError(f"{name!r} has no heads")
        heads = _heads(part, config)
        if not -heads <= head < heads:
            raise ValueError(f"head is {head}, but {name!r} has {heads}")
        begin, size = head % heads * config.head_dim, config.head_dim
        if form == "o":
            return self._source.show(np.transpose(core.weight_columns(file_name, begin, size)))
        if part.is_vector:
            bias: Array = self[name][head % heads]
            return bias
        rows = core.weight_rows(file_name, range(begin, begin + size))  # [head_dim, dim]
        if part.rotary and config.rope_style == "interleaved":
            rows = reordered(rows, config, to_half_split=True)
        return self._source.show(np.transpose(rows))

    def release(self, name: str) -> None:
        """Let a weight's pages leave memory, where it lies in a mapped file. They come back when it is used again.

        For reading a large file from end to end: pages of a mapped file count as the process's memory.

        Parameters
        ----------
        name : str
            The name in the file.

        Raises
        ------
        KeyError
            If the file has no weight of that name.

        Examples
        --------
        >>> import llama2cpp
        >>> weights = llama2cpp.load("storyteller").weights
        >>> gain = weights["norm.weight"]
        >>> weights.release("norm.weight")
        >>> bool((weights["norm.weight"] == gain).all())
        True
        """
        name = self._source.counted(name)
        if name not in self._source.names:
            raise KeyError(self._source.unknown(name))
        self._source.core.release_weight(self._source.names[name])

    def __repr__(self) -> str:
        return f"<llama2cpp.Weights: {len(self)} matrices, {size_text(self._bytes())}>"

    def _bytes(self) -> int:
        return sum(self.info(name)["bytes"] for name in self)

    def _repr_html_(self) -> str:
        def rows(names: Iterable[str]) -> list[tuple[str, str, str, str]]:
            # One line for a matrix of all layers, where they agree.
            families: dict[tuple[str, str, str], list[int]] = {}
            for name in names:
                info = self.info(name)
                shape = info["shape"] if name in self._source.names else self._source.shape(name)
                family = re.sub(r"(?<=\.)\d+(?=\.)", "{i}", name, count=1)
                families.setdefault((family, str(list(shape)), info["format"]), []).append(info["bytes"])
            return [
                (f"{family} ({len(sizes)})" if "{i}" in family else family, shape, form, size_text(sum(sizes)))
                for (family, shape, form), sizes in families.items()
            ]

        head = ("name", "shape", "format in the file", "bytes")
        lens = details_html("by TransformerLens's names", table(head, rows(self.transformer_lens)))
        title = f"<p><b>llama2cpp.Weights</b>: {len(self)} matrices, {size_text(self._bytes())}, read-only</p>"
        return title + table(head, rows(self)) + lens


def computed(weights: Weights) -> Weights:
    """Give the weights by the names, and with the numbers, that all families have in common: what is computed from."""
    made = Weights.__new__(Weights)
    made._source = _Source(weights._source.core, computed=True)
    return made


def edited(core: _core.Model, edits: Mapping[str, Any]) -> _core.Model:
    """Make a model with some weights replaced. See `Model.with_weights`, whose docstring this is."""
    source = _Source(core)
    arrays: dict[str, Array] = {}
    given: dict[str, str] = {}  # name in the file -> name in `edits`
    untie = False
    for named, edit in edits.items():
        name = source.counted(named)
        if name in source.tensors and name not in source.names:
            raise ValueError(
                f"{name!r} holds several weights: give them by their names, such as {source.tensors[name][0][0]!r}"
            )
        found = None if name in source.names else source.place(name)
        if found is None and name not in source.names:
            raise ValueError(source.unknown(name))
        expected = source.shape(name) if found else tuple(core.weight_info(source.names[name])["shape"])
        array: Array = np.array(float_array(edit), order="C")
        if array.shape != expected:
            raise ValueError(f"{name!r} has shape {list(array.shape)}, expected {list(expected)}")
        target = source.names.get(name, name)
        if name in source.tensors and source.tensors[name][3]:
            array += np.float32(1)
        if found is not None:
            part, target = found
            array = np.ascontiguousarray(_from_lens(array, part, source.config))
            if source.config.tied and part is OUTPUT:
                target = OUTPUT.at()  # the model has none yet: the core takes Llama's own name
            untie = untie or (source.config.tied and part is EMBEDDING)
        if target in arrays:
            raise ValueError(f"{name!r} and {given[target]!r} are the same weight")
        arrays[target], given[target] = array, name
    return core.with_weights(arrays, untie)


class StackedWeights:
    """What `Model` has of TransformerLens's matrices by attribute: those of all layers in one array.

    They are decoded anew each time: keep what is used twice. All are float32 and read-only, as in `Weights`.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> model.W_Q.shape, model.W_U.shape
    ((5, 6, 192, 32), (192, 1536))
    """

    if TYPE_CHECKING:  # what a model has

        @property
        def config(self) -> Config:
            """See `Model`."""
            raise NotImplementedError

        @property
        def weights(self) -> Weights:
            """See `Model`."""
            raise NotImplementedError

        def to_single_token(self, text: str) -> int:
            """See `Model`."""
            raise NotImplementedError

    def _stack(self, attribute: str) -> Array:
        name = _ATTRIBUTES.get(attribute, attribute)
        names = [f"blocks.{i}.{name}" for i in range(self.config.n_layers)]
        if names[0] not in self.weights:
            raise AttributeError(f"the model has no {attribute}")
        layers = [self.weights[name] for name in names]
        _core.need_memory(sum(array.nbytes for array in layers), f"an array of {name} of all layers", "use `weights`")
        return self.weights._source.show(np.stack(layers))

    @property
    def W_E(self) -> Array:  # noqa: N802 - TransformerLens's name
        """Embeddings, [vocab_size, dim]."""
        return self.weights[EMBEDDING.lens]

    @property
    def W_U(self) -> Array:  # noqa: N802
        """Output matrix, [dim, vocab_size]: what `unembed` multiplies with."""
        return self.weights[OUTPUT.lens]

    @property
    def W_Q(self) -> Array:  # noqa: N802
        """Query matrices, [n_layers, n_heads, dim, head_dim]."""
        return self._stack("W_Q")

    @property
    def W_K(self) -> Array:  # noqa: N802
        """Key matrices, [n_layers, n_kv_heads, dim, head_dim]."""
        return self._stack("W_K")

    @property
    def W_V(self) -> Array:  # noqa: N802
        """Value matrices, [n_layers, n_kv_heads, dim, head_dim]."""
        return self._stack("W_V")

    @property
    def W_O(self) -> Array:  # noqa: N802
        """Attention's output matrices, [n_layers, n_heads, head_dim, dim]."""
        return self._stack("W_O")

    @property
    def W_gate(self) -> Array:  # noqa: N802
        """Gate matrices of the MLPs, [n_layers, dim, hidden_dim]."""
        return self._stack("W_gate")

    @property
    def W_in(self) -> Array:  # noqa: N802
        """Input matrices of the MLPs, [n_layers, dim, hidden_dim]."""
        return self._stack("W_in")

    @property
    def W_out(self) -> Array:  # noqa: N802
        """Output matrices of the MLPs, [n_layers, hidden_dim, dim]."""
        return self._stack("W_out")

    def tokens_to_residual_directions(self, tokens: int | str | Sequence[int] | NDArray[Any]) -> Array:
        """Get the directions of the residual stream that the logits of some tokens are read along: columns of `W_U`.

        Only these columns are decoded.

        Parameters
        ----------
        tokens : int, str or array of int [...]
            Ids, or the text of one token.

        Returns
        -------
        numpy.ndarray
            float32 [..., dim]; [dim] for one token. Without the gain of the last norm: `ActivationCache.logit_attrs`
            multiplies with it.

        Raises
        ------
        ValueError
            For an id outside the vocabulary, or a text that is not one token.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> model.tokens_to_residual_directions([508, 509]).shape
        (2, 192)
        """
        ids = np.asarray(self.to_single_token(tokens) if isinstance(tokens, str) else tokens)
        if ids.dtype.kind not in "iu":
            raise ValueError(f"tokens have dtype {ids.dtype}, expected integers")
        source = self.weights._source
        found = source.place(OUTPUT.lens)
        assert found is not None
        rows = source.core.weight_rows(found[1], [int(id) for id in ids.ravel()])
        scaled: Array = rows.reshape(*ids.shape, self.config.dim) / np.float32(self.config.logits_scaling)
        return scaled

    @checked
    def accumulated_bias(self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True) -> Array:
        """Sum the biases that layers before `layer` add to the residual stream.

        Parameters
        ----------
        layer : int
            From 0 to ``config.n_layers``, which -1 stands for too; -2 is the last layer.
        mlp_input : bool
            Include that of the attention of `layer` itself.
        include_mlp_biases : bool
            Include those of the MLPs.

        Returns
        -------
        numpy.ndarray
            float32 [dim]; zeros for a model without biases, as most Llamas are. Those of experts are not in it: which
            are added is up to the router.

        Raises
        ------
        ValueError
            For a model with biases before norms (``config.norm_places`` is "after" or "both"): what they add depends on
            the run, as `ActivationCache.get_full_resid_decomposition` has it. For the MLP's input in a model (parallel)
            where that is attention's.

        Examples
        --------
        >>> import llama2cpp
        >>> float(llama2cpp.load("storyteller").accumulated_bias(5).sum())
        0.0
        """
        n_layers = self.config.n_layers
        layer = index(layer, n_layers + 1, "layer", "accumulated_bias")
        if mlp_input and layer == n_layers:
            raise ValueError(f"accumulated_bias: layer is {layer}, and there is no MLP after the last layer")
        if mlp_input and self.config.parallel:
            raise ValueError("accumulated_bias: in this model (parallel) MLPs read what attention reads")
        attention, mlp = get_part("bo"), get_part("b2")
        names = [f"blocks.{i}.{attention.lens}" for i in range(layer + (1 if mlp_input else 0))]
        names += [f"blocks.{i}.{mlp.lens}" for i in range(layer)] if include_mlp_biases else []
        total = np.zeros(self.config.dim, dtype=np.float32)
        for name in names:
            if name not in self.weights:
                continue
            if self.config.norm_places != "before":
                raise ValueError(
                    f"accumulated_bias: norm_places is {self.config.norm_places!r}, so what {name!r} adds depends on "
                    f"the run: see ActivationCache.get_full_resid_decomposition"
                )
            total += self.weights[name]
        total *= np.float32(self.config.residual_multiplier)
        return total
