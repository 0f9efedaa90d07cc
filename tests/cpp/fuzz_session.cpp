// libFuzzer: no bytes may crash the JSON parser, the safetensors reader or the reader of session files. What JSON opens
// can be asked everything, what safetensors opens lies inside the file, and a session that opens takes a step.
// Input: a byte that says what the rest is. 0: JSON. 1: a safetensors file. 2: a session file. 3: edits of a good
// session file, each 2 bytes of place, 1 of length and the new bytes: so most of what is tried gets past the first
// checks, and no corpus is needed. 4: the same, where the header has 8 bytes to spare.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "core/check.h"
#include "core/quote.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "model/session_file.h"
#include "tiny_model.h"

namespace {

using llama2cpp::Buffer;
using llama2cpp::Json;
using Bytes = std::vector<std::byte>;

void check(bool condition) {
  if (!condition) std::abort();  // libFuzzer's way to report
}

// Everything that a value can be asked; what its type does not have is a FormatError.
template <class Call>
void ask(const Call& call) {
  try {
    call();
  } catch (const llama2cpp::FormatError&) {
  }
}

void look_at(const Json& value, int& budget) {
  if (--budget < 0) return;  // paths of long arrays take time in the square of their length
  check(!value.path().empty());
  ask([&] { value.boolean(); });
  ask([&] { value.int64(); });
  ask([&] { value.uint64(); });
  ask([&] { value.number(); });
  ask([&] {
    const std::string quoted = llama2cpp::quote(value.string());
    check(llama2cpp::JsonDocument(quoted, "quoted").root().string() == value.string());
  });
  ask([&] {
    std::size_t i = 0;
    for (const Json element : value.elements()) check(value.at(i++).type() == element.type());
    check(i == value.size());
    value.at(i);
  });
  ask([&] {
    for (const Json member : value.members()) check(value.get(member.name()).type() == member.type());
  });
  if (value.type() == Json::Type::array) {
    for (const Json element : value.elements()) look_at(element, budget);
  } else if (value.type() == Json::Type::object) {
    for (const Json member : value.members()) look_at(member, budget);
  }
}

void try_json(std::span<const std::byte> bytes) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const llama2cpp::JsonDocument document(text, "fuzz");
  int budget = 1000;
  look_at(document.root(), budget);
}

void try_safetensors(const Buffer& file) {
  std::size_t total = 0;
  for (const auto& [name, tensor] : llama2cpp::read_safetensors_header(file).tensors) {
    check(tensor.begin <= tensor.end && tensor.end <= file.size());
    total += tensor.end - tensor.begin;
  }
  check(total + 8 <= file.size());
}

const std::shared_ptr<const llama2cpp::Model>& model() {
  static const std::shared_ptr<const llama2cpp::Model> made = [] {
    llama2cpp::Config config = tiny::config();
    config.dim = config.hidden_dim = 4;
    config.n_layers = 1;
    config.n_heads = config.n_kv_heads = 2;
    config.head_dim = 2;
    config.vocab_size = 7;
    return tiny::model(config, {.threads = 1});
  }();
  return made;
}

const Bytes& good_file() {
  static const Bytes made = [] {
    llama2cpp::Session session(model(), 0);
    tiny::feed(session, {1, 2, 3});
    Bytes bytes;
    llama2cpp::write_session(
        session, [&](std::span<const std::byte> more) { bytes.insert(bytes.end(), more.begin(), more.end()); },
        tiny::no_poll);
    return bytes;
  }();
  return made;
}

void try_session(const Buffer& file) {
  const auto session = llama2cpp::read_session(model(), file, 0, tiny::no_poll);
  check(session->position() <= session->context());
  for (const std::int32_t token : session->tokens()) check(token >= 0 && token < model()->config().vocab_size);
  if (session->position() < session->context()) tiny::feed(*session, {1});
}

Bytes edited_file(std::span<const std::byte> edits, bool longer) {
  Bytes file = good_file();
  if (longer) {
    std::uint64_t header = 0;
    std::memcpy(&header, file.data(), sizeof(header));
    file.insert(file.begin() + 8 + static_cast<std::ptrdiff_t>(header), 8, std::byte{' '});
    header += 8;
    std::memcpy(file.data(), &header, sizeof(header));
  }
  while (edits.size() >= 3) {
    const auto place = std::to_integer<std::size_t>(edits[0]) + 256 * std::to_integer<std::size_t>(edits[1]);
    const std::size_t length = std::min(std::to_integer<std::size_t>(edits[2]) % 32, edits.size() - 3);
    for (std::size_t i = 0; i < length; ++i) file[(place + i) % file.size()] = edits[3 + i];
    edits = edits.subspan(3 + length);
  }
  return file;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::span<const std::byte> rest(reinterpret_cast<const std::byte*>(data + 1), size - 1);
  const Buffer file = Buffer::wrap(rest.data(), rest.size(), nullptr);
  const int kind = data[0] % 5;
  try {
    if (kind == 0) {
      try_json(rest);
    } else if (kind == 1) {
      try_safetensors(file);
    } else if (kind == 2) {
      try_session(file);
    } else {
      const Bytes edited = edited_file(rest, kind == 4);
      try_session(Buffer::wrap(edited.data(), edited.size(), nullptr));
    }
  } catch (const llama2cpp::FormatError&) {  // the only exception that a file may cause
  }
  return 0;
}
