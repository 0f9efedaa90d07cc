// Files of panels: a model as the CPU backend's kernels read it, so that it opens without packing and its weights are used
// where they are mapped. `llama2cpp export MODEL model.safetensors` writes them (src/llama2cpp/export/panel_file.py).
//
// A safetensors file. The metadata, all of it text:
//   llama2cpp.layout          "panels16"; with it the header begins
//   llama2cpp.layout_version  kPanelVersion (panel_file.h)
//   arithmetic                "contract", or "llama2.c" where the model was a file that llama2.c's runq runs
//   config                    JSON: Config's fields
//   names                     whose names the weights have: "llama2.c", "hugging_face" or "gguf"
//   generation_config         JSON, where the model came with one: how it is to be sampled
//   tokenizer                 JSON, where there is one; see panel_vocabulary.h
//   weights                   JSON: for each matrix {"format": "q4_0", "rows": 64, "cols": 64, "group": 32}, and for those of
//                             LLM.int8() "outlier_threshold", which is 0 where columns are fixed
// The tensors:
//   a matrix    U8 [bytes]    [rows / 16, rounded up] panels, then zeros up to a multiple of 64 bytes, where it begins too
//   its .order  I32 [cols]    GPTQ's, where columns are not as they lie: which one is at each place of the panels
//   its .outlier_columns  I32 [n]    LLM.int8()'s fixed columns, ascending, where there are some
//   a vector    F32, F16 or BF16 [n]
//   tokenizer.*               see panel_vocabulary.h
#include "io/panel_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <span>
#include <system_error>
#include <type_traits>
#include <vector>

#include "core/check.h"
#include "core/file.h"
#include "core/quote.h"
#include "format/bf16.h"
#include "format/f16.h"
#include "format/f32.h"
#include "format/int8_group.h"
#include "format/llm_int8.h"
#include "format/panel_formats.h"
#include "io/checkpoint.h"
#include "io/json.h"
#include "io/outliers.h"
#include "io/panel_vocabulary.h"

namespace llama2cpp {
namespace {

constexpr std::string_view kLayout = "panels16";
constexpr std::string_view kGeneration = "generation_config";
constexpr std::size_t kAlignment = 64;
constexpr std::string_view kOrder = ".order";
constexpr std::string_view kOutliers = ".outlier_columns";
constexpr std::string_view kParts[] = {kOrder, kOutliers};
constexpr std::string_view kTokenizer = "tokenizer";

const std::string& text_of(const SafetensorsHeader& header, std::string_view key) {
  const auto found = header.metadata.find(key);
  if (found == header.metadata.end()) throw FormatError(cat("metadata '", key, "' is missing"));
  return found->second;
}

void check_version(const SafetensorsHeader& header) {
  const std::string& layout = text_of(header, "llama2cpp.layout");
  const std::string& version = text_of(header, "llama2cpp.layout_version");
  if (layout == kLayout && version == std::to_string(kPanelVersion)) return;
  throw FormatError(cat("its weights are in layout ", excerpt(layout), ", version ", excerpt(version),
                        ", and this version of llama2cpp reads '", kLayout, "', version ", kPanelVersion,
                        ": export the model again from the file that it was made from"));
}

// Text that is one of a few.
template <class Value, std::size_t kCount>
Value choice(std::string_view what, std::string_view text,
             const std::array<std::pair<std::string_view, Value>, kCount>& known) {
  std::string names;
  for (const auto& [name, value] : known) {
    if (name == text) return value;
    names += cat(names.empty() ? "" : ", ", name);
  }
  throw FormatError(cat(what, " is ", excerpt(text), ", expected one of: ", names));
}

// An object without other members than these.
void check_members(const Json& object, std::span<const std::string_view> known) {
  for (const Json member : object.members()) {
    if (std::find(known.begin(), known.end(), member.name()) == known.end()) member.fail("expected no such member");
  }
}

// A value by the name that to_string gives it.
template <class Value>
  requires std::is_enum_v<Value>
void read(const Json& json, Value& value) {
  constexpr auto kAll = kValues<Value>;
  std::array<std::pair<std::string_view, Value>, kAll.size()> known;
  for (std::size_t i = 0; i < kAll.size(); ++i) known[i] = {to_string(kAll[i]), kAll[i]};
  value = choice(json.path(), json.string(), known);
}

void read(const Json& json, std::int64_t& value) { value = json.int64(); }
void read(const Json& json, float& value) { value = static_cast<float>(json.number()); }
void read(const Json& json, bool& value) { value = json.boolean(); }
void read(const Json& json, std::vector<float>& values) {
  for (const Json number : json.elements()) read(number, values.emplace_back());
}

void read(const Json& json, Layers& layers) {
  for (const Json number : json.elements()) read(number, layers.emplace_back());
}

// The fields that an object has, by their names: those that `has` says, and no others. What may be null is as it was.
template <class Object, class Has>
void read_fields(const Json& json, Object& object, Has has);

void read(const Json& json, RopeScaling& scaling) {
  read(json.get("type"), scaling.kind);
  read_fields(json, scaling, [&](const Field& field) { return scaling.has(field); });
}

template <class Object, class Has>
void read_fields(const Json& json, Object& object, Has has) {
  std::vector<std::string_view> names;
  Object::fields([&](const Field& field, auto member) {
    if (!has(field)) return;
    names.push_back(field.name);
    const bool may_be_null = field.least == 0 || std::is_same_v<decltype(member), RopeScaling Config::*>;
    if (!may_be_null) {
      read(json.get(field.name), object.*member);
    } else if (const auto found = json.find(field.name)) {
      read(*found, object.*member);
    }
  });
  check_members(json, names);
}

Config read_config(const SafetensorsHeader& header) {
  const JsonDocument document(text_of(header, "config"), "config");
  Config config;
  read_fields(document.root(), config, [](const Field&) { return true; });
  config.validate();
  return config;
}

Plane plane_of(const SafetensorsTensor& tensor, const Buffer& file, std::int64_t row_bytes) {
  return {file.data() + tensor.begin, tensor.end - tensor.begin, row_bytes, file};
}

// The columns in the order of the panels, each once. They are indices, so they are copied before they are checked: a mapped
// file may change.
Buffer read_order(const std::string& name, const SafetensorsTensor& tensor, std::int64_t cols, const Buffer& file) {
  if (tensor.dtype != "I32" || tensor.shape != std::vector{cols}) {
    throw FormatError(cat("tensor ", excerpt(name), " is ", describe_tensor(tensor.dtype, tensor.shape),
                          ", expected I32 [", cols, "]"));
  }
  Buffer order = Buffer::heap(tensor.end - tensor.begin);
  std::memcpy(order.data(), file.data() + tensor.begin, order.size());
  const auto* const columns = reinterpret_cast<const std::int32_t*>(order.data());
  std::vector<bool> seen(static_cast<std::size_t>(cols));
  for (std::int64_t place = 0; place < cols; ++place) {
    const std::int32_t column = columns[place];
    if (column < 0 || column >= cols || seen[static_cast<std::size_t>(column)]) {
      throw FormatError(cat("tensor ", excerpt(name), ": place ", place, " is column ", column,
                            ", expected each of 0 to ", cols - 1, " once"));
    }
    seen[static_cast<std::size_t>(column)] = true;
  }
  return order;
}

// The name, format and sizes of a matrix, which fit into `bytes`.
Weight read_facts(const Json& facts, std::size_t bytes) {
  static constexpr std::string_view kMembers[] = {"format", "rows", "cols", "group", "outlier_threshold"};
  Weight weight;
  weight.name = facts.name();
  weight.format = &find_format(facts.get("format").string());
  check_members(facts, std::span(kMembers).first(weight.format == &kLlmInt8 ? 5 : 4));
  weight.rows = facts.get("rows").int64();
  weight.cols = facts.get("cols").int64();
  weight.group = facts.get("group").int64();
  // A row's share of a panel has at least two bits for each column.
  const auto most = static_cast<std::int64_t>(bytes) * 16;
  if (weight.rows < 1 || weight.rows > most || weight.cols < 1 || weight.cols > most) {
    facts.fail(cat("a matrix ", shape_text(weight), " cannot be in the ", bytes, " bytes of its tensor"));
  }
  return weight;
}

void check_group(const Json& facts, const Weight& weight) {
  const Format& format = *weight.format;
  const bool own_group = format.group == 0 ? weight.group >= 1 : weight.group == format.group;
  const bool fills =
      own_group && ((format.integers != nullptr && format.group == 0) || weight.cols % weight.group == 0);
  const bool whole_row = &format != &kLlmInt8 || weight.group == weight.cols;
  if (!fills || !whole_row) {
    facts.fail(cat("groups of ", weight.group, " are none of ", format.name, " for rows of ", weight.cols));
  }
  if (&format == &kInt8Group && weight.group > kMostInt8Group) {
    facts.fail(cat("groups of ", weight.group, ", expected at most ", kMostInt8Group, " in ", format.name));
  }
}

// A small tensor beside a matrix, of a format that may have one. Null where there is none.
const std::pair<const std::string, SafetensorsTensor>* find_beside(const Weight& weight, std::string_view part,
                                                                   bool may_have_one, std::string_view what,
                                                                   const SafetensorsHeader& header) {
  const auto found = header.tensors.find(weight.name + std::string(part));
  if (found == header.tensors.end()) return nullptr;
  if (may_have_one) return &*found;
  throw FormatError(cat("tensor ", excerpt(found->first), " is there, but ", weight.format->name, " has no ", what));
}

// The rest of an LLM.int8() weight: its outliers, whatever its panels hold.
void add_outliers(const Json& facts, const SafetensorsHeader& header, const Buffer& file, Weight& weight) {
  const bool is_llm_int8 = weight.format == &kLlmInt8;
  if (is_llm_int8 && weight.cols > kMostLlmInt8Columns) {
    facts.fail(cat("it has ", weight.cols, " columns, expected at most ", kMostLlmInt8Columns));
  }
  if (is_llm_int8) weight.outlier_threshold = read_outlier_threshold(facts.get("outlier_threshold"));
  const auto* const found = find_beside(weight, kOutliers, is_llm_int8, "outliers", header);
  if (found == nullptr) return;
  const auto& [name, tensor] = *found;
  const std::int64_t n = tensor.shape.size() == 1 ? tensor.shape[0] : 0;
  if (tensor.dtype != "I32" || n < 1 || n > weight.cols) {
    throw FormatError(cat("tensor ", excerpt(name), " is ", describe_tensor(tensor.dtype, tensor.shape),
                          ", expected I32 [n], with n from 1 to ", weight.cols));
  }
  weight.planes[2] = read_outlier_columns(cat("tensor ", excerpt(name)), file.data() + tensor.begin, n, weight.cols);
}

void add_panels(const Json& facts, const SafetensorsTensor& tensor, const Buffer& file, Weight& weight) {
  const Format& numbers = *weight.format;
  const PanelForm form = stored_form(weight);
  weight.format = in_panels(numbers, form);
  if (weight.format == nullptr) facts.fail(cat("weights in format ", numbers.name, " cannot be in panels"));
  if (form != PanelForm::blocks) weight.order = {};
  const std::size_t bytes = stored_bytes(weight);
  const std::size_t expected = checked_add(bytes, kAlignment - 1, "tensor") / kAlignment * kAlignment;
  if (tensor.dtype != "U8" || tensor.shape.size() != 1 || tensor.end - tensor.begin != expected) {
    throw FormatError(cat("tensor ", excerpt(weight.name), " is ", describe_tensor(tensor.dtype, tensor.shape),
                          ", expected U8 [", expected, "], which ", shape_text(weight), " in ", numbers.name,
                          " takes"));
  }
  if (tensor.begin % kAlignment != 0) {
    throw FormatError(cat("tensor ", excerpt(weight.name), " begins at byte ", tensor.begin,
                          ", expected a multiple of ", kAlignment));
  }
  weight.planes[0] = plane_of(tensor, file, 0);
  weight.planes[0].bytes = bytes;
  weight.panels = Buffer::wrap(weight.planes[0].data, bytes, std::make_shared<const Buffer>(file));
}

Weight matrix_of(const Json& facts, const SafetensorsTensor& tensor, const SafetensorsHeader& header,
                 const Buffer& file) {
  Weight weight = read_facts(facts, tensor.end - tensor.begin);
  check_group(facts, weight);
  if (const auto* const order = find_beside(weight, kOrder, weight.format->blocks.zeros, "order", header)) {
    weight.order = read_order(order->first, order->second, weight.cols, file);
  }
  add_outliers(facts, header, file, weight);
  add_panels(facts, tensor, file, weight);
  return weight;
}

Weight vector_of(const std::string& name, const SafetensorsTensor& tensor, const Buffer& file) {
  Weight weight;
  weight.name = name;
  weight.format = tensor.dtype == "F32" ? &kF32 : tensor.dtype == "F16" ? &kF16 : &kBF16;
  if (tensor.shape.size() != 1 || (weight.format == &kBF16 && tensor.dtype != "BF16")) {
    throw FormatError(cat("tensor ", excerpt(name), " is ", describe_tensor(tensor.dtype, tensor.shape),
                          ", expected a matrix that metadata 'weights' has, or a vector of F32, F16 or BF16"));
  }
  weight.rows = 1;
  weight.cols = tensor.shape[0];
  weight.planes[0] = plane_of(tensor, file, static_cast<std::int64_t>(tensor.end - tensor.begin));
  return weight;
}

// A Llama has a place for it, of its shape.
void check_place(const Weight& weight, const Checkpoint& checkpoint) {
  const Config& config = checkpoint.config;
  const auto found = find_part(checkpoint.naming, weight.name, config);
  if (!found || !is_needed(config, found->part).value_or(true)) {
    throw FormatError(cat("tensor ", excerpt(weight.name), " has no place in a Llama of ", config.n_layers, " layers",
                          config.tied ? " whose output is the embedding table" : ""));
  }
  const auto [rows, cols] = part_shape(config, found->part);
  if (weight.rows != rows || weight.cols != cols) {
    throw FormatError(
        cat("tensor ", excerpt(weight.name), " is ", shape_text(weight), ", expected [", rows, ", ", cols, "]"));
  }
}

void add_weights(const SafetensorsHeader& header, const Buffer& file, Checkpoint& checkpoint) {
  const JsonDocument document(text_of(header, "weights"), "weights");
  for (const Json facts : document.root().members()) {
    const auto tensor = header.tensors.find(std::string(facts.name()));
    if (tensor == header.tensors.end()) facts.fail("there is no such tensor");
    checkpoint.weights.emplace(tensor->first, matrix_of(facts, tensor->second, header, file));
  }
  for (const auto& [name, tensor] : header.tensors) {
    if (checkpoint.weights.contains(name) || name.starts_with(cat(kTokenizer, "."))) continue;
    const bool of_a_matrix = std::any_of(std::begin(kParts), std::end(kParts), [&](std::string_view part) {
      return name.ends_with(part) && checkpoint.weights.contains(name.substr(0, name.size() - part.size()));
    });
    if (of_a_matrix) continue;
    checkpoint.weights.emplace(name, vector_of(name, tensor, file));
  }
  for (const auto& [name, weight] : checkpoint.weights) check_place(weight, checkpoint);
}

std::string generation_of(const SafetensorsHeader& header) {
  const auto found = header.metadata.find(kGeneration);
  if (found == header.metadata.end()) return {};
  const JsonDocument document(found->second, std::string(kGeneration));
  document.root().members();  // it is an object
  return std::string(found->second);
}

Checkpoint open(const std::string& /*path*/, const Buffer& file, const OpenBeside& /*open_beside*/) {
  const SafetensorsHeader header = read_safetensors_header(file);
  check_version(header);
  for (const auto& [key, text] : header.metadata) {
    static constexpr std::string_view kKeys[] = {
        "llama2cpp.layout", "llama2cpp.layout_version", "arithmetic", "config", "names", kTokenizer, "weights",
        kGeneration};
    if (std::find(std::begin(kKeys), std::end(kKeys), key) == std::end(kKeys)) {
      throw FormatError(cat("metadata ", excerpt(key), " is none that files of panels have"));
    }
  }
  Checkpoint checkpoint;
  checkpoint.file_format = cat("panels v", kPanelVersion);
  checkpoint.config = read_config(header);
  checkpoint.naming = choice<Naming, 3>("metadata 'names'", text_of(header, "names"),
                                        {{{to_string(Naming::meta), Naming::meta},
                                          {to_string(Naming::hugging_face), Naming::hugging_face},
                                          {to_string(Naming::gguf), Naming::gguf}}});
  checkpoint.llama2c_arithmetic = choice<bool, 2>("metadata 'arithmetic'", text_of(header, "arithmetic"),
                                                  {{{"contract", false}, {"llama2.c", true}}});
  add_weights(header, file, checkpoint);
  checkpoint.weight(Part::tok_embeddings);  // vocab_size is true: pieces are counted by it
  checkpoint.vocabulary = read_panel_vocabulary(header, file);
  checkpoint.generation.json = generation_of(header);
  if (checkpoint.vocabulary == nullptr) {
    checkpoint.no_vocabulary_reason = "the file has no tokenizer";
  } else if (static_cast<std::int64_t>(checkpoint.vocabulary->pieces.size()) != checkpoint.config.vocab_size) {
    throw FormatError(cat("the tokenizer has ", checkpoint.vocabulary->pieces.size(), " pieces, expected vocab_size, ",
                          checkpoint.config.vocab_size));
  }
  return checkpoint;
}

constexpr std::size_t kBegins = sizeof(std::uint64_t) + kPanelFileBegins.size();

bool begins_so(std::string_view bytes) {
  return bytes.size() >= kBegins && bytes.substr(sizeof(std::uint64_t)).starts_with(kPanelFileBegins);
}

std::string why_not(const Buffer& file) {
  const bool is_one = begins_so({reinterpret_cast<const char*>(file.data()), std::min(file.size(), kBegins)});
  return is_one ? "" : "no header that begins with a layout of panels";
}

}  // namespace

bool is_panel_file(const std::string& path) {
  try {
    const File file(path);
    std::string bytes(std::min(file.size(), kBegins), '\0');
    file.read(0, std::as_writable_bytes(std::span(bytes)));
    return begins_so(bytes);
  } catch (const std::system_error&) {
    return false;  // whoever opens it says why it cannot be
  }
}

const Reader kPanelFile{"panels", why_not, open};

}  // namespace llama2cpp
