"""Every integer argument of the public surface takes integers and nothing else, and says which argument was wrong.

The lists are read from the signatures: of the package's functions by their annotations, and of the extension module by
its stub. An integer argument that is new fails here until it has a call in `CALLS`.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import on_metal
import pytest
import tiny
from conftest import ROOT

import llama2cpp
from llama2cpp import _core, export, interventions, plot
from llama2cpp.common.arguments import FOREIGN
from llama2cpp.inside import activation_names
from llama2cpp.inside.weights import Weights
from llama2cpp.session import KVCache

torch = pytest.importorskip("torch")

SCALARS = [2.5, math.nan, math.inf, -math.inf, "4", b"4", [1], np.array([1, 2]), np.float32(2.5), np.float64(2.5)]
SCALARS += [True, False, np.True_, np.array(True), torch.tensor(True)]  # a truth value stands for no number
SCALARS += [np.array(2.5), Fraction(5, 2), Fraction(2), Decimal("2.5"), Decimal(2), 1j, object(), 2**70, -(2**70)]
SEVERAL = [2.5, math.nan, "4", b"4", [2.5], [math.nan], ["4"], np.array([2.5]), Fraction(5, 2), [Decimal(2)], [None]]
SEVERAL += [[2**70], object(), True, np.False_, [True], [np.True_]]
YES = ["yes", "", 0, 1, 1.0, [], [True], object(), np.array([True, False]), np.int64(1)]

EXPERTS = {"n_experts": 1, "n_experts_used": 1}  # one is nothing without the other
CONFIG: dict[str, Any] = {"dim": 64, "hidden_dim": 96, "n_layers": 3, "n_heads": 4, "vocab_size": 97, "seq_len": 48}
STUB = ast.parse((ROOT / "src" / "llama2cpp" / "_core.pyi").read_text())


def several(annotation: str) -> bool | None:
    """Whether an annotation is one of several integers (True), of one (False) or of neither (None)."""
    if annotation.startswith("Sequence[tuple["):
        return None  # rows and places: test_nested_integers
    if re.search(r"(Sequence|Iterable)\[int\]|\bIndex\b|\bSelection\b", annotation):
        return True
    return False if "int" in [part.strip() for part in annotation.split("|")] else None


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions of the package by their names in messages, methods and constructors of its classes too."""
    modules: list[tuple[Any, list[str]]] = [(llama2cpp, llama2cpp.__all__), (interventions, interventions.__all__)]
    modules += [(export, export.__all__), (plot, [name for name in vars(plot) if not name.startswith("_")])]
    things = [getattr(module, name) for module, names in modules for name in names]
    things += [KVCache, Weights, activation_names.get_act_name]
    for thing in things:
        if inspect.isfunction(thing) and thing.__module__.startswith("llama2cpp"):
            yield thing.__name__, thing
        elif inspect.isclass(thing) and thing.__module__.startswith("llama2cpp") and "_core" not in thing.__module__:
            for name, member in inspect.getmembers(thing, inspect.isfunction):
                if not name.startswith("_"):
                    yield member.__qualname__, member
                elif name == "__init__" and "dataclass" not in str(getattr(thing, "__dataclass_fields__", "")):
                    yield member.__qualname__.removesuffix(".__init__"), member


def is_integer(annotation: str) -> bool:
    return several(annotation) is not None


def is_truth(annotation: str) -> bool:
    return "bool" in [part.strip() for part in annotation.split("|")]


def of_package(wanted: Callable[[str], bool]) -> Iterator[tuple[str, str, str]]:
    """Give (function, argument, annotation) of each argument whose annotation is wanted."""
    for label, function in dict(public()).items():
        for name, parameter in inspect.signature(function).parameters.items():
            if wanted(str(parameter.annotation)):
                yield label, name, str(parameter.annotation)


def of_core(
    wanted: Callable[[str], bool], body: list[ast.stmt] = STUB.body, prefix: str = ""
) -> Iterator[tuple[str, str, str]]:
    """The same of the extension module, from its stub."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from of_core(wanted, node.body, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            for argument in [*node.args.args, *node.args.kwonlyargs]:
                annotation = "" if argument.annotation is None else ast.unparse(argument.annotation)
                if wanted(annotation):
                    yield f"_core.{prefix}{node.name}".removesuffix(".__init__"), argument.arg, annotation


PACKAGE = list(of_package(is_integer))
CORE = list(of_core(is_integer))
TRUTHS = [*of_package(is_truth), *of_core(is_truth)]
# Calls that True (the MLP behind the last layer) or False (to replace no file) makes wrong in another way.
NEEDS_MORE = {("convert", "force"), ("ResidualStream.accumulated_resid", "mlp_input")}
NEEDS_MORE |= {("ResidualStream.apply_ln_to_stack", "mlp_input"), ("ResidualStream.decompose_resid", "mlp_input")}
NEEDS_MORE |= {("ActivationCache.get_full_resid_decomposition", "mlp_input")}
NEEDS_MORE |= {("Model.run_with_cache", "incl_bwd")}
# Messages call what is in these arguments a token id.
IDS = {"token", "tokens", "id", "ids", "history", "incorrect_tokens"}


@pytest.fixture(scope="module")
def model() -> llama2cpp.Model:
    return tiny.model(tiny.config(**CONFIG))


@pytest.fixture(scope="module")
def calls(stories: llama2cpp.Model, model: llama2cpp.Model, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A call of each function in which every argument is right, but for those that are given."""
    folder = tmp_path_factory.mktemp("arguments")
    session = model.session()
    session.prefill([1, 2, 3, 4])
    session.save(folder / "session")
    _, cache = model.run_with_cache([1, 2, 3, 4])
    lens = llama2cpp.logit_lens(model, [1, 2, 3, 4], targets=[1, 2])
    core, f32 = model._core, np.ones((32, 32), dtype=np.float32)
    places = _core.Places([(0, 0)], model.config)
    on_cpu = llama2cpp.load("storyteller", backend="cpu")
    beside = np.zeros((1, on_cpu.config.dim))
    adapter = llama2cpp.Adapter.from_arrays(on_cpu, {"model.layers.0.self_attn.q_proj": (beside, beside.T)})
    tokenizer = stories.tokenizer
    decoder = _core.StreamDecoder(tokenizer)
    recorder = _core.Recorder(core, [(0, 0)])
    stack = cache.decompose_resid()
    talk = llama2cpp.Conversation(stories, template="llama2")
    talk.save(folder / "talk", session=True)

    def plain(function: Callable[..., Any], **right: Any) -> Callable[..., Any]:
        return lambda **given: function(**{**right, **given})

    residual = np.ones((1, model.config.dim), dtype=np.float32)

    def from_a_layer(function: Callable[..., Any], tokens: Any, stream: Any = residual) -> Callable[..., Any]:
        return lambda **given: function(**{"tokens": stream if "start_at_layer" in given else tokens, **given})

    def rewound() -> llama2cpp.Session:
        other = session.fork()
        other.rewind(3)
        return other

    def runs(function: Callable[..., Any], text: Any, dim: int) -> Callable[..., Any]:
        stream = np.ones((1, 2, dim), dtype=np.float32)
        return lambda **given: function(**{"text_or_tokens": stream if "start_at_layer" in given else text, **given})

    def options(**given: Any) -> _core.Model:
        return _core.Model.from_arrays(model.config, dict(model.weights), **given)

    def submit(method: str, **right: Any) -> Callable[..., Any]:
        def call(**given: Any) -> Any:
            with llama2cpp.Engine(stories) as engine:
                return getattr(engine, method)(**{**right, "max_tokens": 1, **given}).result()

        return call

    numbers = itertools.count()

    def extract(**given: Any) -> Any:
        options: Any = {"texts": ["Once"], "points": "resid_post", "out": folder / f"rows{next(numbers)}", **given}
        return stories.extract(**options)

    def add_hook(**given: Any) -> None:
        try:
            stories.add_hook("blocks.0.attn.hook_z", lambda z, hook: z, **given)
        finally:
            stories.reset_hooks(including_permanent=True)

    def add_caching_hooks(**given: Any) -> None:
        try:
            stories.add_caching_hooks("z0", **given)
        finally:
            stories.reset_hooks(including_permanent=True)

    def transformer_lens(**given: Any) -> Any:
        """Make no bridge: arguments are checked before the library is imported, which takes seconds."""
        stub = SimpleNamespace(Bridge=lambda model, fold_ln: fold_ln)
        with mock.patch.dict(sys.modules, {"llama2cpp.lens_bridge.bridge": stub}):
            return llama2cpp.transformer_lens(model, **given)

    rows = extract()
    once = stories.to_tokens("Once")[0]
    matrix = llama2cpp.FactoredMatrix(np.ones((2, 4, 2)), np.ones((2, 2, 4)))
    dictionary: dict[str, Any] = {"names": "resid_post0", "b_enc": None, "b_dec": None, "activation": "topk", "k": 1}
    dictionary |= {"W_enc": np.ones((64, 2)), "W_dec": np.ones((2, 64))}
    text = {"prompt": "Once", "model": stories}
    where = {name: plain(getattr(interventions, name), names="z", value=1.0) for name in ("set", "add", "mean")}
    return {
        "load": plain(llama2cpp.load),
        "from_arrays": plain(llama2cpp.from_arrays, config=model.config, arrays=dict(model.weights)),
        "generate": plain(llama2cpp.generate, **text, **{"max_tokens": 1}),
        "complete": plain(llama2cpp.complete, **text, **{"max_tokens": 1}),
        "chat": plain(llama2cpp.chat, messages="Hello", model=stories, template="llama2", **{"max_tokens": 1}),
        "chat_stream": lambda **given: list(
            plain(llama2cpp.chat_stream, messages="Hi", model=stories, template="llama2", **{"max_tokens": 1})(**given)
        ),
        **{
            f"Model.{name}": plain(getattr(stories, name), **{"max_tokens": 1})
            for name in ("generate", "complete", "stream")
        },
        **{
            f"Model.{name}": plain(getattr(stories, name), messages="Hello", template="llama2", **{"max_tokens": 1})
            for name in ("chat", "chat_stream")
        },
        **{
            f"Model.{name}": plain(getattr(stories, name), messages="Hello", template="llama2")
            for name in ("chat_text", "chat_tokens")
        },
        "stream": lambda **given: list(plain(llama2cpp.stream, **text, **{"max_tokens": 1})(**given)),
        "logit_lens": plain(llama2cpp.logit_lens, model=model, input=[1, 2, 3, 4]),
        "Engine": lambda **given: llama2cpp.Engine(model, **given).close(),
        "Engine.submit": submit("submit", prompt="Once"),
        "Engine.submit_chat": submit("submit_chat", messages="Hello", template="llama2"),
        "Model.astream": plain(stories.astream, **{"max_tokens": 1}),
        "Model.explain": plain(stories.explain, prompt="Once"),
        "Model.extract": extract,
        "Model.mean_activations": plain(stories.mean_activations, texts=["Once"], points="mlp_out"),
        "Model.get_token_position": plain(stories.get_token_position, input="Once", **{"single_token": int(once[-1])}),
        "Model.to_single_str_token": stories.to_single_str_token,
        "Model.add_hook": add_hook,
        "Model.add_caching_hooks": add_caching_hooks,
        "Model.get_caching_hooks": plain(stories.get_caching_hooks, names_filter="z0"),
        "Model.input_to_embed": plain(stories.input_to_embed, input="Once"),
        "Model.reset_hooks": stories.reset_hooks,
        "Model.loss_fn": plain(stories.loss_fn, logits=np.zeros((1, 3, 97)), tokens=[[1, 2, 3]]),
        "ClassicSurface.set_use_attn_result": stories.set_use_attn_result,
        "ClassicSurface.set_use_split_qkv_input": stories.set_use_split_qkv_input,
        "ClassicSurface.set_use_attn_in": stories.set_use_attn_in,
        "ClassicSurface.set_use_hook_mlp_in": stories.set_use_hook_mlp_in,
        "transformer_lens": transformer_lens,
        "ActivationData.batches": plain(rows.batches, **{"size": 1}),
        "ActivationData.torch": rows.torch,
        "FactoredMatrix.get_corner": matrix.get_corner,
        "FactoredMatrix.unsqueeze": matrix.unsqueeze,
        "Model.score": plain(stories.score, context="Once", continuations=" upon"),
        "Model.embed": plain(stories.embed, texts="Once"),
        "Model.perplexity": plain(stories.perplexity, text="Once upon a time"),
        "Model.run_with_hooks": runs(stories.run_with_hooks, "Once", stories.config.dim),
        "Model.to_str_tokens": plain(stories.to_str_tokens, text="Once"),
        "Model.to_tokens": plain(stories.to_tokens, input="Once"),
        "Model.unembed": plain(model.unembed, x=np.zeros(64)),
        "Model.forward": lambda **given: stories.forward([(stories.session(), "Once")], **given),
        "Model.session": model.session,
        "Model.load_session": plain(model.load_session, path=folder / "session"),
        "Model.run_with_cache": runs(model.run_with_cache, [1, 2, 3, 4], model.config.dim),
        "Model.record": model.record,
        "StackedWeights.accumulated_bias": plain(model.accumulated_bias, **{"layer": 1}),
        "StackedWeights.tokens_to_residual_directions": model.tokens_to_residual_directions,
        "Weights.head": plain(model.weights.head, name="blocks.0.attn.W_Q"),
        "Session.step": lambda **given: session.fork().step(**given),
        "Session.rewind": lambda **given: session.fork().rewind(**given),
        "Session.prefill": lambda **given: from_a_layer(rewound().prefill, [1])(**given),
        "Session.record": session.record,
        "KVCache.keys": session.kv.keys,
        "KVCache.values": session.kv.values,
        "KVCache.unrotated_keys": session.kv.unrotated_keys,
        "KVCache.splice": plain(session.kv.splice, source=session.kv, **{"begin": 0, "end": 1}),
        "Recording": plain(llama2cpp.Recording, core=core, session=None, names_filter="z", model=model),
        "TokenList": plain(llama2cpp.TokenList, texts=["a"]),
        "Recording.bytes_for": model.record("z").bytes_for,
        "Conversation.save": plain(talk.save, path=folder / "talk"),
        "Conversation.load": plain(talk.load, path=folder / "talk"),
        "Conversation": plain(llama2cpp.Conversation, model=stories, template="llama2"),
        "ActivationArrays": plain(llama2cpp.ActivationCache, arrays={}, model=None),
        "ActivationArrays.apply_slice_to_batch_dim": cache.apply_slice_to_batch_dim,
        "ActivationCache.stack_activation": plain(cache.stack_activation, activation_name="q"),
        "ActivationCache.get_full_resid_decomposition": cache.get_full_resid_decomposition,
        "ActivationCache.logit_attrs": plain(cache.logit_attrs, residual_stack=stack, **{"tokens": 1}),
        "ResidualStream.apply_ln_to_stack": plain(cache.apply_ln_to_stack, residual_stack=stack),
        "ResidualStream.accumulated_resid": cache.accumulated_resid,
        "ResidualStream.decompose_resid": cache.decompose_resid,
        "HeadsAndNeurons.stack_head_results": cache.stack_head_results,
        "HeadsAndNeurons.get_neuron_results": plain(cache.get_neuron_results, **{"layer": 0}),
        "HeadsAndNeurons.stack_neuron_results": plain(cache.stack_neuron_results, **{"layer": 1}),
        "LogitLens.rank_trajectory": plain(lens.rank_trajectory, **{"target": 1}),
        "get_act_name": plain(activation_names.get_act_name, name="q"),
        **where,
        "zero": plain(interventions.zero, names="z"),
        "scale": plain(interventions.scale, names="z", factor=2.0),
        "project_out": plain(interventions.project_out, names="resid_post", direction=np.ones(64)),
        "replace_with": plain(interventions.replace_with, **dictionary),
        "Replacement": plain(interventions.Replacement, **dictionary),
        "patch_from": plain(interventions.patch_from, cache=cache, names="z"),
        "mask_pattern": plain(interventions.mask_pattern, **{"key": 1}),
        "attention_patterns": plain(plot.attention_patterns, cache=cache, **{"layer": 0}),
        "next_tokens": plain(plot.next_tokens, model=model, logits=np.zeros(97)),
        "attributions": plain(plot.attributions, values=[1.0, 2.0], labels=["a", "b"]),
        "patching": plain(plot.patching, values=np.ones((2, 3, 4)), panels=["a", "b"]),
        "token_values": plain(plot.token_values, tokens=["a", "b"], values=[1.0, 2.0]),
        "convert": plain(export.convert, source=model, target=folder / "out.bin", format="int8", force=True),
        "compare": plain(export.compare, a=model, b=model, text=[1, 2, 3, 4], tensors=False),
        "Calibration": plain(export.Calibration, text=[1, 2]),
        # --- the extension module
        "_core.encode": plain(_core.encode, format="f16", array=f32),
        "_core.encode_int8_group": plain(_core.encode_int8_group, array=f32, **{"group": 2}),
        "_core.gram": plain(_core.gram, x=f32),
        "_core.gptq_factor": plain(_core.gptq_factor, hessian=np.eye(32)),
        "_core.gptq_encode": plain(
            _core.gptq_encode, weight=f32, factor=np.eye(32), order=np.arange(32, dtype=np.int32), **{"bits": 4}
        ),
        "_core.row_bytes": plain(_core.row_bytes, format="q8_0", **{"columns": 32}),
        "_core.ReadLimit": plain(_core.ReadLimit, **{"threads": 1, "bytes": 64}),
        "_core.PanelPacker": _core.PanelPacker,
        "_core.PanelPacker.facts": plain(_core.PanelPacker.facts, name="a", format="q8_0", **{"rows": 16, "cols": 32}),
        "_core.PanelPacker.pack": plain(
            _core.PanelPacker(1).pack, name="a", format="q8_0", data=_core.encode("q8_0", f32), **{"cols": 32}
        ),
        "_core.Config": lambda **given: _core.Config(
            **(CONFIG | (EXPERTS if set(EXPERTS) & set(given) else {}) | given)
        ),
        "_core.Model.open": plain(_core.Model.open, path=llama2cpp.load("storyteller").path),
        "_core.Model.from_arrays": options,
        "_core.Model.weight_rows": plain(core.weight_rows, name=core.weight_names()[0], **{"rows": [0]}),
        "_core.Model.weight_columns": plain(
            core.weight_columns, name="layers.0.attention.wq.weight", **{"begin": 0, "count": 1}
        ),
        "_core.adapter_targets": plain(_core.adapter_targets, model=core, architecture="llama", modules=[]),
        "_core.Adapter.factors": plain(adapter._core.factors, part="wq"),
        "_core.Model.session": core.session,
        "_core.Model.load_session": plain(core.load_session, path=folder / "session"),
        "_core.Model.run_with_cache": lambda **given: core.run_with_cache(
            [(core.session(), [1])], [], residual=residual if "start_at_layer" in given else None, **given
        ),
        "_core.Model.forward": lambda **given: core.forward(
            [(core.session(), [1])], residuals=[residual] if "start_at_layer" in given else None, **given
        ),
        "_core.Session.prefill_from": lambda **given: rewound()._core.prefill_from(
            **{"residual": residual, "start_at_layer": 1, **given}
        ),
        "_core.Session.assign": plain(session.fork()._core.assign, other=session._core),
        "_core.Model.gradients": lambda **given: core.gradients(
            [(core.session(), [1, 2])], np.zeros((1, 2, 97), dtype=np.float32), [], **given
        ),
        "_core.token_ids": _core.token_ids,
        "_core.hook_points": _core.hook_points,
        "_core.point_shape": plain(_core.point_shape, config=model.config),
        "_core.CallHooks.add_callback": lambda **given: _core.CallHooks(core, [session]).add_callback(
            places, print, **given
        ),
        "_core.CallHooks.add_intervention": lambda **given: _core.CallHooks(core, [session]).add_intervention(
            places, _core.Intervention("set", [], [], [], np.zeros((1, 1, 1))), **given
        ),
        "_core.Recorder.bytes": plain(recorder.bytes, **{"begin": 0, "count": 1}),
        "_core.Intervention": plain(
            _core.Intervention, change="set", values=np.zeros((1, 1, 1)), heads=[], positions=[], neurons=[]
        ),
        "_core.Session.step": lambda **given: session.fork()._core.step(**given),
        "_core.Session.prefill": lambda **given: session.fork()._core.prefill(**{"tokens": [1], **given}),
        "_core.Session.sample": plain(session._core.sample, sampler=_core.Sampler()),
        "_core.Session.rewind": lambda **given: session.fork()._core.rewind(**given),
        "_core.Session.fork": session._core.fork,
        "_core.Session.rotary": plain(session._core.rotary, count=1),
        "_core.Session.keys": session._core.keys,
        "_core.Session.values": session._core.values,
        "_core.Session.store_kv": plain(
            session.fork()._core.store_kv,
            keys=session.kv.keys(0)[:1],
            values=session.kv.values(0)[:1],
            **{"layer": 0, "at": 0},
        ),
        "_core.Tokenizer.from_file": plain(
            _core.Tokenizer.from_file, path=ROOT / "src/llama2cpp/storyteller/tokenizer.model"
        ),
        "_core.Tokenizer.encode": plain(tokenizer.encode, text="Once"),
        "_core.Model.unembed": plain(core.unembed, x=np.zeros((1, 64), dtype=np.float32)),
        "_core.Model.with_weights": plain(core.with_weights, arrays={}),
        "_core.FolderWriter": plain(_core.FolderWriter, path=folder / "out"),
        "_core.Tokenizer.decode": tokenizer.decode,
        "_core.Tokenizer.decode_bytes": tokenizer.decode_bytes,
        "_core.Tokenizer.piece": tokenizer.piece,
        "_core.Tokenizer.piece_after": plain(tokenizer.piece_after, **{"prev": 1, "id": 1}),
        "_core.StreamDecoder.push": decoder.push,
        "_core.Sampler": _core.Sampler,
        "_core.Sampler.sample": plain(_core.Sampler().sample, logits=[0.0] * 8),
    }


RIGHT = {"dim": 64, "head_dim": 16, "context": 40, "vocab_size": 97, "bits": 4, "cols": 32, "columns": 32, "window": 4}
RIGHT |= {"seq_len": 48, "hidden_dim": 96, "end": 2, "bytes": 64, "max_tokens": 2, "n_heads": 4, "group": 2, "rows": 16}
RIGHT |= {"rotary_dim": 2, "most": 2, "shard_size": 100_000, "max_bytes": 100_000, "length": 2, "prompt_tokens": 0}


def right(label: str, name: str) -> int:
    """A number that the argument takes."""
    if (label, name) == ("_core.Tokenizer.from_file", "vocab_size"):
        return 0
    return 0 if label == "_core.Model.weight_rows" or name == "batch_slice" else RIGHT.get(name, 1)


@pytest.mark.parametrize(("label", "name", "annotation"), PACKAGE + CORE, ids=lambda value: str(value)[:40])
def test_integers(label: str, name: str, annotation: str, calls: dict[str, Callable[..., Any]]) -> None:
    call = calls[label]
    if on_metal.ON_METAL and label == "_core.Model.gradients":
        pytest.skip("gradients are the CPU's, and refused on Metal by name")
    many = several(annotation)
    bad: list[Any] = SEVERAL if many else SCALARS
    if "None" not in annotation and annotation not in ("Index", "Selection"):
        bad = [*bad, None]
    if name in ("history", "seed") and label.startswith("_core."):
        bad = [value for value in bad if value is not None]
    for value in bad:
        if isinstance(value, str) and "str" in annotation:
            continue
        if "int" in annotation.split(" | ") and many and isinstance(value, list) and label.endswith("directions"):
            continue
        with pytest.raises((TypeError, ValueError)) as caught:
            call(**{name: value})
        message = str(caught.value)
        words = {name} if name not in IDS else {name, name.removesuffix("s"), "token", "id", "ids"}
        assert any(re.search(rf"\b{word}\b", message) for word in words), (value, message)
        own = label.removeprefix("_core.").rpartition(".")[2]
        named = own in message or label.removeprefix("_core.") in message or name in IDS or label == "_core.Model.open"
        assert named or own in ("ActivationArrays",), (value, message)
    number = right(label, name)
    for kind in (int, np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64, np.array, torch.tensor):
        if number > 100 and kind in (np.int8, np.uint8, np.int16):
            continue
        good = kind(number)
        call(**{name: [good] if many and not annotation.startswith(("Index", "Selection", "int")) else good})


@pytest.mark.parametrize(("label", "name", "annotation"), TRUTHS, ids=lambda value: str(value)[:40])
def test_truth_values(label: str, name: str, annotation: str, calls: dict[str, Callable[..., Any]]) -> None:
    call = calls[label]
    for value in YES if "None" in annotation else [*YES, None]:
        if isinstance(value, str) and "str" in annotation:
            continue
        with pytest.raises(TypeError, match=rf"\b{name} is .*expected True") as caught:
            call(**{name: value})
        own = label.removeprefix("_core.").rpartition(".")[2]
        assert own in str(caught.value) or label.removeprefix("_core.") in str(caught.value)
    for value in (True, np.True_, False):
        if (label, name) not in NEEDS_MORE:
            call(**{name: value})


@pytest.mark.parametrize("value", [2.5, "4", np.float32(2.5), None, Fraction(2), True])
def test_nested_integers(value: Any, model: llama2cpp.Model) -> None:
    core = model._core
    with pytest.raises(ValueError, match="token id"):
        model.forward([(model.session(), [1, value])])
    with pytest.raises(ValueError, match="token id"):
        core.feed([(core.session(), value)])
    with pytest.raises(ValueError, match="token id"):
        core.run_with_cache([(core.session(), [1, value])], [])
    with pytest.raises(TypeError, match="arrays"):
        _core.safetensors_header({}, [("a", [1, value])])
    for places in ([(value, 0)], [(0, value)]):
        with pytest.raises(TypeError, match="places"):
            _core.Places(places, model.config)
        with pytest.raises(TypeError, match="places"):
            _core.Recorder(core, places)
    llama3 = {"type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    with pytest.raises(TypeError, match="original_context"):
        _core.Config(**CONFIG, rope_scaling={**llama3, "original_context": value})
    _, cache = model.run_with_cache([1, 2])
    if value is not None and not isinstance(value, str):
        with pytest.raises(TypeError, match="layer"):
            cache["q", value]
    with pytest.raises(TypeError, match="tokens"):
        llama2cpp.ActivationCache({}, None, tokens=[1, value])
    with pytest.raises((TypeError, ValueError)):
        interventions.Intervention("set", "z", head=[value], value=0.0).compile(model.config)


@pytest.mark.parametrize("value", [2.5, math.nan, math.inf, "4", Decimal(2)])
@pytest.mark.parametrize("name", ["max_tokens", "top_k", "seed"])
def test_options_of_chats(value: Any, name: str, stories: llama2cpp.Model) -> None:
    options: Any = {name: value}
    with pytest.raises(TypeError, match=f"chat: {name} is"):
        stories.chat("Hello", template="llama2", **options)
    with pytest.raises(TypeError, match=f"Conversation: {name} is"):
        llama2cpp.Conversation(stories, template="llama2", **options)
    conversation = llama2cpp.Conversation(stories, template="llama2", max_tokens=2)
    with pytest.raises(TypeError, match=f"{name} is"):
        conversation.say("Hello", **options)
    assert conversation.history == []


def test_whole_numbers_where_they_were_taken(stories: llama2cpp.Model) -> None:
    expected = stories.generate("Once", max_tokens=2, temperature=0)
    for value in (2.0, np.float32(2), np.float64(2)):
        assert stories.generate("Once", max_tokens=value, temperature=0) == expected  # type: ignore[arg-type]
    for name in ("seed", "n", "top_k"):
        options: Any = {name: 1.0}
        with pytest.raises(TypeError, match=f"{name} is 1.0"):
            stories.generate("Once", **options)


def test_a_wrong_number_is_refused_at_the_call(stories: llama2cpp.Model) -> None:
    with pytest.raises(TypeError, match="stream: max_tokens is"):
        stories.stream("Once", max_tokens=2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("stop", [None, [None], (), [None, "."]])
def test_stop_may_be_none(stop: Any, stories: llama2cpp.Model) -> None:
    text = stories.generate("Once upon a time", max_tokens=20, temperature=0)
    expected = text.partition(".")[0] if stop == [None, "."] else text
    assert stories.generate("Once upon a time", max_tokens=20, temperature=0, stop=stop) == expected
    assert isinstance(stories.chat("Hello", template="llama2", max_tokens=2, stop=stop), str)
    for wrong in (5, [5], [b"."]):
        with pytest.raises(TypeError, match="stop is"):
            stories.generate("Once", stop=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted({*FOREIGN, "input_ids", "max_token"}))
def test_foreign_names(name: str, stories: llama2cpp.Model, stories_dir: Any) -> None:
    options: Any = {name: 1}
    functions: list[Callable[..., Any]] = [
        lambda: stories.generate("Once", **options),
        lambda: stories.stream("Once", **options),
        lambda: stories.chat("Once", template="llama2", **options),
        lambda: llama2cpp.load(stories_dir / "stories260K.bin", **options),
        lambda: llama2cpp.Conversation(stories, **options),
    ]
    messages = []
    for function in functions:
        with pytest.raises(TypeError, match=f"has no argument '{name}'") as caught:
            function()
        messages.append(str(caught.value))
    assert any(" it is " in message for message in messages)


def test_foreign_names_of_conversations(stories: llama2cpp.Model) -> None:
    for name, meant in {"n_ctx": "context", "system_prompt": "system", "chat_template": "template"}.items():
        options: Any = {name: "a"}
        with pytest.raises(TypeError, match=f"Conversation.* has no argument '{name}': here it is {meant}"):
            llama2cpp.Conversation(stories, **options)


def test_names_of_other_functions(stories: llama2cpp.Model) -> None:
    """Where an argument that this function does not have would be one."""
    for call, said in (
        (lambda **given: stories.perplexity("Once", **given), "kv_dtype of load()"),
        (lambda **given: llama2cpp.load("storyteller", **given), "adapter of Model.session() and generate()"),
        (lambda **given: stories.generate("Once", **given), "context of load()"),
    ):
        name = said.split()[0]
        with pytest.raises(TypeError, match=re.escape(f"has no argument '{name}': it is {said}")):
            call(**{name: 1})


def test_no_property_can_be_set() -> None:
    """A setter would be an argument that `test_integers` does not see."""
    classes = [thing for thing in vars(llama2cpp).values() if inspect.isclass(thing)]
    assert len(classes) > 10
    for thing in [*classes, KVCache, Weights]:
        for name, member in inspect.getmembers(thing):
            if isinstance(member, property) and not name.startswith("_"):
                assert member.fset is None, f"{thing.__name__}.{name}"


def test_every_foreign_name_is_foreign() -> None:
    ours = {name for _, function in public() for name in inspect.signature(function).parameters}
    assert {meant.split()[0] for meant in FOREIGN.values()} <= ours
