// Tokenizer and StreamDecoder.
#include <pybind11/stl.h>

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bind/bind.h"
#include "bind/file_path.h"
#include "bind/integer.h"
#include "bind/numpy.h"
#include "bind/object_lock.h"
#include "bind/released_gil.h"
#include "bind/tokenizer_dict.h"
#include "core/check.h"
#include "core/splits.h"
#include "io/gguf_pre_tokenizers.h"
#include "io/tokenizer_file.h"
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
for a ``.model``, tiktoken for Llama 3's ``tokenizer.model``, ``tokenizers`` for the byte-level BPE of a GGUF and for
a ``tokenizer.json``. SentencePiece models of words or single characters are refused.

A Unigram model's ids are the library's too, but that a control piece is never made of plain text; ``tokenizers`` makes
one. In a ``tokenizer.json`` its text may be normalised by Precompiled, Replace, Prepend, Strip and NFC, and cut by
Metaspace with or without WhitespaceSplit; others are refused by name. Emoji that are joined by U+200D and conjuncts of
Indic scripts are no single grapheme cluster for Precompiled here, which matters to maps that have a part of one alone.

The classes of characters that byte-level BPE cuts words by, and composition (NFC), are those of Unicode 16.0, as in
tiktoken 0.14 and tokenizers 0.23. A pattern in a ``tokenizer.json`` is read as Oniguruma reads it, which is what
``tokenizers`` does; what the engine
has not, such as backreferences, is refused by name when the file is read. One difference is known: SmolLM2's digits. ``tokenizers`` also takes the 13 digits and numbers that are new in
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
    llama2.c's ``tokenizer.bin``, a SentencePiece ``.model``, Llama 3's ``tokenizer.model`` as Meta gives it, Hugging
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

prefix_space : bool, default True
    Put the space before the text that the vocabulary wants; byte-level BPE wants none. False is for a text that goes on
    from another.

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
    Joined, they are the text, composed if the tokenizer composes it (NFC), without what a pre-tokenizer removes.

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

constexpr const char* kToDictDoc = R"doc(Everything that the tokenizer is, by name.

Returns
-------
dict
    ``"kind"`` ("llama2.c", "sentencepiece", "byte_bpe", "ranked_bpe" or "unigram"), ``"pieces"`` (a list of bytes),
    ``"types"`` (a list of names: "normal", "control", ...) and the settings of that kind. It is also what a pickle
    holds.

See Also
--------
from_dict : the opposite.

Examples
--------
>>> import llama2cpp
>>> settings = llama2cpp.load("storyteller").tokenizer.to_dict()
>>> settings["kind"], settings["pieces"][508], settings["types"][508], settings["bos_id"]
('sentencepiece', b'\xe2\x96\x81Once', 'normal', 1)
)doc";

constexpr const char* kFromDictDoc = R"doc(Make a tokenizer of what to_dict gives, changed or not.

Parameters
----------
settings : dict
    Every setting of its kind, by name, and nothing else.

Returns
-------
Tokenizer

Raises
------
FormatError
    A setting is missing, unknown, of another type or out of range, or they contradict each other; the message names it.
TypeError
    It is no dict.

Examples
--------
>>> import llama2cpp
>>> settings = llama2cpp.load("storyteller").tokenizer.to_dict()
>>> silent = llama2cpp.Tokenizer.from_dict(settings | {"add_bos": False})
>>> silent.encode("Once upon a time")
[508, 509, 260, 420]
)doc";

constexpr const char* kPreTokenizersDoc = R"doc(The cuts of byte-level BPE that have a name.

Returns
-------
dict
    By name the patterns of a cut, a tuple of str: one after the other, each cuts what the one before has left. Matches are
    words, and so is what lies between them.

Examples
--------
>>> from llama2cpp import _core
>>> _core.pre_tokenizers()["falcon"][2]
'[0-9][0-9][0-9]'
)doc";

constexpr const char* kGgufPreTokenizersDoc = R"doc(What the names in GGUF's ``tokenizer.ggml.pre`` mean.

Returns
-------
list of tuple
    Names (a tuple of str, of which the first is written), the name of the cut, and two bools: whether a word that is a
    whole piece is that piece whatever the merges say, and whether BOS is put before a text if the file does not say.

Examples
--------
>>> from llama2cpp import _core
>>> _core.gguf_pre_tokenizers()[0]
(('default',), 'ggml_default', False, False)
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
  const std::optional<py::object> number = as_index(value);
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

py::tuple texts_of(std::span<const std::string_view> texts) {
  py::tuple all(texts.size());
  for (std::size_t i = 0; i < texts.size(); ++i) all[i] = py::str(texts[i].data(), texts[i].size());
  return all;
}

py::dict named_cuts() {
  py::dict cuts;
  for (std::size_t i = 0; i < kEnumNames<PreTokenizer>.size(); ++i) {
    const auto cut = static_cast<PreTokenizer>(i);
    if (cut != PreTokenizer::splits) cuts[py::str(std::string(name_of(cut)))] = texts_of(patterns_of(cut));
  }
  return cuts;
}

py::list gguf_names_of_cuts() {
  py::list all;
  for (const GgufPreTokenizer& pre : gguf_pre_tokenizers()) {
    all.append(py::make_tuple(texts_of(pre.names), std::string(name_of(pre.cut)), pre.ignore_merges, pre.add_bos));
  }
  return all;
}

// Half of a UTF-16 pair, which Python's str can hold and no text has.
[[noreturn]] void throw_surrogate(const py::object& text) {
  if (PyErr_ExceptionMatches(PyExc_UnicodeEncodeError) == 0) throw py::error_already_set();
  PyErr_Clear();
  const Py_ssize_t length = PyUnicode_GetLength(text.ptr());
  for (Py_ssize_t i = 0; i < length; ++i) {
    const Py_UCS4 c = PyUnicode_ReadChar(text.ptr(), i);
    if (c < 0xD800 || c > 0xDFFF) continue;
    const std::string hex = py::str("{:04X}").format(static_cast<std::uint32_t>(c));
    throw py::value_error(cat("text has the lone surrogate U+", hex, " at character ", i,
                              ", which stands for no character and has no tokens"));
  }
  throw py::value_error("text cannot be encoded as UTF-8");
}

// The view lives as long as the object does.
std::string_view view_of(const py::object& text) {
  char* data = nullptr;
  Py_ssize_t size = 0;
  if (PyUnicode_Check(text.ptr())) {
    const char* utf8 = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (utf8 == nullptr) throw_surrogate(text);
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

std::vector<std::int32_t> encode(const Tokenizer& tokenizer, const py::object& text,
                                 Flag<"Tokenizer.encode", "bos"> bos,
                                 std::optional<Flag<"Tokenizer.encode", "eos">> eos,
                                 Flag<"Tokenizer.encode", "special"> special,
                                 Flag<"Tokenizer.encode", "prefix_space"> prefix_space) {
  const std::string_view bytes = view_of(text);
  const bool with_eos = eos ? *eos : tokenizer.vocabulary().add_eos;
  if (bytes.size() < kLongText) return tokenizer.encode(bytes, bos, with_eos, special, prefix_space);
  const ReleasedGil release;
  return tokenizer.encode(bytes, bos, with_eos, special, prefix_space);
}

std::vector<std::int32_t> special_ids(const Tokenizer& tokenizer) {
  const std::vector<PieceType>& types = tokenizer.vocabulary().types;
  std::vector<std::int32_t> ids;
  for (std::size_t i = 0; i < types.size(); ++i) {
    if (types[i] == PieceType::control) ids.push_back(static_cast<std::int32_t>(i));
  }
  return ids;
}

py::list token_texts(const Tokenizer& tokenizer) {
  py::list texts;
  for (std::int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const std::optional<std::string> text = tokenizer.text_within(id);
    texts.append(text ? py::object(py::bytes(*text)) : py::none());
  }
  return texts;
}

std::optional<std::int32_t> id_or_none(std::int32_t id) { return id < 0 ? std::nullopt : std::optional(id); }

py::dict to_dict(const Tokenizer& tokenizer) { return dict_of(tokenizer.vocabulary()); }

Tokenizer from_dict(const py::object& settings) {
  Vocabulary vocabulary = vocabulary_of(settings);
  const ReleasedGil released;
  return Tokenizer(std::move(vocabulary));
}

// Equal tokenizers have equal ones. Cheap: not all of a vocabulary is looked at.
std::size_t hash_of(const Tokenizer& tokenizer) {
  const Vocabulary& vocabulary = tokenizer.vocabulary();
  const std::size_t size = vocabulary.pieces.size();
  return std::hash<std::string_view>()(vocabulary.pieces.back()) ^ (size * 31 + vocabulary.rules.index());
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
  module.def(
      "check_text", [](const py::object& text) { view_of(text); }, py::arg("text"));
  py::class_<Tokenizer, py::smart_holder>(module, "Tokenizer", kTokenizerDoc, py::is_final())
      .def_static(
          "from_file",
          [](const FilePath& path, Int<"Tokenizer.from_file", "vocab_size"> vocab_size) {
            std::optional<Tokenizer> tokenizer;
            {
              const ReleasedGil release;
              tokenizer.emplace(open_tokenizer_file(path.utf8, vocab_size));
            }
            warn_of(tokenizer->vocabulary(), 1);
            return *std::move(tokenizer);
          },
          py::arg("path"), py::arg("vocab_size") = 0, kFromFileDoc)
      .def("encode", &encode, py::arg("text"), py::arg("bos") = true, py::arg("eos") = py::none(),
           py::arg("special") = false, py::arg("prefix_space") = true, kEncodeDoc)
      .def(
          "words",
          [](const Tokenizer& tokenizer, const py::object& text) {
            py::list words;
            for (const std::string& word : tokenizer.words(view_of(text))) {
              words.append(py::bytes(word));
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
          "special_ids", [](const Tokenizer& tokenizer) { return py::tuple(py::cast(special_ids(tokenizer))); },
          "tuple of int: The ids of control pieces, such as BOS and EOS, which decode leaves out.")
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
      .def_property_readonly(
          "chat_templates",
          [](const Tokenizer& tokenizer) {
            const Vocabulary& vocabulary = tokenizer.vocabulary();
            py::dict templates;
            if (!vocabulary.chat_template.empty()) templates["default"] = to_str(vocabulary.chat_template);
            for (std::size_t i = 0; i < vocabulary.template_names.size(); ++i) {
              templates[to_str(vocabulary.template_names[i])] = to_str(vocabulary.template_texts[i]);
            }
            return templates;
          },
          "dict of str to str: All chat templates of the file by name: \"default\", and such as \"tool_use\" and "
          "\"rag\".")
      .def("__len__", &Tokenizer::vocab_size)
      .def("__repr__",
           [](const Tokenizer& tokenizer) {
             return cat("<Tokenizer of ", tokenizer.vocab_size(), " pieces, ", kind_title(tokenizer.vocabulary()), ">");
           })
      .def("to_dict", &to_dict, kToDictDoc)
      .def_static("from_dict", &from_dict, py::arg("settings"), kFromDictDoc)
      .def(
          "__eq__",
          [](const Tokenizer& a, const py::object& b) {
            return py::isinstance<Tokenizer>(b) && a.vocabulary() == b.cast<const Tokenizer&>().vocabulary();
          },
          py::arg("other"))
      .def("__hash__", &hash_of)
      .def(py::pickle(&to_dict, &from_dict));

  module.def("token_texts", &token_texts, py::arg("tokenizer"),
             "For each id the bytes that it adds to a text which has begun; None for those that spell nothing.");
  module.def("tokenizer_settings", &settings_of_kinds, "The names of the settings of each kind of tokenizer.");
  module.def("pre_tokenizers", &named_cuts, kPreTokenizersDoc);
  module.def("gguf_pre_tokenizers", &gguf_names_of_cuts, kGgufPreTokenizersDoc);

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
