"""Git LFS pointers, web pages and servers' messages in the place of a file: every reader names what it was given."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hf_folders import Spec
from tokenizers import Tokenizer as Reference
from tokenizers import decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

import llama2cpp
from llama2cpp import Conversation, FormatError, Tokenizer, _core
from llama2cpp.export.opening import open_checkpoint

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 123456\n"
BODIES = {
    "lfs": (LFS, "Git LFS pointer, not the file itself"),
    "lfs-of-old": ("version https://hawser.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
    "html": ("<!DOCTYPE html>\n<html><body>404</body></html>", "HTML page: the download went wrong"),
    "html-plain": ("\n  <HTML><head></head></HTML>", "HTML page"),
    "html-with-mark": ("\ufeff<html lang='en'>", "HTML page"),
    "xml": ('<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML page"),
    "not-found": ("Entry not found", "server's error message"),
    "password": ("Invalid username or password.", "server's error message"),
    "gated": ("Access to model org/name is restricted.", "server's error message"),
    "json": ('{"error":"Repository not found"}', "server's error message"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards and a tokenizer, of bytes alone."""
    folder = Spec(shards="50KB", settings={"vocab_size": 300}).save(tmp_path_factory.mktemp("llama"))
    reference = Reference(BPE({piece: id for id, piece in enumerate(sorted(ByteLevel.alphabet()))}, []))
    reference.pre_tokenizer = ByteLevel(add_prefix_space=False)
    reference.decoder = decoders.ByteLevel()
    reference.save(str(folder / "tokenizer.json"))
    return folder


def cache_of(path: Path) -> object:
    return llama2cpp.ActivationCache.load(path)


def session_of(path: Path) -> object:
    return llama2cpp.load().load_session(path)


def conversation_of(path: Path) -> None:
    Conversation(llama2cpp.load(), template="llama2").load(path)


# What opens a file by its own path, and a name that it takes.
OPENERS: dict[str, Callable[[Path], object]] = {
    "model.gguf": llama2cpp.load,
    "model.bin": llama2cpp.load,
    "panels.safetensors": llama2cpp.load,
    "tokenizer.json": Tokenizer.from_file,
    "tokenizer.model": Tokenizer.from_file,
    "tokenizer.bin": Tokenizer.from_file,
    "vocabulary.gguf": Tokenizer.from_file,
    "session": session_of,
    "cache.npz": cache_of,
    "cache.safetensors": cache_of,
    "chat.json": conversation_of,
    "ckpt.pt": open_checkpoint,
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", OPENERS)
def test_files(tmp_path: Path, name: str, body: str) -> None:
    text, said = BODIES[body]
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(FormatError, match=f"{name}.* {said}"):
        OPENERS[name](tmp_path / name)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "a shard"])
def test_folders(saved: Path, tmp_path: Path, name: str, body: str) -> None:
    text, said = BODIES[body]
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    if name == "a shard":
        name = min(path.name for path in folder.glob("*.safetensors"))
    assert (folder / name).exists()
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(FormatError, match=f"{name}.* {said}"):
        llama2cpp.load(folder)


BESIDE_THE_MODEL = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "added_tokens.json",
    "chat_template.jinja",
]


@pytest.mark.parametrize("body", ["lfs", "html", "not-found"])
@pytest.mark.parametrize("name", BESIDE_THE_MODEL)
def test_tokenizers_of_folders(saved: Path, tmp_path: Path, name: str, body: str) -> None:
    """The model opens for ids, and says why it has no tokenizer."""
    text, said = BODIES[body]
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text("<s>{{ messages[0].content }}")
    assert llama2cpp.load(folder).tokenizer.chat_template == "<s>{{ messages[0].content }}"
    (folder / name).write_text(text)
    problem = llama2cpp.load(folder).tokenizer_problem
    assert name in problem
    assert said in problem


@pytest.mark.parametrize("name", ["params.json", "consolidated.00.pth"])
def test_folders_of_metas(tmp_path: Path, name: str) -> None:
    (tmp_path / "params.json").write_text('{"dim": 32, "n_layers": 1, "n_heads": 2}')
    torch.save({}, tmp_path / "consolidated.00.pth")
    (tmp_path / name).write_text(LFS)
    with pytest.raises(FormatError, match=f"{name}.* Git LFS pointer"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"GGUF\x03\0\0\0",
        b"<|im_start|>{{ messages }}",
        b"<s>{% for m in messages %}",
        b"PK\x03\x04",
        b"\x3c\x61\0\0\0\0\0\0{",
        b"version 2 of something",
        b" " * 600,
        b'{"model_type": "llama"}',
    ],
)
def test_other_files_are_left_alone(start: bytes) -> None:
    assert _core.find_stand_in(start) == ""
