// Tokenizer and StreamDecoder.
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "bind/bind.h"
#include "bind/released_gil.h"
#include "core/check.h"
#include "text/stream_decoder.h"
#include "text/tokenizer.h"

namespace llama2cpp::bind {
namespace {

constexpr std::size_t kLongText = 4096;  // bytes; shorter texts are encoded faster than the GIL changes hands

constexpr const char* kTokenizerDoc = R"doc(Text to token ids and back.

Made by :meth:`from_file` from llama2.c's ``tokenizer.bin`` or a SentencePiece BPE ``.model`` (told apart by content).
A tokenizer never changes, so threads may share it, and it can be pickled.

Notes
-----
For a ``tokenizer.bin`` the ids are those of llama2.c's ``run.c``. For a ``.model`` they are those of the sentencepiece
library; models that are not BPE, or whose normaliser is not the identity, are refused.

Examples
--------
>>> import llama2cpp
>>> tokenizer = llama2cpp.Tokenizer.from_file("tok512.bin")
>>> tokenizer.encode("Once upon a time")
[1, 403, 407, 261, 378]
>>> tokenizer.decode([1, 403, 407, 261, 378])
'Once upon a time'
)doc";

constexpr const char* kFromFileDoc = R"doc(Open a tokenizer file.

Parameters
----------
path : str or os.PathLike
    llama2.c's ``tokenizer.bin`` or a SentencePiece BPE ``.model``.
vocab_size : int, default 0
    How many pieces of a ``tokenizer.bin`` to read, as llama2.c does with its model's; 0 reads all of them. A ``.model``
    may have fewer pieces, but not more.

Returns
-------
Tokenizer

Raises
------
FormatError
    The file is damaged, foreign, or needs what is not supported; the message says what, and at which byte.
OSError
    The file cannot be read.

Examples
--------
>>> import llama2cpp
>>> len(llama2cpp.Tokenizer.from_file("tok512.bin"))
512
)doc";

constexpr const char* kEncodeDoc = R"doc(The ids of a text.

Parameters
----------
text : str or bytes
    Bytes need not be valid UTF-8: a ``tokenizer.bin`` has an id for each byte; SentencePiece takes each byte that
    belongs to no character for U+FFFD.
bos, eos : bool, default True, False
    Put the id of BOS before, of EOS behind, if the vocabulary has one.
special : bool, default False
    Control and user-defined pieces that the text spells out ("<s>", "</s>") become their ids, and each text between
    them is encoded as if it stood alone. Without it "<s>" is three ordinary characters. (SentencePiece finds
    user-defined pieces either way.)

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
>>> tokenizer = llama2cpp.Tokenizer.from_file("tok512.bin")
>>> tokenizer.encode("<s>Hello</s>", bos=False, special=True)
[1, 346, 306, 414, 2]
)doc";

constexpr const char* kDecodeDoc = R"doc(The text of a sequence of ids.

Control pieces are nothing, byte pieces their byte, and the space that :meth:`encode` puts before a text is taken off.

Parameters
----------
ids : iterable of int
    A list, a NumPy array of integers, ...

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
>>> tokenizer = llama2cpp.Tokenizer.from_file("tok512.bin")
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
>>> tokenizer = llama2cpp.Tokenizer.from_file("tok512.bin")
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
    A byte piece is its one byte, a control piece its name, and a leading space is kept.

Raises
------
ValueError
    The id is not in the vocabulary.

Examples
--------
>>> import llama2cpp
>>> llama2cpp.Tokenizer.from_file("tok512.bin").piece(403)
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
    byte 0 is nothing.

Raises
------
ValueError
    The id is not in the vocabulary.

Examples
--------
>>> import llama2cpp
>>> llama2cpp.Tokenizer.from_file("tok512.bin").piece_after(1, 403)
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
>>> tokenizer = llama2cpp.Tokenizer.from_file("tok512.bin")
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
>>> decoder = StreamDecoder(llama2cpp.Tokenizer.from_file("tok512.bin"))
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
>>> decoder = StreamDecoder(llama2cpp.Tokenizer.from_file("tok512.bin"))
>>> decoder.push(3 + 0xC3), decoder.flush()
('', '\ufffd')
)doc";

// Any Python integer (NumPy's too) as an id. What no id can be is reported like any other wrong id.
std::int32_t to_id(py::handle value, const Tokenizer& tokenizer) {
  const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  if (!number) throw py::error_already_set();
  int overflow = 0;
  const long long id = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  LLAMA2CPP_CHECK(overflow == 0 && id >= 0 && id < tokenizer.vocab_size(), "id ", std::string(py::str(number)),
                  " is not in the vocabulary of ", tokenizer.vocab_size(), " pieces");
  return static_cast<std::int32_t>(id);
}

std::vector<std::int32_t> to_ids(const py::iterable& values, const Tokenizer& tokenizer) {
  std::vector<std::int32_t> ids;
  for (const py::handle value : values) ids.push_back(to_id(value, tokenizer));
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

std::vector<std::int32_t> encode(const Tokenizer& tokenizer, const py::object& text, bool bos, bool eos, bool special) {
  const std::string_view bytes = view_of(text);
  if (bytes.size() < kLongText) return tokenizer.encode(bytes, bos, eos, special);
  const ReleasedGil release;
  return tokenizer.encode(bytes, bos, eos, special);
}

std::optional<std::int32_t> id_or_none(std::int32_t id) { return id < 0 ? std::nullopt : std::optional(id); }

py::tuple get_state(const Tokenizer& tokenizer) {
  const Vocabulary& v = tokenizer.vocabulary();
  py::list pieces;
  for (const std::string& piece : v.pieces) pieces.append(py::bytes(piece));
  std::vector<int> types;
  for (const PieceType type : v.types) types.push_back(static_cast<int>(type));
  return py::make_tuple(static_cast<int>(v.kind), pieces, v.scores, types, v.bos_id, v.eos_ids, v.unk_id,
                        py::bytes(v.unk_surface), v.add_dummy_prefix, v.remove_extra_whitespaces);
}

template <class Enum>
Enum checked_enum(int value, Enum last) {
  if (value < 0 || value > static_cast<int>(last))
    throw FormatError(cat("vocabulary: ", value, " is not a kind or type"));
  return static_cast<Enum>(value);
}

Tokenizer set_state(const py::tuple& state) {
  if (state.size() != 10) throw FormatError(cat("vocabulary: expected 10 parts, found ", state.size()));
  Vocabulary v;
  v.kind = checked_enum(state[0].cast<int>(), Vocabulary::Kind::sentencepiece);
  v.pieces = state[1].cast<std::vector<std::string>>();
  v.scores = state[2].cast<std::vector<float>>();
  for (const int type : state[3].cast<std::vector<int>>()) v.types.push_back(checked_enum(type, PieceType::byte));
  v.bos_id = state[4].cast<std::int32_t>();
  v.eos_ids = state[5].cast<std::vector<std::int32_t>>();
  v.unk_id = state[6].cast<std::int32_t>();
  v.unk_surface = state[7].cast<std::string>();
  v.add_dummy_prefix = state[8].cast<bool>();
  v.remove_extra_whitespaces = state[9].cast<bool>();
  return Tokenizer(std::move(v));
}

// The StreamDecoder with the tokenizer that its ids are checked against.
struct PyStreamDecoder {
  explicit PyStreamDecoder(const Tokenizer& from) : tokenizer(from), decoder(from) {}
  Tokenizer tokenizer;
  StreamDecoder decoder;
};

}  // namespace

void register_text(py::module_& module) {
  py::class_<Tokenizer, py::smart_holder>(module, "Tokenizer", kTokenizerDoc, py::is_final())
      .def_static(
          "from_file",
          [](const py::object& path, std::int64_t vocab_size) {
            const auto name = py::module_::import("os").attr("fsencode")(path).cast<std::string>();
            const ReleasedGil release;
            return Tokenizer::from_file(name, vocab_size);
          },
          py::arg("path"), py::arg("vocab_size") = 0, kFromFileDoc)
      .def("encode", &encode, py::arg("text"), py::arg("bos") = true, py::arg("eos") = false,
           py::arg("special") = false, kEncodeDoc)
      .def(
          "decode",
          [](const Tokenizer& tokenizer, const py::iterable& ids) {
            return to_str(tokenizer.decode(to_ids(ids, tokenizer)));
          },
          py::arg("ids"), kDecodeDoc)
      .def(
          "decode_bytes",
          [](const Tokenizer& tokenizer, const py::iterable& ids) {
            return py::bytes(tokenizer.decode(to_ids(ids, tokenizer)));
          },
          py::arg("ids"), kDecodeBytesDoc)
      .def(
          "piece",
          [](const Tokenizer& tokenizer, const py::object& id) {
            return py::bytes(tokenizer.piece(to_id(id, tokenizer)));
          },
          py::arg("id"), kPieceDoc)
      .def(
          "piece_after",
          [](const Tokenizer& tokenizer, std::int32_t prev, const py::object& id) {
            return py::bytes(tokenizer.piece_after(prev, to_id(id, tokenizer)));
          },
          py::arg("prev"), py::arg("id"), kPieceAfterDoc)
      .def_property_readonly("vocab_size", &Tokenizer::vocab_size, "int: How many pieces there are; ids are below it.")
      .def_property_readonly(
          "bos_id", [](const Tokenizer& tokenizer) { return id_or_none(tokenizer.vocabulary().bos_id); },
          "int or None: The id that begins a text.")
      .def_property_readonly(
          "eos_ids", [](const Tokenizer& tokenizer) { return py::tuple(py::cast(tokenizer.vocabulary().eos_ids)); },
          "tuple of int: The ids that end a text; the first is what encode adds.")
      .def("__len__", &Tokenizer::vocab_size)
      .def("__repr__",
           [](const Tokenizer& tokenizer) {
             const bool llama2c = tokenizer.vocabulary().kind == Vocabulary::Kind::llama2c;
             return cat("<Tokenizer of ", tokenizer.vocab_size(), " pieces, ", llama2c ? "llama2.c" : "SentencePiece",
                        ">");
           })
      .def(py::pickle(&get_state, &set_state));

  py::class_<PyStreamDecoder>(module, "StreamDecoder", kStreamDecoderDoc, py::is_final())
      .def(py::init<const Tokenizer&>(), py::arg("tokenizer"))
      .def(
          "push",
          [](PyStreamDecoder& self, const py::object& id) { return self.decoder.push(to_id(id, self.tokenizer)); },
          py::arg("id"), kPushDoc)
      .def(
          "flush", [](PyStreamDecoder& self) { return self.decoder.flush(); }, kFlushDoc);
}

}  // namespace llama2cpp::bind
