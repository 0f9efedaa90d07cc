"""What `Model.explain` shows: what comes next, what was surprising, and which parts speak for the answer."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..common.arguments import naming
from ..common.parts import NORM_B
from ..common.probabilities import log_softmax
from ..common.token_ids import Prompt, to_ids
from .html_views import table, token_list, visible
from .places import residual_streams

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from ..adapters import Adapter
    from ..model import Model
    from .cache import ActivationCache

_MOST_PARTS = 8  # of each kind that pictures show
# From no surprise to much, in bits: the upper ends of the steps, and a colour for each on which black text is read.
_STEPS = (1.0, 3.0, 6.0, 10.0)
_COLOURS = ("#ffffff", "#fff3b8", "#ffd28a", "#ffa570", "#ff7b6b")


class NextToken(NamedTuple):
    """A token that may come next.

    Examples
    --------
    >>> from llama2cpp.inside.explanation import NextToken
    >>> NextToken(5, " time", 0.5, 3.25).probability
    0.5
    """

    id: int
    text: str
    probability: float
    logit: float


class Contribution(NamedTuple):
    """What a part of the model adds to the answer's logit: a head "L3H1", an MLP "3_mlp_out", "embed" and so on.

    Examples
    --------
    >>> from llama2cpp.inside.explanation import Contribution
    >>> Contribution("L3H1", 0.5).label
    'L3H1'
    """

    label: str
    value: float


@dataclass(frozen=True)
class Explanation:
    """What `Model.explain` has found: in a notebook a page, on a terminal (``rich.print``) the same in text.

    Attributes
    ----------
    ids : list of int
        The prompt's.
    tokens : list of str
        Their texts.
    surprise : numpy.ndarray
        float64 [T], -log2 of the probability that the model gave each token, in bits; NaN for the first, which it had
        not to foretell.
    next_tokens : list of NextToken
        The likeliest, best first.
    answer, instead : int and int or None
        The token whose logit is explained, and the one that it is compared with.
    logit : float
        The answer's, as the model has computed it; less that of `instead`, if there is one. Before the cap, in models
        that cap logits.
    contributions : list of Contribution
        What each head and each MLP adds to it, and "embed", "bias", "final norm" (what the last norm's bias adds) and
        "remainder": what rounding has done, above all that of int8 activations. They sum to `logit`.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> found = model.explain("Once upon a")
    >>> found.next_tokens[0].text, found.tokens[found.surprise[1:].argmax() + 1]
    (' time', ' Once')
    >>> abs(sum(part.value for part in found.contributions) - found.logit) < 1e-4
    True
    """

    ids: list[int]
    tokens: list[str]
    surprise: Any
    next_tokens: list[NextToken]
    answer: int
    instead: int | None
    logit: float
    contributions: list[Contribution]
    answer_text: str = ""
    instead_text: str = ""

    def heads(self) -> list[Contribution]:
        """Give what the heads add, largest first.

        Returns
        -------
        list of Contribution

        Examples
        --------
        >>> import llama2cpp
        >>> [best, *_] = llama2cpp.load("storyteller").explain("Once upon a").heads()
        >>> best.value > 0
        True
        """
        heads = [part for part in self.contributions if part.label.startswith("L")]
        return sorted(heads, key=lambda part: -part.value)

    def layers(self) -> list[tuple[int, float, float]]:
        """Give (layer, what its heads add, what its MLP adds).

        Returns
        -------
        list of tuple

        Examples
        --------
        >>> import llama2cpp
        >>> len(llama2cpp.load("storyteller").explain("Once upon a").layers())
        5
        """
        attention: dict[int, float] = {}
        mlp: dict[int, float] = {}
        for label, value in self.contributions:
            if label.startswith("L"):
                layer = int(label[1:].partition("H")[0])
                attention[layer] = attention.get(layer, 0.0) + value
            elif label.endswith("_mlp_out"):
                mlp[int(label.partition("_")[0])] = value
        return [(layer, attention.get(layer, 0.0), mlp.get(layer, 0.0)) for layer in sorted({*attention, *mlp})]

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain values, for JSON.

        Returns
        -------
        dict

        Examples
        --------
        >>> import llama2cpp
        >>> sorted(llama2cpp.load("storyteller").explain("Once").to_dict())
        ['answer', 'contributions', 'ids', 'instead', 'logit', 'next_tokens', 'surprise', 'tokens']
        """
        return {
            "ids": self.ids,
            "tokens": self.tokens,
            "surprise": [None if np.isnan(bits) else round(float(bits), 4) for bits in self.surprise],
            "next_tokens": [token._asdict() for token in self.next_tokens],
            "answer": {"id": self.answer, "text": self.answer_text},
            "instead": None if self.instead is None else {"id": self.instead, "text": self.instead_text},
            "logit": self.logit,
            "contributions": {part.label: part.value for part in self.contributions},
        }

    def _what(self) -> str:
        against = "" if self.instead is None else f" rather than {visible(self.instead_text)!r}"
        return f"{visible(self.answer_text)!r}{against}"

    def _strongest(self) -> list[Contribution]:
        """Give the heads that add most, and those that take most away."""
        heads = self.heads()
        return heads[:_MOST_PARTS] + [part for part in heads[_MOST_PARTS:][-3:] if part.value < 0]

    def _others(self) -> Iterator[Contribution]:
        return (
            part for part in self.contributions if not part.label.startswith("L") and not part.label.endswith("mlp_out")
        )

    def __repr__(self) -> str:
        best = self.next_tokens[0]
        return (
            f"<llama2cpp.Explanation: {len(self.ids)} tokens, {best.text!r} next with "
            f"{_probability(best.probability, 3)}; {self._what()} has {_decimal(self.logit)}>"
        )

    def _repr_html_(self) -> str:
        spans = []
        for text, bits in zip(self.tokens, self.surprise, strict=True):
            told = "the first" if np.isnan(bits) else f"{bits:.2f} bits"
            spans.append(
                f'<span title="{told}" style="background:{_COLOURS[_step(bits)]};color:#000;padding:1px 2px;margin:1px;'
                f'border-radius:3px;font-family:monospace;white-space:pre">{html.escape(visible(text))}</span>'
            )
        rows = [
            (visible(token.text), _probability(token.probability), _decimal(token.logit)) for token in self.next_tokens
        ]
        heads = [(part.label, _signed(part.value)) for part in self._strongest()]
        layers = [(layer, _signed(attention), _signed(mlp)) for layer, attention, mlp in self.layers()]
        others = [(part.label, _signed(part.value)) for part in self._others()]
        return (
            f"<p>{'<wbr>'.join(spans)}</p>"
            f"<p><b>next</b></p>{table(('token', 'probability', 'logit'), rows)}"
            f"<p><b>what speaks for {html.escape(self._what())}</b>: {_decimal(self.logit)}</p>"
            f"{table(('head', 'adds'), heads)}{table(('layer', 'attention', 'MLP'), layers)}"
            f"{table(('besides', 'adds'), others)}"
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table
        from rich.text import Text

        from ..command.display import one_line

        def shown(text: str) -> str:
            return one_line(visible(text))

        line = Text()
        for text, bits in zip(self.tokens, self.surprise, strict=True):
            line.append(shown(text), style=f"black on {_COLOURS[_step(bits)]}")
        yield line
        limits = ["under 1", "3", "6", "10", "more"]
        key = Text("surprise in bits: ")
        for limit, colour in zip(limits, _COLOURS, strict=True):
            key.append(f" {limit} ", style=f"black on {colour}")
        yield key
        yield Text()
        following = Table("next", title_justify="left")
        following.add_column("probability", justify="right")
        following.add_column("logit", justify="right")
        for token in self.next_tokens:
            following.add_row(Text(shown(token.text)), _probability(token.probability), _decimal(token.logit))
        yield following
        yield Text(one_line(f"what speaks for {self._what()}: {_decimal(self.logit)}"))
        heads = Table("head")
        heads.add_column("adds", justify="right")
        for part in self._strongest():
            heads.add_row(part.label, _signed(part.value))
        yield heads
        layers = Table("layer")
        layers.add_column("attention", justify="right")
        layers.add_column("MLP", justify="right")
        for layer, attention, mlp in self.layers():
            layers.add_row(str(layer), _signed(attention), _signed(mlp))
        yield layers
        yield Text(", ".join(f"{part.label} {_signed(part.value)}" for part in self._others()))


def _decimal(value: float) -> str:
    text = f"{value:.3f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _signed(value: float) -> str:
    """Write what is added; what rounds to zero has no sign."""
    text = f"{value:+.3f}"
    return text[1:] if float(text) == 0 else text


def _probability(value: float, places: int = 4) -> str:
    """Write small ones as 3e-05: a few places would make 0.0000 of what is possible."""
    text = f"{value:.{places}f}"
    return f"{value:.1g}" if float(text) == 0 and value > 0 else text


def _step(bits: float) -> int:
    return 0 if np.isnan(bits) else int(np.searchsorted(_STEPS, bits, side="right"))


def explain(
    model: Model,
    prompt: Prompt,
    answer: int | str | None,
    instead: int | str | None,
    top_k: int,
    special: bool | None,
    adapter: Adapter | None = None,
) -> Explanation:
    """Do what `Model.explain` does."""
    if not 1 <= top_k <= model.config.vocab_size:
        raise ValueError(f"explain: top_k is {top_k}, expected 1 to {model.config.vocab_size}")
    ids = to_ids(model, prompt, function="explain", special=special)
    if not ids:
        raise ValueError("explain: there are no tokens, expected at least one")
    wanted = ("hook_embed", "attn.hook_z", "hook_attn_out", "hook_mlp_out", "hook_scale")
    last = len(ids) - 1
    stream = residual_streams(model.config)[-1]
    logits, cache = model._run(
        "explain", ids, lambda name: name.endswith(wanted) or name == stream, positions=[last], adapter=adapter
    )
    chances = log_softmax(logits[0])
    bits = np.full(len(ids), np.nan)
    bits[1:] = -chances[np.arange(last), ids[1:]] / np.log(2)
    best = np.argsort(-logits[0, -1], kind="stable")[:top_k]
    token = int(best[0]) if answer is None else _id(model, answer, "answer")
    other = None if instead is None else _id(model, instead, "instead")
    texts = _texts(model, [*best.tolist(), token, *([] if other is None else [other])])
    value = _uncapped(model, logits[0, -1, token]) - (0.0 if other is None else _uncapped(model, logits[0, -1, other]))
    return Explanation(
        ids=ids,
        tokens=_texts(model, ids),
        surprise=bits,
        next_tokens=[
            NextToken(int(id), text, float(np.exp(chances[-1, id])), float(logits[0, -1, id]))
            for id, text in zip(best, texts, strict=False)
        ],
        answer=token,
        instead=other,
        logit=value,
        contributions=_contributions(cache, model, token, other, value),
        answer_text=texts[top_k],
        instead_text="" if other is None else texts[top_k + 1],
    )


def _id(model: Model, token: int | str, name: str) -> int:
    if isinstance(token, str):
        with naming(f"explain: {name}"):
            return model.to_single_token(token)
    size = model.config.vocab_size
    if not 0 <= token < size:
        raise ValueError(f"explain: {name} is {token}, expected 0 to {size - 1}")
    return int(token)


def _texts(model: Model, ids: Sequence[int]) -> list[str]:
    """Give the texts of ids; of a model without a tokenizer the ids themselves."""
    return list(token_list(model.tokenizer, ids)) if model.has_tokenizer else [f"[{id}]" for id in ids]


def _uncapped(model: Model, logit: np.floating[Any]) -> float:
    cap = model.config.logits_cap
    if cap <= 0:
        return float(logit)
    # A logit at the cap, which float32 has rounded there, was at least this far.
    return cap * float(np.arctanh(np.clip(float(logit) / cap, -1 + 2.0**-25, 1 - 2.0**-25)))


def _contributions(
    cache: ActivationCache, model: Model, token: int, other: int | None, value: float
) -> list[Contribution]:
    direction = model.tokens_to_residual_directions(token)
    if other is not None:
        direction = direction - model.tokens_to_residual_directions(other)
    attributed, labels = cache.get_full_resid_decomposition(
        expand_neurons=False, apply_ln=True, return_labels=True, project_output_onto=direction, incl_remainder=False
    )
    parts = [Contribution(label, float(number)) for label, number in zip(labels, attributed.reshape(-1), strict=True)]
    if NORM_B.lens in model.weights:
        parts.append(Contribution("final norm", float(model.weights[NORM_B.lens] @ direction)))
    rest = value - math.fsum(part.value for part in parts)
    return [*parts, Contribution("remainder", rest)]
