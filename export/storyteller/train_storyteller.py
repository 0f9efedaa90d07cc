"""Trains the storyteller, the small model in the package, on the stories of `story_grammar.py`, on CPU cores.

    python export/storyteller/train_storyteller.py --minutes 110 --seed 1 --out storyteller

The folder gets `storyteller.bin` (llama2.c version 2, int8), `tokenizer.model`, `training.json` with the figures, and
`state.pt`, from which the same command goes on where it was stopped. Another run with the same seed sees the same
stories in the same order; how many, the machine's speed decides.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from storyteller_data import Batches, HeldOut, train_tokenizer
from storyteller_model import NORM_EPS, ROPE_THETA, Llama, Sizes, fastest_dtype

import llama2cpp

GROUP = 64  # int8 values that share a scale
CONTEXT = 512

_SAVE_EVERY = 120.0  # seconds
_HELD_OUT_STORIES = 320
_STEADY = 100  # steps after which the mean says what a step takes
_LONGEST_STEP = 10.0  # of the mean
_LOSS_MEMORY = 0.98  # of the loss that is shown
_AVERAGE_FROM = 0.7  # of the training: from here on the weights are averaged, for the export


@dataclass(frozen=True)
class Settings:
    """What decides how a model turns out, its seed and its time apart."""

    sizes: Sizes
    batch_tokens: int = 2048
    peak_rate: float = 6e-3  # of Muon, which moves the matrices inside the layers
    other_rate: float = 5e-3  # of AdamW, which moves embeddings and gains
    last_rate: float = 0.02  # of the peak
    warm_up: float = 0.02  # of the training
    weight_decay: float = 0.05
    clip: float = 1.0


class Training:
    """A training on its way: the model, the optimizer, and the place in the data."""

    def __init__(self, settings: Settings, seed: int, seconds: float, folder: Path) -> None:
        torch.manual_seed(seed)
        self.settings = settings
        self.seed = seed
        self.seconds = seconds  # to train for, all in all
        self.folder = folder
        self.spent = 0.0  # of them
        self.step = 0
        self.tokens = 0
        self.place = (0, 0)  # pool and batch that come next
        self.loss = math.nan  # a running mean, nats a token
        self.tokenizer = self._tokenizer()
        dtype = fastest_dtype(settings.sizes)
        self.model = Llama(settings.sizes, dtype)
        self.averaged = Llama(settings.sizes)  # float32, as the engine computes
        self.muon, self.adamw = self._optimizers()
        if self._state_path.exists():
            self._load()

    def run(self, console: Console) -> None:
        """Train until the time is spent. Ctrl-C saves and stops."""
        batches = Batches(
            self.tokenizer, seed=self.seed, batch_tokens=self.settings.batch_tokens, context=self.settings.sizes.seq_len
        )
        saved = self.spent
        columns = (BarColumn(None), TextColumn("{task.fields[line]}"))
        with Progress(*columns, console=console, refresh_per_second=2) as progress:
            task = progress.add_task("", total=self.seconds, completed=int(self.spent), line="")
            try:
                for pool, index, batch in batches.starting_at(*self.place):
                    if self.spent >= self.seconds:
                        break
                    begin = time.perf_counter()
                    self._learn(batch.ids, batch.targets)
                    took = time.perf_counter() - begin
                    if self.step > _STEADY:  # a far longer step was a pause: of the process, or of the machine
                        took = min(took, _LONGEST_STEP * self.spent / self.step)
                    self.tokens += batch.tokens
                    self.place = (pool, index + 1)
                    self.spent += took
                    progress.update(task, completed=self.spent, line=self._line(batch.tokens / took))
                    if self.spent - saved > _SAVE_EVERY:
                        self.save()
                        saved = self.spent
            finally:
                self.save()

    def evaluate(self, held_out: HeldOut) -> dict[str, float]:
        """Loss of the averaged weights in nats a token and bits a story, beside the bits that cannot be saved."""
        total = 0.0
        with torch.no_grad():
            for batch in held_out.batches:
                total += self.averaged(batch.ids, batch.targets).item() * batch.tokens
        stories = sum(len(batch.ids) for batch in held_out.batches)
        return {
            "loss": total / held_out.tokens,
            "floor": held_out.bits * math.log(2) / held_out.tokens,
            "bits_a_story": total / math.log(2) / stories,
            "floor_bits_a_story": held_out.bits / stories,
        }

    def export(self) -> int:
        """Write what the engine loads; the bytes of checkpoint and tokenizer together."""
        config = llama2cpp.Config(
            **asdict(self.settings.sizes), norm_eps=NORM_EPS, rope_theta=ROPE_THETA, rope_style="half_split"
        )
        with llama2cpp.from_arrays(config, self.averaged.arrays()) as model:
            done = llama2cpp.export.convert(model, self.folder / "storyteller.bin", "int8", group=GROUP, force=True)
        return done.bytes + len(self.tokenizer)

    def save(self) -> None:
        """Write the state: a file under its own name is always a whole one."""
        state = {
            "settings": asdict(self.settings),
            "seed": self.seed,
            "spent": self.spent,
            "step": self.step,
            "tokens": self.tokens,
            "place": self.place,
            "loss": self.loss,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "muon": self.muon.state_dict(),
            "adamw": self.adamw.state_dict(),
        }
        begun = self._state_path.with_suffix(".part")
        torch.save(state, begun)
        begun.replace(self._state_path)

    @property
    def _state_path(self) -> Path:
        return self.folder / "state.pt"

    def _load(self) -> None:
        state: dict[str, Any] = torch.load(self._state_path, weights_only=True)
        if state["settings"] != asdict(self.settings) or state["seed"] != self.seed:
            raise ValueError(f"{self._state_path} is of another training: remove it, or choose another folder")
        for name in ("spent", "step", "tokens", "loss"):
            setattr(self, name, state[name])
        self.place = (state["place"][0], state["place"][1])
        for name in ("model", "averaged", "muon", "adamw"):
            getattr(self, name).load_state_dict(state[name])

    def _tokenizer(self) -> bytes:
        path = self.folder / "tokenizer.model"
        if not path.exists():
            path.write_bytes(train_tokenizer(self.settings.sizes.vocab_size))
        return path.read_bytes()

    def _optimizers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        # Muon needs less than half of the stories that AdamW needs for the same loss.
        inside = [parameter for parameter in self.model.layers.parameters() if parameter.dim() == 2]
        gains = [parameter for parameter in self.model.parameters() if parameter.dim() == 1]
        settings = self.settings
        muon = torch.optim.Muon(
            inside,
            lr=settings.peak_rate,
            momentum=0.95,
            weight_decay=settings.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        adamw = torch.optim.AdamW(
            [self.model.tok_embeddings, *gains],
            lr=settings.other_rate,
            betas=(0.9, 0.98),
            weight_decay=0.0,
            fused=True,
        )
        return muon, adamw

    def _rate(self) -> float:
        """Learning rate as a share of the highest: up in a line, then down by a cosine, over the time."""
        done = min(1.0, self.spent / self.seconds)
        settings = self.settings
        if done < settings.warm_up:
            return (done + 1e-3) / settings.warm_up
        fall = 0.5 + 0.5 * math.cos(math.pi * (done - settings.warm_up) / (1 - settings.warm_up))
        return settings.last_rate + (1 - settings.last_rate) * fall

    def _learn(self, ids: torch.Tensor, targets: torch.Tensor) -> None:
        rate = self._rate()
        loss = self.model(ids, targets)
        self.model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        for optimizer, peak in ((self.muon, self.settings.peak_rate), (self.adamw, self.settings.other_rate)):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
            optimizer.step()
        self.step += 1
        value = loss.item()
        if not math.isfinite(value):
            raise RuntimeError(f"the loss is {value} at step {self.step}")
        self.loss = value if math.isnan(self.loss) else _LOSS_MEMORY * self.loss + (1 - _LOSS_MEMORY) * value
        self._average()

    @torch.no_grad()
    def _average(self) -> None:
        """Follow the weights: closely at first, as a slow mean in the last part."""
        pace = 1.0 if self.spent < _AVERAGE_FROM * self.seconds else 0.005
        if pace == 1.0 and self.step % 50:
            return  # a copy that nobody looks at yet
        torch._foreach_lerp_(tuple(self.averaged.parameters()), tuple(self.model.parameters()), pace)

    def _line(self, speed: float) -> str:
        left = max(0.0, self.seconds - self.spent)
        return (
            f"step {self.step:,}  {self.tokens / 1e6:.2f} M tokens  loss {self.loss:.4f}  {speed:,.0f} tok/s"
            f"  {left / 60:.1f} min left"
        )


def main(
    minutes: Annotated[float, typer.Option(help="How long to train, all runs of this folder together.")] = 110.0,
    seed: Annotated[int, typer.Option(help="Of the data's order and the first weights.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder for what is made.")] = Path("storyteller"),
    dim: Annotated[int, typer.Option(help="Width.")] = 192,
    layers: Annotated[int, typer.Option(help="Depth.")] = 5,
    heads: Annotated[int, typer.Option(help="Heads of queries.")] = 6,
    kv_heads: Annotated[int, typer.Option(help="Heads of keys and values.")] = 2,
    hidden: Annotated[int, typer.Option(help="Width inside the feed-forward part.")] = 512,
    pieces: Annotated[int, typer.Option(help="Size of the vocabulary.")] = 1536,
    rate: Annotated[float, typer.Option(help="Highest learning rate of the layers.")] = 6e-3,
    batch_tokens: Annotated[int, typer.Option(help="Tokens in a batch, padding included.")] = 2048,
) -> None:
    """Train the storyteller and export it; the same command goes on after a stop."""
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    sizes = Sizes(dim, hidden, layers, heads, kv_heads, pieces, CONTEXT)
    settings = Settings(sizes, batch_tokens=batch_tokens, peak_rate=rate)
    training = Training(settings, seed, minutes * 60, out)
    parameters = sum(parameter.numel() for parameter in training.model.parameters())
    console.print(f"{parameters:,} parameters; {training.step:,} steps done")
    try:
        training.run(console)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
        raise typer.Exit(130) from None
    size = training.export()
    figures = {
        "settings": asdict(settings),
        "parameters": parameters,
        "seed": seed,
        "threads": threads,
        "group": GROUP,
        "minutes": training.spent / 60,
        "steps": training.step,
        "tokens": training.tokens,
        "tokens_a_second": training.tokens / training.spent,
        "bytes": size,
        "held_out": training.evaluate(HeldOut.of(training.tokenizer, _HELD_OUT_STORIES, names=False)),
        "held_out_names": training.evaluate(HeldOut.of(training.tokenizer, _HELD_OUT_STORIES, names=True)),
    }
    (out / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    console.print_json(data=figures)


if __name__ == "__main__":
    typer.run(main)
