"""Conversions and comparisons on a terminal; rich is imported where it draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _core
from .._core import Sampler
from ..command.display import one_line, say, say_json, tell
from ..common.new_files import new_file
from .calibration import Calibration
from .comparison import Comparison, compare
from .conversion import Conversion, convert
from .opening import open_source, runnable
from .picture import picture as drawn_of

if TYPE_CHECKING:
    from ..model import Model

_OWN_TOKENS = 256  # that a model writes for itself where no text is given
_BAR = 8
_PICTURES = (".png", ".svg", ".pdf", ".jpg", ".webp")
_NO_REPORT = (
    "no comparison: files of PyTorch's of this size are read one weight at a time and do not run; export them to a "
    "folder without loss, and compare with that"
)

_UNEXPLAINED = 1e-4  # nats; the order of sums is good for less
_FLOATS = ("f32", "f16", "bf16")

Progress = Callable[[str, int, int], None]


def export_and_report(
    source: str,
    target: Path,
    format: str | None,
    *,
    tokenizer: Path | None,
    keep_tokenizer: bool,
    group: int | None,
    pure: bool,
    calibration: Calibration | None,
    act_order: bool,
    damp: float,
    symmetric: bool,
    shard_size: str,
    force: bool,
    threads: int | None,
    report: bool,
    text: Path | None,
    tokens: int,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Do what ``llama2cpp export`` does: convert with a progress bar, then tell what was written and what it cost."""
    from ..loading import load

    if picture is not None:
        if not report:
            raise ValueError("--picture draws the comparison, which --no-report leaves out")
        _check_picture(picture)
    # It stays open for the comparison: the target may take its place.
    with closing(open_source(source, tokenizer=tokenizer, threads=threads)) as opened:
        prompt = None
        if report and text is not None:  # what can fail early should
            prompt = _core.read_file(text)
            if not opened.checkpoint.has_tokenizer:
                raise ValueError(f"--text needs a tokenizer, which {source} has not: pass one (-z)")
        with _progress(f"{target}") as update:
            done = convert(
                opened,
                target,
                format,
                tokenizer=None if keep_tokenizer else False,
                group=group,
                pure=pure,
                shard_size=shard_size,
                calibration=calibration,
                act_order=act_order,
                damp=damp,
                symmetric=symmetric,
                force=force,
                threads=threads,
                progress=update,
            )
        found: Comparison | None = None
        model = runnable(opened.checkpoint, threads) if report else None
        if model is not None:
            with load(done.path, threads=threads, backend="cpu") as written, _progress("comparing") as update:
                words = _own_text(model) if prompt is None else prompt
                found = compare(model, written, words, max_tokens=tokens, progress=update)
            note = unexplained(found)
            done = replace(done, notes=(*done.notes, *([note] if note else [])))
        elif report:
            done = replace(done, notes=(*done.notes, _NO_REPORT))
    if picture is not None and found is not None:
        _save_picture(found, f"{target} against {source}", picture)
    if as_json:
        facts: dict[str, Any] = _conversion_facts(done)
        say_json(facts | ({} if found is None else {"comparison": found.to_dict()}))
        return
    _print_conversion(done)
    if found is not None:
        _print_comparison(found, source, str(target), rows=10)


def unexplained(found: Comparison) -> str:
    """Say that outputs differ which no weight accounts for; empty where they do not."""
    if not found.worst_kl > _UNEXPLAINED or any(tensor.relative_error for tensor in found.tensors):
        return ""
    formats = sorted({f"{tensor.format_a} as {tensor.format_b}" for tensor in found.tensors})
    rounds = any(format not in _FLOATS for tensor in found.tensors for format in (tensor.format_a, tensor.format_b))
    why = f"activations are rounded for one of them ({', '.join(formats)})" if rounds else "a setting has been lost"
    return f"the predictions differ by up to {found.worst_kl:.2g} nats with no weight changed: {why}"


def compare_and_report(
    a: str,
    b: str,
    *,
    text: Path | None,
    tokenizer: Path | None,
    threads: int | None,
    tokens: int,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Do what ``llama2cpp compare`` does."""
    from ..loading import load

    if picture is not None:
        _check_picture(picture)
    with (
        load(a, tokenizer=tokenizer, threads=threads, backend="cpu") as first,
        load(b, threads=threads, backend="cpu") as second,
        _progress("comparing") as update,
    ):
        words = _own_text(first) if text is None else _core.read_file(text)
        found = compare(first, second, words, max_tokens=tokens, progress=update)
    if picture is not None:
        _save_picture(found, f"{b} against {a}", picture)
    if as_json:
        say_json({"a": a, "b": b, **found.to_dict()})
    else:
        _print_comparison(found, a, b, rows=None)


def _check_picture(path: Path) -> None:
    """Before the work, raise for what could only fail after it."""
    if find_spec("matplotlib") is None:
        raise ValueError('--picture needs matplotlib: pip install "llama2cpp[notebook]"')
    if path.suffix.lower() not in _PICTURES:
        raise ValueError(f"--picture {path}: expected a name that ends with one of {', '.join(_PICTURES)}")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no folder")


def _save_picture(found: Comparison, title: str, path: Path) -> None:
    with new_file(path) as begun:
        drawn_of(found, title).savefig(begun, dpi=150, format=path.suffix[1:].lower())
    tell(one_line(f"{path}: the picture"))


def _own_text(model: Model) -> list[int]:
    """Let the model write a text for itself: ids, as it may have no tokenizer."""
    sampler = Sampler(temperature=1.0, top_p=1.0, seed=0)
    bos = model.tokenizer.bos_id if model.has_tokenizer else None
    ids = [1 if bos is None else bos]
    ids[0] %= model.config.vocab_size
    session = model.session()
    while len(ids) < min(_OWN_TOKENS, session.context):
        ids.append(sampler.sample(session.step(ids[-1])))
    return ids


@contextmanager
def _progress(what: str) -> Iterator[Progress]:
    """Draw a bar on stderr, with rate and time left."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from ..command.progress import progress_bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(),
    )
    what = one_line(what)
    with progress_bar(*columns, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def update(name: str, done: int, total: int) -> None:
            kind = name if name in ("predictions", "calibration") else ""
            if kind not in tasks:
                tasks[kind] = bar.add_task("calibration" if kind == "calibration" else what, total=total, rate="")
            task = bar.tasks[tasks[kind]]
            per = "tokens/s" if kind else "weights/s"
            rate = "" if not task.speed else f"{_short(task.speed)} {per if total > 10_000 or kind else 'tensors/s'}"
            bar.update(tasks[kind], completed=done, total=total, rate=rate)

        yield update


def _short(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f}"


def _conversion_facts(done: Conversion) -> dict[str, Any]:
    return {
        "path": str(done.path),
        "format": done.format,
        "bytes": done.bytes,
        "seconds": round(done.seconds, 3),
        "formats": done.formats,
        "tokenizer": None if done.tokenizer is None else str(done.tokenizer),
        "notes": list(done.notes),
    }


def _print_conversion(done: Conversion) -> None:
    counts = Counter(done.formats.values())
    kinds = ", ".join(f"{count} {format}" for format, count in counts.most_common())
    say(one_line(f"{done.path}: {done.format}, {done.bytes:,} bytes, {done.seconds:.1f} s ({kinds})"))
    if done.tokenizer is not None and done.tokenizer != done.path:
        say(one_line(f"{done.tokenizer}: its tokenizer"))
    for note in done.notes:
        say(one_line(f"note: {note}"))


def _print_comparison(found: Comparison, a: str, b: str, rows: int | None) -> None:
    say()
    say(one_line(f"{b} against {a}, {found.tokens:,} predictions"))
    say(f"  perplexity            {found.perplexity_a:.4f} -> {found.perplexity_b:.4f}")
    say(f"  KL divergence         mean {found.mean_kl:.6f}, worst {found.worst_kl:.4f} at token {found.worst_at}")
    say(f"  same likeliest token  {found.top1_agreement:.2%}")
    if not found.tensors:
        return
    shown = list(found.tensors)
    if rows is not None and rows < len(shown):
        shown = sorted(shown, key=lambda tensor: -tensor.relative_error)[:rows]
        say()
        say(f"The {rows} weights that differ most")
    say()
    say(f"  {'weight':<26} {'stored as':<14} {'relative error':<18} largest")
    most = max(tensor.relative_error for tensor in found.tensors) or 1.0
    for tensor in shown:
        bar = "#" * round(_BAR * tensor.relative_error / most)
        stored = tensor.format_a if tensor.format_a == tensor.format_b else f"{tensor.format_a} -> {tensor.format_b}"
        name = tensor.name.removesuffix(".weight")
        say(
            f"  {name:<26} {stored:<14} {tensor.relative_error:.2e} {bar:<{_BAR}} {tensor.largest:.2e} "
            f"at {list(tensor.at)}"
        )
