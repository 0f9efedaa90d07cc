"""Gradients of a number with respect to activations: what `ActivationCache.backward` and ``incl_bwd`` do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..common.arguments import float_array
from .places import Names, between_layers, find_places, points_of, residual_streams

if TYPE_CHECKING:
    from .._core import Config
    from ..model import Model

Array: TypeAlias = NDArray[np.float32]
# Of logits [B, T, vocab_size]: a number and its gradient, or a number that PyTorch can differentiate.
Metric: TypeAlias = Callable[[Any], Any]


def gradients(
    model: Model,
    batch: Sequence[Sequence[int]],
    dlogits: ArrayLike,
    names_filter: Names,
    positions: Sequence[int] | None,
    stop_grad: Names,
    held: Mapping[str, Array],
    changed: Sequence[str] = (),
) -> dict[str, Array]:
    """Go back from the logits of prompts [B][T] to the places of a filter: arrays [B, T, ...] by name.

    `held` are activations [B, T, ...] of the run: residual streams among them are not computed again. It has all of
    them, and those that hooks `changed` within layers.
    """
    need_gradients(model)
    config = model.config
    wanted = find_places(names_filter, config)
    stop = find_places(stop_grad, config)
    expected = (len(batch), len(batch[0]), config.vocab_size)
    rows = [(model.session()._core, ids) for ids in batch]
    points = points_of(config)
    given = [
        (*points[name], np.ascontiguousarray(held[name], dtype=np.float32))
        for name in changed
        if name not in between_layers(config)
    ]
    return model._core.gradients(
        rows, _checked(dlogits, expected), wanted, positions, stop, _streams(config, held, expected), given
    )


def need_gradients(model: Model) -> None:
    """Refuse a model that has no gradients, by its reason."""
    reason = model._core.why_no_gradients()
    if reason:
        raise ValueError(reason)


def differentiate(metric: Metric, logits: Array) -> tuple[float, Array]:
    """Give a metric's value and its gradient with respect to the logits [B, T, vocab_size].

    A metric that gives a number alone, or that cannot do with NumPy's arrays, is PyTorch's to differentiate.
    """
    if not callable(metric):
        raise TypeError(
            f"metric is {metric!r:.80} ({type(metric).__name__}), expected a function of the logits, such as "
            "llama2cpp.metrics.logit_diff makes"
        )
    error: Exception | None = None
    found: Any = None
    try:
        found = metric(logits)
    except (TypeError, AttributeError) as failure:
        error = failure
    if isinstance(found, tuple):
        if len(found) != 2:
            raise ValueError(f"the metric returned a tuple of {len(found)}, expected (number, dlogits)")
        return float(found[0]), _checked(found[1], logits.shape)
    try:
        import torch
    except ImportError:
        if error is not None:
            raise error from None
        raise ValueError(
            f"the metric returned a {type(found).__name__}, expected (number, dlogits); a function of PyTorch's "
            "tensors that returns a number is differentiated where PyTorch is installed"
        ) from None
    with torch.enable_grad():
        tensor = torch.from_numpy(np.array(logits)).requires_grad_()
        value = metric(tensor)
        if isinstance(value, tuple):
            return float(value[0]), _checked(value[1], logits.shape)
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            raise ValueError(
                f"the metric returned a {type(value).__name__}, expected (number, dlogits), or one number as a tensor"
            )
        if not value.requires_grad:
            raise ValueError("the metric returned a tensor that does not depend on the logits")
        (gradient,) = torch.autograd.grad(value, tensor)
    return float(value.detach()), _checked(gradient, logits.shape)


def _checked(dlogits: ArrayLike, shape: tuple[int, ...]) -> Array:
    """As dense float32 [B, T, vocab_size]; [T, vocab_size] will do for one prompt."""
    array = float_array(dlogits)
    if shape[0] == 1 and array.shape == shape[1:]:
        array = array[None]
    if array.shape != shape:
        raise ValueError(f"dlogits has shape {list(array.shape)}, expected {list(shape)}")
    return np.ascontiguousarray(array, dtype=np.float32)


def _streams(config: Config, held: Mapping[str, Array], shape: tuple[int, ...]) -> list[Array]:
    """Find the residual stream before each layer and after the last, where all of them are held; else nothing."""
    found = [held.get(name) for name in residual_streams(config)]
    if any(array is None or array.shape != (*shape[:2], config.dim) for array in found):
        return []
    return [np.ascontiguousarray(array, dtype=np.float32) for array in found]
