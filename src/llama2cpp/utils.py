"""Small functions that TransformerLens's users know from its ``utils``, on NumPy arrays.

Examples
--------
>>> from llama2cpp import utils
>>> utils.get_act_name("z", 3)
'blocks.3.attn.hook_z'
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .common.arguments import checked, float_array, instead_of, integer
from .common.probabilities import log_softmax
from .inside.activation_names import get_act_name
from .inside.factored_matrix import composition_scores
from .inside.head_patterns import detect_head
from .methods.classic import loss_of

if TYPE_CHECKING:
    from .model import Model

Array: TypeAlias = NDArray[np.float32]

__all__ = [
    "Slice",
    "composition_scores",
    "detect_head",
    "get_act_name",
    "get_corner",
    "is_lower_triangular",
    "is_square",
    "lm_accuracy",
    "lm_cross_entropy_loss",
    "remove_batch_dim",
    "test_prompt",
    "to_numpy",
    "transpose",
]

# What TransformerLens has there, and what to use instead.
_INSTEAD = {
    "get_device": "load(backend=) says where a model runs, and model.backend where it does",
    "sample_logits": "model.generate(prompt, temperature=...) samples, and logits[:, -1].argmax(-1) takes the best",
    "get_dataset": "datasets.load_dataset of Hugging Face",
    "tokenize_and_concatenate": "model.extract(texts, ...) reads texts as they are, and model.to_tokens makes ids",
    "download_file_from_hf": "llama2cpp pull NAME on the command line",
    "get_matrix_corner": "matrix.get_corner(n) of a FactoredMatrix, or get_corner of an array",
    "print_gpu_mem": "arrays are NumPy's",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{instead_of(name, _INSTEAD)}", name=name)


class Slice:
    """A choice along one axis, as TransformerLens's: of an integer, (begin, end), a list of integers, or None for all.

    Examples
    --------
    >>> import numpy
    >>> from llama2cpp import utils
    >>> utils.Slice((0, 2)).apply(numpy.zeros((1, 5, 3)), dim=1).shape, utils.Slice(-1).indices(5)
    ((1, 2, 3), array([-1]))
    """

    def __init__(self, input_slice: Any = None) -> None:  # noqa: ANN401
        given = input_slice
        self.slice: Any
        if given is None:
            self.slice, self.mode = slice(None), "identity"
        elif isinstance(given, tuple):
            self.slice, self.mode = slice(*given), "slice"
        elif isinstance(given, slice):
            self.slice, self.mode = given, "slice"
        elif isinstance(given, list) or np.ndim(given):
            self.slice, self.mode = to_numpy(given), "array"
        else:
            self.slice, self.mode = integer(given, "input_slice", "Slice"), "int"

    def apply(self, tensor: NDArray[Any], dim: int = 0) -> NDArray[Any]:
        """Choose along an axis."""
        chosen: list[Any] = [slice(None)] * np.ndim(tensor)
        chosen[dim] = self.slice
        found: NDArray[Any] = np.asarray(tensor)[tuple(chosen)]
        return found

    def indices(self, max_ctx: int | None = None) -> NDArray[np.int64]:
        """Give the indices that it chooses of an axis of this length."""
        if self.mode == "int":
            return np.array([self.slice], dtype=np.int64)
        if max_ctx is None:
            raise ValueError("Slice.indices: max_ctx is needed, unless one index is chosen")
        return np.asarray(np.arange(max_ctx, dtype=np.int64)[self.slice])

    def __repr__(self) -> str:
        return f"Slice: {self.slice} Mode: {self.mode} "


def get_corner(tensor: Any, n: int = 3) -> Any:  # noqa: ANN401
    """Give the first `n` of each axis.

    Examples
    --------
    >>> import numpy
    >>> from llama2cpp import utils
    >>> utils.get_corner(numpy.zeros((1, 7, 5)), 2).shape
    (1, 2, 2)
    """
    return tensor[tuple(slice(n) for _ in range(tensor.ndim))]


def transpose(tensor: NDArray[Any]) -> NDArray[Any]:
    """Swap the last two axes.

    Examples
    --------
    >>> import numpy
    >>> from llama2cpp import utils
    >>> utils.transpose(numpy.zeros((4, 2, 3))).shape
    (4, 3, 2)
    """
    return np.asarray(np.swapaxes(tensor, -1, -2))


def is_square(x: NDArray[Any]) -> bool:
    """Whether it is a square matrix.

    Examples
    --------
    >>> import numpy
    >>> from llama2cpp import utils
    >>> utils.is_square(numpy.eye(2)), utils.is_square(numpy.zeros((2, 3)))
    (True, False)
    """
    return x.ndim == 2 and x.shape[0] == x.shape[1]


def is_lower_triangular(x: NDArray[Any]) -> bool:
    """Whether it is a square matrix with zeros above its diagonal, as a pattern of attention is.

    Examples
    --------
    >>> import numpy
    >>> from llama2cpp import utils
    >>> utils.is_lower_triangular(numpy.eye(2)), utils.is_lower_triangular(numpy.ones((2, 2)))
    (True, False)
    """
    return is_square(x) and bool((x == np.tril(x)).all())


def lm_cross_entropy_loss(logits: ArrayLike, tokens: Any, per_token: bool = False) -> float | Array:  # noqa: ANN401
    """Compute the mean of -log p of each next token; see `Model.loss_fn`.

    Examples
    --------
    >>> import numpy
    >>> from llama2cpp import utils
    >>> round(utils.lm_cross_entropy_loss(numpy.zeros((1, 3, 8)), [[1, 5, 2]]), 4)
    2.0794
    """
    return loss_of(logits, tokens, per_token, "lm_cross_entropy_loss")


def lm_accuracy(logits: ArrayLike, tokens: Any, per_token: bool = False) -> float | NDArray[np.bool_]:  # noqa: ANN401
    """Measure how often the most probable next token is the right one.

    Parameters
    ----------
    logits : array [B, T, vocab_size]
        After each token.
    tokens : array of int [B, T]
        The prompts.
    per_token : bool
        Say it of each token, bool [B, T - 1].

    Returns
    -------
    float or numpy.ndarray

    Examples
    --------
    >>> import numpy
    >>> from llama2cpp import utils
    >>> utils.lm_accuracy(numpy.eye(3)[None], [[0, 0, 2]])
    0.5
    """
    array, ids = float_array(logits), np.asarray(tokens)
    if array.ndim != 3 or ids.shape != array.shape[:2] or ids.shape[1] < 2:
        raise ValueError(
            f"lm_accuracy: logits have shape {list(array.shape)} and tokens {list(ids.shape)}, expected "
            "[B, T, vocab_size] and [B, T], of two tokens or more"
        )
    right = array[:, :-1].argmax(axis=-1) == ids[:, 1:]
    return right if per_token else float(right.mean())


def to_numpy(value: Any) -> NDArray[Any]:  # noqa: ANN401
    """Make an array of what may be one of PyTorch's tensors, a list or a number.

    Examples
    --------
    >>> from llama2cpp import utils
    >>> int(utils.to_numpy([1, 2]).sum())
    3
    """
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def remove_batch_dim(array: NDArray[Any]) -> NDArray[Any]:
    """Take away the first axis, if it is of length one.

    Examples
    --------
    >>> import numpy
    >>> from llama2cpp import utils
    >>> utils.remove_batch_dim(numpy.zeros((1, 3))).shape
    (3,)
    """
    return array[0] if array.ndim and len(array) == 1 else array


@checked
def test_prompt(
    prompt: str,
    answer: str | Sequence[str],
    model: Model,
    prepend_space_to_answer: bool = True,
    print_details: bool = True,
    prepend_bos: bool | None = None,
    top_k: int = 10,
) -> list[Any]:
    """Print how probable an answer is after a prompt, and what is more so.

    Parameters
    ----------
    prompt : str
        The text before.
    answer : str or sequence of str
        What should come: each of its tokens is looked at, given those before it. Of several answers the first token of
        each.
    model : Model
        With a tokenizer.
    prepend_space_to_answer : bool
        Put a space before answers that have none.
    print_details : bool
        Print tokens, ranks and the most probable tokens, and not only the ranks.
    prepend_bos : bool, optional
        As in `Model.to_tokens`.
    top_k : int
        How many of the most probable tokens are printed.

    Returns
    -------
    list
        (token, rank) for each token of the answer, rank 0 being the most probable; of several answers a list of one
        list with a pair for each.

    Raises
    ------
    ValueError
        If there is no answer, or one has no tokens.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import utils
    >>> ranks = utils.test_prompt("Once upon a", "time", llama2cpp.load("storyteller"), print_details=False)
    Ranks of the answer: [(' time', 0)]
    """
    answers = [answer] if isinstance(answer, str) else list(answer)
    if not answers:
        raise ValueError("test_prompt: there is no answer")
    if prepend_space_to_answer:
        answers = [text if text.startswith(" ") else f" {text}" for text in answers]
    begin = model.to_tokens(prompt, prepend_bos)[0].tolist()
    ends = [_continuation(model, begin, prompt, text) for text in answers]
    if not all(ends):
        raise ValueError(f"test_prompt: an answer has no tokens: {answers}")
    if len(answers) > 1:
        ends = [ids[:1] for ids in ends]
    if print_details:
        print("Prompt:", list(model.to_str_tokens(begin)))
        print("Answer:" if len(answers) == 1 else "Answers:", *(list(model.to_str_tokens(ids)) for ids in ends))
    logits = model([*begin, *ends[0][:-1]])[0, len(begin) - 1 :]  # [tokens of the answer, vocab]
    probs = np.exp(log_softmax(logits))
    ranks: list[Any] = []
    for i, row in enumerate(logits):
        order = np.argsort(-row, kind="stable")
        places = np.argsort(order)
        of_answers = [(model.to_single_str_token(ids[i]), int(places[ids[i]])) for ids in ends]
        ranks.append(of_answers[0] if len(answers) == 1 else of_answers)
        if print_details:
            for ids, (text, rank) in zip(ends, of_answers, strict=True):
                print(f"Rank {rank:<6} logit {row[ids[i]]:6.2f}  probability {probs[i, ids[i]]:7.2%}  {text!r}")
            for rank, id in enumerate(order[:top_k].tolist()):
                text = model.to_single_str_token(id)
                print(f"  top {rank:<3}  logit {row[id]:6.2f}  probability {probs[i, id]:7.2%}  {text!r}")
    print("Ranks of the answer:" if len(answers) == 1 else "Ranks of the answers:", ranks)
    return ranks


vars(test_prompt)["__test__"] = False  # pytest would take it for a test where it is imported


def _continuation(model: Model, begin: list[int], prompt: str, text: str) -> list[int]:
    """Give the ids of a text that goes on: where tokenizers put a space before each text, not those of it alone."""
    whole: list[int] = model.to_tokens(prompt + text, prepend_bos=False)[0].tolist()
    own: list[int] = model.to_tokens(prompt, prepend_bos=False)[0].tolist()
    if whole[: len(own)] == own and begin[-len(own) :] == own:
        return whole[len(own) :]
    ids: list[int] = model.to_tokens(text, prepend_bos=False)[0].tolist()
    return ids
