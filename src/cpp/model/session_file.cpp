// The schema. Metadata, all texts:
//   format       "llama2cpp session"
//   version      "1"; another number is another schema
//   fingerprint  the model's (model/fingerprint.h); of a session with an adapter "+" and the adapter's behind it
//   kv           "f32" or "f16"
//   activations  "f32", "bf16" or "int8": with another a session would go on, but not as the saved one does
//   position     tokens held, decimal
//   context      tokens that can be held, decimal
// Tensors, in this order:
//   tokens             I32 [position]
//   logits             F32 [vocab_size]; missing where the session has none
//   layers.{i}.keys    F32 or F16 [position, n_kv_heads, head_dim], as session.kv.keys(i) has them; of a cache in q8_0 U8
//                      [position, n_kv_heads, head_dim / 32 * 34], Q8_0's blocks
//   layers.{i}.values  the same
// What is in the metadata besides is passed over; other tensors are not.
#include "model/session_file.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <new>
#include <vector>

#include "core/check.h"
#include "core/file_writer.h"
#include "core/now_and_then.h"
#include "core/quote.h"
#include "io/safetensors.h"
#include "model/fingerprint.h"

namespace llama2cpp {
namespace {

constexpr std::string_view kFormat = "llama2cpp session";
constexpr std::string_view kVersion = "1";
constexpr std::int64_t kPieceBytes = std::int64_t{1} << 20;  // keys or values that are gathered at a time

using Metadata = std::map<std::string, std::string, std::less<>>;

// What must be the same in the file and in the model, in the order in which it is checked.
std::vector<std::pair<std::string, std::string>> identity(const Model& model, const Adapter* adapter) {
  return {
      {"format", std::string(kFormat)},
      {"version", std::string(kVersion)},
      {"fingerprint", fingerprint(model.checkpoint()) + (adapter == nullptr ? "" : "+" + adapter->fingerprint())},
      {"kv", std::string(kv_name(model.kv_dtype()))},
      {"activations", std::string(model.activation_dtype())},
  };
}

std::vector<NamedShape> tensors_of(const Model& model, std::int64_t position, bool with_logits) {
  const Config& c = model.config();
  const DType dtype = model.kv_dtype();
  const char* const kv = dtype == DType::q8_0 ? "U8" : dtype == DType::f16 ? "F16" : "F32";
  const std::int64_t columns = dtype == DType::q8_0 ? bytes_of(dtype, c.head_dim) : c.head_dim;
  std::vector<NamedShape> tensors = {{"tokens", "I32", {position}}};
  if (with_logits) tensors.push_back({"logits", "F32", {c.vocab_size}});
  for (std::int64_t i = 0; i < c.n_layers; ++i) {
    for (const char* which : {"keys", "values"}) {
      tensors.push_back({cat("layers.", i, ".", which), kv, {position, c.n_kv_heads, columns}});
    }
  }
  return tensors;
}

// The rows of positions [0, count) in the order of the file, [position][head], in pieces of whole positions.
// each(row in the cache, bytes), then done() after each piece.
template <class Each, class Done>
void for_each_row(const Tensor& cache, std::int64_t count, const Each& each, const Done& done) {
  const std::int64_t bytes = bytes_of(cache.dtype, cache.columns());
  const std::int64_t heads = cache.dim(0);
  const std::int64_t piece = std::max<std::int64_t>(1, kPieceBytes / (heads * bytes));
  auto* const first = static_cast<std::byte*>(cache.data);
  for (std::int64_t position = 0; position < count; ++position) {
    for (std::int64_t head = 0; head < heads; ++head) {
      each(first + (head * cache.dim(1) + position) * bytes, static_cast<std::size_t>(bytes));
    }
    if ((position + 1) % piece == 0 || position + 1 == count) done();
  }
}

const std::string& metadata_text(const Metadata& metadata, std::string_view name) {
  const auto found = metadata.find(name);
  if (found == metadata.end()) throw FormatError(cat("the metadata has no '", name, "'"));
  return found->second;
}

std::int64_t metadata_number(const Metadata& metadata, std::string_view name, std::int64_t least) {
  const std::string& text = metadata_text(metadata, name);
  std::int64_t number = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc{} || stop != end || number < least) {
    throw FormatError(cat("metadata '", name, "' is ", excerpt(text), ", expected a number of ", least, " or more"));
  }
  return number;
}

// Why the fingerprints differ.
const char* why_other(std::string_view found, std::string_view expected) {
  const auto model = [](std::string_view print) { return print.substr(0, print.find('+')); };
  if (model(found) != model(expected)) return " (the session is of another model)";
  const bool has = found.size() != model(found).size();
  if (!has) return " (the session has no adapter, and one is given)";
  const bool given = expected.size() != model(expected).size();
  return given ? " (the session has another adapter)" : " (the session has an adapter, which is to be given)";
}

void check_identity(const Metadata& metadata, const Model& model, const Adapter* adapter) {
  if (!metadata.contains("fingerprint")) {
    throw FormatError(cat("a safetensors file, but no session: the metadata has no 'fingerprint'"));
  }
  for (const auto& [name, expected] : identity(model, adapter)) {
    const std::string& found = metadata_text(metadata, name);
    if (found == expected) continue;
    const char* why = name == "fingerprint" ? why_other(found, expected) : "";
    throw FormatError(cat("metadata '", name, "' is ", excerpt(found), ", expected \"", expected, "\"", why));
  }
}

void check_tensors(const SafetensorsHeader& header, std::span<const NamedShape> expected) {
  for (const NamedShape& tensor : expected) {
    const auto found = header.tensors.find(tensor.name);
    if (found == header.tensors.end()) throw FormatError(cat("tensor '", tensor.name, "' is missing"));
    const auto& [dtype, shape, begin, end] = found->second;
    if (dtype != tensor.dtype || shape != tensor.shape) {
      throw FormatError(cat("tensor '", tensor.name, "' is ", describe_tensor(dtype, shape), ", expected ",
                            describe_tensor(tensor.dtype, tensor.shape)));
    }
  }
  if (header.tensors.size() == expected.size()) return;
  for (const auto& [name, tensor] : header.tensors) {
    const auto is_it = [&](const NamedShape& t) { return t.name == name; };
    if (std::none_of(expected.begin(), expected.end(), is_it)) {
      throw FormatError(cat("tensor ", excerpt(name), " has no place in a session of this model"));
    }
  }
}

// A one-dimensional tensor of the file, copied: in the file it may begin anywhere.
template <class Number>
std::vector<Number> read_numbers(const Buffer& file, const SafetensorsTensor& tensor) {
  std::vector<Number> numbers(static_cast<std::size_t>(tensor.shape[0]));
  if (!numbers.empty()) std::memcpy(numbers.data(), file.data() + tensor.begin, tensor.end - tensor.begin);
  return numbers;
}

void check_tokens(std::span<const std::int32_t> tokens, std::int64_t vocab_size) {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= 0 && tokens[i] < vocab_size) continue;
    throw FormatError(cat("token ", i, " is ", tokens[i], ", expected 0 to ", vocab_size - 1));
  }
}

// The file says nothing else about the size of a context, so a damaged one shows only here.
std::unique_ptr<KvCache> reserve_kv(const Model& model, std::int64_t saved_context) {
  try {
    return model.make_cache(saved_context);
  } catch (const OutOfMemoryError&) {
    // Addresses for what would fit into memory are there in any process but one that is short of memory now.
    const Config& c = model.config();
    const double row = 2.0 * static_cast<double>(bytes_of(model.kv_dtype(), c.n_layers * c.kv_dim()));
    const double bytes = static_cast<double>(saved_context) * row;
    if (bytes <= static_cast<double>(model.backend().memory_left())) throw;
    throw FormatError(cat("metadata 'context' is ", saved_context,
                          ", for which there is no room in memory; a smaller context can be asked for"));
  }
}

}  // namespace

void write_session(const Session& session, FunctionRef<void(std::span<const std::byte>)> write,
                   FunctionRef<void()> poll) {
  const Model& model = session.model();
  const std::vector<std::int32_t> tokens = session.tokens();
  std::vector<float> logits;
  session.with_logits([&](std::span<const float> now) { logits.assign(now.begin(), now.end()); });

  const auto position = static_cast<std::int64_t>(tokens.size());
  Metadata metadata;
  for (const auto& [name, value] : identity(model, session.adapter().get())) metadata[name] = value;
  metadata["position"] = cat(position);
  metadata["context"] = cat(session.context());
  const std::string header = write_safetensors_header(metadata, tensors_of(model, position, !logits.empty()));
  write(std::as_bytes(std::span(header)));
  write(std::as_bytes(std::span(tokens)));
  write(std::as_bytes(std::span(logits)));

  NowAndThen poll_now_and_then(poll);
  std::vector<std::byte> piece;
  for (std::int64_t layer = 0; layer < model.config().n_layers; ++layer) {
    for (const Tensor& cache : {session.kv().keys(layer), session.kv().values(layer)}) {
      const auto add = [&](const std::byte* row, std::size_t bytes) { piece.insert(piece.end(), row, row + bytes); };
      for_each_row(cache, position, add, [&] {
        write(piece);
        piece.clear();
        poll_now_and_then();
      });
    }
  }
}

std::unique_ptr<Session> read_session(std::shared_ptr<const Model> model, const Buffer& file, std::int64_t context,
                                      FunctionRef<void()> poll, std::shared_ptr<const Adapter> adapter) {
  const Config& config = model->config();
  const SafetensorsHeader header = read_safetensors_header(file);
  check_identity(header.metadata, *model, adapter.get());
  const std::int64_t position = metadata_number(header.metadata, "position", 0);
  const std::int64_t saved_context = metadata_number(header.metadata, "context", std::max<std::int64_t>(1, position));
  LLAMA2CPP_CHECK(context == 0 || context >= std::max<std::int64_t>(1, position), "context is ", context,
                  ", but the saved session holds ", position, " tokens");
  const bool with_logits = position > 0 && header.tensors.contains("logits");
  check_tensors(header, tensors_of(*model, position, with_logits));

  const auto tensor = [&](std::string_view name) -> const SafetensorsTensor& {
    return header.tensors.find(name)->second;
  };
  std::vector<std::int32_t> tokens = read_numbers<std::int32_t>(file, tensor("tokens"));
  check_tokens(tokens, config.vocab_size);
  std::vector<float> logits;
  if (with_logits) logits = read_numbers<float>(file, tensor("logits"));

  LLAMA2CPP_CHECK(context == 0 || config.is_long(context) == config.is_long(saved_context), "context is ", context,
                  ", and that of the session is ", saved_context, ": beyond ", config.rope_scaling.original_context,
                  " positions rotary frequencies are others, so its keys would have to be turned again");
  auto kv = context == 0 ? reserve_kv(*model, saved_context) : model->make_cache(context);
  NowAndThen poll_now_and_then(poll);
  const auto fill = [&](const Tensor& cache, const SafetensorsTensor& from) {
    const std::byte* next = file.data() + from.begin;
    const auto take = [&](std::byte* row, std::size_t bytes) {
      std::memcpy(row, next, bytes);
      next += bytes;
    };
    for_each_row(cache, position, take, [&] { poll_now_and_then(); });
  };
  for (std::int64_t layer = 0; layer < config.n_layers; ++layer) {
    fill(kv->keys(layer), tensor(cat("layers.", layer, ".keys")));
    fill(kv->values(layer), tensor(cat("layers.", layer, ".values")));
  }
  return std::make_unique<Session>(std::move(model), std::move(kv), std::move(tokens), logits, std::move(adapter));
}

void save_session(Session& session, const std::string& path, FunctionRef<void()> poll) {
  const SessionLock held(session, poll);
  FileWriter file(path);
  write_session(
      session, [&](std::span<const std::byte> bytes) { file.write(bytes); }, poll);
  file.commit();
}

std::unique_ptr<Session> load_session(std::shared_ptr<const Model> model, const std::string& path, std::int64_t context,
                                      FunctionRef<void()> poll, std::shared_ptr<const Adapter> adapter) {
  const Buffer file = Buffer::file(path);
  const FileReads reads({&file, 1});
  try {
    std::unique_ptr<Session> session = read_session(std::move(model), file, context, poll, std::move(adapter));
    reads.check();
    return session;
  } catch (const FormatError& error) {
    throw FormatError(cat(path, ": ", error.what()));
  }
}

}  // namespace llama2cpp
