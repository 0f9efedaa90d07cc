"""TransformerLens's bridge to models of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformer_lens.model_bridge import TransformerBridge


def bridge(model: Any, folder: Path, *, fold_ln: bool = False, names: bool = True) -> Any:
    """A bridge to a model that the folder has the configuration of, beside which a tokenizer is written.

    names: with TransformerLens's own names of hooks and weights, which it calls compatibility.
    """
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(50)}, unk_token="w0"))
    make_tokenizer: Any = transformers.PreTrainedTokenizerFast
    make_tokenizer(
        tokenizer_object=words, bos_token="w1", eos_token="w2", unk_token="w0", pad_token="w2"
    ).save_pretrained(folder)
    theirs = TransformerBridge.boot_transformers(str(folder), hf_model=model)
    if names:
        theirs.enable_compatibility_mode(
            disable_warnings=True,
            no_processing=not fold_ln,
            fold_ln=fold_ln,
            center_writing_weights=False,
            center_unembed=False,
            fold_value_biases=False,
        )
    return theirs


def difference(ours: NDArray[Any], theirs: Any) -> float:
    """The largest, of the largest number. Equal infinities are none."""
    expected = theirs.detach().numpy()
    assert ours.shape == expected.shape
    masked = np.isneginf(ours)
    assert (expected[masked] <= np.finfo(np.float32).min).all()
    scale = max(1.0, float(np.abs(expected[~masked]).max(initial=0)))
    return float(np.abs(ours[~masked] - expected[~masked]).max(initial=0)) / scale
