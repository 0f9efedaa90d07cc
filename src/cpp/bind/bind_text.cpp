// Tokenizer and StreamDecoder.
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "bind/bind.h"
#include "bind/file_path.h"
#include "bind/integer.h"
#include "bind/numpy.h"
#include "bind/object_lock.h"
#include "bind/released_gil.h"
#include "core/buffer.h"
#include "core/check.h"
#include "core/file.h"
#include "io/checkpoint.h"
#include "io/hf.h"
#include "text/stream_decoder.h"
#include "text/tokenizer.h"

namespace llama2cpp::bind {
namespace {

constexpr std::size_t kLongText = 4096;  // bytes; shorter texts are encoded faster than the GIL changes hands

constexpr const char* kTokenizerDoc = R"doc(Text to token ids and back.

Made by :meth:`from_file`, or by :func:`llama2cpp.load` from what a checkpoint holds. A tokenizer never changes, so
threads may share it, and it can be pickled.

Notes
-----
The ids are those of the reference of each file: llama2.c's ``run.c`` for a ``tokenizer.bin``, the sentencepiece library
for a ``.model``, tiktoken for Llama 3's ``tokenizer.model``, ``tokenizers`` for the byte-level BPE of a GGUF. SentencePiece
models that are not BPE, or whose normaliser is not the identity, are refused.

The classes of characters that byte-level BPE cuts words by are those of Unicode 16.0, as in tiktoken 0.14 and tokenizers
0.23. One difference is known: SmolLM2's digits. ``tokenizers`` also takes the 13 digits and numbers that are new in
Unicode 17 for digits there, U+11DE0 to U+11DE9 and U+16FF4 to U+16FF6.

Examples
--------
>>> import llama2cpp
>>> tokenizer = llama2cpp.load("storyteller").tokenizer
>>> tokenizer.encode("Once upon a time")
[1, 508, 509, 260, 420]
>>> tokenizer.decode([1, 508, 509, 260, 420])
'Once upon a time'
)doc";

constexpr const char* kFromFileDoc = R"doc(Open a tokenizer file.

Parameters
----------
path : str or os.PathLike
    llama2.c's ``tokenizer.bin``, a SentencePiece BPE ``.model``, Llama 3's ``tokenizer.model`` as Meta gives it, Hugging
    Face's ``tokenizer.json`` (with the settings of the files beside it), or a GGUF with a tokenizer (and with or without
    weights). They are told apart by content.
vocab_size : int, default 0
    How many pieces of a ``tokenizer.bin`` to read, as llama2.c does with its model's; 0 reads all of them. Other files
    may have fewer pieces, but not more (of a ``tokenizer.json``, added tokens beyond it are left out).

Returns
-------
Tokenizer

Warns
-----
UserWarning
    The file says something that could not be used, such as a special id that is not in the vocabulary; the message says
    what is done instead.

Raises
------
FormatError
    The file is damaged, foreign, or needs what is not supported; the message says what, and at which byte.
OSError
    The file cannot be read.

Examples
--------
>>> import llama2cpp
>>> from pathlib import Path
>>> path = Path(llama2cpp.load("storyteller").path).with_name("tokenizer.model")
>>> len(llama2cpp.Tokenizer.from_file(path))
1536
)doc";

constexpr const char* kEncodeDoc = R"doc(The ids of a text.

Parameters
----------
text : str or bytes
    Bytes need not be valid UTF-8. A ``tokenizer.bin`` has an id for each byte. SentencePiece takes each byte that
    belongs to no character for U+FFFD. For the words of byte-level BPE such a byte is neither letter nor number nor
    space; where the vocabulary lacks a byte (SmolLM2 lacks 21 that hardly any text has), it is left out, as in
    ``tokenizers``.
bos : bool, default True
    Put the id of BOS before the text if the vocabulary wants one (:attr:`add_bos`). Where it wants none and you do, write
    ``[tokenizer.bos_id, *tokenizer.encode(text, bos=False)]``.
eos : bool, optional
    Put the id of EOS behind the text, where the vocabulary has one. None, the default, does so if the vocabulary wants
    it (:attr:`add_eos`); hardly any does.
special : bool, default False
    Control and user-defined pieces that the text spells out ("<s>", "<|im_start|>") become their ids, the longest that
    fits first, and each text between them is encoded as if it stood alone. A text that begins with BOS gets no second
    one. Without it "<s>" is three ordinary characters. (SentencePiece and byte-level BPE find user-defined pieces either
    way.)

Returns
-------
list of int

Raises
------
ValueError
    The str has a lone surrogate (UnicodeEncodeError, which says where), or the vocabulary has no id for a character nor
    for its bytes.

Notes
-----
The time is n log n in the length of the text, whatever the text. The GIL is released for long texts.

Examples
--------
>>> import llama2cpp
>>> tokenizer = llama2cpp.load("storyteller").tokenizer
>>> tokenizer.encode("<s>Hello</s>", bos=False, special=True)
[1, 321, 382, 1480, 2]
)doc";

constexpr const char* kWordsDoc = R"doc(The words that byte-level BPE cuts a text into, and then encodes one by one.

Parameters
----------
text : str or bytes
    Special pieces in it are text like any other.

Returns
-------
list of bytes
    Joined, they are the text. No word depends on what comes before it.

Raises
------
ValueError
    The tokenizer is not a byte-level BPE; others have no such step. Or the str has a lone surrogate.

Examples
--------
>>> import llama2cpp
>>> tokenizer = llama2cpp.load("storyteller").tokenizer
>>> tokenizer.words("Hello world")
Traceback (most recent call last):
ValueError: only byte-level BPE cuts a text into words
)doc";

constexpr const char* kDecodeDoc = R"doc(The text of a sequence of ids.

Control pieces are nothing, byte pieces their byte, and the space that :meth:`encode` puts before a text is taken off.

Parameters
----------
ids : iterable of int
    A list, or an array or tensor of integers [T] or [1, T].

Returns
-------
str
    Bytes that are not UTF-8 become U+FFFD.

Raises
------
ValueError
    An id is not in the vocabulary.

Examples
--------
>>> import llama2cpp
>>> tokenizer = llama2cpp.load("storyteller").tokenizer
>>> tokenizer.decode(tokenizer.encode("naïve"))
'naïve'
)doc";

constexpr const char* kDecodeBytesDoc =
    R"doc(The bytes of a sequence of ids: :meth:`decode` without the decoding of UTF-8.

Parameters
----------
ids : iterable of int

Returns
-------
bytes

Raises
------
ValueError
    An id is not in the vocabulary.

Examples
--------
>>> import llama2cpp
>>> tokenizer = llama2cpp.load("storyteller").tokenizer
>>> tokenizer.decode_bytes([3 + 0xF0, 3 + 0x9F])  # half of an emoji
b'\xf0\x9f'
)doc";

constexpr const char* kPieceDoc = R"doc(The bytes that one id stands for.

Parameters
----------
id : int

Returns
-------
bytes
    A byte piece is its one byte, a control piece its name, and a leading space is kept. Byte-level BPE has pieces that
    are parts of characters.

Raises
------
ValueError
    The id is not in the vocabulary.

Examples
--------
>>> import llama2cpp
>>> llama2cpp.load("storyteller").tokenizer.piece(508)
b' Once'
)doc";

constexpr const char* kPieceAfterDoc = R"doc(What llama2.c prints for one id: its ``decode(prev, id)``.

Parameters
----------
prev : int
    The id before; after BOS one leading space is left out. -1 for none.
id : int

Returns
-------
bytes
    Unlike :meth:`piece`: up to the first NUL; anything that begins like ``<0x0A>`` is read as that byte, closed or not;
    byte 0 is nothing. For byte-level BPE, which llama2.c does not know, the same as :meth:`piece`.

Raises
------
ValueError
    The id is not in the vocabulary.

Examples
--------
>>> import llama2cpp
>>> llama2cpp.load("storyteller").tokenizer.piece_after(1, 508)
b'Once'
)doc";

constexpr const char* kStreamDecoderDoc = R"doc(Decodes ids one at a time, never giving out half a character.

The strings that :meth:`push` and :meth:`flush` return, joined, are what ``tokenizer.decode`` gives for all the ids. To
go on after a prompt, push the prompt's ids first and drop what comes back.

Parameters
----------
tokenizer : Tokenizer

Examples
--------
>>> import llama2cpp
>>> from llama2cpp._core import StreamDecoder
>>> tokenizer = llama2cpp.load("storyteller").tokenizer
>>> decoder = StreamDecoder(tokenizer)
>>> [decoder.push(id) for id in tokenizer.encode("a\N{ROCKET}")]
['', 'a', '', '', '', '🚀']
>>> decoder.flush()
''
)doc";

constexpr const char* kPushDoc = R"doc(The text that one more id completes.

Parameters
----------
id : int

Returns
-------
str
    Often empty: up to three bytes of an unfinished character are held back.

Raises
------
ValueError
    The id is not in the vocabulary; the decoder is as before.

Examples
--------
>>> import llama2cpp
>>> from llama2cpp._core import StreamDecoder
>>> decoder = StreamDecoder(llama2cpp.load("storyteller").tokenizer)
>>> [decoder.push(3 + byte) for byte in "é".encode()]
['', 'é']
)doc";

constexpr const char* kFlushDoc = R"doc(End the sequence; the next :meth:`push` begins a new one.

Returns
-------
str
    U+FFFD if a character was left unfinished, else nothing.

Examples
--------
>>> import llama2cpp
>>> from llama2cpp._core import StreamDecoder
>>> decoder = StreamDecoder(llama2cpp.load("storyteller").tokenizer)
>>> decoder.push(3 + 0xC3), decoder.flush()
('', '\ufffd')
)doc";

// An id of the vocabulary. What no id can be is reported like any other wrong id.
std::int32_t to_known_id(py::handle value, const Tokenizer& tokenizer) {
  const std::optional<py::object> number = is_bool(value) ? std::nullopt : as_index(value);
  if (!number) throw py::type_error(cat("id is ", shown(value), ", expected an integer"));
  int overflow = 0;
  const long long id = PyLong_AsLongLongAndOverflow(number->ptr(), &overflow);
  LLAMA2CPP_CHECK(overflow == 0 && id >= 0 && id < tokenizer.vocab_size(), "id ", std::string(py::str(*number)),
                  " is not in the vocabulary of ", tokenizer.vocab_size(), " pieces");
  return static_cast<std::int32_t>(id);
}

std::vector<std::int32_t> to_known_ids(py::handle values, const Tokenizer& tokenizer) {
  std::vector<std::int32_t> ids;
  for (const py::handle value : id_items(values)) ids.push_back(to_known_id(value, tokenizer));
  return ids;
}

// The view lives as long as the object does.
std::string_view view_of(const py::object& text) {
  char* data = nullptr;
  Py_ssize_t size = 0;
  if (PyUnicode_Check(text.ptr())) {
    const char* utf8 = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (utf8 == nullptr) throw py::error_already_set();
    return {utf8, static_cast<std::size_t>(size)};
  }
  if (PyBytes_Check(text.ptr())) {
    if (PyBytes_AsStringAndSize(text.ptr(), &data, &size) != 0) throw py::error_already_set();
    return {data, static_cast<std::size_t>(size)};
  }
  throw py::type_error(
      cat("text is a ", std::string(py::str(py::type::of(text).attr("__name__"))), ", expected str or bytes"));
}

py::str to_str(const std::string& bytes) {
  PyObject* text = PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "replace");
  if (text == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(text);
}

Tokenizer open_tokenizer(const std::string& path, std::int64_t vocab_size) {
  const File file(path);
  std::string begin(std::min<std::size_t>(file.size(), 4), '\0');
  file.read(0, std::as_writable_bytes(std::span(begin)));
  if (begin != "GGUF" && !begin.starts_with('{')) return Tokenizer::from_file(path, vocab_size);
  LLAMA2CPP_CHECK(vocab_size >= 0, "vocab_size is ", vocab_size, ", expected 0 or more");
  if (begin.starts_with('{')) return Tokenizer(open_tokenizer_json(path, vocab_size));
  Tokenizer tokenizer(open_checkpoint_vocabulary(path));
  if (vocab_size > 0 && tokenizer.vocab_size() > vocab_size) {
    throw FormatError(cat(path, ": expected at most ", vocab_size, " pieces, found ", tokenizer.vocab_size()));
  }
  return tokenizer;
}

std::vector<std::int32_t> encode(const Tokenizer& tokenizer, const py::object& text, bool bos, std::optional<bool> eos,
                                 bool special) {
  const std::string_view bytes = view_of(text);
  const bool with_eos = eos.value_or(tokenizer.vocabulary().add_eos);
  if (bytes.size() < kLongText) return tokenizer.encode(bytes, bos, with_eos, special);
  const ReleasedGil release;
  return tokenizer.encode(bytes, bos, with_eos, special);
}

std::optional<std::int32_t> id_or_none(std::int32_t id) { return id < 0 ? std::nullopt : std::optional(id); }

std::string_view kind_name(const Vocabulary& vocabulary) {
  switch (vocabulary.kind) {
    case Vocabulary::Kind::llama2c:
      return "llama2.c";
    case Vocabulary::Kind::sentencepiece:
      return "SentencePiece";
    case Vocabulary::Kind::ranked_bpe:
      return "BPE by rank";
    case Vocabulary::Kind::byte_bpe:
      break;
  }
  return "byte-level BPE";
}

py::tuple get_state(const Tokenizer& tokenizer) {
  const Vocabulary& v = tokenizer.vocabulary();
  py::list pieces;
  for (const std::string& piece : v.pieces) pieces.append(py::bytes(piece));
  std::vector<int> types;
  for (const PieceType type : v.types) types.push_back(static_cast<int>(type));
  py::list added;
  for (const Vocabulary::AddedToken& token : v.added) {
    added.append(py::make_tuple(token.id, token.lstrip, token.rstrip, token.normalized));
  }
  return py::make_tuple(static_cast<int>(v.kind), pieces, v.scores, types, v.bos_id, v.eos_ids, v.unk_id,
                        py::bytes(v.unk_surface), v.add_dummy_prefix, v.remove_extra_whitespaces,
                        static_cast<int>(v.pre_tokenizer), v.merges, v.merges_by_id, v.ignore_merges, v.add_bos,
                        v.add_eos, py::bytes(v.chat_template), static_cast<int>(v.prefix), added, v.normalizes);
}

template <class Enum>
Enum checked_enum(int value, Enum last) {
  if (value < 0 || value > static_cast<int>(last))
    throw FormatError(cat("vocabulary: ", value, " is not a kind or type"));
  return static_cast<Enum>(value);
}

Tokenizer set_state(const py::tuple& state) {
  // 17 before there was a prefix, 18 before there were added tokens
  if (state.size() != 17 && state.size() != 18 && state.size() != 20) {
    throw FormatError(cat("vocabulary: expected 20 parts, found ", state.size()));
  }
  Vocabulary v;
  v.kind = checked_enum(state[0].cast<int>(), Vocabulary::Kind::ranked_bpe);
  v.pieces = state[1].cast<std::vector<std::string>>();
  v.scores = state[2].cast<std::vector<float>>();
  for (const int type : state[3].cast<std::vector<int>>()) v.types.push_back(checked_enum(type, PieceType::byte));
  v.bos_id = state[4].cast<std::int32_t>();
  v.eos_ids = state[5].cast<std::vector<std::int32_t>>();
  v.unk_id = state[6].cast<std::int32_t>();
  v.unk_surface = state[7].cast<std::string>();
  v.add_dummy_prefix = state[8].cast<bool>();
  v.remove_extra_whitespaces = state[9].cast<bool>();
  v.pre_tokenizer = checked_enum(state[10].cast<int>(), Vocabulary::kLastPreTokenizer);
  v.merges = state[11].cast<std::vector<Vocabulary::Merge>>();
  v.merges_by_id = state[12].cast<bool>();
  v.ignore_merges = state[13].cast<bool>();
  v.add_bos = state[14].cast<bool>();
  v.add_eos = state[15].cast<bool>();
  v.chat_template = state[16].cast<std::string>();
  if (state.size() > 17) v.prefix = checked_enum(state[17].cast<int>(), Vocabulary::Prefix::first_where_none);
  if (state.size() > 19) {
    for (const auto& [id, lstrip, rstrip, normalized] :
         state[18].cast<std::vector<std::tuple<std::int32_t, bool, bool, bool>>>()) {
      v.added.push_back({id, lstrip, rstrip, normalized});
    }
    v.normalizes = state[19].cast<bool>();
  }
  return Tokenizer(std::move(v));
}

// The StreamDecoder with the tokenizer that its ids are checked against.
struct PyStreamDecoder {
  explicit PyStreamDecoder(const Tokenizer& from) : tokenizer(from), decoder(from) {}
  Tokenizer tokenizer;
  StreamDecoder decoder;
};

}  // namespace

void warn_of(const Vocabulary& vocabulary, int level) {
  for (const std::string& warning : vocabulary.warnings) {
    const std::string text = "the file's tokenizer: " + warning;
    if (PyErr_WarnEx(PyExc_UserWarning, text.c_str(), level) != 0) throw py::error_already_set();
  }
}

void register_text(py::module_& module) {
  py::class_<Tokenizer, py::smart_holder>(module, "Tokenizer", kTokenizerDoc, py::is_final())
      .def_static(
          "from_file",
          [](const FilePath& path, Int<"Tokenizer.from_file", "vocab_size"> vocab_size) {
            std::optional<Tokenizer> tokenizer;
            {
              const ReleasedGil release;
              tokenizer.emplace(open_tokenizer(path.utf8, vocab_size));
            }
            warn_of(tokenizer->vocabulary(), 1);
            return *std::move(tokenizer);
          },
          py::arg("path"), py::arg("vocab_size") = 0, kFromFileDoc)
      .def("encode", &encode, py::arg("text"), py::arg("bos") = true, py::arg("eos") = py::none(),
           py::arg("special") = false, kEncodeDoc)
      .def(
          "words",
          [](const Tokenizer& tokenizer, const py::object& text) {
            py::list words;
            for (const std::string_view word : tokenizer.words(view_of(text))) {
              words.append(py::bytes(word.data(), word.size()));
            }
            return words;
          },
          py::arg("text"), kWordsDoc)
      .def(
          "decode",
          [](const Tokenizer& tokenizer, const py::object& ids) {
            return to_str(tokenizer.decode(to_known_ids(ids, tokenizer)));
          },
          py::arg("ids"), kDecodeDoc)
      .def(
          "decode_bytes",
          [](const Tokenizer& tokenizer, const py::object& ids) {
            return py::bytes(tokenizer.decode(to_known_ids(ids, tokenizer)));
          },
          py::arg("ids"), kDecodeBytesDoc)
      .def(
          "piece",
          [](const Tokenizer& tokenizer, const py::object& id) {
            return py::bytes(tokenizer.piece(to_known_id(id, tokenizer)));
          },
          py::arg("id"), kPieceDoc)
      .def(
          "piece_after",
          [](const Tokenizer& tokenizer, Int<"Tokenizer.piece_after", "prev", std::int32_t> prev,
             const py::object& id) { return py::bytes(tokenizer.piece_after(prev, to_known_id(id, tokenizer))); },
          py::arg("prev"), py::arg("id"), kPieceAfterDoc)
      .def_property_readonly("vocab_size", &Tokenizer::vocab_size, "int: How many pieces there are; ids are below it.")
      .def_property_readonly(
          "bos_id", [](const Tokenizer& tokenizer) { return id_or_none(tokenizer.vocabulary().bos_id); },
          "int or None: The id that begins a text.")
      .def_property_readonly(
          "eos_ids", [](const Tokenizer& tokenizer) { return py::tuple(py::cast(tokenizer.vocabulary().eos_ids)); },
          "tuple of int: The ids that end a text; the first is what encode adds.")
      .def_property_readonly(
          "add_bos", [](const Tokenizer& tokenizer) { return tokenizer.vocabulary().add_bos; },
          "bool: Whether the vocabulary wants BOS before a text. A file of tokens alone does not say: then True.")
      .def_property_readonly(
          "add_eos", [](const Tokenizer& tokenizer) { return tokenizer.vocabulary().add_eos; },
          "bool: Whether the vocabulary wants EOS behind a text.")
      .def_property_readonly(
          "chat_template",
          [](const Tokenizer& tokenizer) -> std::optional<py::str> {
            const std::string& text = tokenizer.vocabulary().chat_template;
            return text.empty() ? std::nullopt : std::optional(to_str(text));
          },
          "str or None: The jinja2 template that makes a conversation one text, if the file has one.")
      .def("__len__", &Tokenizer::vocab_size)
      .def("__repr__",
           [](const Tokenizer& tokenizer) {
             return cat("<Tokenizer of ", tokenizer.vocab_size(), " pieces, ", kind_name(tokenizer.vocabulary()), ">");
           })
      .def(py::pickle(&get_state, &set_state));

  py::class_<PyStreamDecoder>(module, "StreamDecoder", kStreamDecoderDoc, py::is_final())
      .def(py::init<const Tokenizer&>(), py::arg("tokenizer"))
      .def(
          "push",
          [](PyStreamDecoder& self, const py::object& id) {
            const std::int32_t checked = to_known_id(id, self.tokenizer);
            const ObjectLock turn(self);
            return self.decoder.push(checked);
          },
          py::arg("id"), kPushDoc)
      .def(
          "flush",
          [](PyStreamDecoder& self) {
            const ObjectLock turn(self);
            return self.decoder.flush();
          },
          kFlushDoc);
}

}  // namespace llama2cpp::bind
