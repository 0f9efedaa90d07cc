"""Prompts that spell control tokens: text by default, which is told once; tokens with special=True."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

import llama2cpp

PROMPT = "</s>Once<s>"


def fresh(stories_dir: Path) -> llama2cpp.Model:
    """A model whose tokenizer has not warned yet."""
    return llama2cpp.load(stories_dir / "stories260K.bin", tokenizer=stories_dir / "tok512.bin", threads=1)


Take = Callable[..., Any]


async def pieces(texts: AsyncIterator[str]) -> list[str]:
    return [str(piece) async for piece in texts]


def means(model: llama2cpp.Model, prompt: Any, **options: Any) -> Any:
    return model.mean_activations([prompt], "resid_post0", **options).mean["resid_post", 0].tolist()


def extracted(model: llama2cpp.Model, prompt: Any, **options: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        data = model.extract([prompt], "resid_post0", out=folder, **options)
        return data["tokens"].tolist()


def takers(model: llama2cpp.Model) -> Iterator[tuple[str, Callable[..., Any], Take]]:
    """Give (name in messages, function, call) of everything that takes a prompt."""
    session = model.session
    options: dict[str, Any] = {"max_tokens": 4, "temperature": 0}
    yield "generate", model.generate, lambda p, **o: model.generate(p, **options, **o)
    yield "generate", llama2cpp.generate, lambda p, **o: llama2cpp.generate(p, model=model, **options, **o)
    yield "complete", model.complete, lambda p, **o: model.complete(p, **options, **o)
    yield "complete", llama2cpp.complete, lambda p, **o: llama2cpp.complete([p], model=model, **options, **o)
    yield "stream", model.stream, lambda p, **o: list(model.stream(p, **options, **o))
    yield "stream", llama2cpp.stream, lambda p, **o: list(llama2cpp.stream(p, model=model, **options, **o))
    yield "Session.prefill", llama2cpp.Session.prefill, lambda p, **o: session().prefill(p, **o).tolist()
    yield "Model.forward", model.forward, lambda p, **o: model.forward([(session(), p)], **o)[0].tolist()
    yield "run_with_cache", model.run_with_cache, lambda p, **o: model.run_with_cache(p, (), **o)[0].tolist()
    yield "run_with_hooks", model.run_with_hooks, lambda p, **o: model.run_with_hooks(p, **o).tolist()
    yield "perplexity", model.perplexity, model.perplexity
    yield "to_str_tokens", model.to_str_tokens, lambda p, **o: list(model.to_str_tokens(p, **o))
    yield "to_tokens", model.to_tokens, lambda p, **o: model.to_tokens(p, **o).tolist()
    yield "to_tokens", model.input_to_embed, lambda p, **o: model.input_to_embed(p, **o)[0].tolist()
    yield "embed", model.embed, lambda p, **o: model.embed(p, **o).tolist()
    yield "score", model.score, lambda p, **o: model.score(p, [5], **o).logprob
    yield "get_token_position", model.get_token_position, lambda p, **o: model.get_token_position(1, p, "last", **o)
    yield "explain", model.explain, lambda p, **o: model.explain(p, **o).to_dict()
    yield "mean_activations", model.mean_activations, lambda p, **o: means(model, p, **o)
    yield "extract", model.extract, lambda p, **o: extracted(model, p, **o)
    yield "astream", model.astream, lambda p, **o: asyncio.run(pieces(model.astream(p, **options, **o)))
    yield "logit_lens", llama2cpp.logit_lens, lambda p, **o: llama2cpp.logit_lens(model, p, **o).values.tolist()


NAMES = range(22)


@pytest.mark.parametrize("which", NAMES)
def test_special(which: int, stories_dir: Path) -> None:
    model = fresh(stories_dir)
    label, _, take = list(takers(model))[which]
    plain = model.tokenizer.encode(PROMPT)
    tokens = model.tokenizer.encode(PROMPT, special=True)
    assert plain != tokens
    as_text, as_tokens = take(plain), take(tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert take(PROMPT, special=False) == as_text
        assert take(PROMPT, special=True) == as_tokens
        take("Once <s", special=None)  # spells none
    with pytest.warns(UserWarning, match=f"^{label}.*: the text spells '</s>'.*special=True") as told:
        assert take(PROMPT) == as_text
    assert [Path(warning.filename).name for warning in told] == [Path(__file__).name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert take(PROMPT) == as_text  # told once


@pytest.mark.parametrize("spelled", ["<s>", "</s>", "<s></s>"])
@pytest.mark.parametrize("text", ["{}Once", "Once {}", "{} upon", "a{}b"])
def test_what_is_named_is_a_control_token(text: str, spelled: str, stories_dir: Path) -> None:
    """Not a piece of text that is cut otherwise beside one."""
    model = fresh(stories_dir)
    with pytest.warns(UserWarning, match=f"the text spells '{spelled[: spelled.index('>') + 1]}'"):
        model.to_tokens(text.format(spelled))


def test_the_table_is_whole(stories: llama2cpp.Model) -> None:
    """Everything public that has a prompt takes special=."""
    listed = {function.__name__ for _, function, _ in takers(stories)}
    assert len(list(takers(stories))) == len(NAMES)
    things = [getattr(llama2cpp, name) for name in llama2cpp.__all__]
    functions = [thing for thing in things if inspect.isfunction(thing)]
    for thing in (llama2cpp.Model, llama2cpp.Session):
        functions += [member for name, member in inspect.getmembers(thing, inspect.isfunction) if name[0] != "_"]
    for function in functions:
        annotations = [str(p.annotation) for p in inspect.signature(function).parameters.values()]
        takes = any("Prompt" in annotation for annotation in annotations)
        assert takes == ("special" in inspect.signature(function).parameters), function
        assert not takes or function.__name__ in listed, function


def test_the_ids_are_tokenizers(smollm2_path: Path, tmp_path: Path) -> None:
    """With special=True, what Hugging Face's tokenizers makes of a chat's text."""
    model = llama2cpp.load(smollm2_path, threads=1)
    text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    vocabulary = {model.tokenizer.piece(i).decode(errors="replace"): i for i in range(3)}
    special = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    special.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    found = [id for id in model.to_tokens(text, special=True)[0].tolist() if id in (1, 2)]
    assert found == [id for id in special.encode(text).ids if id in (1, 2)] == [1, 2, 1]
    with pytest.warns(UserWarning, match=r"spells '<\|im_start\|>'"):
        assert not {1, 2} & set(model.to_tokens(text)[0].tolist())


# --- TransformerLens's names


def test_to_tokens_and_back(stories: llama2cpp.Model) -> None:
    text = "Once upon a time, Zoë 🐶"
    tokens = stories.to_tokens(text)
    assert (tokens.dtype.name, len(tokens), int(tokens[0, 0])) == ("int64", 1, stories.tokenizer.bos_id)
    assert tokens[0].tolist() == stories.tokenizer.encode(text)
    bare = stories.to_tokens(text, prepend_bos=False)
    np.testing.assert_array_equal(stories.to_tokens(text, prepend_bos=True), tokens)
    np.testing.assert_array_equal(bare, tokens[:, 1:])
    assert stories.to_string(bare[0]) == f" {text}"  # SentencePiece's leading space
    assert stories.to_string(tokens) == [f"<s> {text}"]
    assert stories.to_string(tokens.tolist()) == [f"<s> {text}"]
    assert stories.to_string(int(tokens[0, 0])) == "<s>" == stories.to_string(np.int64(1))
    assert stories.to_str_tokens("Once", prepend_bos=False).ids == stories.to_tokens("Once", False)[0].tolist()
    assert stories.to_tokens(["Once", "Once"]).shape[0] == 2
    assert stories.generate(tokens, max_tokens=3, temperature=0) == stories.generate(text, max_tokens=3, temperature=0)
    with pytest.raises(ValueError, match="to_tokens: the texts have from"):
        stories.to_tokens(["Once", text])
    bad: list[Any] = [b"abc", "abc", [1.5], [513], True]
    for wrong in bad:
        with pytest.raises((ValueError, TypeError)):
            stories.to_string(wrong)


def test_prepend_bos_where_there_is_none(smollm2_path: Path) -> None:
    model = llama2cpp.load(smollm2_path, threads=1)
    assert not model.cfg.default_prepend_bos
    plain = model.tokenizer.encode("Once", bos=False)
    assert model.to_tokens("Once").tolist() == [plain]
    assert model.to_tokens("Once", prepend_bos=True).tolist() == [[model.tokenizer.bos_id, *plain]]


def test_cfg(stories: llama2cpp.Model) -> None:
    cfg, config = stories.cfg, stories.config
    assert (cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.d_head) == (5, 64, 8, 8)
    assert (cfg.d_mlp, cfg.d_vocab, cfg.n_ctx, cfg.n_key_value_heads) == (config.hidden_dim, 512, 512, 4)
    assert stories.W_Q.shape == (cfg.n_layers, cfg.n_heads, cfg.d_model, cfg.d_head)
    assert stories.W_in.shape == (cfg.n_layers, cfg.d_model, cfg.d_mlp)
    assert stories.W_U.shape == (cfg.d_model, cfg.d_vocab_out)


def test_the_command() -> None:
    def run(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "llama2cpp", "generate", "</s>Once", "-n", "1", "-t", "0", "--json", *words],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return json.loads(done.stdout)["prompt_tokens"], done.stderr

    n_plain, told = run()
    assert re.fullmatch(
        r"llama2cpp: warning: the text spells '</s>'.*: pass --special to mean .* or --no-special if .*\n", told
    )
    assert run("--no-special") == (n_plain, "")
    n_special, told = run("--special")
    assert told == ""
    assert n_special < n_plain
