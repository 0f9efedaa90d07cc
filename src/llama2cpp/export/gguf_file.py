"""GGUF files, written through the gguf library."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..common.generation_config import GenerationConfig
from ..common.new_files import write_array
from ..common.parts import find_part
from . import sampling_settings
from .fused import Stored, stored_tensors
from .mixtures import ALIASES, MIXTURES, MXFP4, beside_experts, tensor_format
from .source import Array, Source, rope_factors, short_float
from .vocabulary import CONTROL, NORMAL, USER_DEFINED, Vocabulary

if TYPE_CHECKING:
    from gguf import GGUFWriter

Progress = Callable[[str, int], None]

FORMATS = (*MIXTURES, *ALIASES)
_AT_ONCE = 1 << 22  # numbers that are encoded before Python can look whether somebody has pressed Ctrl-C
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}".encode()


def require_library() -> None:
    """Raise an ImportError that says how to get the gguf library, where it is not there."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ImportError(
            "writing GGUF needs the gguf library: run `pip install 'llama2cpp[export]'`, or `pip install gguf`"
        ) from None


def family_of(source: Source) -> dict[str, Any]:
    """Give what GGUF calls the models that compute as this one does. ValueError where it has none."""
    return _core.gguf_family([part.name for part in source.optional_parts()], source.config)


def formats_of(source: Source, format: str, *, pure: bool, fused: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Give the format of each weight by llama2.c's name. `fused`: which parts are one tensor, as in `family_of`."""
    mixture = ALIASES.get(format, format)
    together = {part for parts in fused.values() for part in parts}
    others = beside_experts(source) if mixture == MXFP4 else mixture
    if mixture == MXFP4 and source.config.n_experts is None:
        raise ValueError(f"{MXFP4} is for experts, and the model has none (n_experts)")

    def format_of(name: str) -> str:
        part, columns = find_part(name), source.shape(name)[-1]
        is_fused = part is not None and part.name in together
        own = mixture if part is not None and part.kind == "experts" else others
        return tensor_format(own, source.config, name, columns, pure=pure, fused=is_fused)

    return {name: format_of(name) for name in source.names()}


def write(
    path: Path,
    source: Source,
    formats: Mapping[str, str],
    progress: Progress,
    *,
    name: str,
    file_type: str,
    vocabulary: Vocabulary | None,
    sampling: GenerationConfig,
    importance: Mapping[str, Array],
    threads: int | None,
) -> None:
    """Write a file.

    Parameters
    ----------
    path : Path
        The file.
    source : Source
        Its biases and any scaling of rotary frequencies go along.
    formats : mapping of str to str
        The format of each weight, by llama2.c's name.
    progress : callable
        Called with the name and the parameters of each weight that is done.
    name : str
        The model's, for people.
    file_type : str
        A key of MIXTURES.
    vocabulary : Vocabulary, optional
        Without it the file has no tokenizer.
    sampling : GenerationConfig
        How the model is to be sampled.
    importance : mapping of str to numpy.ndarray
        float32 [columns] by llama2.c's name, for the K-quants' search.
    threads : int, optional
        How many threads encode.
    """
    family = family_of(source)
    tensors = stored_tensors(list(formats), family, "gguf")
    writer = _make_writer(path, family["architecture"])
    try:
        _add_config(writer, source, family, name, file_type)
        sampling_settings.write_gguf(writer, sampling)
        if vocabulary is None:
            writer.add_tokenizer_model("none")
        else:
            _add_vocabulary(writer, vocabulary)
        divisors = _divisors(source.config)
        for divisor, factors in divisors.items():
            writer.add_tensor_info(divisor, factors.shape, factors.dtype, factors.nbytes)
        for tensor in tensors:
            shape = tensor.shape([source.shape(weight) for weight in tensor.weights])
            _add_tensor_info(writer, tensor.name, shape, formats[tensor.weights[0]])
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    with path.open("ab") as file:
        for factors in divisors.values():
            _append(file, [factors], writer.data_alignment)
        for tensor in tensors:
            encoded = _encoded(source, tensor, family["rope_style"], formats, progress, importance, threads)
            _append(file, encoded, writer.data_alignment)


def _encoded(
    source: Source,
    tensor: Stored,
    rope_style: str,
    formats: Mapping[str, str],
    progress: Progress,
    importance: Mapping[str, Array],
    threads: int | None,
) -> Iterator[np.ndarray[Any, Any]]:
    """Give the weights of a tensor one after another, encoded."""
    for weight, array in source.arrays(list(tensor.weights), rope_style):
        yield _encode(array, formats[weight], importance.get(weight), threads)
        progress(weight, array.size)


def _make_writer(path: Path, architecture: str) -> GGUFWriter:
    """Make a writer that keeps lists without members: the library leaves them out, and readers miss them."""
    import gguf

    class Writer(gguf.GGUFWriter):
        def _pack_val(
            self,
            val: Any,  # noqa: ANN401
            vtype: gguf.GGUFValueType,
            add_vtype: bool,
            sub_type: gguf.GGUFValueType | None = None,
        ) -> bytes:
            if vtype != gguf.GGUFValueType.ARRAY or sub_type is None or len(val) > 0:
                return super()._pack_val(val, vtype, add_vtype, sub_type)
            return struct.pack("<IIQ", vtype, sub_type, 0)[0 if add_vtype else 4 :]

    return Writer(path, architecture)


def _append(file: BinaryIO, arrays: Iterable[np.ndarray[Any, Any]], alignment: int) -> None:
    """Write a tensor at the next multiple of the alignment; the library's own way may lose bytes on a full disk."""
    file.write(bytes(-file.tell() % alignment))
    for array in arrays:
        write_array(file, array)
    file.write(bytes(-file.tell() % alignment))


def _encode(array: Array, format: str, importance: Array | None, threads: int | None) -> np.ndarray[Any, Any]:
    return array if format == "f32" else encode_rows(array, format, importance, threads)


def encode_rows(array: Array, format: str, importance: Array | None, threads: int | None) -> NDArray[np.uint8]:
    """Encode a matrix, or a vector as one row: uint8 [rows, bytes of a row]."""
    rows = array.reshape(-1, array.shape[-1])
    stored = np.empty((len(rows), _core.row_bytes(format, rows.shape[1])), dtype=np.uint8)
    step = max(1, _AT_ONCE // rows.shape[1])
    for begin in range(0, len(rows), step):
        stored[begin : begin + step] = _core.encode(format, rows[begin : begin + step], importance, threads)
    return stored


def _divisors(config: _core.Config) -> dict[str, Array]:
    """Give the tensors of what rotary frequencies are divided by."""
    if config.rope_scaling is not None and config.rope_scaling["type"] == "longrope":
        return {
            "rope_factors_long.weight": np.array(config.rope_long_factors, dtype=np.float32),
            "rope_factors_short.weight": np.array(config.rope_factors, dtype=np.float32),
        }
    factors = rope_factors(config)
    return {} if factors is None else {"rope_freqs.weight": factors}


def _add_tensor_info(writer: GGUFWriter, name: str, shape: tuple[int, ...], format: str) -> None:
    import gguf

    stored = (*shape[:-1], _core.row_bytes(format, shape[-1]))  # the library wants the shape in bytes
    size = int(np.prod(stored))
    writer.add_tensor_info(name, stored, np.dtype(np.uint8), size, gguf.GGMLQuantizationType[format.upper()])


def _add_config(writer: GGUFWriter, source: Source, family: Mapping[str, Any], name: str, file_type: str) -> None:
    import gguf

    config = source.config
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[MIXTURES[file_type].file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.seq_len)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    add_eps = writer.add_layer_norm_rms_eps if config.norm == "rms" else writer.add_layer_norm_eps
    add_eps(short_float(config.norm_eps))
    writer.add_rope_dimension_count(config.rotary_dim or config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if config.head_dim * config.n_heads != config.dim:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if config.sliding_window is not None:
        writer.add_sliding_window(config.sliding_window)
    if family["multipliers"]:
        _add_multipliers(writer, config)
    if family["logit_scale"]:  # which logits are multiplied by, where Granite's divides them
        writer.add_logit_scale(short_float(1 / config.logits_scaling))
    if family["score_cap"] and config.score_cap > 0:
        writer.add_attn_logit_softcapping(short_float(config.score_cap))
    if family["logits_cap"] and config.logits_cap > 0:
        writer.add_final_logit_softcapping(short_float(config.logits_cap))
    if family["says_parallel"]:
        writer.add_parallel_residual(config.parallel)
    if config.n_experts is not None and config.n_experts_used is not None:
        writer.add_expert_count(config.n_experts)
        writer.add_expert_used_count(config.n_experts_used)
        writer.add_expert_feed_forward_length(config.hidden_dim)
    _add_local_theta(writer, config, family["local_theta"])
    _add_rope_scaling(writer, config)


def _add_multipliers(writer: GGUFWriter, config: _core.Config) -> None:
    if config.embedding_multiplier != 1:
        writer.add_embedding_scale(short_float(config.embedding_multiplier))
    if config.residual_multiplier != 1:
        writer.add_residual_scale(short_float(config.residual_multiplier))
    if config.attention_multiplier != 0:
        writer.add_attention_scale(short_float(config.attention_multiplier))
    if config.logits_scaling != 1:
        writer.add_logit_scale(short_float(config.logits_scaling))


def _add_local_theta(writer: GGUFWriter, config: _core.Config, usual: float | None) -> None:
    """Write rope_theta of layers with a window, where it is not the family's own (`usual`: 0 for that of others)."""
    if usual is None or config.sliding_window is None:
        return
    theta = config.local_rope_theta or config.rope_theta
    if theta != (usual or config.rope_theta):
        writer.add_rope_freq_base_swa(theta)


def _add_rope_scaling(writer: GGUFWriter, config: _core.Config) -> None:
    """Write what is no tensor of divisors."""
    import gguf

    scaling = config.rope_scaling
    if scaling is None or scaling["type"] == "llama3":
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType(scaling["type"]))
    if scaling["type"] == "longrope":  # whose factor is that of the two contexts
        writer.add_rope_scaling_orig_ctx_len(scaling["original_context"])
        writer.add_rope_scaling_attn_factors(short_float(scaling["attention_factor"]))
        return
    writer.add_rope_scaling_factor(scaling["factor"])
    if scaling["type"] != "yarn":
        return
    writer.add_rope_scaling_orig_ctx_len(scaling["original_context"])
    writer.add_rope_scaling_yarn_beta_fast(scaling["beta_fast"])
    writer.add_rope_scaling_yarn_beta_slow(scaling["beta_slow"])
    # What cos and sin are multiplied by beside 0.1 * ln(factor) + 1, which readers take for granted.
    attention = float(np.float32(scaling["attention_factor"] / _yarn_attention(scaling["factor"])))
    if not np.isclose(attention, 1.0, rtol=1e-6):
        writer.add_rope_scaling_attn_factors(attention)


def _yarn_attention(factor: float) -> float:
    return 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def check(source: Source) -> None:
    """Raise ValueError for a model that GGUF's metadata cannot describe."""
    config = source.config
    scaling = config.rope_scaling
    if scaling is not None and scaling["type"] == "dynamic":
        raise ValueError("rope_scaling is of type dynamic, and GGUF has no place for it")
    if scaling is not None and scaling["type"] == "longrope" and not (config.rope_factors and config.rope_long_factors):
        raise ValueError(
            "rope_scaling is of type longrope, and GGUF has it as two tensors of divisors (rope_long_factors), one of "
            "which is not known"
        )
    if scaling is None or scaling["type"] != "yarn":
        return
    if not scaling["truncate"] and family_of(source)["yarn_truncates"]:
        raise ValueError(
            "GGUF has no place for truncate false of rope_scaling: readers of its YaRN round to frequencies"
        )
    if scaling["truncate"] and not family_of(source)["yarn_truncates"]:
        raise ValueError(
            "GGUF has no place for truncate true of rope_scaling in models of this family, which have none"
        )
    if scaling["factor"] < 1:
        raise ValueError(
            f"readers of GGUF disagree on YaRN with a factor below 1 (rope_scaling: {scaling['factor']:g})"
        )


# Architectures whose window llama.cpp reads and does not compute with.
_WITHOUT_WINDOW = ("llama", "phi3", "starcoder2")
# Those that it computes with a window in models of so many layers only.
_WITH_WINDOW_AT = {"exaone4": 64}
# Those whose cap of scores it reads.
_WITH_SCORE_CAP = ("gemma2",)


def notes(source: Source) -> list[str]:
    """Give what llama.cpp takes otherwise."""
    config = source.config
    architecture = family_of(source)["architecture"]
    said = []
    without = architecture in _WITHOUT_WINDOW or _WITH_WINDOW_AT.get(architecture, config.n_layers) != config.n_layers
    if without and config.sliding_window is not None and config.sliding_window < config.seq_len:
        said.append(
            f"llama.cpp computes models of the architecture {architecture} without their window (sliding_window "
            f"{config.sliding_window}): beyond it, it says something else"
        )
    if config.score_cap > 0 and architecture not in _WITH_SCORE_CAP:
        said.append(
            f"llama.cpp computes models of the architecture {architecture} without a cap of scores (score_cap "
            f"{config.score_cap:g})"
        )
    scaling = config.rope_scaling
    if scaling is not None and scaling["type"] == "yarn" and not scaling["truncate"] and not _ends_are_whole(config):
        said.append(
            "llama.cpp takes the ends of YaRN for whole numbers (rope_scaling: truncate false): its rotary frequencies "
            "are slightly other ones"
        )
    return said


def _ends_are_whole(config: _core.Config) -> bool:
    """Whether the first and the last frequency that YaRN changes by degrees are numbered with whole numbers."""
    scaling, turned = config.rope_scaling, config.rotary_dim or config.head_dim
    assert scaling is not None
    turns = [scaling["original_context"] / (scaling[beta] * 2 * math.pi) for beta in ("beta_fast", "beta_slow")]
    first, last = (turned * math.log(count) / (2 * math.log(config.rope_theta)) for count in turns)
    pairs = (max(first, 0.0), max(math.floor(first), 0)), (min(last, turned - 1.0), min(math.ceil(last), turned - 1))
    return all(math.isclose(exact, whole, abs_tol=1e-4) for exact, whole in pairs)


def check_vocabulary(vocabulary: Vocabulary) -> None:
    """Raise ValueError for a tokenizer that GGUF's metadata cannot describe."""
    vocabulary.check_scores()
    if vocabulary.charsmap and not vocabulary.unigram:
        raise ValueError("it has no place for what changes a text before its characters are merged (charsmap)")
    if vocabulary.kind == "byte_bpe":
        _name_of_cut(vocabulary)


def _name_of_cut(vocabulary: Vocabulary) -> str:
    """Give the name in tokenizer.ggml.pre that means how words are cut, and what becomes of words that are pieces."""
    names = {
        ignore_merges: name
        for (name, *_), cut, ignore_merges, _ in reversed(_core.gguf_pre_tokenizers())
        if cut == vocabulary.pre_tokenizer
    }
    if not names:
        raise ValueError(f"it is not written for words that are cut as {vocabulary.pre_tokenizer} (pre_tokenizer)")
    if vocabulary.ignore_merges not in names:
        raise ValueError("it cannot say how this tokenizer treats words that are whole pieces (ignore_merges)")
    return names[vocabulary.ignore_merges]


def write_vocabulary(path: Path, vocabulary: Vocabulary) -> None:
    """Write a file that holds nothing but a tokenizer."""
    writer = _make_writer(path, _core.gguf_family([])["architecture"])
    try:
        _add_vocabulary(writer, vocabulary)
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def as_stored(vocabulary: Vocabulary) -> Vocabulary:
    """Give what a file holds of a tokenizer: the merges of byte-level BPE, and scores for all others."""
    if vocabulary.kind == "byte_bpe":
        return replace(vocabulary.with_merges(), nfc=False)  # its readers do not compose, and none of its keys says so
    return vocabulary.with_escaped_spaces().without_lost_pieces().with_scores()


def _add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    import gguf

    vocabulary = as_stored(vocabulary)
    if vocabulary.kind == "byte_bpe":
        merges = [f"{left} {right}" for left, right in vocabulary.spelled_merges()]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_name_of_cut(vocabulary))
        writer.add_key_value(
            gguf.Keys.Tokenizer.MERGES, merges, gguf.GGUFValueType.ARRAY, sub_type=gguf.GGUFValueType.STRING
        )
    else:
        writer.add_tokenizer_model("t5" if vocabulary.unigram else "llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
        writer.add_bool("tokenizer.ggml.remove_extra_whitespaces", vocabulary.remove_extra_whitespaces)
        if vocabulary.charsmap:
            writer.add_precompiled_charsmap(vocabulary.charsmap)
    writer.add_token_list([_spelled(vocabulary, id) for id in range(len(vocabulary.pieces))])
    writer.add_token_types([gguf.TokenType[kind.upper()] for kind in vocabulary.types])
    if vocabulary.bos_id >= 0:
        writer.add_bos_token_id(vocabulary.bos_id)
    if vocabulary.unk_id >= 0:
        writer.add_unk_token_id(vocabulary.unk_id)
    ends: tuple[Callable[[int], None], ...] = (
        writer.add_eos_token_id,
        writer.add_eot_token_id,
        lambda id: writer.add_uint32(_EOM, id),
    )
    for add, id in zip(ends, vocabulary.eos_ids, strict=False):
        add(id)
    # A reader takes piece 1 for BOS and 2 for EOS where a file with scores names none.
    writer.add_add_bos_token(vocabulary.puts_bos)
    writer.add_add_eos_token(vocabulary.puts_eos)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)
    for name, text in zip(vocabulary.template_names, vocabulary.template_texts, strict=True):
        writer.add_string(gguf.Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=name), text)
    if vocabulary.template_names:
        writer.add_array(gguf.Keys.Tokenizer.CHAT_TEMPLATES, vocabulary.template_names)


_EOM = "tokenizer.ggml.eom_token_id"


def _spelled(vocabulary: Vocabulary, id: int) -> bytes:
    """Give a piece in GGUF's spelling: spaces of user-defined ones are spaces."""
    kind = vocabulary.types[id]
    if vocabulary.kind == "byte_bpe" or kind in (NORMAL, CONTROL) or kind != USER_DEFINED:
        return vocabulary.spelled(id)
    return vocabulary.pieces[id].replace(_SPACE, b" ")
