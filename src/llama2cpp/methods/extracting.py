"""Methods of `Model` that take activations from many texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING

from ..activation_data import means
from ..activation_data.extraction import Extraction
from ..activation_data.passes import shown_progress
from ..activation_data.reading import ActivationData
from ..adapters import Adapter
from ..common.arguments import checked

if TYPE_CHECKING:
    from ..activation_data.means import MeanActivations
    from ..common.token_ids import Prompt
    from ..inside.places import Names
    from ..model import Model


@checked
def extract(
    self: Model,
    texts: Iterable[Prompt],
    points: Names,
    layers: int | Sequence[int] | None = None,
    *,
    out: str | PathLike[str],
    pool: str | None = None,
    dtype: str = "f16",
    shuffle: int | None = None,
    resume: bool = True,
    truncate: bool = False,
    special: bool | None = None,
    shard_size: int | str = "128MB",
    progress: bool | None = None,
    adapter: Adapter | None = None,
) -> ActivationData:
    """Write the activations of many texts to a folder: data sets for probes and sparse autoencoders.

    Texts are read as they are needed, 32 run together, and layers behind the last point do not run. Files are
    safetensors with a row for each token and, beside the activations, its ``text`` (counted from 0), ``positions`` and
    ``tokens``. One file and one pass are in memory.

    A run that was killed goes on with the same call: the texts are read again, and those whose rows are in a complete
    file are compared and passed over. The folder then has the bytes of a run that was never killed. Ctrl-C, an error
    and the end of the texts leave a file that is not full, which the next run fills up; so texts may be added at the
    end. An error that the texts themselves raise leaves out those that were read for the pass that was to come, fewer
    than 32: the next run computes them.

    Parameters
    ----------
    texts : iterable of str, bytes or sequence of int
        Any number. A text gets BOS before it where the tokenizer wants that.
    points : str, sequence of str, or predicate
        As `names_filter` in `run_with_cache`. Patterns and scores, which have no row for a token, are refused.
    layers : int or sequence of int, optional
        Of points that each layer has; negative counts from the last. All if not given.
    out : str or path
        A new folder, an empty one, or one of the same run.
    pool : str, optional
        "last": a row for each text, of its last token. "mean": the mean over its tokens, taken in double precision.
        None: a row for each token.
    dtype : str
        "f16", "bf16" or "f32". Numbers that float16 has not are a ValueError.
    shuffle : int, optional
        A seed: the rows of each file are in a random order. The order of the files is that of the texts, and
        `ActivationData.batches` mixes files. It takes the memory of two more columns of a file.
    resume : bool
        Go on where a run with the same arguments has ended. False refuses a folder that has activations.
    truncate : bool
        Leave away what of a text does not fit in the context. By default such a text is a ValueError.
    special : bool, optional
        Whether texts that spell control tokens get them, as in `generate`.
    shard_size : int or str
        About how many bytes a file has, which is what a run that is killed may have to compute again.
    progress : bool, optional
        Whether to draw a progress bar on stderr; if not given, where that is a terminal.
    adapter : Adapter, optional
        A LoRA adapter of the model that acts in this run; one with other factors is another run.

    Returns
    -------
    ActivationData
        The folder's, as `llama2cpp.read_activations` opens it.

    Raises
    ------
    ValueError
        For points or layers that there are not, a text that is too long or has no tokens, and other arguments that
        cannot be. What was done by then is kept.
    FileExistsError
        If the folder has something else, or activations of another model, of other arguments or texts; it says which.
    OSError
        If it cannot be written.

    Examples
    --------
    >>> import llama2cpp, tempfile
    >>> model = llama2cpp.load("storyteller")
    >>> stories = ["Once upon a time", "The dog"]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data = model.extract(stories, "resid_post", [1, 3], out=folder)
    ...     again = model.extract([*stories, "A cat"], "resid_post", [1, 3], out=folder)
    ...     print(len(data), len(again), again["resid_post", 3].shape, again["text"].tolist())
    9 12 (12, 192) [0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    """
    if fspath(out) == "":  # which is the current folder to Path
        raise ValueError("extract: out is '', expected the name of a folder")
    job = Extraction(
        self,
        texts,
        points,
        layers,
        out=Path(out),
        pool=pool,
        dtype=dtype,
        shuffle=shuffle,
        resume=resume,
        truncate=truncate,
        special=special,
        shard_size=shard_size,
        adapter=adapter,
    )
    with shown_progress(texts, progress) as seen:
        job.run(seen)
    return ActivationData(Path(out))


@checked
def mean_activations(
    self: Model,
    texts: Iterable[Prompt],
    points: Names,
    layers: int | Sequence[int] | None = None,
    *,
    truncate: bool = False,
    special: bool | None = None,
    progress: bool | None = None,
    adapter: Adapter | None = None,
) -> MeanActivations:
    """Take the mean and the variance of activations over the tokens of many texts, with no cache of them.

    Parameters
    ----------
    texts, points, layers, truncate, special, progress, adapter
        As in `extract`. The caches know the adapter, as those of `run_with_cache` do.

    Returns
    -------
    MeanActivations
        A named tuple of ``mean`` and ``variance``, each as the cache of one token, and counts of ``tokens`` and
        ``texts``. Sums are in double precision.

    Raises
    ------
    ValueError
        As in `extract`, and if there are no texts.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import interventions
    >>> model = llama2cpp.load("storyteller")
    >>> found = model.mean_activations(["Once upon a time", "The dog"], "mlp_out")
    >>> found.mean["mlp_out", 3].shape, found.tokens
    ((1, 1, 192), 9)
    >>> logits = model.run_with_hooks("A cat", [interventions.mean("mlp_out", found.mean, layer=3)])
    """
    with shown_progress(texts, progress) as seen:
        return means.mean_activations(
            self, texts, points, layers, truncate=truncate, special=special, adapter=adapter, seen=seen
        )
