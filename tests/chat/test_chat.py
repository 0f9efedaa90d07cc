"""chat and Conversation: what the model is given, where answers end, and that the cache changes no bit."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import llama2cpp
from llama2cpp import defaults, generation
from llama2cpp.dialogue.chat_format import ChatFormat

BOS, EOS = 1, 2
TURNS = "{% for m in messages %}{{ m.role[0] ~ ': ' ~ m.content ~ eos_token }}{% endfor %}{{ 'a: ' }}"


@pytest.fixture(scope="module")
def tokenizer(stories_dir: Path) -> llama2cpp.Tokenizer:
    return llama2cpp.Tokenizer.from_file(stories_dir / "tok512.bin")


@pytest.fixture(scope="module")
def model(tokenizer: llama2cpp.Tokenizer) -> llama2cpp.Model:
    """Random weights: it says anything, and ends hardly ever."""
    return tiny.model(tiny.config(vocab_size=512, seq_len=400), tokenizer=tokenizer)


def changed(
    tokenizer: llama2cpp.Tokenizer, *, add_bos: bool = True, template: str = "", eos_ids: Sequence[int] = (EOS,)
) -> llama2cpp.Tokenizer:
    """What a tokenizer from a GGUF file may want."""
    changes = {"eos_ids": list(eos_ids), "add_bos": add_bos, "chat_template": template.encode()}
    return llama2cpp.Tokenizer.from_dict(tokenizer.to_dict() | changes)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def scripted(tokenizer: llama2cpp.Tokenizer, *ids: int) -> llama2cpp.Model:
    """A model that says `ids` after a colon."""
    colon = tokenizer.encode(":", bos=False)[-1]
    return llama2cpp.from_arrays(*tiny.script(512, dict(itertools.pairwise([colon, *ids]))), tokenizer)


def letters(text: str) -> list[int]:
    """The ids of single bytes."""
    return [3 + ord(letter) for letter in text]


# --- what the model is given


@pytest.mark.parametrize("template", ["{{ messages[0].content }}", "{{ bos_token + messages[0].content }}"])
@pytest.mark.parametrize("add_bos", [True, False])
def test_one_bos_where_it_is_wanted(tokenizer: llama2cpp.Tokenizer, template: str, add_bos: bool) -> None:
    ids = ChatFormat(changed(tokenizer, add_bos=add_bos), template).encode([user("Hello")])
    bos = [BOS] if add_bos or "bos" in template else []
    assert ids == bos + tokenizer.encode("Hello", bos=False)


def test_prompts_follow_add_bos(tokenizer: llama2cpp.Tokenizer) -> None:
    config = tiny.config(vocab_size=512)
    with_bos, without = (tiny.model(config, tokenizer=changed(tokenizer, add_bos=add)) for add in (True, False))
    hello = tokenizer.encode("Hello", bos=False)
    assert generation.to_ids(with_bos, "Hello") == [BOS, *hello]
    assert generation.to_ids(without, "Hello") == hello
    assert generation.to_ids(without, "") == [BOS]
    assert without.generate("", max_tokens=5, seed=1) == with_bos.generate("", max_tokens=5, seed=1)


spellings = st.sampled_from(["<s>", "</s>", "<s", "/s>", "<", ">", "\ufdd0", "Hello", " ", "é", "a: "])
contents = st.lists(spellings, max_size=5).map("".join)


@settings(max_examples=300)
@given(st.lists(contents, min_size=1, max_size=4))
def test_what_users_write_is_text(tokenizer: llama2cpp.Tokenizer, contents: list[str]) -> None:
    """As many special tokens as the template has, in its places; between them what was written."""
    form = ChatFormat(tokenizer, TURNS)
    expected = [BOS]
    harmless = not any(name in content for content in contents for name in ("<s>", "</s>"))
    for content in contents:
        written = content if harmless else content.replace("\ufdd0", "")  # the mark that keeps the others harmless
        expected += [*tokenizer.encode(f"u: {written}", bos=False), EOS]
    expected += tokenizer.encode("a: ", bos=False)
    assert form.encode([user(content) for content in contents]) == expected


@settings(max_examples=100)
@given(contents)
def test_special_tokens_where_they_are_allowed(tokenizer: llama2cpp.Tokenizer, content: str) -> None:
    form = ChatFormat(tokenizer, TURNS, special_in_content=True)
    text = form.render([user(content)])
    assert form.encode([user(content)]) == [BOS, *tokenizer.encode(text, bos=False, special=True)]


@pytest.mark.parametrize("file", ["stories260K/tok512.bin", "llama2/tokenizer.model"])
def test_the_long_way_is_the_short_way(models_dir: Path, file: str) -> None:
    """Where nothing is marked, the ids are the tokenizer's own."""
    tokenizer = llama2cpp.Tokenizer.from_file(models_dir / file)
    form = ChatFormat(tokenizer, TURNS)

    @settings(max_examples=100)
    @given(contents)
    def check(content: str) -> None:
        text = content.replace("\ufdd0", "")
        assert form._encode_marked(text) == tokenizer.encode(text, bos=False, special=True)
        assert form.encode([user(text)]).count(EOS) == 1

    check()


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([], "there is no message"),
        ([{"role": "user"}], "message 0 must be a dict with a 'role' and a 'content'"),
        ([user("a"), {"content": "b"}], "message 1 must be"),
        ([user("a"), "b"], "message 1 must be"),
        ([{"role": 1, "content": "b"}], "message 0 must be"),
    ],
)
def test_wrong_messages(model: llama2cpp.Model, messages: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        model.chat(messages, template="chatml")


def test_a_model_without_a_template_says_what_to_do(model: llama2cpp.Model) -> None:
    with pytest.raises(ValueError, match=r"no chat template.*template=.*chatml, llama2, llama3.*generate\(\)"):
        model.chat("Hello")
    with pytest.raises(ValueError, match="no chat template"):
        llama2cpp.Conversation(model)


def test_the_tokenizer_s_own_template(tokenizer: llama2cpp.Tokenizer) -> None:
    own = tiny.model(tiny.config(vocab_size=512, seq_len=400), tokenizer=changed(tokenizer, template=TURNS))
    plain = tiny.model(tiny.config(vocab_size=512, seq_len=400), tokenizer=tokenizer)
    options: Any = {"max_tokens": 20, "seed": 1}
    assert own.chat("Hello", **options) == plain.chat("Hello", template=TURNS, **options)
    assert own.chat("Hello", template="llama2", **options) == plain.chat("Hello", template="llama2", **options)


def test_no_tokenizer_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model(tiny.config())
    with pytest.raises(ValueError, match=r"^the model has no tokenizer: pass one, such as load"):
        model.chat("Hello", template="chatml")
    monkeypatch.setattr(llama2cpp.Model, "tokenizer_problem", "its kind is 'bert'")
    with pytest.raises(ValueError, match=r"^the model has no tokenizer \(its kind is 'bert'\): pass one"):
        model.generate("Hello")


def test_the_default_model(monkeypatch: pytest.MonkeyPatch, model: llama2cpp.Model) -> None:
    """Opened once for all threads, and again if it was closed."""
    opened: list[llama2cpp.Model] = []

    def load() -> llama2cpp.Model:
        opened.append(tiny.model(tiny.config(vocab_size=512), tokenizer=model.tokenizer))
        return opened[-1]

    monkeypatch.setattr(defaults, "load", load)
    monkeypatch.setattr(defaults, "_model", None)
    threads = [threading.Thread(target=llama2cpp.generate, args=("Hello",), kwargs={"max_tokens": 2}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert llama2cpp.chat("Hello", template="chatml", max_tokens=0) == ""
    assert len(opened) == 1
    opened[0].close()
    assert list(llama2cpp.stream("Hello", max_tokens=0)) == []
    assert len(opened) == 2


# --- where answers end


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        ("llama2", ((EOS,), ())),
        ("chatml", ((), ("<|im_end|>",))),  # which this tokenizer does not know
        (TURNS, ((EOS,), ())),
        ("{% for m in messages %}{{ m.content ~ '\n' }}{% endfor %}", ((), ())),
        ("{% for m in messages %}{{ m.content ~ ' # \n' }}{% endfor %}", ((), ("#",))),
        ("{{ messages[0].content }}", ((), ())),
        ("{% if messages | length > 1 %}{{ raise_exception('one') }}{% endif %}{{ 1 }}", ((), ())),
    ],
)
def test_what_the_template_puts_behind_an_answer(tokenizer: llama2cpp.Tokenizer, template: str, ends: Any) -> None:
    assert ChatFormat(tokenizer, template).ends == ends


ASK = (
    "{% for m in messages %}{{ m.content }}{% if m.role != 'user' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ':' }}{% endif %}"
)


def test_an_answer_ends_at_its_end(tokenizer: llama2cpp.Tokenizer) -> None:
    yes = letters("Yes")
    assert scripted(tokenizer, *yes, EOS).chat("a", template=ASK, temperature=0) == "Yes"
    template = ASK.replace("eos_token", "'#'")
    model = scripted(tokenizer, *yes, *letters("#o"))
    assert model.chat("a", template=template, temperature=0) == "Yes"
    assert model.chat("a", template=template, temperature=0, stop="e") == "Y"
    assert list(model.chat_stream("a", template=template, temperature=0)) == ["Y", "e", "s"]
    conversation = llama2cpp.Conversation(model, template=template, temperature=0)
    assert conversation.say("a") == "Yes"
    assert conversation.last_turn is not None
    assert conversation.last_turn.finish_reason == "stop"


def test_an_answer_ends_at_any_end_token(tokenizer: llama2cpp.Tokenizer) -> None:
    extra = letters("#")[0]
    both = changed(tokenizer, eos_ids=(EOS, extra))
    assert both.eos_ids == (EOS, extra)
    for end in both.eos_ids:
        model = scripted(both, *letters("Yes"), end)
        assert model.chat("a", template=ASK, temperature=0) == "Yes"
        assert model.generate(":", temperature=0) == "Yes"


# --- a conversation


def prompt_of(conversation: llama2cpp.Conversation, messages: Sequence[Any], template: str) -> list[int]:
    assert conversation._tokenizer is not None
    return ChatFormat(conversation._tokenizer, template).encode(messages)


@pytest.mark.cpu_bits("answers that do not depend on a cached prefix")
@pytest.mark.parametrize("template", [TURNS, "chatml", "llama2", "llama3"])
@pytest.mark.parametrize("system", [None, "Be nice."])
def test_the_cache_changes_no_bit(model: llama2cpp.Model, template: str, system: str | None) -> None:
    conversation = llama2cpp.Conversation(model, system, template=template, seed=3, max_tokens=12)
    for text in ("Hello", "Who are you?", "</s>"):
        held = conversation._session.tokens
        pieces = conversation.stream(text)  # which has read the prompt
        prompt = prompt_of(conversation, [*conversation.history, user(text)], template)
        fresh = model.session()
        assert conversation._session.tokens == prompt
        assert conversation._session.logits is not None
        assert conversation._session.logits.tobytes() == fresh.prefill(prompt).tobytes()
        answer = "".join(pieces)
        assert conversation.history[-2:] == [user(text), {"role": "assistant", "content": answer}]
        turn = conversation.last_turn
        assert turn is not None
        common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(held, prompt, strict=False)))
        assert (turn.prompt_tokens, turn.reused_tokens) == (len(prompt), common)
        assert turn.finish_reason == ("length" if turn.tokens == 12 else "end")
    assert common > 20


def test_answers_are_chat_s(model: llama2cpp.Model) -> None:
    """Answer i is what chat gives for the messages before it, with the seed + i."""
    conversation = llama2cpp.Conversation(model, "Be nice.", template="llama2", seed=2**64 - 2, max_tokens=10)
    for i, text in enumerate(("Hello", "Who?", "Why?")):
        messages = [*conversation.history, user(text)]
        expected = model.chat(messages, template="llama2", seed=(2**64 - 2 + i) % 2**64, max_tokens=10)
        assert conversation.say(text) == expected
    answer = conversation.say("And?", seed=5, temperature=0, max_tokens=3)
    assert answer == model.chat([*conversation.history[:-1]], template="llama2", temperature=0, max_tokens=3)


def test_nothing_changed_is_still_one_token_to_read(model: llama2cpp.Model) -> None:
    conversation = llama2cpp.Conversation(model, template="chatml", temperature=0, max_tokens=0)
    conversation.say("Hello")
    conversation.reset()
    assert conversation.history == []
    conversation.say("Hello")
    turn = conversation.last_turn
    assert turn is not None
    assert turn.reused_tokens == turn.prompt_tokens - 1


def test_oldest_turns_are_left_out(model: llama2cpp.Model) -> None:
    conversation = llama2cpp.Conversation(model, "Be nice.", template=TURNS, context=120, seed=1, max_tokens=20)
    reported = 0
    for i in range(12):
        conversation.say(f"Question {i}")
        turn = conversation.last_turn
        assert turn is not None
        reported += turn.forgotten
        assert reported == conversation.forgotten
        assert turn.prompt_tokens + 20 <= 120
        if turn.forgotten:
            assert turn.prompt_tokens <= 60
            seen = [conversation.history[0], *conversation.history[1 + reported : -1]]
            assert seen[1]["role"] == "user"
            assert turn.prompt_tokens == len(prompt_of(conversation, seen, TURNS))
    assert reported > 0
    assert len(conversation.history) == 25
    conversation.reset()
    assert conversation.forgotten == 0


def test_a_message_that_does_not_fit(model: llama2cpp.Model) -> None:
    conversation = llama2cpp.Conversation(model, "Be nice.", template=TURNS, context=60, seed=1, max_tokens=5)
    conversation.say("Hello")
    before = conversation.history
    with pytest.raises(llama2cpp.ContextFullError, match=r"the system message and the message take \d+ tokens.*60"):
        conversation.say("too long " * 30)
    assert (conversation.history, conversation.forgotten) == (before, 0)
    conversation.say("Hello again")
    with pytest.raises(llama2cpp.ContextFullError):
        model.chat("too long " * 400, template=TURNS)


def test_an_answer_may_fill_the_context(model: llama2cpp.Model) -> None:
    conversation = llama2cpp.Conversation(model, template=TURNS, context=50, seed=1, max_tokens=None)
    conversation.say("Hello")
    assert conversation.last_turn is not None
    assert conversation.last_turn.finish_reason == "context"
    assert conversation.say("Again", max_tokens=3)


def test_an_answer_that_is_broken_off(model: llama2cpp.Model) -> None:
    conversation = llama2cpp.Conversation(model, template=TURNS, seed=1)
    pieces = conversation.stream("Hello")
    begun = next(pieces) + next(pieces)
    pieces.close()
    assert conversation.history == [user("Hello"), {"role": "assistant", "content": begun}]
    assert conversation.last_turn is not None
    assert conversation.last_turn.finish_reason == "interrupted"

    pieces = conversation.stream("Again")
    begun = next(pieces)
    answer = conversation.say("Next", max_tokens=3)  # ends the one before
    assert [message["content"] for message in conversation.history[2:]] == ["Again", begun, "Next", answer]
    assert list(pieces) == []

    conversation.stream("Never heard")
    assert len(conversation.history) == 6

    def interrupted() -> None:
        for _ in conversation.stream("Interrupted"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    conversation.say("Last", max_tokens=1)
    assert [message["role"] for message in conversation.history] == ["user", "assistant"] * 5


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send itself SIGINT in a test")
def test_ctrl_c_while_a_message_is_read(tokenizer: llama2cpp.Tokenizer) -> None:
    config = tiny.config(vocab_size=512, dim=64, hidden_dim=16, n_layers=8, n_heads=32, n_kv_heads=1, head_dim=8)
    slow = llama2cpp.from_arrays(
        llama2cpp.Config(**{**config.to_dict(), "seq_len": 30_000}), tiny.arrays(config), tokenizer
    )
    conversation = llama2cpp.Conversation(slow, template="{{ messages[-1].content }}", max_tokens=1, seed=1)
    conversation.say("Hello")
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        conversation.say("z" * 29_000)
    timer.join()
    assert len(conversation.history) == 2
    conversation.say("Hello")
    assert len(conversation.history) == 4


def test_wrong_options(model: llama2cpp.Model) -> None:
    conversation = llama2cpp.Conversation(model, template=TURNS)
    for options, told in [({"temperature": -1.0}, "temperature"), ({"seed": -1}, "seed"), ({"max_tokens": -1}, "max")]:
        with pytest.raises(ValueError, match=told):
            conversation.say("Hello", **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="warmth"):
        conversation.say("Hello", warmth=1)  # type: ignore[call-arg]
    assert conversation.history == []


def test_the_history_is_a_copy(model: llama2cpp.Model) -> None:
    conversation = llama2cpp.Conversation(model, template=TURNS, max_tokens=2, seed=1)
    conversation.say("Hello")
    conversation.history[0]["content"] = "Goodbye"
    conversation.history.clear()
    assert conversation.history[0] == user("Hello")


# --- files


@pytest.mark.parametrize("session", [False, True])
def test_save_and_load(model: llama2cpp.Model, tmp_path: Path, session: bool) -> None:
    options: Any = {"template": TURNS, "seed": 4, "max_tokens": 10}
    conversation = llama2cpp.Conversation(model, "Sei nett zu Zoë.", **options)
    conversation.say("Hello")
    conversation.save(tmp_path / "talk.json", session=session)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["talk.json", "talk.json.safetensors"][: 1 + session]
    other = llama2cpp.Conversation(model, **options)
    other.load(tmp_path / "talk.json", session=session)
    assert other.history == conversation.history
    assert other.say("And now?") == conversation.say("And now?")
    assert other.last_turn is not None
    assert (other.last_turn.reused_tokens > 0) == session


def test_an_old_file_stays_until_the_new_one_is_there(model: llama2cpp.Model, tmp_path: Path) -> None:
    conversation = llama2cpp.Conversation(model, template=TURNS, max_tokens=2, seed=1)
    conversation.say("Hello")
    conversation.save(tmp_path / "talk.json")
    before = (tmp_path / "talk.json").read_bytes()
    conversation._messages[0]["content"] = object()
    with pytest.raises(TypeError):
        conversation.save(tmp_path / "talk.json")
    assert (tmp_path / "talk.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(FileNotFoundError):
        llama2cpp.Conversation(model, template=TURNS).save(tmp_path / "no" / "folder.json")


GOOD: dict[str, Any] = {
    "llama2cpp": "conversation",
    "version": 1,
    "system": None,
    "messages": [user("a")],
    "forgotten": 0,
}


NO_MESSAGES: list[Any] = [None, {}, ["a"], [{"role": "user"}]]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "\xff",
        "[" * 100_000,
        *(json.dumps({**GOOD, **change}) for change in [{"version": 2}, {"llama2cpp": 1}, {"system": 1}]),
        *(json.dumps({**GOOD, "messages": wrong}) for wrong in NO_MESSAGES),
        *(json.dumps({**GOOD, "forgotten": number}) for number in [None, -1, 2, 0.0, True, "0"]),
    ],
)
def test_files_that_are_no_conversations(model: llama2cpp.Model, tmp_path: Path, text: str) -> None:
    path = tmp_path / "talk.json"
    path.write_bytes(text.encode("latin-1"))
    conversation = llama2cpp.Conversation(model, template=TURNS, max_tokens=2, seed=1)
    conversation.say("Hello")
    before = conversation.history
    with pytest.raises(llama2cpp.FormatError, match=r"talk\.json: expected|talk\.json: message"):
        conversation.load(path)
    assert conversation.history == before


def test_another_model_s_session(model: llama2cpp.Model, tmp_path: Path) -> None:
    conversation = llama2cpp.Conversation(model, template=TURNS, max_tokens=2, seed=1)
    conversation.say("Hello")
    conversation.save(tmp_path / "talk.json", session=True)
    other_model = tiny.model(tiny.config(vocab_size=512, seq_len=400), seed=1, tokenizer=model.tokenizer)
    other = llama2cpp.Conversation(other_model, template=TURNS, max_tokens=2, seed=1)
    with pytest.raises(llama2cpp.FormatError, match="model"):
        other.load(tmp_path / "talk.json", session=True)
    assert other.history == []
    other.load(tmp_path / "talk.json")
    assert other.history == conversation.history
