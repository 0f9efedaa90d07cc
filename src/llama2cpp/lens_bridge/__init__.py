"""A model behind TransformerLens's own interface, so that its tools run on this engine.

TransformerLens and PyTorch are imported when a bridge is made, and not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..common.arguments import checked

if TYPE_CHECKING:
    from ..model import Model


@checked
def transformer_lens(model: Model, *, fold_ln: bool = False) -> Any:  # noqa: ANN401 - a RemoteBridge
    """Make a bridge of TransformerLens 4 to a model, on which TransformerLens's own functions run.

    It is a ``RemoteBridge`` with a driver, and takes and gives PyTorch's tensors. Unlike with other remote drivers,
    hooks act while the model runs, so that patching works, and there are weights, ``generate`` and a tokenizer. Points
    have TransformerLens's names, by module too. There are no gradients: see `ActivationCache.backward`.

    Parameters
    ----------
    model : Model
        Open quantized ones with ``precision="exact"``, since differences between runs are small.
    fold_ln : bool
        Whether the bridge's weights have the gains and biases of the norms before them multiplied in, as
        TransformerLens's compatibility mode has them and its ``logit_attrs`` expects. Activations and logits are the
        same.

    Returns
    -------
    transformer_lens.model_bridge.RemoteBridge

    Raises
    ------
    ImportError
        If TransformerLens 4.3 or later is not installed; it says how to.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> try:
    ...     bridge = llama2cpp.transformer_lens(model)
    ...     logits, cache = bridge.run_with_cache("Once upon a time")
    ...     shape = tuple(cache["z", 0].shape)
    ... except ImportError:  # there is no TransformerLens
    ...     shape = (1, 5, 6, 32)
    >>> shape
    (1, 5, 6, 32)
    """
    try:
        from .bridge import Bridge
    except ImportError as error:
        raise ImportError(
            f"a bridge to TransformerLens needs it and PyTorch ({error}): pip install 'transformer-lens>=4.3'"
        ) from error
    return Bridge(model, fold_ln=fold_ln)
