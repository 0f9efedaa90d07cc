"""A model's tokenizer with the calls of transformers' tokenizers that TransformerLens makes."""

# ruff: noqa: ANN401 - options that are passed over

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ..model import Model


def filled_up(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Fill rows up at the right to the longest one's length: [rows, T]."""
    length = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])


class BridgeTokenizer:
    """Texts to ids and back, as far as a bridge needs it; the rest is `Model.tokenizer`.

    Examples
    --------
    See `llama2cpp.transformer_lens`.
    """

    padding_side = "right"

    def __init__(self, model: Model) -> None:
        self._model = model
        own = model.tokenizer
        self.bos_token_id = own.bos_id
        self.eos_token_id = own.eos_ids[0] if own.eos_ids else None
        self.pad_token_id = self.eos_token_id if self.eos_token_id is not None else self.bos_token_id or 0
        self.bos_token, self.eos_token, self.pad_token = (
            None if id is None else model.to_string([id])
            for id in (self.bos_token_id, self.eos_token_id, self.pad_token_id)
        )
        self.vocab_size = model.config.vocab_size

    def __len__(self) -> int:
        return self.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """Give the id of each text; the last, where several tokens have it."""
        own = self._model.tokenizer
        return {own.piece(id).decode("utf-8", "replace"): id for id in range(own.vocab_size)}

    def encode(self, text: str, add_special_tokens: bool = True, **options: Any) -> list[int]:
        """Turn a text into ids."""
        ids: list[int] = self._model.to_tokens(text, prepend_bos=None if add_special_tokens else False)[0].tolist()
        return ids

    def __call__(
        self,
        text: str | Sequence[str],
        return_tensors: str | None = None,
        add_special_tokens: bool = True,
        truncation: bool = False,
        max_length: int | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Turn texts into rows of ids, filled up with the padding token at the right."""
        texts = [text] if isinstance(text, str) else list(text)
        rows = [self.encode(each, add_special_tokens)[: max_length if truncation else None] for each in texts]
        if return_tensors is None:
            return {"input_ids": rows[0] if isinstance(text, str) else rows}
        mask = filled_up([[1] * len(row) for row in rows], 0)
        return {"input_ids": filled_up(rows, self.pad_token_id), "attention_mask": mask}

    def decode(self, tokens: Any, **options: Any) -> str:
        """Turn ids into their text."""
        ids = torch.as_tensor(tokens).reshape(-1).tolist()
        text: str = self._model.to_string(ids)
        return text

    def batch_decode(self, tokens: Any, **options: Any) -> list[str]:
        """Turn rows of ids into texts."""
        return [self.decode(row) for row in tokens]

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Give the text of each id."""
        return [str(self._model.to_single_str_token(int(id))) for id in ids]
