"""Print how far this engine is from float32 transformers on a GGUF file, in each quantized form, beside llama.cpp.

    python tests/bench/agreement.py SmolLM2-135M-Instruct.Q4_1.gguf

The reference is transformers on the values that the quantized weights stand for, in float32: what is measured is the
engine's arithmetic, not the loss of quantizing. "f32" is `activation_dtype="f32"` with keys and values in f32: rounding
only. "bf16" is `activation_dtype="bf16"` and "int8" what runs by default, both with keys and values in f16. The other
forms are made from the file's values by the gguf package, and, where llama-cpp-python is installed, K-quants by
llama.cpp's own quantizer; its logits then stand beside ours. Needs gguf, torch and transformers.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

import llama2cpp
from llama2cpp.common.probabilities import log_softmax

sys.path.append(str(Path(__file__).parents[1] / "support"))
import gguf_files

Floats = NDArray[np.float32]

FORMS = (Type.F16, Type.BF16, Type.Q8_0, Type.Q5_1, Type.Q5_0, Type.Q4_1, Type.Q4_0)
K_FORMS = ("Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
TEXT = """\
The harbour was quiet when the last boat came in. Two men tied it to the iron ring and went home without a \
word, because the day had been long and the nets were empty. In the morning the wind had turned. "It will rain before \
noon," said the older one, and he was right. What does a fishing village do when there is no fish? It mends what \
is broken: nets, roofs, old quarrels. The school teacher wrote 3 x 17 = 51 on the board and asked who could \
explain it without counting. Nobody could. Then a girl in the last row stood up and said that three times \
seventeen is three times ten and three times seven, which is thirty and twenty-one. def add(a, b): return a + b \
is how a computer would be told the same thing. By evening the rain had stopped, the light came back low and \
yellow over the water, and the first boat was already on its way out again."""


class Distance(NamedTuple):
    largest: float  # difference of two logits
    divergence: float  # mean of KL(reference || engine), in nats

    def __str__(self) -> str:
        return f"{self.largest:.2g} / {self.divergence:.1e}"


def distance(reference: Floats, logits: Floats) -> Distance:
    p, q = log_softmax(reference), log_softmax(logits)
    return Distance(float(np.abs(reference - logits).max()), float((np.exp(p) * (p - q)).sum(axis=-1).mean()))


def field(reader: gguf.GGUFReader, key: str) -> Any:
    found = reader.fields.get(key)
    return None if found is None else found.contents()


def reference_logits(path: Path, ids: list[int]) -> Floats:
    """[T, vocab_size] of transformers with the file's values."""
    reader = gguf.GGUFReader(path)
    values: dict[str, Floats] = {
        tensor.name: np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        for tensor in reader.tensors
    }
    heads, kv_heads = field(reader, "llama.attention.head_count"), field(reader, "llama.attention.head_count_kv")
    sizes: dict[str, Any] = {
        "hidden_size": field(reader, "llama.embedding_length"),
        "intermediate_size": field(reader, "llama.feed_forward_length"),
        "num_hidden_layers": field(reader, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": len(values["token_embd.weight"]),
        "rope_theta": field(reader, "llama.rope.freq_base"),
        "rms_norm_eps": field(reader, "llama.attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": field(reader, "llama.context_length"),
        "tie_word_embeddings": "output.weight" not in values,
    }
    config = transformers.LlamaConfig(**sizes)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to_empty(device="cpu")
    values.setdefault("output.weight", values["token_embd.weight"])  # tied
    turned = {"attn_q": heads, "attn_k": kv_heads}
    state = {}
    for name in model.state_dict():
        target = gguf_files.gguf_name(name)
        value = values[target]
        part = target.split(".")[-2]
        if part in turned:
            value = gguf_files.half_split(value, turned[part])
        state[name] = torch.from_numpy(value)
    model.load_state_dict(state, strict=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its table is no weight
    with torch.no_grad():
        logits: Floats = model(torch.tensor([ids])).logits[0].numpy()
    return logits


def ours(path: Path, ids: list[int], **options: str) -> Floats:
    with llama2cpp.load(path, **options) as model:  # type: ignore[arg-type]
        return model.session(context=len(ids)).prefill(ids, all_logits=True)


def llama_cpp_logits(path: Path, ids: list[int]) -> Floats:
    llama_cpp = importlib.import_module("llama_cpp")
    model = llama_cpp.Llama(str(path), n_ctx=len(ids) + 8, n_batch=len(ids) + 8, logits_all=True, verbose=False)
    model.eval(ids)
    return np.array(model.scores[: len(ids)], np.float32)


def requantized(source: Path, form: Type, target: Path) -> Path:
    """Write the file's matrices in another form; its metadata and vectors stay."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for key, found in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        kind, inner = found.types[0], found.types[-1]
        writer.add_key_value(key, found.contents(), kind, inner if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        written = form if values.ndim == 2 else Type.F32
        data = values.astype(np.float32)
        if written != Type.F32:
            data = gguf.quants.quantize(data, written)
        writer.add_tensor(tensor.name, data, raw_dtype=None if written in (Type.F32, Type.F16) else written)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def k_quantized(source: Path, form: str, target: Path) -> Path:
    """The same by llama.cpp, which makes a mixture of types."""
    llama_cpp = importlib.import_module("llama_cpp")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{form}")
    parameters.allow_requantize = True
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    if code != 0:
        raise RuntimeError(f"llama.cpp could not quantize to {form}")
    return target


def files(source: Path, folder: Path, with_k: bool) -> Iterator[tuple[str, Path]]:
    yield f"{source.name}, as it is", source
    for form in FORMS:
        yield form.name, requantized(source, form, folder / f"{form.name}.gguf")
    if with_k:
        whole = requantized(source, Type.F32, folder / "F32.gguf")
        for name in K_FORMS:
            yield name, k_quantized(whole, name, folder / f"{name}.gguf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a GGUF of a Llama-family model")
    arguments = parser.parse_args()
    with llama2cpp.load(arguments.file) as model:
        if model.tokenizer is None:
            parser.error(f"{arguments.file} has no tokenizer that is known")
        ids = model.tokenizer.encode(TEXT)
    with_llama_cpp = importlib.util.find_spec("llama_cpp") is not None
    print(f"largest difference of two logits / mean KL divergence in nats, over {len(ids)} tokens\n")
    print('| form | "f32" | "bf16" | "int8" | llama.cpp |\n|---|---|---|---|---|')
    with tempfile.TemporaryDirectory() as folder:
        for name, path in files(arguments.file, Path(folder), with_llama_cpp):
            expected = reference_logits(path, ids)
            row = [str(distance(expected, ours(path, ids, activation_dtype="f32", kv_dtype="f32")))]
            quantized = name not in ("F16", "BF16")
            row.append("" if quantized else str(distance(expected, ours(path, ids, activation_dtype="bf16"))))
            row.append(str(distance(expected, ours(path, ids))) if quantized else "")
            row.append(str(distance(expected, llama_cpp_logits(path, ids))) if with_llama_cpp else "")
            print(f"| {name} | {' | '.join(row)} |", flush=True)
            if path != arguments.file:
                path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
