"""What TransformerLens calls a driver: one run of the model, with callables that act in it."""

# ruff: noqa: ANN401 - what TransformerLens passes

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge.driver_protocol import ForwardResult
from transformer_lens.model_bridge.sources._driver_base import DriverBase

from ..inside.places import part_inputs, points_of

if TYPE_CHECKING:
    from ..inside.hooks import HookPoint
    from ..model import Model

Array = NDArray[np.float32]


class Driver(DriverBase):  # type: ignore[misc]
    """Run a `Model`. Callables of `forward` are given tensors that share memory with the run.

    Examples
    --------
    See `llama2cpp.transformer_lens`.
    """

    _supported_features = frozenset({"intervention_callbacks", "weight_access"})
    provides_sequence_logits = True

    def __init__(self, model: Model, config: TransformerBridgeConfig, tokenizer: Any) -> None:
        super().__init__(config, tokenizer, architecture="llama2cpp")
        self.model = model
        self.supported_hook_points = frozenset([*points_of(model.config), *part_inputs(model.config)])

    def forward(
        self,
        input_ids: Any = None,
        *,
        capture: tuple[str, ...] = (),
        intervene: Mapping[str, Callable[[torch.Tensor], Any]] | None = None,
        max_new_tokens: int = 1,
        return_logits: bool = True,
        **kwargs: Any,
    ) -> ForwardResult:
        """Run on whole prompts [B, T].

        Parameters
        ----------
        input_ids : array of int [B, T] or [T]
            The prompts, or with ``start_at_layer`` the residual stream [B, T, dim].
        capture : sequence of str
            What is kept, after what `intervene` has made of it.
        intervene : mapping of str to callable
            Functions of a tensor: what they return, or leave in it, the run goes on with.
        max_new_tokens : int
            1: this is one run.
        return_logits : bool
            Whether there are any.

        Returns
        -------
        ForwardResult

        Raises
        ------
        NotImplementedError
            For specifications in place of callables, more tokens, and arguments that this engine has no use for.
        """
        layers = {name: kwargs.pop(name) for name in ("start_at_layer", "stop_at_layer") if name in kwargs}
        kwargs.pop("output_attentions", None)  # patterns are there when they are asked for
        mask = kwargs.pop("attention_mask", None)
        if mask is not None and not bool(torch.as_tensor(mask).all()):
            raise NotImplementedError(
                "an attention_mask that hides tokens: this engine runs prompts of one length whole"
            )
        if kwargs:
            raise NotImplementedError(f"this driver takes no {', '.join(sorted(kwargs))}")
        if input_ids is None:
            raise ValueError("there are no input_ids")
        if max_new_tokens != 1:
            raise NotImplementedError("max_new_tokens is 1 here: a bridge's generate makes texts")
        captured: dict[str, torch.Tensor] = {}
        hooks: list[Any] = []
        for name, function in (intervene or {}).items():
            if not callable(function):
                raise NotImplementedError(
                    f"the intervention at {name!r} is a {type(function).__name__}, expected a function of a tensor"
                )
            hooks.append((name, acting(function)))
        for name in capture:

            def keep(activation: Array, hook: HookPoint, name: str = name) -> None:
                captured[name] = torch.from_numpy(activation)

            hooks.append((name, keep))
        given = as_array(input_ids)
        run = self.model.run_with_hooks(
            given if layers.get("start_at_layer") is not None else np.atleast_2d(given),
            hooks,
            return_type="logits" if return_logits else None,
            **layers,
        )
        return ForwardResult(logits=None if run is None else torch.from_numpy(run), captured=captured, raw_output=run)


def acting(function: Callable[[torch.Tensor], Any]) -> Callable[[Array, HookPoint], Array | None]:
    """Make a hook of a function of a tensor."""

    def hook(activation: Array, point: HookPoint) -> Array | None:
        shown = torch.from_numpy(activation)
        result = function(shown)
        return None if result is None or result is shown else as_array(result)

    return hook


def as_array(value: Any) -> NDArray[Any]:
    """Make an array of a tensor, or what is like one."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        if value.dtype in (torch.bfloat16, torch.float16):
            value = value.float()
    return np.asarray(value)
