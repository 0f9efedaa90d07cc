"""A model's sizes under TransformerLens's names, for code that was written for it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from typing_extensions import Self

    from .._core import Config, Tokenizer


class Sized(Protocol):
    """A `Model`, as far as its sizes are concerned.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.inside.lens_config import Sized
    >>> model: Sized = llama2cpp.load("storyteller")
    """

    @property
    def config(self) -> Config:
        """See `Model`."""

    @property
    def context(self) -> int:
        """See `Model`."""

    @property
    def path(self) -> str:
        """See `Model`."""

    @property
    def has_tokenizer(self) -> bool:
        """See `Model`."""

    @property
    def tokenizer(self) -> Tokenizer:
        """See `Model`."""


@dataclass(frozen=True)
class LensConfig:
    """What ``model.cfg`` is.

    Attributes
    ----------
    n_layers, n_heads, n_key_value_heads : int
        How many layers, and how many heads of queries and of keys and values each has.
    d_model, d_head, d_mlp, d_vocab, d_vocab_out : int
        ``dim``, ``head_dim``, ``hidden_dim``, and ``vocab_size`` twice.
    n_ctx : int
        The context that the model was opened with.
    eps : float
        What the norms add before the square root.
    attn_scale : float
        What attention scores are divided by.
    rotary_base, rotary_dim : float, int
        Of the rotary embedding, which turns the whole head.
    rotary_adjacent_pairs : bool
        False: hooks and weights have half-split order, whatever the file's is.
    window_size : int or None
        How far back a token looks, if that is limited.
    default_prepend_bos : bool
        Whether texts get BOS before them.
    model_name : str
        The file's or folder's name.
    device, dtype : str
        "cpu", where arrays are on any backend, and "float32", which they are.
    attn_only, parallel_attn_mlp : bool
        Whether layers have no MLP (never), and whether MLPs read what attention reads.
    act_fn, normalization_type, positional_embedding_type, gated_mlp, final_rms
        "silu", "RMS", "rotary", True, True, as all Llamas have them; of other models also "gelu_pytorch_tanh", "relu2",
        "LN" and False.

    Examples
    --------
    >>> import llama2cpp
    >>> cfg = llama2cpp.load("storyteller").cfg
    >>> cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.d_head, cfg.d_mlp, cfg.d_vocab, cfg.n_ctx
    (5, 192, 6, 32, 512, 1536, 512)
    """

    n_layers: int
    n_heads: int
    n_key_value_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    d_vocab_out: int
    n_ctx: int
    eps: float
    attn_scale: float
    rotary_base: float
    rotary_dim: int
    window_size: int | None
    default_prepend_bos: bool
    model_name: str = ""
    device: str = "cpu"
    dtype: str = "float32"
    attn_only: bool = False
    parallel_attn_mlp: bool = False
    rotary_adjacent_pairs: bool = False
    act_fn: str = "silu"
    normalization_type: str = "RMS"
    positional_embedding_type: str = "rotary"
    gated_mlp: bool = True
    final_rms: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Give all of it as a dict.

        Returns
        -------
        dict

        Examples
        --------
        >>> import llama2cpp
        >>> llama2cpp.load("storyteller").cfg.to_dict()["n_layers"]
        5
        """
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, model: Sized) -> Self:
        """Read the sizes of a model.

        Parameters
        ----------
        model : Model

        Returns
        -------
        LensConfig

        Examples
        --------
        >>> import llama2cpp
        >>> from llama2cpp.inside.lens_config import LensConfig
        >>> LensConfig.of(llama2cpp.load("storyteller")).n_key_value_heads
        2
        """
        config = model.config
        return cls(
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            n_key_value_heads=config.n_kv_heads,
            d_model=config.dim,
            d_head=config.head_dim,
            d_mlp=config.hidden_dim,
            d_vocab=config.vocab_size,
            d_vocab_out=config.vocab_size,
            n_ctx=model.context,
            eps=config.norm_eps,
            attn_scale=1 / config.attention_multiplier if config.attention_multiplier else math.sqrt(config.head_dim),
            rotary_base=config.rope_theta,
            rotary_dim=config.rotary_dim or config.head_dim,
            window_size=config.sliding_window,
            act_fn={"gelu_tanh": "gelu_pytorch_tanh", "relu_squared": "relu2"}.get(
                config.activation, config.activation
            ),
            normalization_type="RMS" if config.norm == "rms" else "LN",
            gated_mlp=config.gated,
            final_rms=config.norm == "rms",
            model_name=Path(model.path).stem,
            parallel_attn_mlp=config.parallel,
            default_prepend_bos=not model.has_tokenizer or model.tokenizer.add_bos,
        )
