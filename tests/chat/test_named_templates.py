"""Models with several chat templates: which one is taken, wherever they are written, is what transformers takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import tokenizers
import transformers
from gguf_files import llama

import llama2cpp
import llama2cpp.export
from llama2cpp.export.vocabulary import Vocabulary

TEXTS = {"default": "usual{# #}", "tool_use": "for tools{# #}", "rag": "for documents{# #}"}
TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": "root", "parameters": {}}}]
TALK = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers writes it, without a template."""
    folder = tmp_path_factory.mktemp("named")
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    pieces = {piece: id for id, piece in enumerate(["<s>", "</s>", *sorted(alphabet)])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(pieces, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    config = tiny.config(vocab_size=258)
    llama2cpp.export.convert(tiny.model(config), folder / "model", "f32")
    for path in folder.glob("tokenizer*"):
        path.rename(folder / "model" / path.name)
    return folder / "model"


def write(folder: Path, texts: dict[str, str], how: str) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    if how == "config":
        config["chat_template"] = [{"name": name, "template": text} for name, text in texts.items()]
    else:  # the files count, and not what the config has
        config["chat_template"] = [{"name": "default", "template": "old"}, {"name": "gone", "template": "old"}]
        (folder / "additional_chat_templates").mkdir()
        for name, text in texts.items():
            path = folder / ("" if name == "default" else "additional_chat_templates") / f"{name}.jinja"
            (folder / "chat_template.jinja" if name == "default" else path).write_text(text)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("how", ["config", "files"])
@pytest.mark.parametrize("names", [("default", "tool_use", "rag"), ("tool_use", "rag"), ("default",), ("rag",)])
def test_a_folder_s(saved: Path, tmp_path: Path, how: str, names: tuple[str, ...]) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "m"))
    write(folder, {name: TEXTS[name] for name in names}, how)
    model = llama2cpp.load(folder, threads=1)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert model.tokenizer.chat_templates == {name: TEXTS[name] for name in names}
    asked: list[dict[str, Any]] = [{}, {"tools": TOOLS}, {"tools": []}, *({"template": name} for name in names)]
    for given in asked:
        arguments = {"chat_template" if name == "template" else name: value for name, value in given.items()}
        try:
            expected = theirs.apply_chat_template(TALK, tokenize=False, **arguments)
        except ValueError:
            with pytest.raises(ValueError, match=f"several chat templates.* one of {', '.join(sorted(names))}"):
                model.chat_text(TALK, **given)
            continue
        if how == "files" and names == ("default",) and "template" in given:
            expected = "usual"  # transformers takes the name for a template's text, where there is one template
        assert model.chat_text(TALK, **given) == expected
    # Exports keep them: the folder's files, what its tokenizer.json and GGUF say, and files of panels.
    wanted = Vocabulary.of(model.tokenizer).templates
    for name in ("out", "out.gguf", "out.safetensors"):
        made = llama2cpp.export.convert(model, tmp_path / name, "f32" if name != "out.safetensors" else "q8_0")
        assert llama2cpp.load(made.path).tokenizer.chat_templates == wanted, name
    llama2cpp.export.convert(model, tmp_path / "out", "f32", force=True)


def test_a_gguf_s(tmp_path: Path) -> None:
    beside: dict[str, Any] = {
        f"tokenizer__chat_template__{name}": text for name, text in TEXTS.items() if name != "default"
    }
    pieces: dict[str, Any] = {"tokenizer__ggml__model": "llama", "tokenizer__ggml__tokens": [*"<sabcdef"]}
    file = llama(**pieces, tokenizer__chat_template=TEXTS["default"], **beside)
    path = tmp_path / "m.gguf"
    path.write_bytes(file.to_bytes())
    assert llama2cpp.load(path).tokenizer.chat_templates == TEXTS


def test_only_the_folder_s_own_files_are_read(saved: Path, tmp_path: Path) -> None:
    """A link within the folder of templates leads no further than others do."""
    folder = Path(shutil.copytree(saved, tmp_path / "m"))
    (tmp_path / "secret").write_text("a secret")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").symlink_to(tmp_path / "secret")
    problem = llama2cpp.load(folder).tokenizer_problem
    assert "additional_chat_templates/rag.jinja is a link to" in problem
    (folder / "additional_chat_templates" / "rag.jinja").unlink()
    (folder / "additional_chat_templates").rmdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "rag.jinja").write_text("a secret")
    (folder / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    assert "is a link to" in llama2cpp.load(folder).tokenizer_problem


def test_where_gpt_oss_s_answers_end(tmp_path: Path) -> None:
    """<|end|> ends an answer, but not where a message of the answer ends with it and others follow."""
    for pieces, ends in [
        (["<|end|>", "<|user|>"], [3]),
        (["<|end|>", "<|return|>", "<|call|>"], [4, 5]),
        (["<end_of_turn>", "<|eot_id|>", "<|im_end|>"], [3, 4, 5]),
    ]:
        tokens = ["<unk>", "<s>", "</s>", *pieces, "a", "b"][:8]
        tokens += [f"x{i}" for i in range(8 - len(tokens))]
        types = [2, 3, 3, *[3] * len(pieces)] + [1] * (8 - 3 - len(pieces))
        file = llama(tokenizer__ggml__model="llama", tokenizer__ggml__tokens=tokens, tokenizer__ggml__token_type=types)
        path = tmp_path / "m.gguf"
        path.write_bytes(file.to_bytes())
        assert llama2cpp.load(path).tokenizer.eos_ids == (2, *ends)
