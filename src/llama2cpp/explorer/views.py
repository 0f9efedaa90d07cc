"""What each view of the page shows, as the JSON of its answer."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__, metrics, patching
from .._core import Sampler
from ..model import hardware
from ..server.errors import ApiError
from .drawing import cut, softmax
from .runs import Runs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..inside.cache import ActivationCache
    from .edits import Edit

WINDOW = 64  # positions that a view shows at a time
MOST_ROWS = 200  # of a table
_THUMBNAIL = 32  # cells along a side of a small pattern
_THUMBNAIL_BYTES = 1 << 20


class Views:
    """Computes what the page asks for. Used by one thread at a time.

    Parameters
    ----------
    runs : Runs
        The model.
    name : str
        What it is called.
    """

    def __init__(self, runs: Runs, name: str) -> None:
        self.runs, self.model, self.config, self.name = runs, runs.model, runs.model.config, name

    # --- the model and its tokens

    def about(self) -> dict[str, Any]:
        """Tell sizes, and what there is to see."""
        config, model = self.config, self.model
        return {
            "name": self.name,
            "version": __version__,
            "format": model.file_format,
            "hardware": hardware(model),
            "activation_dtype": model.activation_dtype,
            "kv_dtype": model.kv_dtype,
            "context": model.context,
            "window": WINDOW,
            "has_tokenizer": model.has_tokenizer,
            "dim": config.dim,
            "hidden_dim": config.hidden_dim,
            "n_layers": config.n_layers,
            "n_heads": config.n_heads,
            "n_kv_heads": config.n_kv_heads,
            "head_dim": config.head_dim,
            "vocab_size": config.vocab_size,
            "n_experts": config.n_experts,
            "parallel": config.parallel,
            "gated": config.gated,
            "activation": config.activation,
            "tied": config.tied,
            "eos_ids": list(model.tokenizer.eos_ids) if model.has_tokenizer else [],
        }

    def ids_of(self, text: str, special: bool) -> list[int]:
        """Encode a text as a prompt; ids with spaces between them for a model without a tokenizer."""
        if self.model.has_tokenizer:
            return [int(id) for id in self.model.to_tokens(text, special=special)[0]] if text else self._empty()
        words = text.replace(",", " ").split()
        ids = [int(word) for word in words if word.isascii() and word.isdigit() and len(word) < 10]
        if len(ids) < len(words) or any(id >= self.config.vocab_size for id in ids):
            raise ApiError(
                400,
                f"this model has no tokenizer: write ids from 0 to {self.config.vocab_size - 1}, with spaces",
                param="text",
            )
        return ids

    def _empty(self) -> list[int]:
        tokenizer = self.model.tokenizer
        return [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []

    def tokens(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        """Describe tokens."""
        return [self.token(id) for id in ids]

    def token(self, id: int) -> dict[str, Any]:
        """Describe a token: its text as far as its bytes are one, its bytes, and whether it is special."""
        if not self.model.has_tokenizer or id >= len(self.model.tokenizer):
            return {"id": int(id), "text": str(id), "bytes": "", "special": False}
        tokenizer = self.model.tokenizer
        piece = tokenizer.piece(int(id))
        special = id in tokenizer.special_ids
        return {"id": int(id), "text": piece.decode(errors="replace"), "bytes": piece.hex(" "), "special": special}

    def single_token(self, text: str) -> dict[str, Any]:
        """Find the token that a text is, with a space before it where only that is one; ``#300`` is that of the id."""
        if text.startswith("#") and text[1:].isascii() and text[1:].isdigit():
            if len(text) > 10 or int(text[1:]) >= self.config.vocab_size:
                raise ApiError(400, f"the id {text[1:41]} is none from 0 to {self.config.vocab_size - 1}", param="text")
            return self.token(int(text[1:]))
        if not self.model.has_tokenizer:
            raise ApiError(400, "this model has no tokenizer: write # and an id", param="text")
        problem = ""
        for spelled in (text, f" {text}"):
            try:
                return self.token(self.model.to_single_token(spelled))
            except ValueError as error:
                problem = problem or str(error)
        raise ApiError(400, problem, param="text")

    # --- what comes next

    def next(
        self, ids: Sequence[int], edits: Sequence[Edit], sampling: dict[str, Any], rows: int, begin: int
    ) -> dict[str, Any]:
        """Give the likeliest next tokens, with what the settings of sampling leave of them."""
        logits = self.runs.logits(ids, edits)
        made = cut(logits, **sampling, shown=begin + rows)
        chosen = made.order[begin : begin + rows]
        told = []
        for rank, id in enumerate(chosen.tolist(), start=begin):
            told.append(
                {
                    **self.token(id),
                    "rank": rank,
                    "logit": float(logits[id]),
                    "p": float(made.p[id]),
                    "q": float(made.q[id]),
                    "cut_by": made.by[min(rank, len(made.by) - 1)],
                }
            )
        positive = made.p[made.p > 0]
        return {
            "rows": told,
            "begin": begin,
            "count": len(made.order),
            "kept": made.kept,
            "entropy": float(-(positive * np.log(positive)).sum()),
        }

    def compare(self, ids: Sequence[int], edits: Sequence[Edit], rows: int) -> dict[str, Any]:
        """Give the next-token probabilities without edits and with them."""
        before, after = self.runs.logits(ids), self.runs.logits(ids, edits)
        p, q = softmax(before), softmax(after)
        chosen: list[int] = []
        ranks = [np.argsort(-logits, kind="stable")[:rows].tolist() for logits in (before, after)]
        for ranked in zip(*ranks, strict=True):
            chosen += [id for id in dict.fromkeys(ranked) if id not in chosen]
        chosen.sort(key=lambda id: -max(p[id], q[id]))
        both = (p > 0) & (q > 0)
        return {
            "rows": [
                {
                    **self.token(id),
                    "before": float(p[id]),
                    "after": float(q[id]),
                    "logit_before": float(before[id]),
                    "logit_after": float(after[id]),
                }
                for id in chosen[:rows]
            ],
            "best_before": self.token(int(before.argmax())),
            "best_after": self.token(int(after.argmax())),
            "kl": float((p[both] * np.log(p[both] / q[both])).sum()),
        }

    def generate(
        self, ids: Sequence[int], edits: Sequence[Edit], sampling: dict[str, Any], seed: int | None, most: int
    ) -> Iterator[dict[str, Any]]:
        """Draw tokens."""
        sampler = Sampler(**sampling, seed=seed)
        for id, ends in self.runs.generate(ids, edits, sampler, most):
            yield {**self.token(id), "ends": ends}

    # --- the flow of one run

    def flow(self, ids: Sequence[int], edits: Sequence[Edit], begin: int, end: int) -> dict[str, Any]:
        """Give the stations of the residual stream, with shapes and norms."""
        names = ["hook_embed"]
        for i in range(self.config.n_layers):
            parts = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
            names += [f"blocks.{i}.hook_{part}" for part in parts]
        names.append("ln_final.hook_normalized")
        cache = self.runs.cache(ids, edits, names, (begin, end))
        stations = []
        for name in names:
            if name not in cache:
                continue
            array = cache[name]  # [T, dim]
            norms = np.sqrt((array.astype(np.float64) ** 2).sum(axis=-1))
            stations.append({"name": name, "shape": [len(ids), *array.shape[1:]], "norms": norms.tolist()})
        return {"begin": begin, "end": end, "stations": stations, "logits_shape": [len(ids), self.config.vocab_size]}

    def layer(self, ids: Sequence[int], edits: Sequence[Edit], layer: int, position: int) -> dict[str, Any]:
        """Give what one layer does at one position."""
        hooks = [
            "hook_resid_pre", "ln1.hook_normalized", "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z",
            "hook_attn_out", "hook_resid_mid", "ln2.hook_normalized", "mlp.hook_pre", "mlp.hook_pre_linear",
            "mlp.hook_post", "mlp.hook_router_scores", "mlp.hook_expert_indices", "mlp.hook_expert_weights",
            "hook_mlp_out", "hook_resid_post",
        ]  # fmt: skip
        names = [f"blocks.{layer}.{hook}" for hook in hooks]
        cache = self.runs.cache(ids, edits, names, (position, position + 1))
        parts = []
        for name in names:
            if name not in cache:
                continue
            array = cache[name][0]  # [dim], [heads, head_dim] or [hidden_dim]
            part: dict[str, Any] = {"name": name, "shape": [len(ids), *array.shape]}
            part["norm"] = float(np.sqrt((array.astype(np.float64) ** 2).sum()))
            if array.ndim == 2:
                part["head_norms"] = np.sqrt((array.astype(np.float64) ** 2).sum(axis=-1)).tolist()
            if name.endswith("hook_post") and array.ndim == 1:
                top = np.argsort(-np.abs(array), kind="stable")[:16]
                part["neurons"] = [{"neuron": int(n), "value": float(array[n])} for n in top]
            parts.append(part)
        return {"layer": layer, "position": position, "parts": parts}

    def head(
        self, ids: Sequence[int], edits: Sequence[Edit], layer: int, head: int, position: int, begin: int, end: int
    ) -> dict[str, Any]:
        """Give what one head does at one position: its query, the keys that it meets, and what it takes from them."""
        attn = f"blocks.{layer}.attn"
        names = [f"{attn}.hook_{part}" for part in ("q", "k", "v", "z", "rot_q", "rot_k")]
        cache = self.runs.cache(ids, edits, names)
        seen = self.runs.cache(
            ids, edits, [f"{attn}.hook_attn_scores", f"{attn}.hook_pattern"], (position, position + 1)
        )
        kv = head * self.config.n_kv_heads // self.config.n_heads
        pattern, scores = seen["pattern", layer][head, 0], seen["attn_scores", layer][head, 0]
        end = min(end, position + 1)
        values = cache["v", layer][begin:end, kv].astype(np.float64)
        finite = np.isfinite(scores[begin:end])
        return {
            "layer": layer,
            "head": head,
            "kv_head": kv,
            "position": position,
            "begin": begin,
            "query": cache["rot_q", layer][position, head].tolist(),
            "scores": [float(score) if ok else None for score, ok in zip(scores[begin:end], finite, strict=True)],
            "pattern": pattern[begin:end].tolist(),
            "outside": float(pattern[:begin].sum()),
            "value_norms": np.sqrt((values**2).sum(axis=-1)).tolist(),
            "z": cache["z", layer][position, head].tolist(),
            "shapes": {name.rpartition("hook_")[2]: list(cache[name].shape) for name in names if name in cache},
        }

    # --- attention

    def attention_grid(
        self, ids: Sequence[int], edits: Sequence[Edit], begin: int, end: int, layer: int
    ) -> dict[str, Any]:
        """Give all heads' patterns in a window, small: bytes, each the largest of the cells that it stands for."""
        width = end - begin
        each = -(-width // _THUMBNAIL)
        side = -(-width // each)
        at_once = max(1, min(self.config.n_layers - layer, _THUMBNAIL_BYTES // (self.config.n_heads * side * side)))
        layers = list(range(layer, layer + at_once))
        pictures = []
        for i in layers:
            pattern = self._patterns(ids, edits, i, begin, end)[:, :, begin:end]  # [heads, T, T]
            padded = np.zeros((len(pattern), side * each, side * each), dtype=np.float32)
            padded[:, :width, :width] = pattern
            small = padded.reshape(len(pattern), side, each, side, each).max(axis=(2, 4))
            pictures.append(np.rint(small * 255).astype(np.uint8))
        data = np.stack(pictures)
        return {
            "begin": begin,
            "end": end,
            "layers": layers,
            "side": side,
            "each": each,
            "bytes": base64.b64encode(data.tobytes()).decode(),
        }

    def attention_head(
        self, ids: Sequence[int], edits: Sequence[Edit], begin: int, end: int, layer: int, head: int
    ) -> dict[str, Any]:
        """Give a head's pattern in a window, and what of each row is outside."""
        pattern = self._patterns(ids, edits, layer, begin, end)[head]  # [T, keys]
        return {
            "begin": begin,
            "end": end,
            "layer": layer,
            "head": head,
            "kv_head": head * self.config.n_kv_heads // self.config.n_heads,
            "pattern": pattern[:, begin:end].tolist(),
            "outside": pattern[:, :begin].sum(axis=-1).tolist(),
        }

    def _patterns(
        self, ids: Sequence[int], edits: Sequence[Edit], layer: int, begin: int, end: int
    ) -> NDArray[np.float32]:
        names = [f"blocks.{i}.attn.hook_pattern" for i in range(self.config.n_layers)]
        size = self.config.n_layers * self.config.n_heads * (end - begin) * len(ids) * 4
        wanted = names if size < 64 << 20 else [names[layer]]  # all of a short prompt at once
        return self.runs.cache(ids, edits, wanted, (begin, end))["pattern", layer]

    # --- what each layer would say, and who has said it

    def lens(
        self, ids: Sequence[int], edits: Sequence[Edit], begin: int, end: int, target: int | None
    ) -> dict[str, Any]:
        """Give what the model would say after each layer, at each position of a window."""
        names = [f"blocks.{i}.hook_{part}" for i in range(self.config.n_layers) for part in ("resid_pre", "resid_post")]
        cache = self.runs.cache(ids, edits, names, (begin, end))
        lens = cache.logit_lens(positions=None, top_k=1, return_type="probs")
        assert lens.top_ids is not None
        labels = ["embedding", *(f"layer {i}" for i in range(self.config.n_layers))]
        told: dict[str, Any] = {
            "begin": begin,
            "end": end,
            "labels": labels,
            "ids": lens.top_ids[..., 0].tolist(),
            "p": lens.values[..., 0].tolist(),
            "entropy": lens.entropy.tolist(),
        }
        said = sorted({id for row in told["ids"] for id in row})
        told["tokens"] = {str(id): self.token(id) for id in said}
        if target is not None:
            aimed = cache.logit_lens(positions=None, targets=[target], return_type="probs")
            assert aimed.target_ranks is not None
            told["target"] = {
                **self.token(target),
                "p": aimed.values[..., 0].tolist(),
                "ranks": aimed.target_ranks[..., 0].tolist(),
            }
        return told

    def attribution(
        self, ids: Sequence[int], edits: Sequence[Edit], position: int, token: int, versus: int | None
    ) -> dict[str, Any]:
        """Give what each part has added to a token's logit, or to the difference of two."""
        cache = self._for_attribution(ids, edits, position)
        parts, labels = cache.decompose_resid(return_labels=True)
        shares = cache.logit_attrs(parts, token, versus)[:, 0]
        heads = cache.logit_attrs(cache.stack_head_results(), token, versus)[:, 0]
        logits = cache.logit_lens(layers=[-1], positions=None, targets=[token] if versus is None else [token, versus])
        measured = [float(number) for number in logits.values[0, 0]]
        return {
            "position": position,
            "token": self.token(token),
            "versus": None if versus is None else self.token(versus),
            "parts": [{"label": label, "value": float(v)} for label, v in zip(labels, shares, strict=True)],
            "heads": heads.reshape(self.config.n_layers, self.config.n_heads).tolist(),
            "sum": float(shares.sum(dtype=np.float64)),
            "logit": measured[0] if versus is None else measured[0] - measured[1],
            "rest": "" if self.config.norm == "rms" and not self.config.logits_cap else "biases and caps are no part's",
        }

    def neurons(
        self, ids: Sequence[int], edits: Sequence[Edit], position: int, token: int, versus: int | None, most: int
    ) -> dict[str, Any]:
        """Give the neurons that have added most to a token's logit, or to the difference of two."""
        if self.config.n_experts is not None:
            return {"neurons": [], "why": "this model's MLPs are experts, whose neurons are not taken apart"}
        cache = self._for_attribution(ids, edits, position)
        direction = self.model.tokens_to_residual_directions(token)
        if versus is not None:
            direction = direction - self.model.tokens_to_residual_directions(versus)
        shares = cache.stack_neuron_results(None, apply_ln=True, project_output_onto=direction)[:, 0]
        width = self.config.hidden_dim
        best = np.argsort(-np.abs(shares), kind="stable")[:most]
        active = np.concatenate([cache["post", i][0] for i in range(self.config.n_layers)])
        return {
            "neurons": [
                {
                    "layer": int(n) // width,
                    "neuron": int(n) % width,
                    "value": float(shares[n]),
                    "activation": float(active[n]),
                }
                for n in best
            ],
            "why": "",
        }

    def _for_attribution(self, ids: Sequence[int], edits: Sequence[Edit], position: int) -> ActivationCache:
        names = ["hook_embed", "ln_final.hook_scale"]
        for i in range(self.config.n_layers):
            hooks = ("resid_pre", "resid_post", "attn_out", "mlp_out")
            names += [f"blocks.{i}.hook_{hook}" for hook in hooks]
            names += [f"blocks.{i}.attn.hook_z", f"blocks.{i}.mlp.hook_post"]
            names += [f"blocks.{i}.ln{n}_post.hook_scale" for n in (1, 2)]
        return self.runs.cache(ids, edits, names, (position, position + 1))

    # --- patching

    def patch(
        self, clean: Sequence[int], corrupt: Sequence[int], name: str, answer: int, wrong: int
    ) -> Iterator[dict[str, Any]]:
        """Put a clean run's activations into a corrupt one, layer by layer, and tell cells as they are there."""
        if len(clean) != len(corrupt):
            raise ApiError(
                400,
                f"the prompts have {len(clean)} and {len(corrupt)} tokens: give them equally many, so that each has "
                "its counterpart",
                param="corrupt",
            )
        heads = name == "z"
        wanted = [f"blocks.{i}.{'attn.' if heads else ''}hook_{name}" for i in range(self.config.n_layers)]
        wanted = [one for one in wanted if self.runs.has(one)]
        if not wanted:
            raise ApiError(400, f"this model has no activation {name!r}", param="name")
        metric = metrics.logit_diff(answer, wrong)
        logits, cache = self.model.run_with_cache(list(clean), wanted)
        base = self.model(list(corrupt))
        columns = self.config.n_heads if heads else len(clean)
        told = {"clean": metric(logits)[0], "corrupt": metric(base)[0]}
        yield {**told, "rows": self.config.n_layers, "columns": columns, "axis": "head" if heads else "position"}
        axis = "head" if heads else "position"
        for layer in range(self.config.n_layers):
            for begin in range(0, columns, _CELLS):
                chosen = list(range(begin, min(begin + _CELLS, columns)))
                cells = patching.activation_patch(
                    self.model,
                    list(corrupt),
                    cache,
                    metric,
                    name,
                    {"layer": [layer], axis: chosen},
                    last_only=True,
                    progress=False,
                )
                yield {"layer": layer, "begin": begin, "values": cells[0].tolist()}


_CELLS = 32  # in a piece of the stream: what the model computes in one pass
