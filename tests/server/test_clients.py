"""LangChain and LiteLLM, as they are, with `llama2cpp serve`. Nothing is downloaded.

Needs the extra client-test, which .ci/run installs for this file and test_llm.py.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import warnings
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import openai
import pydantic
import pytest
from served import Served, serving

missing = [name for name in ("langchain_openai", "litellm") if importlib.util.find_spec(name) is None]
if missing:
    pytest.skip(f'{missing[0]} is not installed: pip install ".[client-test]"', allow_module_level=True)
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else its import asks GitHub
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import litellm
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
    from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

pytestmark = pytest.mark.filterwarnings("ignore")  # of their own packages

TEXTS = ["The dog ran.", "A cat."]


class Pet(pydantic.BaseModel):
    """A pet."""

    age: int = pydantic.Field(ge=0, le=99)
    kind: str = pydantic.Field(max_length=12)


def look(at: Annotated[int, pydantic.Field(ge=0, le=99)]) -> str:
    """Look at a place."""
    return f"place {at}"


TOOL: Any = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look at a place.",
        "parameters": {
            "type": "object",
            "properties": {"at": {"type": "integer", "maximum": 99, "minimum": 0}},
            "required": ["at"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(template="chatml") as served:
        yield served


def lang(served: Served, **options: Any) -> Any:
    given = {"model": "tales", "max_retries": 0, "timeout": 60, "temperature": 0.8, "seed": 3, "max_tokens": 12}
    return ChatOpenAI(base_url=f"{served.url}/v1", api_key="none", **{**given, **options})


def lite(served: Served, **options: Any) -> Any:
    given = {"model": "openai/tales", "messages": [{"role": "user", "content": "Hello"}], "num_retries": 0}
    how = {"temperature": 0.8, "seed": 3, "max_tokens": 12}
    return {**given, **how, "api_base": f"{served.url}/v1", "api_key": "none", "timeout": 60, **options}


def said(served: Served, messages: Any, **options: Any) -> str:
    answer: str = served.model.chat(
        messages, template="chatml", **{"temperature": 0.8, "seed": 3, "max_tokens": 12, **options}
    )
    return answer


# --- LangChain


def test_langchain_messages(served: Served) -> None:
    model = lang(served)
    answer = model.invoke("Hello")
    assert answer.content == said(served, "Hello")
    assert answer.usage_metadata["output_tokens"] == 12
    assert answer.response_metadata["finish_reason"] == "length"
    turns = [SystemMessage("Be kind."), HumanMessage("Hello"), AIMessage("Hi."), HumanMessage("Who?")]
    assert model.invoke(turns, stop=["a"]).content == said(
        served,
        [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": "Who?"},
        ],
        stop=["a"],
    )


def test_langchain_streams(served: Served) -> None:
    chunks = list(lang(served, stream_usage=True).stream("Hello"))
    assert "".join(chunk.content for chunk in chunks) == said(served, "Hello")
    assert len([chunk for chunk in chunks if chunk.content]) > 3
    assert [chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata] == [12]


def test_langchain_async_and_batch(served: Served) -> None:
    model = lang(served)

    async def stream() -> str:
        return "".join([chunk.content async for chunk in model.astream("Hello")])

    assert asyncio.run(stream()) == said(served, "Hello")
    questions = ["Hello", "Who?", "Why?"]
    assert [answer.content for answer in model.batch(questions)] == [said(served, one) for one in questions]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_structured_output(served: Served, method: str) -> None:
    pet = lang(served, max_tokens=300).with_structured_output(Pet, method=method).invoke("A pet")
    assert isinstance(pet, Pet)


def test_langchain_tools(served: Served) -> None:
    """A call, the tool's answer, and what the model makes of it."""
    asked = lang(served, max_tokens=60).bind_tools([look], tool_choice="look")
    call = asked.invoke("Look!")
    assert call.content == ""
    (made,) = call.tool_calls
    assert made["name"] == "look"
    assert type(made["args"]["at"]) is int
    streamed = None
    for chunk in asked.stream("Look!"):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None
    assert [(one["name"], one["args"]) for one in streamed.tool_calls] == [("look", made["args"])]
    result = ToolMessage(look(**made["args"]), tool_call_id=made["id"])
    answer = lang(served).bind_tools([look]).invoke([HumanMessage("Look!"), call, result])
    function = {"name": "look", "arguments": made["args"]}
    assert answer.content == said(
        served,
        [
            {"role": "user", "content": "Look!"},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
            {"role": "tool", "content": result.content},
        ],
    )


def test_langchain_logprobs(served: Served) -> None:
    answer = lang(served, logprobs=True, top_logprobs=2).invoke("Hello")
    told = answer.response_metadata["logprobs"]["content"]
    assert len(told) == 12
    assert all(len(token["top_logprobs"]) == 2 for token in told)


def test_langchain_completions(served: Served) -> None:
    model = OpenAI(
        base_url=f"{served.url}/v1", api_key="none", model="tales", temperature=0, max_tokens=8, max_retries=0
    )
    expected = served.model.generate("Once upon a", temperature=0, max_tokens=8, top_p=1.0)
    assert model.invoke("Once upon a") == expected
    assert "".join(model.stream("Once upon a")) == expected


def test_langchain_embeddings(served: Served) -> None:
    """With its defaults it cuts texts by OpenAI's tokens, which it would have to download."""
    model = OpenAIEmbeddings(
        base_url=f"{served.url}/v1", api_key="none", model="tales", check_embedding_ctx_length=False, max_retries=0
    )
    vectors = served.model.embed(TEXTS).astype(np.float64)
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(model.embed_documents(TEXTS), expected, rtol=1e-6)
    np.testing.assert_allclose(model.embed_query(TEXTS[1]), expected[1], rtol=1e-6)


def test_langchain_errors(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="tales"):
        lang(served, model="other").invoke("Hello")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        lang(served, temperature=-1).invoke("Hello")
    with pytest.raises(openai.BadRequestError, match="context") as failed:
        lang(served).invoke("word " * 500)
    assert failed.value.code == "context_length_exceeded"


# --- LiteLLM


def test_litellm(served: Served) -> None:
    answer = litellm.completion(**lite(served))
    assert answer.choices[0].message.content == said(served, "Hello")
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 12
    assert asyncio.run(litellm.acompletion(**lite(served))).choices[0].message.content == said(served, "Hello")


def test_litellm_streams(served: Served) -> None:
    chunks = list(litellm.completion(**lite(served), stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == said(served, "Hello")
    assert [chunk.usage.completion_tokens for chunk in chunks if getattr(chunk, "usage", None)] == [12]
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["length"]


@pytest.mark.parametrize("stream", [False, True])
def test_litellm_tools(served: Served, stream: bool) -> None:
    choice = {"type": "function", "function": {"name": "look"}}
    answer = litellm.completion(**lite(served, max_tokens=60), tools=[TOOL], tool_choice=choice, stream=stream)
    if stream:
        answer = litellm.stream_chunk_builder(list(answer))
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "look"
    assert 0 <= json.loads(call.function.arguments)["at"] <= 99
    assert answer.choices[0].finish_reason == "tool_calls"


def test_litellm_structured_output(served: Served) -> None:
    answer = litellm.completion(**lite(served, max_tokens=300), response_format=Pet)
    assert isinstance(Pet.model_validate_json(answer.choices[0].message.content), Pet)


def test_litellm_texts_and_vectors(served: Served) -> None:
    reach = {"api_base": f"{served.url}/v1", "api_key": "none"}
    told = litellm.text_completion(
        model="text-completion-openai/tales", prompt="Once upon a", max_tokens=8, temperature=0, **reach
    )
    assert told.choices[0].text == served.model.generate("Once upon a", temperature=0, max_tokens=8)
    found = litellm.embedding(model="openai/tales", input=TEXTS, **reach)
    vectors = served.model.embed(TEXTS)
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose([one["embedding"] for one in found.data], expected, rtol=1e-5)


def test_litellm_errors(served: Served) -> None:
    with pytest.raises(litellm.NotFoundError, match="tales"):
        litellm.completion(**lite(served, model="openai/other"))
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(**lite(served, temperature=-1))
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**lite(served, messages=[{"role": "user", "content": "word " * 500}]))
    with pytest.raises((litellm.APIConnectionError, litellm.InternalServerError)):  # nobody listens
        litellm.completion(**lite(served, api_base="http://127.0.0.1:9/v1"))


def test_keys() -> None:
    with serving(api_key="secret", rows=1) as closed:
        with pytest.raises(openai.AuthenticationError):
            lang(closed).invoke("Hello")
        with pytest.raises(litellm.AuthenticationError):
            litellm.completion(**lite(closed))
