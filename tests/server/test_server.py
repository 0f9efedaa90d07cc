"""``llama2cpp serve`` as OpenAI's own client sees it, and what the client never sends."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import openai
import pydantic
import pytest
import safetensors.numpy
from served import Served, serving

from llama2cpp import interventions

TOOL: Any = {
    "type": "function",
    "function": {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}},
}
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as served:
        yield served


def test_chat(served: Served) -> None:
    answer = served.client.chat.completions.create(model="tales", messages=HELLO, max_tokens=12, seed=3, temperature=1)
    (choice,) = answer.choices
    assert choice.message.content == served.model.chat("Hello", template="llama2", max_tokens=12, seed=3, temperature=1)
    assert (choice.finish_reason, choice.message.role, answer.model) == ("length", "assistant", "tales")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    parts = [{"type": "text", "text": "He"}, {"type": "text", "text": "llo"}]
    same = served.client.chat.completions.create(
        model="tales",
        messages=[{"role": "user", "content": parts}],  # type: ignore[list-item, misc]
        max_completion_tokens=12,
        seed=3,
        temperature=1,
    )
    assert same.choices[0].message.content == choice.message.content


def test_adapters_are_models_of_their_own() -> None:
    """Requests with and without run beside each other, and each is what `generate` gives."""
    with serving(adapters=2) as served:
        model, client = served.model, served.client
        assert [found.id for found in client.models.list()] == ["tales", "style-0", "style-1"]
        found = client.models.retrieve("style-1")
        assert found.model_extra is not None
        assert (found.model_extra["parent"], found.model_extra["llama2cpp"]["adapter"]["rank"]) == ("tales", 4)
        told: dict[Any, Any] = {}

        def ask(name: str, i: int) -> None:
            answer = client.completions.create(model=name, prompt="The dog", max_tokens=12, seed=i, temperature=1)
            told[name, i] = answer.model, answer.choices[0].text

        cases = [(name, i) for name in ("tales", "style-0", "style-1") for i in range(4)]
        threads = [threading.Thread(target=ask, args=case) for case in cases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for name, i in cases:
            adapter = served.adapters.get(name)
            expected = model.generate("The dog", max_tokens=12, seed=i, temperature=1, adapter=adapter, special=False)
            assert told[name, i] == (name, expected)
        chat: dict[str, Any] = {"messages": HELLO, "max_tokens": 8, "temperature": 0}
        expected = model.chat(
            "Hello", template="llama2", max_tokens=8, temperature=0, adapter=served.adapters["style-1"]
        )
        for asked in ({"model": "style-1"}, {"model": "tales", "extra_body": {"adapter": "style-1"}}):
            assert client.chat.completions.create(**asked, **chat).choices[0].message.content == expected
        vector = client.embeddings.create(model="style-0", input="The dog").data[0].embedding
        own = model.embed("The dog", normalize=True, adapter=served.adapters["style-0"])
        np.testing.assert_allclose(vector, own, atol=1e-6)
        seen = served.send(
            "POST", "/v1/activations", {"prompt": "The dog", "names": ["resid_post4"], "model": "style-0"}
        )
        array = safetensors.numpy.load(seen[2])["blocks.4.hook_resid_post"]
        _, cache = model.run_with_cache("The dog", "resid_post4", adapter=served.adapters["style-0"], special=False)
        assert array.tobytes() == cache["resid_post", 4][0].tobytes()
        for body, status, said in (
            ({"model": "style-2"}, 404, "this server has 'tales', 'style-0', 'style-1'"),
            ({"adapter": "style-2"}, 404, "the adapter 'style-2' does not exist: this server has 'style-0', 'style-1'"),
            (
                {"model": "style-0", "adapter": "style-1"},
                400,
                "model is the adapter 'style-0', and adapter is 'style-1'",
            ),
            ({"adapter": 3}, 400, "adapter is 3, expected a string"),
        ):
            answered = served.send("POST", "/v1/completions", {"prompt": "The dog", **body})
            assert answered[0] == status
            assert said in json.loads(answered[2])["error"]["message"]


def test_no_adapters(served: Served) -> None:
    status, _, body = served.send("POST", "/v1/completions", {"prompt": "The dog", "adapter": "style-0"})
    assert status == 404
    assert "the adapter 'style-0' does not exist: there are none" in json.loads(body)["error"]["message"]


def test_stream(served: Served) -> None:
    chunks = list(
        served.client.chat.completions.create(
            model="tales",
            messages=HELLO,
            max_tokens=12,
            seed=3,
            n=2,
            logprobs=True,
            top_logprobs=2,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    for index in range(2):
        (expected,) = [served.model.chat("Hello", template="llama2", max_tokens=12, seed=3 + index)]
        choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert "".join(choice.delta.content or "" for choice in choices) == expected
        assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["length"]
        told = [token for choice in choices if choice.logprobs for token in choice.logprobs.content or []]
        assert len(told) == 12
        assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in told)
        assert bytes(byte for token in told for byte in token.bytes or []).decode().lstrip() == expected.lstrip()
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 24
    assert not chunks[-1].choices


def test_n_logprobs_and_stop(served: Served) -> None:
    answer = served.client.chat.completions.create(
        model="tales", messages=HELLO, max_tokens=20, seed=5, n=3, logprobs=True, top_logprobs=3, stop=["a", "o"]
    )
    for i, choice in enumerate(answer.choices):
        assert choice.index == i
        expected = served.model.chat("Hello", template="llama2", max_tokens=20, seed=5 + i, stop=["a", "o"])
        assert choice.message.content == expected
        assert choice.logprobs is not None
        for token in choice.logprobs.content or []:
            best = [one.logprob for one in token.top_logprobs]
            assert best == sorted(best, reverse=True)
            assert token.logprob <= best[0]


def test_completions(served: Served) -> None:
    model = served.model
    answer = served.client.completions.create(
        model="tales", prompt=["The dog", "The cat"], n=2, seed=7, max_tokens=10, logprobs=2, temperature=1
    )
    expected = model.complete(["The dog", "The cat"], n=2, seed=7, max_tokens=10, logprobs=2)
    assert [choice.text for choice in answer.choices] == [completion.text for completion in expected]
    for choice, completion in zip(answer.choices, expected, strict=True):
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs == pytest.approx(completion.logprobs)
        assert "".join(choice.logprobs.tokens or []) == completion.text
    ids = model.tokenizer.encode("The dog")
    (one,) = served.client.completions.create(model="tales", prompt=ids, seed=7, max_tokens=10).choices
    assert one.text == expected[0].text
    streamed = served.client.completions.create(model="tales", prompt="The dog", seed=7, max_tokens=10, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == expected[0].text


def test_echo_tells_of_the_prompt(served: Served) -> None:
    """What lm-eval asks for."""
    model = served.model
    text = "Once upon a time"
    (choice,) = served.client.completions.create(
        model="tales", prompt=text, echo=True, logprobs=1, max_tokens=1, temperature=0
    ).choices
    assert choice.text == text + model.generate(text, max_tokens=1, temperature=0)
    ids = model.tokenizer.encode(text)
    assert choice.logprobs is not None
    numbers = choice.logprobs.token_logprobs or []
    assert numbers[0] is None
    assert numbers[1 : len(ids)] == pytest.approx(model.score(ids[:1], ids[1:]).logprobs)


def test_embeddings(served: Served) -> None:
    texts = ["The dog ran.", "A cat."]
    answer = served.client.embeddings.create(model="tales", input=texts)  # the client asks for base64
    expected = served.model.embed(texts, normalize=True)
    np.testing.assert_array_equal(np.array([one.embedding for one in answer.data], np.float32), expected)
    as_floats = served.client.embeddings.create(
        model="tales", input=texts[1], encoding_format="float", extra_body={"pooling": "last"}
    )
    last = served.model.embed(texts[1], "last", normalize=True)
    np.testing.assert_array_equal(np.array(as_floats.data[0].embedding, np.float32), last)
    status, _, body = served.send("POST", "/v1/embeddings", {"input": texts[0], "encoding_format": "base64"})
    assert status == 200
    raw = base64.b64decode(json.loads(body)["data"][0]["embedding"])
    np.testing.assert_array_equal(np.frombuffer(raw, "<f4"), expected[0])


def test_models_health_and_metrics(served: Served) -> None:
    (listed,) = served.client.models.list().data
    assert listed.id == served.client.models.retrieve("tales").id == "tales"
    told = json.loads(served.send("GET", "/v1/models")[2])["data"][0]["llama2cpp"]
    assert told["batch_invariant"] is (served.model.backend == "cpu")
    assert json.loads(served.send("GET", "/health")[2])["status"] == "ok"

    def numbers() -> dict[str, float]:
        text = served.send("GET", "/metrics")[2].decode()
        return {name: float(value) for name, value in re.findall(r"^(\w+) ([\d.e+]+)$", text, re.MULTILINE)}

    served.wait_until_idle()
    before = numbers()
    served.client.completions.create(model="tales", prompt=[300, 301, 302], max_tokens=5, stop="no such text")
    after = numbers()
    assert after["llama2cpp_passes_total"] - before["llama2cpp_passes_total"] == 5  # the prompt's, and four more
    assert after["llama2cpp_tokens_total"] - before["llama2cpp_tokens_total"] == 5
    assert after["llama2cpp_requests_running"] == after["llama2cpp_requests_waiting"] == 0


def test_tools() -> None:
    """What the model says is a call where it is one; a template shows tools, past calls and results."""
    template = (
        "{{ tools | tojson if tools }}{% for m in messages %}"
        "{{ m.role }}{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}{% endfor %}"
    )
    with serving(template=template) as served:
        messages: list[Any] = [
            *HELLO,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": "a dog"},
        ]
        answer = served.client.chat.completions.create(
            model="tales",
            messages=messages,
            tools=[TOOL],
            max_tokens=5,
            seed=1,
            temperature=1,
        )
        shown = [dict(message) for message in messages]
        shown[1] = {
            **shown[1],
            "content": "",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "look", "arguments": {"at": 1}}}],
        }
        expected = served.model.chat(shown, template=template, tools=[TOOL], max_tokens=5, seed=1, temperature=1)
        assert answer.choices[0].message.content == expected
        with pytest.raises(openai.BadRequestError, match="tool_choice"):
            served.client.chat.completions.create(
                model="tales",
                messages=HELLO,
                tools=[TOOL],
                tool_choice={"type": "function", "function": {"name": "no"}},
            )


def test_json_and_calls_that_must_be_made(served: Served) -> None:
    class Dog(pydantic.BaseModel, extra="forbid"):
        name: Literal["Rex", "Spot"]
        good: bool

    parsed = served.client.chat.completions.parse(model="tales", messages=HELLO, response_format=Dog, seed=1)
    assert isinstance(parsed.choices[0].message.parsed, Dog)
    shape = {"type": "json_schema", "json_schema": {"name": "dog", "schema": Dog.model_json_schema()}}
    status, _, body = served.send(
        "POST", "/v1/chat/completions", {"messages": HELLO, "response_format": shape, "seed": 1}
    )
    said = json.loads(body)["choices"][0]
    assert (status, said["finish_reason"]) == (200, "stop")
    assert said["message"]["content"] == served.model.chat("Hello", template="llama2", json_schema=Dog, seed=1)
    tool: Any = json.loads(json.dumps(TOOL))
    tool["function"]["parameters"] = Dog.model_json_schema()
    for choice in ("required", {"type": "function", "function": {"name": "look"}}):
        asked: Any = {"model": "tales", "messages": HELLO, "tools": [tool], "tool_choice": choice, "seed": 2}
        answer = served.client.chat.completions.create(**asked)
        (call,) = answer.choices[0].message.tool_calls or []
        assert (answer.choices[0].finish_reason, call.function.name) == ("tool_calls", "look")
        Dog.model_validate_json(call.function.arguments)
        deltas = [one.choices[0].delta for one in served.client.chat.completions.create(**asked, stream=True)]
        assert "".join(delta.content or "" for delta in deltas) == ""
        (streamed,) = [one for delta in deltas for one in delta.tool_calls or []]
        assert streamed.function.arguments == call.function.arguments
    some = {"messages": HELLO, "response_format": {"type": "json_object"}, "max_tokens": 5, "seed": 1}
    choices = json.loads(served.send("POST", "/v1/chat/completions", some)[2])["choices"]
    assert choices[0]["message"]["content"].startswith("{")


def must_call(served: Served, *schemas: Any) -> tuple[int, Any]:
    tools = [{"type": "function", "function": {"name": f"f{i}", "parameters": s}} for i, s in enumerate(schemas)]
    asked = {"messages": HELLO, "tools": tools, "tool_choice": "required", "max_tokens": 80, "seed": 2}
    status, _, body = served.send("POST", "/v1/chat/completions", asked)
    return status, json.loads(body)


@pytest.mark.parametrize("count", [1, 3])
def test_calls_with_schemas_that_refer_to_parts_of_themselves(served: Served, count: int) -> None:
    """As pydantic writes models in models."""

    class Dog(pydantic.BaseModel, extra="forbid"):
        name: Literal["Rex", "Spot"]

    class Walk(pydantic.BaseModel, extra="forbid"):
        dog: Dog
        other: Dog

    schema = Walk.model_json_schema()
    assert schema["properties"]["dog"] == {"$ref": "#/$defs/Dog"}
    status, answer = must_call(served, *[schema] * count)
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert (status, answer["choices"][0]["finish_reason"]) == (200, "tool_calls")
    Walk.model_validate_json(call["function"]["arguments"])


@pytest.mark.parametrize(
    "schema", [{"properties": {"a": {"const": 1}}, "required": ["a"]}, {"anyOf": [{"properties": {"a": {"const": 1}}}]}]
)
def test_arguments_of_calls_are_objects(served: Served, schema: dict[str, Any]) -> None:
    """Also where the schema does not say so, and numbers or texts would be of it."""
    status, answer = must_call(served, schema)
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert status == 200
    assert json.loads(call["function"]["arguments"]) in ({"a": 1}, {})


def test_parameters_that_are_no_schema_of_an_object(served: Served) -> None:
    deep: dict[str, Any] = {}
    for _ in range(460):
        deep = {"type": "object", "properties": {"a": deep}}
    for schema in ("x", 3, [1], {"type": "string"}, {"type": "nope"}):
        status, answer = must_call(served, schema)
        assert (status, answer["error"]["param"]) == (400, "tools"), answer
    assert must_call(served, deep)[0] == 400
    status, answer = must_call(served, {"$ref": "#/nowhere"})
    assert status == 400
    assert "nowhere" in answer["error"]["message"]


def test_masks(served: Served) -> None:
    model = served.model
    (banned,) = model.complete("Once upon a", temperature=0, max_tokens=1)[0].tokens
    options: dict[str, Any] = {"prompt": "Once upon a", "max_tokens": 12, "seed": 1, "temperature": 1}
    off: dict[str, Any] = {"presence_penalty": 0.5, "frequency_penalty": 0.5}
    answer = served.client.completions.create(model="tales", **options, **off, logit_bias={str(banned): -100})
    expected = model.generate(**options, **off, logit_bias={banned: -np.inf})
    assert answer.choices[0].text == expected
    assert expected != model.generate(**options)
    answer = served.client.completions.create(model="tales", prompt="The", extra_body={"regex": " (dog|cat)[.]"})
    assert answer.choices[0].text in (" dog.", " cat.")


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        ("chat/completions", b"{", None, "is not JSON"),
        ("chat/completions", b"\xff\xfe", None, "is not JSON"),
        ("chat/completions", b"[1]", None, "an array, expected a JSON object"),
        ("chat/completions", b"[" * 60_000, None, "is not JSON"),
        ("chat/completions", b'{"messages": [], "temperature": NaN}', None, "NaN is no JSON"),
        ("chat/completions", {}, "messages", "messages is missing"),
        ("chat/completions", {"messages": "Hello"}, "messages", 'messages is "Hello", expected an array'),
        ("chat/completions", {"messages": [{"content": "Hello"}]}, "messages[0]", "no object with a role"),
        ("chat/completions", {"messages": HELLO, "temperature": "hot"}, "temperature", "expected a number"),
        ("chat/completions", {"messages": HELLO, "temperature": -1}, "temperature", "temperature"),
        ("chat/completions", {"messages": HELLO, "max_tokens": -1}, "max_tokens", "expected 0 to"),
        ("chat/completions", {"messages": HELLO, "n": 0}, "n", "n is 0, expected 1 to"),
        ("chat/completions", {"messages": HELLO, "n": 1.5}, "n", "n is 1.5, expected an integer"),
        ("chat/completions", {"messages": HELLO, "stop": [1]}, "stop", "array of strings"),
        ("chat/completions", {"messages": HELLO, "top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ("chat/completions", {"messages": HELLO, "temperature_": 1}, "temperature_", "temperature"),
        ("chat/completions", {"messages": HELLO, "logit_bias": {"x": 1}}, "logit_bias", "expected token ids"),
        ("chat/completions", {"messages": HELLO, "response_format": {"type": "xml"}}, "response_format", "json_schema"),
        ("chat/completions", {"messages": HELLO, "tools": [{}]}, "tools[0]", "no function with a name"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0]",
            "reads text only",
        ),
        (
            "chat/completions",
            {"messages": HELLO, "response_format": {"type": "json_schema"}},
            "response_format",
            "has no schema",
        ),
        ("completions", {"prompt": "a", "logit_bias": {"99999": 1}}, "logit_bias", "logit_bias has the id 99999"),
        ("completions", {"prompt": "a", "regex": "("}, "regex", "regex"),
        ("completions", {"prompt": "a", "stop_token_ids": ["a"]}, "stop_token_ids", "no array of token ids"),
        ("completions", {"prompt": None}, "prompt", "prompt is missing"),
        ("completions", {"prompt": {"a": 1}}, "prompt", "neither a string"),
        ("completions", {"prompt": [100_000]}, None, "100000"),
        ("completions", {"prompt": [5] * 500}, None, "500 tokens, and the context has room for 400"),
        ("completions", {"prompt": "a", "best_of": 3}, "best_of", "only n"),
        ("completions", {"prompt": "a", "suffix": "b"}, "suffix", "unrecognized field"),
        ("embeddings", {"input": []}, "input", "neither a string"),
        ("embeddings", {"input": "a", "dimensions": 5}, "dimensions", "the model has 192"),
        ("activations", {"prompt": "a"}, "names", "names is missing"),
        ("activations", {"prompt": "a", "names": ["no_such"]}, None, "no activation"),
        ("activations", {"prompt": "a", "names": "z", "layers": [9]}, "layers", "a layer is 9, expected -5 to 4"),
        ("activations", {"prompt": "a", "names": "z", "positions": [7]}, "positions", "a position is 7"),
        ("completions", {"prompt": "a", "interventions": [{"kind": "no"}]}, "interventions", "expected zero, set"),
        (
            "completions",
            {"prompt": "a", "interventions": [{"kind": "scale", "names": "z"}]},
            "interventions",
            "has no factor, which scale needs",
        ),
    ],
)
def test_bad_bodies(path: str, body: Any, param: str | None, message: str, served: Served) -> None:
    status, _, answer = served.send("POST", f"/v1/{path}", body)
    error = json.loads(answer)["error"]
    assert (status, error["type"]) == (400, "invalid_request_error")
    assert message in error["message"]
    assert error["param"] == param


def test_errors_are_openai_s(served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        served.client.chat.completions.create(model="gpt-4", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.APIStatusError) as large:
        served.client.completions.create(model="tales", prompt="a" * 70_000)
    assert large.value.status_code == 413
    with pytest.raises(openai.BadRequestError) as long:
        served.client.completions.create(model="tales", prompt=[5] * 500)
    assert long.value.code == "context_length_exceeded"
    for method, path, status in [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/completions", 405),
        ("POST", "/health", 405),
    ]:
        found, _, body = served.send(method, path, {} if method == "POST" else None)
        assert found == status
        assert json.loads(body)["error"]["message"]


def test_a_model_without_a_template() -> None:
    with serving(template=None) as served, pytest.raises(openai.BadRequestError, match="no chat template"):
        served.client.chat.completions.create(model="tales", messages=HELLO)


def test_keys_hosts_and_origins() -> None:
    with serving(api_key="secret", hosts=frozenset({"127.0.0.1"})) as served:
        with pytest.raises(openai.AuthenticationError) as wrong:
            served.client.models.list()
        assert wrong.value.code == "invalid_api_key"
        assert served.client.with_options(api_key="secret").models.list().data
        assert served.send("GET", "/health")[0] == 200
        assert served.send("GET", "/metrics")[0] == 401
        assert served.send("GET", "/health", Host="evil.example")[0] == 403
        assert served.send("GET", "/health", Origin="http://evil.example")[0] == 403
        status, headers, _ = served.send("GET", "/health", Origin=served.url)
        assert status == 200
        assert not [name for name in headers if name.startswith("access-control")]


def test_a_full_server_says_429() -> None:
    with serving(rows=1, queue=1) as served:
        hold = threading.Event()

        def waits(activation: Any, hook: Any) -> None:
            hold.wait(60)

        busy = served.engine.submit("The dog", max_tokens=1, hooks=[("blocks.0.hook_mlp_out", waits)])
        answers: list[str] = []

        def ask(seed: int) -> None:
            answer = served.client.completions.create(model="tales", prompt="The dog", seed=seed, max_tokens=5)
            answers.append(answer.choices[0].text)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(2)]
        for thread in threads:
            thread.start()
        while served.engine.stats.waiting < 2:
            time.sleep(0.01)
        status, headers, body = served.send("POST", "/v1/completions", {"prompt": "The dog"})
        assert (status, headers["retry-after"]) == (429, "1")
        assert json.loads(body)["error"]["code"] == "server_full"
        with pytest.raises(openai.RateLimitError):
            served.client.completions.create(model="tales", prompt="The dog")
        hold.set()
        for thread in threads:
            thread.join(60)
        expected = [served.model.generate("The dog", seed=seed, max_tokens=5) for seed in range(2)]
        assert sorted(answers) == sorted(expected)
        assert busy.result(60)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_row(stream: bool, served: Served) -> None:
    body = json.dumps({"prompt": "The dog", "max_tokens": 380, "stop": ["no such text"], "stream": stream}).encode()
    for _ in range(6):
        connection = socket.create_connection(served.url.removeprefix("http://").split(":"))  # type: ignore[arg-type]
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        if stream:
            connection.recv(100)
        connection.close()
    served.wait_until_idle()
    answer = served.client.completions.create(model="tales", prompt="The dog", seed=1, max_tokens=5)
    assert answer.choices[0].text == served.model.generate("The dog", seed=1, max_tokens=5)


def test_many_clients_at_once(served: Served) -> None:
    """Each gets what `generate` gives with its seed."""

    async def one(client: openai.AsyncOpenAI, seed: int) -> str:
        prompt = ["The dog", "Once upon a time", "One day, "][seed % 3]
        stream = await client.completions.create(model="tales", prompt=prompt, seed=seed, max_tokens=15, stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client, seed) for seed in range(24)))

    prompts = [["The dog", "Once upon a time", "One day, "][seed % 3] for seed in range(24)]
    expected = [served.model.generate(prompt, seed=seed, max_tokens=15) for seed, prompt in enumerate(prompts)]
    assert asyncio.run(all_of_them()) == expected


def test_activations(served: Served) -> None:
    model = served.model
    body = {"prompt": "Once upon a time", "names": ["resid_post", "pattern"], "layers": [0, -1], "positions": [0, -1]}
    status, headers, raw = served.send("POST", "/v1/activations", body)
    assert (status, headers["content-type"]) == (200, "application/octet-stream")
    found = safetensors.numpy.load(raw)
    _, cache = model.run_with_cache("Once upon a time", ["resid_post", "pattern"], remove_batch_dim=True)
    assert len(found) == 4
    for name, array in found.items():
        expected = cache[name][:, [0, 4]] if name.endswith("pattern") else cache[name][[0, 4]]
        np.testing.assert_array_equal(array, expected)
    body = {"messages": HELLO, "names": "resid_post", "max_tokens": 6, "seed": 1, "temperature": 1}  # type: ignore[dict-item]
    found = safetensors.numpy.load(served.send("POST", "/v1/activations", body)[2])
    with model.record("resid_post") as recording:
        model.chat("Hello", template="llama2", max_tokens=6, seed=1, temperature=1)
    for name, array in found.items():
        np.testing.assert_array_equal(array, recording.cache()[name][0])


def test_interventions(served: Served) -> None:
    asked: list[dict[str, Any]] = [
        {"kind": "scale", "names": "mlp_out", "factor": 0.5, "layer": 1},
        {"kind": "zero", "names": "z", "layer": [0, 2], "head": 3},
        {"kind": "mask_pattern", "key": 1},
    ]
    hooks = [
        interventions.scale("mlp_out", 0.5, layer=1),
        interventions.zero("z", layer=[0, 2], head=3),
        interventions.mask_pattern(1),
    ]
    (choice,) = served.client.completions.create(
        model="tales", prompt="The dog", seed=1, max_tokens=12, extra_body={"interventions": asked}
    ).choices
    with served.model.hooks(hooks):
        assert choice.text == served.model.generate("The dog", seed=1, max_tokens=12)
    assert choice.text != served.model.generate("The dog", seed=1, max_tokens=12)
