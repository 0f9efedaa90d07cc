"""Models of this package over the data sets of Ray Data, on one machine or many (``pip install "llama2cpp[ray]"``).

Each actor opens the model once. What a row gets depends on the row and the arguments only, so the results are those of
one process, bit for bit, whatever actor a row goes to and in whatever order; and rows whose actor was killed run again.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .activation_data.passes import Passes, Texts, chosen_places, mean_row
from .activation_data.shards import encoded
from .common.arguments import checked, spelled_out
from .common.ray_arguments import adapter_path, opening
from .common.sampling import Sampling
from .loading import load
from .ray_serve import deployment
from .serving.engine import engine_of

if TYPE_CHECKING:
    from ray.data import Dataset

    from .inside.places import Names

__all__ = ["deployment", "map_activations", "map_prompts"]

_SEEDS = 2**64
_POOLS = (None, "last", "mean")
_DTYPES = ("f16", "f32")  # Ray's arrays have no bfloat16


@checked
@spelled_out(Sampling, seed=0)
def map_prompts(
    dataset: Dataset,
    *,
    model: str | PathLike[str] = "storyteller",
    prompt: str = "prompt",
    messages: str | None = None,
    template: str | None = None,
    output: str = "completion",
    seed_column: str | None = None,
    logprobs: bool = False,
    concurrency: int | tuple[int, int] = 1,
    threads: int = 1,
    batch_size: int = 64,
    load_args: Mapping[str, Any] | None = None,
    **options: Any,  # noqa: ANN401 - as in generate, but for the adapter
) -> Dataset:
    """Continue the prompts of a data set, or answer its messages, with a pool of Ray's actors.

    A data set is lazy: rows are computed when they are read. Each actor opens the model once and runs the rows of a
    batch together. An actor that dies is started again, and the rows that it had run again.

    Parameters
    ----------
    dataset : ray.data.Dataset
        With a column of prompts or messages.
    model : str or path
        What `load` opens, on each machine: a path that all have, or a name.
    prompt : str
        The column of prompts: texts, or token ids.
    messages : str, optional
        The column of messages, each row a list as `chat` takes it, in place of prompts.
    template : str, optional
        As in `chat`, for messages.
    output : str
        The name of the new column of texts. Beside it are ``{output}_tokens`` (the ids) and
        ``{output}_finish_reason``.
    seed_column : str, optional
        A column of integers: a row's seed is ``seed`` plus its number there, for data sets that have a prompt several
        times. If not given, all rows have the same, as the prompts of a list in `generate`.
    logprobs : bool
        Add the column ``{output}_logprobs``, of each token's log probability.
    concurrency : int or (int, int)
        How many actors; two numbers let Ray choose between them as the work demands.
    threads : int
        Of each actor: Ray reserves as many CPUs.
    batch_size : int
        How many rows an actor takes at a time, and computes again if it dies.
    load_args : mapping, optional
        Further arguments of `load`, such as ``{"context": 4096}``.
    **options
        As in `generate`, and in `chat` for messages; ``logits_processor`` has to be what pickle can send.
        ``speculate`` may be "prompt", and ``adapter`` is a path that each machine has: a folder of peft's or a GGUF
        file, which an actor opens once.

    Returns
    -------
    ray.data.Dataset
        The rows with the new columns. Their order is Ray's, unless its ``preserve_order`` is set.

    Raises
    ------
    ImportError
        Without Ray; the message has the command that installs it.
    ValueError, TypeError
        For an argument that cannot be, or a column that there is not. A row that cannot be, such as a prompt that does
        not fit in the context, ends the run when it is reached, as Ray's RayTaskError, whose text has ours.

    Examples
    --------
    ::

        import ray
        from llama2cpp.ray import map_prompts

        prompts = ray.data.from_items([{"prompt": "Once upon a time"}, {"prompt": "The dog"}])
        for row in map_prompts(prompts, model="storyteller", max_tokens=20, concurrency=2).iter_rows():
            print(row["prompt"], row["completion"])
    """
    function = "map_prompts"
    seed = options.pop("seed", 0)
    seed = 0 if seed is None else operator.index(seed)
    adapter = adapter_path(function, options.pop("adapter", None))
    Sampling(**{**options, "seed": seed}).checked(function)
    speculate = options.get("speculate")
    if speculate is not None and not isinstance(speculate, str):
        raise TypeError(f"{function}: speculate is a model, which cannot be sent to actors: expected 'prompt' or None")
    if template is not None and messages is None:
        raise ValueError(f"{function}: template is for messages: pass messages=, the name of their column")
    read = [messages or prompt, *([seed_column] if seed_column is not None else [])]
    written = [output, f"{output}_tokens", f"{output}_finish_reason", *([f"{output}_logprobs"] if logprobs else [])]
    made = {
        "source": fspath(model),
        "load_args": opening(function, load_args, threads),
        "column": messages or prompt,
        "template": template,
        "is_chat": messages is not None,
        "output": output,
        "seed": seed,
        "seed_column": seed_column,
        "logprobs": logprobs,
        "options": dict(options),
        "adapter": adapter,
    }
    return _mapped(function, dataset, _Prompts, made, read, written, concurrency, threads, batch_size, "pyarrow")


@checked
def map_activations(
    dataset: Dataset,
    points: Names,
    layers: int | Sequence[int] | None = None,
    *,
    model: str | PathLike[str] = "storyteller",
    text: str = "text",
    pool: str | None = None,
    dtype: str = "f16",
    truncate: bool = False,
    special: bool | None = None,
    concurrency: int | tuple[int, int] = 1,
    threads: int = 1,
    batch_size: int = 64,
    load_args: Mapping[str, Any] | None = None,
    adapter: str | PathLike[str] | None = None,
) -> Dataset:
    """Take activations from the texts of a data set, with a pool of Ray's actors.

    The numbers are those that `Model.extract` writes, to the bit.

    Parameters
    ----------
    dataset : ray.data.Dataset
        With a column of texts, or of token ids.
    points, layers, pool, truncate, special
        As in `Model.extract`.
    text : str
        The column of texts.
    dtype : str
        "f16" or "f32". Numbers that float16 has not are a ValueError.
    model, concurrency, threads, batch_size, load_args, adapter
        As in `map_prompts`.

    Returns
    -------
    ray.data.Dataset
        A row for each token; with ``pool``, for each text. It has the columns of the text's row, ``positions`` and
        ``tokens`` as `Model.extract` has them, and one for each activation by its name, such as
        "blocks.3.hook_resid_post" of the shape [dim].

    Raises
    ------
    ImportError, ValueError, TypeError
        As in `map_prompts`.

    Examples
    --------
    ::

        import ray
        from llama2cpp.ray import map_activations

        texts = ray.data.from_items([{"id": 0, "text": "The dog ran."}, {"id": 1, "text": "A cat."}])
        rows = map_activations(texts, "resid_post", [3], model="storyteller", pool="last")
        rows.write_parquet("rows")
    """
    function = "map_activations"
    if pool not in _POOLS:
        raise ValueError(f"{function}: pool is {pool!r}, expected None, 'last' or 'mean'")
    if dtype not in _DTYPES:
        raise ValueError(f"{function}: dtype is {dtype!r}, expected one of: {', '.join(_DTYPES)}")
    made = {
        "source": fspath(model),
        "load_args": opening(function, load_args, threads),
        "points": points,
        "layers": layers,
        "column": text,
        "pool": pool,
        "dtype": dtype,
        "truncate": truncate,
        "special": special,
        "adapter": adapter_path(function, adapter),
    }
    new = ["positions", "tokens"]
    return _mapped(function, dataset, _Activations, made, [text], new, concurrency, threads, batch_size, "numpy")


class _Prompts:
    """What an actor of `map_prompts` is: it gets batches as tables of pyarrow."""

    def __init__(
        self,
        source: str,
        load_args: Mapping[str, Any],
        column: str,
        template: str | None,
        is_chat: bool,
        output: str,
        seed: int,
        seed_column: str | None,
        logprobs: bool,
        options: Mapping[str, Any],
        adapter: str | None,
    ) -> None:
        model = load(source, **load_args)
        self._engine = engine_of(model)
        self._adapter = None if adapter is None else model.load_adapter(adapter)
        self._column, self._template, self._is_chat = column, template, is_chat
        self._output, self._logprobs = output, logprobs
        self._seed, self._seed_column = seed, seed_column
        self._options = options

    def __call__(self, table: Any) -> Any:  # noqa: ANN401
        import pyarrow

        prompts = table.column(self._column).to_pylist()
        if self._seed_column is None:
            seeds = [self._seed] * len(prompts)
        else:
            numbers = table.column(self._seed_column).to_pylist()
            if None in numbers:
                raise ValueError(f"map_prompts: the column {self._seed_column!r} has a row without a value")
            seeds = [(self._seed + operator.index(number)) % _SEEDS for number in numbers]
        requests: list[Any] = []
        done = []
        try:
            for prompt, seed in zip(prompts, seeds, strict=True):
                requests.append(self._submit(prompt, seed))
            for prompt, request in zip(prompts, requests, strict=True):
                with _row(prompt):
                    done.append(request.result())
        except BaseException:
            for request in requests:
                request.cancel()
            raise
        columns = {
            "": pyarrow.array([one.text for one in done], pyarrow.string()),
            "_tokens": pyarrow.array([one.tokens for one in done], pyarrow.list_(pyarrow.int32())),
            "_finish_reason": pyarrow.array([one.finish_reason for one in done], pyarrow.string()),
        }
        if self._logprobs:
            columns["_logprobs"] = pyarrow.array([one.logprobs for one in done], pyarrow.list_(pyarrow.float64()))
        for name, column in columns.items():
            table = table.append_column(f"{self._output}{name}", column)
        return table

    def _submit(self, prompt: Any, seed: int) -> Any:  # noqa: ANN401
        logprobs = 0 if self._logprobs else None
        how = {**self._options, "seed": seed, "adapter": self._adapter}
        with _row(prompt):
            if prompt is None:
                raise ValueError(f"the column {self._column!r} has no value")
            if self._is_chat:
                said = [{name: value for name, value in message.items() if value is not None} for message in prompt]
                return self._engine.submit_chat(said, template=self._template, logprobs=logprobs, **how)
            return self._engine.submit(prompt, logprobs=logprobs, **how)


class _Activations:
    """What an actor of `map_activations` is: it gets batches as NumPy's arrays by name."""

    def __init__(
        self,
        source: str,
        load_args: Mapping[str, Any],
        points: Names,
        layers: int | Sequence[int] | None,
        column: str,
        pool: str | None,
        dtype: str,
        truncate: bool,
        special: bool | None,
        adapter: str | None,
    ) -> None:
        self._model = load(source, **load_args)
        beside = None if adapter is None else self._model.load_adapter(adapter)
        self._passes = Passes(self._model, chosen_places("map_activations", points, layers, self._model), pool, beside)
        self._column, self._pool, self._dtype = column, pool, dtype
        self._how: dict[str, Any] = {"truncate": truncate, "special": special}

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        given = list(batch[self._column])
        with _row(given[0], "the batch that begins with"):
            counts, new = self._rows(Texts(self._model, "map_activations", given, **self._how))
        for name in new:
            if name in batch:
                raise ValueError(f"map_activations: the data set has a column {name!r} already")
        kept = {name: np.repeat(column, counts, axis=0) for name, column in batch.items()}
        return {**kept, **{name: np.concatenate(pieces) for name, pieces in new.items()}}

    def _rows(self, texts: Texts) -> tuple[list[int], dict[str, list[NDArray[Any]]]]:
        """Give how many rows each text has, and the new columns in pieces."""
        counts: list[int] = []
        new: dict[str, list[NDArray[Any]]] = {name: [] for name in ("positions", "tokens", *self._passes.names)}
        while ids_of_pass := self._passes.take(texts, lambda rows: True):
            for ids, arrays in zip(ids_of_pass, self._passes.run(ids_of_pass), strict=True):
                positions = np.arange(len(ids), dtype="<i4")[-1 if self._pool else None :]
                counts.append(len(positions))
                new["positions"].append(positions)
                new["tokens"].append(np.asarray(ids, dtype="<i4")[positions])
                for name, array in arrays.items():
                    row = mean_row(array) if self._pool == "mean" else array
                    new[name].append(encoded(row, self._dtype, f"map_activations: {name}"))
        return counts, new


class _row:  # noqa: N801 - used as a statement
    """Name the row in errors: data sets are large."""

    def __init__(self, prompt: Any, what: str = "the row with") -> None:  # noqa: ANN401
        self._where = f"{what} {prompt!r:.80}"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:  # noqa: ANN401
        if isinstance(error, Exception) and len(error.args) == 1:
            error.args = (f"{error.args[0]} (in {self._where})",)


def _mapped(
    function: str,
    dataset: Any,  # noqa: ANN401
    actor: type,
    made: Mapping[str, Any],
    read: Sequence[str],
    written: Sequence[str],
    concurrency: int | tuple[int, int],
    threads: int,
    batch_size: int,
    batch_format: str,
) -> Any:  # noqa: ANN401
    """Let a pool of actors map a data set's batches; columns are looked at as far as Ray knows them yet."""
    try:
        import ray.data
    except ImportError:
        raise ImportError("llama2cpp.ray needs Ray: pip install 'llama2cpp[ray]'") from None
    if not isinstance(dataset, ray.data.Dataset):
        raise TypeError(
            f"{function}: dataset is of type {type(dataset).__name__}, expected a ray.data.Dataset, such as "
            "ray.data.from_items(rows)"
        )
    sizes = (concurrency, concurrency) if isinstance(concurrency, int) else tuple(concurrency)
    if len(sizes) != 2 or not all(type(size) is int for size in sizes) or not 1 <= sizes[0] <= sizes[1]:
        raise ValueError(f"{function}: concurrency is {concurrency!r}, expected a number of actors, or (fewest, most)")
    if batch_size < 1:
        raise ValueError(f"{function}: batch_size is {batch_size}, expected at least 1")
    schema = dataset.schema(fetch_if_missing=False)
    if schema is not None:
        for name in read:
            if name not in schema.names:
                raise ValueError(f"{function}: the data set has no column {name!r}, it has: {', '.join(schema.names)}")
        for name in written:
            if name in schema.names:
                hint = ": pass another output=" if function == "map_prompts" else ""
                raise ValueError(f"{function}: the data set has a column {name!r} already{hint}")
    return dataset.map_batches(
        actor,
        fn_constructor_kwargs=dict(made),
        batch_size=batch_size,
        batch_format=batch_format,
        compute=ray.data.ActorPoolStrategy(min_size=sizes[0], max_size=sizes[1]),
        num_cpus=threads,
    )
