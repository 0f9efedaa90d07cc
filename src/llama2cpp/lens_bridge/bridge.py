"""The bridge: TransformerLens's ``RemoteBridge`` with hooks that act in the run, and with weights."""

# ruff: noqa: ANN401 - what TransformerLens passes is anything
from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformer_lens import FactoredMatrix
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge.bridge_core import BridgeCore
from transformer_lens.model_bridge.composition_scores import CompositionScores
from transformer_lens.model_bridge.driver_protocol import ForwardResult
from transformer_lens.model_bridge.remote_bridge import RemoteBridge
from transformer_lens.utilities.matrix import composition_scores

from ..inside.activation_names import MODULE_NAMES, by_module
from .bridge_tokenizer import BridgeTokenizer, filled_up
from .driver import Driver, acting, as_array
from .weights import BridgeWeights

if TYPE_CHECKING:
    from ..model import Model

_FLAGS = ("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in")


def _config(model: Model) -> Any:
    """Give the sizes in TransformerLens's own class."""
    sizes = model.cfg
    return TransformerBridgeConfig(
        d_model=sizes.d_model,
        d_head=sizes.d_head,
        n_layers=sizes.n_layers,
        n_ctx=sizes.n_ctx,
        n_heads=sizes.n_heads,
        d_vocab=sizes.d_vocab,
        d_mlp=sizes.d_mlp,
        architecture="llama2cpp",
        model_name=sizes.model_name,
        act_fn=sizes.act_fn,
        eps=sizes.eps,
        attn_scale=sizes.attn_scale,
        normalization_type=sizes.normalization_type,
        positional_embedding_type=sizes.positional_embedding_type,
        n_key_value_heads=sizes.n_key_value_heads,
        gated_mlp=sizes.gated_mlp,
        final_rms=sizes.final_rms,
        uses_rms_norm=sizes.final_rms,
        parallel_attn_mlp=sizes.parallel_attn_mlp,
        default_prepend_bos=sizes.default_prepend_bos,
        tokenizer_prepends_bos=sizes.default_prepend_bos,
        output_logits_soft_cap=model.config.logits_cap or -1.0,
        device="cpu",
        dtype=torch.float32,
    )


class Bridge(RemoteBridge):  # type: ignore[misc]
    """What `llama2cpp.transformer_lens` makes.

    Examples
    --------
    See `llama2cpp.transformer_lens`.
    """

    def __init__(self, model: Model, *, fold_ln: bool = False) -> None:
        config = _config(model)
        tokenizer = BridgeTokenizer(model) if model.has_tokenizer else None
        # There is no architecture to adapt: the names of points are TransformerLens's already.
        adapter = SimpleNamespace(
            cfg=config, component_mapping={}, supports_hf_output_attentions=False, bool_4d_mask_is_keep=True
        )
        self.model = model
        self._weights = BridgeWeights(model, fold_ln)
        super().__init__(adapter, tokenizer, Driver(model, config, tokenizer))
        blocks = (f"blocks.{i}.{name}" for i in range(model.config.n_layers) for name in MODULE_NAMES)
        self._other_names = {}
        for name in (*blocks, "embed.hook_out", "ln_final.hook_in"):
            own = by_module(name, model.config)
            if own != name and own in self._hook_registry:
                self._other_names[name] = own

    def __repr__(self) -> str:
        return f"<llama2cpp's bridge to {self.model!r}>"

    # --- hooks

    @property
    def hook_dict(self) -> dict[str, Any]:
        """All points by name, and under their names by module."""
        points: dict[str, Any] = self._hook_registry
        return points | {name: self._hook_registry[own] for name, own in self._other_names.items()}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("hook_") and name in self.__dict__.get("_hook_registry", {}):
            return self._hook_registry[name]
        raise AttributeError(f"the bridge has no {name!r}")

    def _hooked(self) -> dict[str, Callable[[torch.Tensor], Any]]:
        """Points that somebody looks at, and are switched on."""
        return {
            name: point
            for name, point in self._hook_registry.items()
            if point.fwd_hooks and self._gated_hook_reason(name) is None
        }

    def forward(
        self,
        input: Any = None,
        *,
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        labels: Any = None,
        input_ids: Any = None,
        intervene: Mapping[str, Callable[[torch.Tensor], Any]] | None = None,
        prepend_bos: bool | None = None,
        attention_mask: Any = None,
        tokens: Any = None,
        **options: Any,
    ) -> Any:
        """Run on texts, or ids [B, T]. The hooks of all points act in the run, and then those of `intervene`."""
        given = input if input is not None else input_ids
        if isinstance(given, str) or (isinstance(given, list) and given and isinstance(given[0], str)):
            given = self.to_tokens(given, prepend_bos=prepend_bos)
        elif given is not None and not isinstance(given, torch.Tensor):
            given = torch.as_tensor(given)
        hooked: dict[str, Callable[[torch.Tensor], Any]] = self._hooked()
        for name, function in (intervene or {}).items():
            hooked[self._other_names.get(name, name)] = _after(hooked.get(self._other_names.get(name, name)), function)
        given = (
            given[None] if given is not None and given.ndim == 1 and options.get("start_at_layer") is None else given
        )
        stop = options.get("stop_at_layer")
        result: ForwardResult = self._driver.forward(
            given,
            intervene=hooked,
            return_logits=return_type is not None or stop is not None,
            attention_mask=attention_mask,
            **options,
        )
        if stop is not None:
            return result.logits
        return self._finalize_return(
            return_type,
            result.logits,
            given if options.get("start_at_layer") is None else tokens,
            labels=labels,
            loss_per_token=loss_per_token,
        )

    __call__ = forward

    def run_with_hooks(
        self, input: Any, fwd_hooks: Any = (), bwd_hooks: Any = (), return_type: str | None = "logits", **options: Any
    ) -> Any:
        """Run with hooks that act in this run only."""
        if bwd_hooks:
            raise NotImplementedError(
                "this bridge has no backward hooks: Model.run_with_hooks(..., bwd_hooks=..., metric=...) has"
            )
        return BridgeCore.run_with_hooks(self, input, fwd_hooks=list(fwd_hooks), return_type=return_type, **options)

    def run_with_cache(self, *arguments: Any, incl_bwd: bool = False, **options: Any) -> Any:
        """Run and keep the activations."""
        if incl_bwd:
            raise NotImplementedError(
                "this bridge has no gradients: Model.run_with_cache(..., incl_bwd=True, metric=...) has"
            )
        return BridgeCore.run_with_cache(self, *arguments, **options)

    def enable_compatibility_mode(self, no_processing: bool = False, fold_ln: bool = True, **options: Any) -> None:
        """Fold the norms' gains into the weights, or not. Nothing is centered: that changes no difference of logits."""
        self._weights.fold_ln = fold_ln and not no_processing

    def _set(self, flag: str, use: bool) -> None:
        self.cfg._set_bridge_managed_hook_flag(flag, use)

    def set_use_attn_result(self, use: bool) -> None:
        """Whether ``hook_result`` fires."""
        self._set("use_attn_result", use)

    def set_use_split_qkv_input(self, use: bool) -> None:
        """Whether ``hook_q_input``, ``hook_k_input`` and ``hook_v_input`` fire."""
        self._set("use_split_qkv_input", use)

    def set_use_attn_in(self, use: bool) -> None:
        """Whether ``hook_attn_in`` fires."""
        self._set("use_attn_in", use)

    def set_use_hook_mlp_in(self, use: bool) -> None:
        """Whether ``hook_mlp_in`` fires."""
        self._set("use_hook_mlp_in", use)

    # --- texts

    def to_tokens(self, input: Any, prepend_bos: bool | None = None, **options: Any) -> torch.Tensor:
        """Turn texts into ids [B, T], rows filled up at the right."""
        texts = [input] if isinstance(input, str) else list(input)
        rows = [self.model.to_tokens(text, prepend_bos)[0].tolist() for text in texts]
        return self._padded(rows)

    def _padded(self, rows: list[list[int]]) -> torch.Tensor:
        return filled_up(rows, self.tokenizer.pad_token_id if self.tokenizer is not None else 0)

    def to_string(self, tokens: Any) -> Any:
        """Turn ids into texts."""
        return self.model.to_string(as_array(tokens))

    def to_str_tokens(self, input: Any, prepend_bos: bool | None = None, **options: Any) -> Any:
        """Cut a text into the texts of its tokens."""
        if isinstance(input, torch.Tensor):
            input = as_array(input).reshape(-1).tolist()
        if isinstance(input, list) and input and isinstance(input[0], str):
            return [self.to_str_tokens(text, prepend_bos) for text in input]
        return list(self.model.to_str_tokens(input, prepend_bos))

    def to_single_token(self, string: str) -> int:
        """Find the one token that has a text."""
        return self.model.to_single_token(string)

    def to_single_str_token(self, int_token: int) -> str:
        """Get the text of one token."""
        return self.model.to_single_str_token(int(int_token))

    def get_token_position(
        self,
        single_token: Any,
        input: Any,
        mode: Literal["first", "last"] = "first",
        prepend_bos: bool | None = None,
        **options: Any,
    ) -> int:
        """Find where a token is in a prompt."""
        token = single_token if isinstance(single_token, str) else int(single_token)
        prompt = input if isinstance(input, str) else as_array(input).reshape(-1).tolist()
        return self.model.get_token_position(token, prompt, mode, prepend_bos)

    def generate(
        self,
        input: Any = "",
        max_new_tokens: int = 10,
        stop_at_eos: bool = True,
        do_sample: bool = True,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float = 1.0,
        prepend_bos: bool | None = None,
        return_type: Literal["input", "str", "tokens"] = "input",
        seed: int | None = None,
        **options: Any,
    ) -> Any:
        """Go on with a text, or ids [B, T]; the prompt is in the result. Hooks act on each token as it is made.

        ``use_past_kv_cache`` and ``verbose`` change nothing; other arguments are refused.
        """
        for name in ("use_past_kv_cache", "verbose", "padding_side"):
            options.pop(name, None)
        if not stop_at_eos:
            raise NotImplementedError("generate ends where the model ends the text: stop_at_eos has to be True here")
        if options:
            raise NotImplementedError(f"generate takes no {', '.join(sorted(options))} here: see Model.complete")
        if isinstance(input, list) and len({self.model.to_tokens(text, prepend_bos).shape for text in input}) > 1:
            raise NotImplementedError("generate takes texts of one length in tokens: there is no padding")
        tokens = (
            self.to_tokens(input, prepend_bos) if isinstance(input, str | list) else input.reshape(-1, input.shape[-1])
        )
        how: dict[str, Any] = {"temperature": temperature if do_sample else 0.0}
        how |= {
            name: value for name, value in (("top_k", top_k), ("top_p", top_p), ("seed", seed)) if value is not None
        }
        rows, texts = [], []
        with self.model.hooks([(name, acting(point)) for name, point in self._hooked().items()]):
            for row in tokens.tolist():
                [completion] = self.model.complete(row, max_tokens=max_new_tokens, **how)
                rows.append(row + completion.tokens)
                texts.append(completion.text)
        made = self._padded(rows)
        if return_type == "tokens" or (return_type == "input" and isinstance(input, torch.Tensor)):
            return made
        if isinstance(input, str):
            return input + texts[0]
        prompts = input if isinstance(input, list) else self.to_string(tokens)
        return [prompt + text for prompt, text in zip(prompts, texts, strict=True)]

    # --- weights

    @property
    def blocks(self) -> list[Any]:
        """The layers: ``bridge.blocks[3].attn.W_Q``."""
        return [self._weights.part(f"blocks.{i}", self._hook_registry) for i in range(self.model.config.n_layers)]

    @property
    def embed(self) -> Any:
        """``bridge.embed.W_E``; called with ids it gives their rows."""
        return self._weights.part("embed", self._hook_registry)

    @property
    def unembed(self) -> Any:
        """``bridge.unembed.W_U``; called with what `ln_final` gives it makes logits."""
        return self._weights.part("unembed", self._hook_registry)

    @property
    def ln_final(self) -> Any:
        """The last norm, which can be called."""
        return self._weights.part("ln_final", self._hook_registry)

    @property
    def QK(self) -> Any:  # noqa: N802
        """What each head compares."""
        return FactoredMatrix(self.W_Q, self._by_query_head(self.W_K).transpose(-2, -1))

    @property
    def OV(self) -> Any:  # noqa: N802
        """What each head does to what it reads."""
        return FactoredMatrix(self._by_query_head(self.W_V), self.W_O)

    def _by_query_head(self, stacked: torch.Tensor) -> torch.Tensor:
        return stacked.repeat_interleave(self.cfg.n_heads // stacked.shape[1], dim=1)

    @property
    def all_head_labels(self) -> list[str]:
        """Names of heads: L0H0 and so on."""
        return self.model.all_head_labels

    def all_composition_scores(self, mode: str) -> Any:
        """How much each head reads of what each earlier head writes."""
        if mode not in ("Q", "K", "V"):
            raise ValueError(f"mode is {mode!r}, expected 'Q', 'K' or 'V'")
        read = {"Q": lambda: self.QK, "K": lambda: self.QK.T, "V": lambda: self.OV}[mode]()
        scores = composition_scores(self.OV, read, broadcast_dims=True)
        layers = torch.arange(self.cfg.n_layers)
        earlier = layers[:, None, None, None] < layers[:, None]
        scores = torch.where(earlier, scores, torch.zeros_like(scores))
        return CompositionScores(scores, list(range(self.cfg.n_layers)), self.all_head_labels)

    def tokens_to_residual_directions(self, tokens: Any) -> torch.Tensor:
        """Columns of `W_U`: [..., d_model]."""
        ids = torch.tensor(self.to_single_token(tokens)) if isinstance(tokens, str) else torch.as_tensor(tokens)
        if ids.numel() == 1:
            ids = ids.reshape(())
        return torch.movedim(self.W_U[:, ids], 0, -1)

    def accumulated_bias(self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True) -> torch.Tensor:
        """Sum the biases that layers before `layer` add to the residual stream."""
        return _tensor(self.model.accumulated_bias(layer, mlp_input, include_mlp_biases))


def _after(
    first: Callable[[torch.Tensor], Any] | None, second: Callable[[torch.Tensor], Any]
) -> Callable[[torch.Tensor], Any]:
    if first is None or not callable(second):
        return second

    def both(tensor: torch.Tensor) -> Any:
        result = first(tensor)
        return second(tensor if result is None else result)

    return both


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def _stacked(attribute: str) -> property:
    where = "mlp" if attribute in ("W_in", "W_gate", "W_out", "b_in", "b_gate", "b_out") else "attn"

    def stack(self: Bridge) -> torch.Tensor:
        return torch.stack([getattr(getattr(block, where), attribute) for block in self.blocks])

    return property(stack, doc=f"``{attribute}`` of all layers in one tensor.")


for _name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O", "W_in", "W_gate", "W_out", "b_in", "b_out"):
    setattr(Bridge, _name, _stacked(_name))
Bridge.W_E = property(lambda self: self.embed.W_E, doc="Embeddings, [d_vocab, d_model].")
Bridge.W_U = property(lambda self: self.unembed.W_U, doc="Output matrix, [d_model, d_vocab].")
Bridge.b_U = property(lambda self: self.unembed.b_U, doc="Bias of the logits, [d_vocab].")
