// The list of a tokenizer's settings, and what goes through it: equality, and files of panels.
#include <doctest/doctest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/check.h"
#include "core/vocabulary.h"
#include "io/panel_vocabulary.h"

namespace {

using namespace llama2cpp;

// Another value of each type that a setting has.
void change(bool& value) { value = !value; }
void change(std::int32_t& id) { id = id == 2 ? 1 : 2; }
void change(std::string& text) { text += std::string("\xFF\0{{", 4); }
void change(PreTokenizer& value) { value = PreTokenizer::deepseek_coder; }
void change(SpacePrefix& value) { value = SpacePrefix::first_where_none; }
void change(std::vector<std::int32_t>& ids) { ids.push_back(0); }
void change(std::vector<std::string>& texts) {
  if (texts.empty()) texts.emplace_back();
  texts.back() += std::string("\0\xC3", 2);
}
void change(std::vector<float>& numbers) { numbers.back() = -0.1F; }
void change(std::vector<double>& numbers) { numbers.back() = -0.1; }
void change(std::vector<TextStep>& steps) { steps.push_back({TextStepKind::replace, "\xC3\xA9\\s\"", "b"}); }
void change(std::vector<PieceType>& types) { types.back() = PieceType::byte; }
void change(std::vector<Merge>& merges) { merges.push_back({0, 1, 2}); }
void change(std::vector<AddedToken>& tokens) { tokens.push_back({2, true, false, true}); }
void change(std::vector<Split>& splits) { splits.push_back({"\xC3\xA9\\s\"", SplitBehavior::contiguous, true}); }

// One of each kind, with something in every list.
std::vector<Vocabulary> some_of_all_kinds() {
  std::vector<Vocabulary> all = all_kinds();
  for (Vocabulary& one : all) {
    one.pieces = {"a", "b", "ab"};
    one.types = {PieceType::normal, PieceType::unused, PieceType::control};
    if (auto* const scores = find_scores(one)) *scores = {0.0F, -1.5F, 1e-30F};
    if (auto* const merges = find_merges(one)) *merges = {{0, 1, 2}};
    if (auto* const added = find_added(one)) *added = {{1, false, true, false}};
    if (auto* const unigram = std::get_if<UnigramRules>(&one.rules)) {
      unigram->log_probs = {0.0, -1.5, 1e-300};
      unigram->steps = {{TextStepKind::prepend, "", "a"}};
    }
    if (auto* const bytes = std::get_if<ByteBpeRules>(&one.rules)) {
      bytes->pre_tokenizer = PreTokenizer::splits;
      bytes->splits = {{"a"}};
    }
  }
  return all;
}

std::vector<std::string> settings_of(const Vocabulary& vocabulary) {
  std::vector<std::string> names;
  visit_settings(vocabulary, [&](std::string_view name, const auto&) { names.emplace_back(name); });
  return names;
}

void change_setting(Vocabulary& vocabulary, std::string_view wanted) {
  visit_settings(vocabulary, [&](std::string_view name, auto& value) {
    if (name == wanted) change(value);
  });
  if (auto* const bytes = std::get_if<ByteBpeRules>(&vocabulary.rules); bytes != nullptr && wanted == "pre_tokenizer") {
    bytes->splits.clear();  // they belong to no other
  }
}

// A file of panels with nothing but the tokenizer.
Buffer file_of(const StoredVocabulary& stored) {
  std::vector<NamedShape> shapes;
  std::string data;
  for (const VocabularyTensor& tensor : stored.tensors) {
    shapes.push_back({tensor.name, tensor.dtype, tensor.shape});
    data += tensor.bytes;
  }
  const std::string header = write_safetensors_header({{"tokenizer", stored.settings}}, shapes);
  const std::string all = header + data;
  Buffer file = Buffer::heap(all.size());
  std::copy(all.begin(), all.end(), reinterpret_cast<char*>(file.data()));
  return file;
}

Vocabulary read_again(const StoredVocabulary& stored) {
  const Buffer file = file_of(stored);
  return *read_panel_vocabulary(read_safetensors_header(file), file);
}

std::string error_of(const StoredVocabulary& stored) {
  try {
    read_again(stored);
    return "";
  } catch (const FormatError& error) {
    return error.what();
  }
}

}  // namespace

TEST_CASE("kinds and their settings have names, each once") {
  std::set<std::string_view> kinds;
  for (const Vocabulary& one : all_kinds()) {
    CHECK(kinds.insert(kind_name(one)).second);
    CHECK(vocabulary_of_kind(kind_name(one)) == one);
    const std::vector<std::string> names = settings_of(one);
    CHECK(std::set(names.begin(), names.end()).size() == names.size());
    CHECK(list_kinds().find(kind_name(one)) != std::string::npos);
  }
  CHECK(kinds.size() == 5);
  CHECK(!vocabulary_of_kind("tiktoken"));
  CHECK(!vocabulary_of_kind(""));
}

TEST_CASE("names of enums are found again") {
  for (const std::string_view name : kEnumNames<PieceType>) CHECK(name_of(*find_named<PieceType>(name)) == name);
  for (const std::string_view name : kEnumNames<PreTokenizer>) CHECK(name_of(*find_named<PreTokenizer>(name)) == name);
  for (const std::string_view name : kEnumNames<SpacePrefix>) CHECK(name_of(*find_named<SpacePrefix>(name)) == name);
  CHECK(!find_named<PieceType>("Normal"));
  CHECK(list_names<SpacePrefix>() == "none, always, where_none, first_where_none");
}

TEST_CASE("a vocabulary is equal to one with the same settings, and to no other") {
  for (const Vocabulary& one : some_of_all_kinds()) {
    Vocabulary warned = one;
    warned.warnings = {"what a file said is no setting"};
    CHECK(warned == one);
    for (const Vocabulary& other : some_of_all_kinds()) CHECK((one == other) == (kind_name(one) == kind_name(other)));
    for (const std::string& name : settings_of(one)) {
      Vocabulary changed = one;
      change_setting(changed, name);
      CAPTURE(name);
      CHECK(changed != one);
    }
  }
}

TEST_CASE("a file of panels keeps every setting of every kind") {
  for (const Vocabulary& one : some_of_all_kinds()) {
    CHECK(read_again(store_vocabulary(one)) == one);
    for (const std::string& name : settings_of(one)) {
      Vocabulary changed = one;
      change_setting(changed, name);
      CAPTURE(name);
      CHECK(read_again(store_vocabulary(changed)) == changed);
    }
  }
}

TEST_CASE("a file of panels without one of its tensors, or with one too many, is refused by the tensor's name") {
  for (const Vocabulary& one : some_of_all_kinds()) {
    const StoredVocabulary stored = store_vocabulary(one);
    for (std::size_t i = 0; i < stored.tensors.size(); ++i) {
      StoredVocabulary less = stored;
      less.tensors.erase(less.tensors.begin() + static_cast<std::ptrdiff_t>(i));
      CHECK(error_of(less) == cat("tensor '", stored.tensors[i].name, "' is missing"));
      StoredVocabulary other = stored;
      other.tensors[i].dtype = other.tensors[i].dtype == "U8" ? "I8" : "U8";
      if (other.tensors[i].dtype == "U8") {
        other.tensors[i].shape = {static_cast<std::int64_t>(other.tensors[i].bytes.size())};
      }
      CHECK(error_of(other).starts_with(cat("tensor '", stored.tensors[i].name, "' is ", other.tensors[i].dtype)));
    }
    StoredVocabulary more = stored;
    more.tensors.push_back({"tokenizer.more", "U8", {0}, ""});
    CHECK(error_of(more) == "tensor \"tokenizer.more\" belongs to no tokenizer of this kind");
    more.tensors = {};
    more.settings = "{}";
    CHECK(error_of(more).find("kind") != std::string::npos);
  }
}

TEST_CASE("values that are none are refused where they stand") {
  const auto refused = [](std::string_view from, std::string_view to, std::string_view said) {
    Vocabulary one = some_of_all_kinds()[2];
    StoredVocabulary stored = store_vocabulary(one);
    const std::size_t at = stored.settings.find(from);
    REQUIRE(at != std::string::npos);
    stored.settings.replace(at, from.size(), to);
    const std::string error = error_of(stored);
    CAPTURE(error);
    CHECK(error.find(said) != std::string::npos);
  };
  refused(R"("byte_bpe")", R"("bpe")", "expected one of: llama2.c, sentencepiece, byte_bpe, ranked_bpe, unigram");
  refused(R"("byte_bpe")", R"("ranked_bpe")", "tokenizer");
  refused(R"("byte_bpe")", "2", "tokenizer.kind");
  refused(R"("splits",)", R"("gpt3",)", "expected one of: gpt2, llama3");
  refused(R"("pre_tokenizer":"splits")", R"("pre_tokenizer":0)", "tokenizer.pre_tokenizer");
  refused(R"("bos_id":1)", R"("bos_id":-2)", "-2 is no id");
  refused(R"("bos_id":1)", R"("bos_id":2147483648)", "2147483648 is no id");
  refused(R"("bos_id":1)", R"("bos_id":true)", "tokenizer.bos_id");
  refused(R"("eos_ids":[2])", R"("eos_ids":2)", "tokenizer.eos_ids");
  refused(R"("eos_ids":[2])", R"("eos_ids":[99999999999999999999])", "tokenizer.eos_ids[0]");
  refused(R"("add_bos":true)", R"("add_bos":1)", "tokenizer.add_bos");
  refused(R"("add_bos":true,)", "", "add_bos");
  refused(R"("add_bos":true)", R"("add_bos":true,"more":1)", "tokenizer.more");
  refused(R"("lstrip":false,)", "", "lstrip");
  refused(R"("lstrip":false)", R"("lstrip":false,"strip":false)", "tokenizer.added[0]");
  refused(R"("normal",)", R"("usual",)", "expected one of: normal, unknown");
  refused(R"(,"unused","byte"])", "]", "tensor 'tokenizer.types': number 1 is 4, of 4 names");
}

TEST_CASE("pieces that do not fill their bytes are refused") {
  const auto refused = [](std::vector<std::int32_t> lengths, std::string_view said) {
    StoredVocabulary stored = store_vocabulary(some_of_all_kinds()[0]);
    for (VocabularyTensor& tensor : stored.tensors) {
      if (tensor.name != "tokenizer.pieces.bytes") continue;
      tensor.shape = {static_cast<std::int64_t>(lengths.size())};
      tensor.bytes.assign(reinterpret_cast<const char*>(lengths.data()), lengths.size() * sizeof(std::int32_t));
    }
    CHECK(error_of(stored).find(said) != std::string::npos);
  };
  refused({1, 1, 1}, "its pieces have 3 of 4 bytes");
  refused({1, 1, 3}, "number 2 of pieces has 3 bytes, and 2 are left");
  refused({-1, 4, 1}, "number 0 of pieces has -1 bytes");
  refused({2147483647, 2147483647}, "number 0 of pieces has 2147483647 bytes, and 4 are left");
}
