"""The arithmetic of one number that the model has computed: its inputs, its weights, their products and their sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..common.parts import NORM, NORM_B
from ..server.errors import ApiError
from .rounding import kept, multiplied
from .runs import Runs

if TYPE_CHECKING:
    from .edits import Edit

KINDS = ("q", "k", "v", "score", "mix", "attn_out", "gate", "up", "mlp_out", "logit")
_Floats = NDArray[np.float64]
_LAST_DIGITS = 2e-6  # of the terms' sizes: what sums in float32 differ by


class Products:
    """Takes outputs apart. Used by one thread at a time.

    Parameters
    ----------
    runs : Runs
        The model.
    """

    def __init__(self, runs: Runs) -> None:
        self.runs, self.model, self.config = runs, runs.model, runs.model.config

    def product(
        self,
        ids: Sequence[int],
        edits: Sequence[Edit],
        kind: str,
        position: int,
        *,
        layer: int = 0,
        head: int = 0,
        key: int = 0,
        output: int = 0,
        begin: int = 0,
        rows: int = 12,
    ) -> dict[str, Any]:
        """Show one output: sum of input x weight.

        Parameters
        ----------
        ids, edits
            The run.
        kind : str
            Of `KINDS`: what the output is a number of.
        position : int
            The token that it is computed for.
        layer, head : int
            Where it is one of a layer, or of a head; heads of "k" and "v" are those of keys and values.
        key : int
            For "score": the token that is looked at.
        output : int
            Which number of the output; for "logit" the token's id.
        begin, rows : int
            Which of the terms to give, the largest first.
        """
        c = self.config
        count = {
            "q": c.head_dim, "k": c.head_dim, "v": c.head_dim, "mix": c.head_dim, "score": 1, "gate": c.hidden_dim,
            "up": c.hidden_dim, "logit": c.vocab_size,
        }.get(kind, c.dim)  # fmt: skip
        if output >= count:
            raise ApiError(400, f"output is {output}, expected 0 to {count - 1}", param="output")
        if kind in ("gate", "up", "mlp_out") and c.n_experts is not None:
            raise ApiError(400, "this model's MLPs are experts, which are not taken apart", param="kind")
        if kind == "gate" and not c.gated:
            raise ApiError(400, "this model's MLPs have no gate", param="kind")
        run = _Run(self.runs, ids, edits, layer, position)
        x, w, measured, factor, added, words = getattr(self, f"_{kind}")(run, head, key, output)
        cap = {"logit": c.logits_cap, "score": c.score_cap}.get(kind)
        w = np.asarray(w, dtype=np.float64)

        def result_of(terms: _Floats) -> float:
            result = float(terms.sum()) * factor + added
            return float(np.tanh(result / cap) * cap) if cap else result

        # Which weights see rounded inputs is the file's: it is told by the sum that gives the model's number.
        dtype = "f32" if kind in ("score", "mix") else self.model.activation_dtype
        seen = [(said, np.asarray(x, dtype=np.float64)) for said, x in multiplied(np.asarray(x, np.float32), dtype)]
        off = [abs(result_of(x * w) - measured) for _, x in seen]
        size = float(np.abs(seen[0][1] * w).sum()) * abs(factor) + abs(added)
        rounded, x = seen[int(np.argmin(off))] if min(off) <= _LAST_DIGITS * size else seen[0]
        terms = x * w
        total, result = float(terms.sum()), result_of(terms)
        order = np.argsort(-np.abs(terms), kind="stable")
        chosen = order[begin : begin + rows]
        return {
            "kind": kind,
            "layer": layer,
            "head": head,
            "position": position,
            "output": output,
            "input": words[0],
            "weight": words[1],
            "hook": words[2],
            "count": len(terms),
            "begin": begin,
            "terms": [
                {"index": int(i), "x": float(x[i]), "w": float(w[i]), "product": float(terms[i])} for i in chosen
            ],
            "sum": total,
            "factor": factor,
            "bias": added,
            "result": result,
            "measured": float(measured),
            "rounded": rounded,
        }

    # Each gives inputs, weights, the run's number, what the sum is multiplied with, what is added, and three names.

    def _q(self, run: _Run, head: int, key: int, output: int) -> tuple[Any, ...]:
        return self._projection(run, "Q", "q", head, output)

    def _k(self, run: _Run, head: int, key: int, output: int) -> tuple[Any, ...]:
        return self._projection(run, "K", "k", head, output)

    def _v(self, run: _Run, head: int, key: int, output: int) -> tuple[Any, ...]:
        return self._projection(run, "V", "v", head, output)

    def _projection(self, run: _Run, letter: str, hook: str, head: int, output: int) -> tuple[Any, ...]:
        heads = self.config.n_heads if letter == "Q" else self.config.n_kv_heads
        if head >= heads:
            raise ApiError(400, f"head is {head}, expected 0 to {heads - 1}", param="head")
        name = f"blocks.{run.layer}.attn.W_{letter}"
        x, said = run.normed("ln1", "hook_resid_pre")
        w = self.model.weights.head(name, head)[:, output]
        added = self._bias(f"blocks.{run.layer}.attn.b_{letter}", (head, output))
        measured = run.at(f"blocks.{run.layer}.attn.hook_{hook}")[head, output]
        return (
            x,
            w,
            measured,
            1.0,
            added,
            (said, f"{name}[{head}, :, {output}]", f"blocks.{run.layer}.attn.hook_{hook}"),
        )

    def _score(self, run: _Run, head: int, key: int, output: int) -> tuple[Any, ...]:
        attn = f"blocks.{run.layer}.attn"
        kv = head * self.config.n_kv_heads // self.config.n_heads
        names = [f"{attn}.hook_rot_q", f"{attn}.hook_rot_k"]
        names = [name if self.runs.has(name) else name.replace("rot_", "") for name in names]
        q = run.at(names[0])[head]
        k = kept(run.other(key).at(names[1])[kv], self.model.kv_dtype)
        measured = run.at(f"{attn}.hook_attn_scores")[head, 0, key]
        if not np.isfinite(measured):
            raise ApiError(400, f"token {run.position} does not look at token {key}", param="key")
        factor = self.config.attention_multiplier or self.config.head_dim**-0.5
        words = (f"{names[0]}[{run.position}, {head}]", f"{names[1]}[{key}, {kv}]", f"{attn}.hook_attn_scores")
        return q, k, measured, factor, 0.0, words

    def _mix(self, run: _Run, head: int, key: int, output: int) -> tuple[Any, ...]:
        attn = f"blocks.{run.layer}.attn"
        kv = head * self.config.n_kv_heads // self.config.n_heads
        pattern = run.at(f"{attn}.hook_pattern")[head, 0, : run.position + 1]
        values = kept(run.whole(f"{attn}.hook_v")[: run.position + 1, kv], self.model.kv_dtype)[:, output]
        words = (f"{attn}.hook_pattern[{head}, {run.position}]", f"{attn}.hook_v[:, {kv}, {output}]", f"{attn}.hook_z")
        return pattern, values, run.at(f"{attn}.hook_z")[head, output], 1.0, 0.0, words

    def _attn_out(self, run: _Run, head: int, key: int, output: int) -> tuple[Any, ...]:
        attn = f"blocks.{run.layer}.attn"
        if self.runs.has(f"blocks.{run.layer}.ln1_post.hook_scale"):
            raise ApiError(
                400, "a norm comes after this model's attention, so its output is no single sum", param="kind"
            )
        z = run.at(f"{attn}.hook_z")  # [heads, head_dim]
        w = np.stack([self.model.weights.head(f"{attn}.W_O", h)[:, output] for h in range(len(z))])
        added = self._bias(f"{attn}.b_O", (output,)) * self.config.residual_multiplier
        measured = run.at(f"blocks.{run.layer}.hook_attn_out")[output]
        words = (f"{attn}.hook_z", f"{attn}.W_O[:, :, {output}]", f"blocks.{run.layer}.hook_attn_out")
        return z.ravel(), w.ravel(), measured, float(self.config.residual_multiplier), added, words

    def _gate(self, run: _Run, head: int, key: int, output: int) -> tuple[Any, ...]:
        return self._into_mlp(run, "W_gate", "b_gate", "pre", output)

    def _up(self, run: _Run, head: int, key: int, output: int) -> tuple[Any, ...]:
        return self._into_mlp(run, "W_in", "b_in", "pre_linear" if self.config.gated else "pre", output)

    def _into_mlp(self, run: _Run, weight: str, bias: str, hook: str, output: int) -> tuple[Any, ...]:
        mlp = f"blocks.{run.layer}.mlp"
        x, said = run.normed("ln1" if self.config.parallel else "ln2", "hook_resid_mid")
        w = self.model.weights[f"{mlp}.{weight}"][:, output]
        measured = run.at(f"{mlp}.hook_{hook}")[output]
        added = self._bias(f"{mlp}.{bias}", (output,))
        return x, w, measured, 1.0, added, (said, f"{mlp}.{weight}[:, {output}]", f"{mlp}.hook_{hook}")

    def _mlp_out(self, run: _Run, head: int, key: int, output: int) -> tuple[Any, ...]:
        mlp = f"blocks.{run.layer}.mlp"
        if self.runs.has(f"blocks.{run.layer}.ln2_post.hook_scale"):
            raise ApiError(400, "a norm comes after this model's MLPs, so their output is no single sum", param="kind")
        w = self.model.weights[f"{mlp}.W_out"][:, output]
        measured = run.at(f"blocks.{run.layer}.hook_mlp_out")[output]
        words = (f"{mlp}.hook_post", f"{mlp}.W_out[:, {output}]", f"blocks.{run.layer}.hook_mlp_out")
        factor = float(self.config.residual_multiplier)
        added = self._bias(f"{mlp}.b_out", (output,)) * factor
        return run.at(f"{mlp}.hook_post"), w, measured, factor, added, words

    def _logit(self, run: _Run, head: int, key: int, output: int) -> tuple[Any, ...]:
        stream = run.at(f"blocks.{self.config.n_layers - 1}.hook_resid_post")
        x = run.at("ln_final.hook_normalized").astype(np.float64) * self._gain(NORM.lens)
        if NORM_B.lens in self.model.weights:
            x = x + self.model.weights[NORM_B.lens]
        measured = self.model.unembed(stream, apply_ln=True)[output]
        w = self.model.tokens_to_residual_directions(output)
        factor = 1.0  # the direction has what logits are scaled by
        return x, w, measured, factor, 0.0, (f"ln_final.hook_normalized x {NORM.lens}", f"W_U[:, {output}]", "logits")

    def _gain(self, name: str) -> _Floats:
        weights = self.model.weights
        return weights[name].astype(np.float64) if name in weights else np.ones(self.config.dim)

    def _bias(self, name: str, index: tuple[int, ...]) -> float:
        weights = self.model.weights
        return float(weights[name][index]) if name in weights else 0.0


class _Run:
    """Activations of a run at one position."""

    def __init__(self, runs: Runs, ids: Sequence[int], edits: Sequence[Edit], layer: int, position: int) -> None:
        self._runs, self._ids, self._edits = runs, ids, edits
        self.layer, self.position = layer, position

    def other(self, position: int) -> _Run:
        """Look at another position."""
        return _Run(self._runs, self._ids, self._edits, self.layer, position)

    def at(self, name: str) -> NDArray[np.float32]:
        """Give an activation at this position; of patterns [heads, 1, keys]."""
        cache = self._runs.cache(self._ids, self._edits, [name], (self.position, self.position + 1))
        array = cache[name]
        return array if name.endswith(("hook_pattern", "hook_attn_scores")) else array[0]

    def whole(self, name: str) -> NDArray[np.float32]:
        """Give it at all positions."""
        return self._runs.cache(self._ids, self._edits, [name])[name]

    def normed(self, norm: str, without: str) -> tuple[_Floats, str]:
        """Give what a half of the layer reads: the stream after its norm with its gain, or as it is."""
        block, weights = f"blocks.{self.layer}", self._runs.model.weights
        name = f"{block}.{norm}.hook_normalized"
        if not self._runs.has(name):
            return self.at(f"{block}.{without}").astype(np.float64), f"{block}.{without}"
        x = self.at(name).astype(np.float64)
        said = name
        if f"{block}.{norm}.w" in weights:
            x, said = x * weights[f"{block}.{norm}.w"], f"{name} x {block}.{norm}.w"
        if f"{block}.{norm}.b" in weights:
            x, said = x + weights[f"{block}.{norm}.b"], f"{said} + {block}.{norm}.b"
        return x, said
