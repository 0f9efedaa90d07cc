#include "io/generation_config.h"

#include <cmath>
#include <string_view>
#include <system_error>

#include "core/check.h"
#include "core/quote.h"
#include "io/gguf.h"
#include "io/hf.h"

namespace llama2cpp {
namespace {

constexpr std::string_view kFile = "generation_config.json";
constexpr std::size_t kMostBytes = 1 << 20;

constexpr SamplingKey kKeys[] = {
    {"temp", "temperature"},
    {"top_p", "top_p"},
    {"min_p", "min_p"},
    {"penalty_repeat", "repetition_penalty"},
    {"xtc_probability", "xtc_probability"},
    {"xtc_threshold", "xtc_threshold"},
    {"mirostat_tau", "mirostat_tau"},
    {"mirostat_eta", "mirostat_eta"},
    {"top_k", "top_k", true},
    {"penalty_last_n", "penalty_last_n", true},
    {"mirostat", "mirostat", true},
};

std::string read_json(const HfFolder& folder) {
  if (!folder.has(kFile)) return {};
  const Buffer file = folder.open(kFile, false, kMostBytes);
  const std::span<const std::byte> bytes(file.data(), file.size());
  refuse_stand_in(bytes, cat(kFile, ", a JSON file"));
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const JsonDocument document(text, std::string(kFile));
  document.root().members();  // it is an object
  return std::string(text);
}

std::string read_keys(const Gguf& gguf) {
  std::string members;
  const auto add = [&](std::string_view name, std::string_view value) {
    members += cat(members.empty() ? "" : ",", quote(name), ":", value);
  };
  for (const auto& [key, name, integer] : kKeys) {
    const std::string full = cat("general.sampling.", key);
    if (integer) {
      if (const auto number = gguf.integer(full)) add(name, cat(*number));
    } else if (const auto number = gguf.number(full)) {
      if (!std::isfinite(*number)) gguf.fail(full, "not finite");
      add(name, cat(*number));  // six digits: 0.95 is 0.95, though the file's float is not quite that
    }
  }
  if (gguf.string("general.sampling.sequence")) add("sequence", "true");
  return members.empty() ? "" : cat("{", members, "}");
}

template <class Source>
GenerationConfig read(const Source& source, std::string (*from)(const Source&)) {
  try {
    return {from(source), ""};
  } catch (const FormatError& error) {
    return {"", error.what()};
  } catch (const std::system_error& error) {  // a file that may not be read
    return {"", error.what()};
  }
}

}  // namespace

std::span<const SamplingKey> sampling_keys() { return kKeys; }

GenerationConfig read_generation_config(const HfFolder& folder) { return read(folder, read_json); }

GenerationConfig read_generation_config(const Gguf& gguf) { return read(gguf, read_keys); }

}  // namespace llama2cpp
