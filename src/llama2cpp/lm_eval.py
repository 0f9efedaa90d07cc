"""Models of this package in EleutherAI's lm-evaluation-harness (``pip install "llama2cpp[eval]"``).

``python -m llama2cpp.lm_eval`` takes the arguments of ``lm_eval``, and knows ``--model llama2cpp`` beside its others:

    python -m llama2cpp.lm_eval --model llama2cpp --model_args path=model.gguf --tasks arc_easy

In Python an import of this module registers the name, for ``lm_eval.simple_evaluate(model="llama2cpp", ...)``. (lm_eval
itself looks for models in its own list only, so its command does not find those of other packages.)
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from .adapters import adapter_files
from .loading import load
from .serving.engine import engine_of
from .serving.jobs import ScoreJob

try:
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
    from tqdm import tqdm

    _missing = ""
except ImportError as error:  # which is told where it is used
    _missing = f"llama2cpp.lm_eval needs the package {error.name}: pip install 'llama2cpp[eval]'"
    TemplateLM = object

    def register_model(*names: str) -> Any:  # noqa: ANN401
        """Register nothing: there is no registry."""
        return lambda kind: kind


_TOGETHER = 256  # requests that the engine has at a time
_SAMPLED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")


@register_model("llama2cpp")
class Llama2cppLM(TemplateLM):  # type: ignore[misc]  # without lm_eval it has no base
    """A model for lm_eval's tasks.

    Log probabilities of texts are those of `Model.score`, texts are those of `Model.generate`; requests share passes,
    and what they begin with is computed once. Tokens, windows of long texts, the cut of long contexts and of texts at
    stop strings are those of lm_eval's ``hf``.

    Parameters
    ----------
    path : str
        What `load` opens: a file, a folder or a known name. ``pretrained`` and ``model`` are the same.
    max_length : int, optional
        The most tokens of a context and what follows it; the model's context if not given.
    max_gen_toks : int
        How many tokens a text has where the task does not say.
    add_bos_token : bool, optional
        Whether BOS comes before texts, where it is not to be as the model's tokenizer has it.
    speculate : str, optional
        "prompt": texts come sooner where they repeat what was there (see `generate`).
    adapter, peft : str, optional
        A LoRA adapter that acts in everything, a folder of peft's or a GGUF file. Both names are the same.
    batch_size, max_batch_size, device : object
        Of lm_eval; the engine makes batches by itself.
    **options
        How the model is opened: ``threads``, ``context``, ``precision`` and so on, as in `load`.

    Raises
    ------
    ValueError
        For a model without a tokenizer, or whose tokenizer has neither BOS nor EOS; for an adapter that is not the
        model's.
    FileNotFoundError
        If there is no model or adapter of this name.
    ImportError
        Without lm_eval.
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        pretrained: str | None = None,
        model: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        speculate: str | None = None,
        adapter: str | None = None,
        peft: str | None = None,
        batch_size: object = None,
        max_batch_size: object = None,
        device: object = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        if _missing:
            raise ImportError(_missing)
        super().__init__()
        source = path or pretrained or model
        if source is None:
            raise ValueError("llama2cpp: no model is given: pass model_args path=...")
        beside = adapter or peft
        if beside is not None:
            adapter_files(beside)
        self._path = source
        self._adapter_path = beside
        self.model = load(source, **options)
        self._adapter = None if beside is None else self.model.load_adapter(beside)
        tokenizer = self.model.tokenizer
        eos = tokenizer.eos_ids[0] if tokenizer.eos_ids else None
        first = tokenizer.bos_id if tokenizer.bos_id is not None else eos
        if first is None:
            raise ValueError(f"llama2cpp: the tokenizer of {source} has neither BOS nor EOS, which lm_eval needs")
        self._prefix_id = first
        self._eos_id = first if eos is None else eos
        self._begins_with = _spelled(tokenizer.piece(first))
        self._add_bos = add_bos_token
        self._max_length = max_length or self.model.context
        self._max_gen_toks = max_gen_toks
        self._speculate = speculate

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        return self._eos_id

    @property
    def prefix_token_id(self) -> int:
        """What a text follows that has no context: BOS, or else EOS."""
        return self._prefix_id

    @property
    def max_length(self) -> int:
        """The most tokens that are read at a time."""
        return self._max_length

    @property
    def tokenizer_name(self) -> str:
        """A name for caches of requests."""
        names = [str(self._path), *([] if self._adapter_path is None else [str(self._adapter_path)])]
        return "+".join(names).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Give the model's chat template: by its name, where it has several."""
        if not chat_template:
            return None
        tokenizer = self.model.tokenizer
        if isinstance(chat_template, str) and chat_template in tokenizer.chat_templates:
            return tokenizer.chat_templates[chat_template]
        return tokenizer.chat_template

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Make the text of messages: that of `Model.chat_text`."""
        return self.model.chat_text(
            chat_history,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **others: object) -> list[int]:
        """Give the ids of a text, in which control tokens that it spells are those tokens."""
        begins = add_special_tokens
        if begins is None:
            begins = self._add_bos
            if string.startswith(self._begins_with):
                begins = False
        tokenizer = self.model.tokenizer
        ids = tokenizer.encode(string, bos=begins is not False, eos=False, special=True)
        if begins and self._add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids.insert(0, tokenizer.bos_id)
        return ids

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **others: object,
    ) -> list[tuple[float, bool]]:
        """Score continuations, those with a common beginning one after the other."""
        jobs: list[ScoreJob] = []
        for _, context, continuation in requests:
            if not context or not continuation:
                raise ValueError("llama2cpp: a context or its continuation has no tokens")
            if len(continuation) > self.max_length:
                raise ValueError(
                    f"llama2cpp: a continuation has {len(continuation)} tokens, and the model takes {self.max_length}"
                )
            ids = [*context, *continuation][-(self.max_length + 1) :]
            jobs.append(ScoreJob(ids, len(ids) - len(continuation), self._adapter))
        engine = engine_of(self.model)
        order = sorted(range(len(jobs)), key=lambda i: jobs[i].ids.tolist())
        with tqdm(total=len(jobs), disable=disable_tqdm, desc="Running loglikelihood requests") as bar:
            for some in _chunks(order):
                engine._measure("loglikelihood", [jobs[i] for i in some])
                bar.update(len(some))
        answers = [(float(sum(job.logprobs)), job.greedy) for job in jobs]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts, long ones in windows that follow each other."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            (text,) = request.args
            pairs = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(utils.make_disjoint_window, pairs):
                windows.append((None, context, continuation))
                owners.append(i)
        totals = [0.0] * len(requests)
        for i, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[i] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue contexts, greedily unless the task says otherwise."""
        tokenizer, engine = self.model.tokenizer, engine_of(self.model)
        special = {*tokenizer.special_ids}
        answers: list[str] = []
        asked: list[tuple[list[int], list[str], dict[str, Any]]] = []
        for request in requests:
            context, given = request.args
            asked.append(self._asked(context, given))
        with tqdm(total=len(asked), disable=disable_tqdm, desc="Running generate_until requests") as bar:
            for some in _chunks(range(len(asked))):
                running = [
                    engine.submit(asked[i][0], stop=asked[i][1], adapter=self._adapter, **asked[i][2]) for i in some
                ]
                for i, text in zip(some, running, strict=True):
                    # As hf does: the new ids by themselves, and all from the first stop string on left out.
                    made = tokenizer.decode([id for id in text.result().tokens if id not in special])
                    answers.append(postprocess_generated_text(made, asked[i][1], None))
                    self.cache_hook.add_partial("generate_until", requests[i].args, answers[-1])
                    bar.update()
        return answers

    def _asked(self, context: str, given: dict[str, Any]) -> tuple[list[int], list[str], dict[str, Any]]:
        """Give a prompt's ids, its stop strings, and how it is sampled."""
        options: dict[str, Any] = {**normalize_gen_kwargs(given, self._max_gen_toks)}
        stops = [stop for stop in handle_stop_sequences(options.pop("until", None), eos=None) if stop]
        length = options.pop("max_gen_toks")
        if length >= self.max_length:
            raise ValueError(
                f"llama2cpp: a task wants {length} new tokens, and the model takes {self.max_length} in all"
            )
        sampled = {name: options.pop(name) for name in _SAMPLED if name in options}
        if not options.pop("do_sample", False):
            sampled = {"temperature": 0.0} | {
                name: value for name, value in sampled.items() if name == "repetition_penalty"
            }
        if options.pop("num_beams", 1) != 1 or options:
            raise ValueError(f"llama2cpp: a task asks for what is not known: {', '.join(options) or 'num_beams'}")
        if not sampled.get("top_p"):
            sampled["top_p"] = 1.0
        plain = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 0}
        ids = self.tok_encode(context)[-(self.max_length - length) :]
        return ids, stops, {**plain, **sampled, "max_tokens": length, "speculate": self._speculate}


def _chunks(indices: Sequence[int]) -> Iterable[Sequence[int]]:
    return (indices[i : i + _TOGETHER] for i in range(0, len(indices), _TOGETHER))


def _spelled(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")


def main() -> None:
    """Run lm_eval's command, which knows these models then."""
    if _missing:
        sys.exit(_missing)
    from lm_eval.__main__ import cli_evaluate

    sys.argv[0] = "lm_eval"
    cli_evaluate()


if __name__ == "__main__":
    main()
