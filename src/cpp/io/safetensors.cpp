// The format, from its README (github.com/huggingface/safetensors) and its library's checks:
//   8 bytes: N, little-endian, at most 100,000,000
//   N bytes: a JSON object in UTF-8; its first byte is '{', and spaces may follow it
//     "tensor name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}    no name twice
//     "__metadata__": {"text": "text", ...}                                             may be missing, or null
//   the rest: the tensors' bytes, little-endian, row-major. Offsets count from here. Sorted by them, each tensor begins
//     where the one before it ends, and the last ends with the file: no holes, no overlaps.
#include "io/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/check.h"
#include "core/file_kind.h"
#include "core/quote.h"
#include "io/json.h"

namespace llama2cpp {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are used as they lie in the file");

constexpr std::size_t kSizeBytes = 8;
constexpr std::uint64_t kMaxHeader = 100'000'000;
constexpr std::string_view kMetadata = "__metadata__";
constexpr std::size_t kAlignment = 8;  // of the first tensor in files that we write, as the library does

struct DTypeFacts {
  std::string_view name;
  std::size_t bits;
};

constexpr DTypeFacts kDTypes[] = {
    {"BOOL", 8},    {"F4", 4},          {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},   {"I8", 8},
    {"F8_E5M2", 8}, {"F8_E4M3", 8},     {"F8_E8M0", 8}, {"I16", 16},    {"U16", 16}, {"F8_E4M3FNUZ", 8},
    {"F16", 16},    {"F8_E5M2FNUZ", 8}, {"BF16", 16},   {"I32", 32},    {"U32", 32}, {"F32", 32},
    {"C64", 64},    {"F64", 64},        {"I64", 64},    {"U64", 64},
};

const DTypeFacts* find_dtype(std::string_view name) {
  const auto* const found =
      std::find_if(std::begin(kDTypes), std::end(kDTypes), [&](const DTypeFacts& facts) { return facts.name == name; });
  return found == std::end(kDTypes) ? nullptr : found;
}

// Whole bytes; those of types below a byte must fill theirs.
std::size_t bytes_of(const DTypeFacts& dtype, std::span<const std::int64_t> shape) {
  std::size_t bits = dtype.bits;
  for (const std::int64_t size : shape) bits = checked_mul(bits, static_cast<std::size_t>(size), "shape");
  if (bits % 8 != 0) throw FormatError(cat(bits, " bits are no whole bytes"));
  return bits / 8;
}

// `data` is where the offsets count from.
SafetensorsTensor read_tensor(const Json& entry, std::size_t data, std::size_t file_size) {
  const Json name = entry.get("dtype");
  const DTypeFacts* dtype = find_dtype(name.string());
  if (dtype == nullptr) name.fail(cat("the type ", excerpt(name.string()), " is none that safetensors has"));
  SafetensorsTensor tensor;
  tensor.dtype = dtype->name;
  for (const Json size : entry.get("shape").elements()) {
    tensor.shape.push_back(size.int64());
    if (size.int64() < 0) size.fail(cat("expected a size of 0 or more, found ", size.int64()));
  }
  const Json offsets = entry.get("data_offsets");
  if (offsets.size() != 2) offsets.fail(cat("expected [begin, end], found ", offsets.size(), " values"));
  const std::uint64_t begin = offsets.at(0).uint64();
  const std::uint64_t end = offsets.at(1).uint64();
  if (begin > end || end > file_size - data) {
    offsets.fail(cat("expected 0 <= begin <= end <= ", file_size - data, ", which is the end of the file, found ",
                     begin, " and ", end));
  }
  tensor.begin = data + static_cast<std::size_t>(begin);
  tensor.end = data + static_cast<std::size_t>(end);
  std::size_t expected = 0;
  try {
    expected = bytes_of(*dtype, tensor.shape);
  } catch (const FormatError& error) {
    entry.fail(cat(describe_tensor(tensor.dtype, tensor.shape), ": ", error.what()));
  }
  if (expected != tensor.end - tensor.begin) {
    entry.fail(cat(describe_tensor(tensor.dtype, tensor.shape), " takes ", expected,
                   " bytes, but its place in the file has ", tensor.end - tensor.begin));
  }
  return tensor;
}

// Every byte after the header belongs to one tensor.
void check_coverage(const SafetensorsHeader& header, std::size_t data, std::size_t file_size) {
  using Entry = std::pair<const std::string, SafetensorsTensor>;
  std::vector<const Entry*> places;
  for (const Entry& entry : header.tensors) places.push_back(&entry);
  std::sort(places.begin(), places.end(), [](const Entry* a, const Entry* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  std::size_t end = data;
  for (const Entry* place : places) {
    const auto& [name, tensor] = *place;
    if (tensor.begin != end) {
      throw FormatError(cat("tensor ", excerpt(name), " begins at byte ", tensor.begin, ", expected ", end, ", where ",
                            end == data ? "the header" : "the tensor before it", " ends"));
    }
    end = tensor.end;
  }
  if (end != file_size) {
    throw FormatError(cat("expected ", end, " bytes, which is where the last tensor ends, found ", file_size));
  }
}

}  // namespace

SafetensorsHeader read_safetensors_header(const Buffer& file) {
  refuse_stand_in({file.data(), file.size()}, "a safetensors file");
  if (file.size() < kSizeBytes) {
    throw FormatError(
        cat("expected the header's length in the first ", kSizeBytes, " bytes, found ", file.size(), " bytes in all"));
  }
  std::uint64_t size = 0;
  std::memcpy(&size, file.data(), kSizeBytes);
  const std::size_t left = file.size() - kSizeBytes;
  if (size > kMaxHeader || size > left) {
    throw FormatError(cat("the header's length (byte 0) is ", size, ", expected at most ",
                          std::min<std::uint64_t>(kMaxHeader, left),
                          left < kMaxHeader ? ", which is the rest of the file" : ""));
  }
  const auto header_bytes = static_cast<std::size_t>(size);
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + kSizeBytes, header_bytes);
  if (!text.starts_with('{')) throw FormatError("expected '{' at byte 8, where the header begins");

  const std::size_t data = kSizeBytes + header_bytes;
  const JsonDocument document(text, "header", kSizeBytes);
  SafetensorsHeader header;
  for (const Json entry : document.root().members()) {
    if (entry.name() == kMetadata) {
      if (entry.is_null()) continue;  // as mlx writes it where there is none
      for (const Json item : entry.members()) header.metadata.emplace(item.name(), item.string());
    } else {
      header.tensors.emplace(entry.name(), read_tensor(entry, data, file.size()));
    }
  }
  check_coverage(header, data, file.size());
  return header;
}

std::string write_safetensors_header(const std::map<std::string, std::string, std::less<>>& metadata,
                                     std::span<const NamedShape> tensors) {
  std::string json = cat("{", quote(kMetadata), ":{");
  for (const auto& [name, value] : metadata) {
    json += cat(json.ends_with('{') ? "" : ",", quote(name), ":", quote(value));
  }
  json += "}";
  std::size_t begin = 0;
  for (const NamedShape& tensor : tensors) {
    const DTypeFacts* dtype = find_dtype(tensor.dtype);
    LLAMA2CPP_CHECK(dtype != nullptr, "safetensors has no type '", tensor.dtype, "'");
    const std::size_t end = begin + bytes_of(*dtype, tensor.shape);
    std::string shape;
    for (const std::int64_t size : tensor.shape) shape += cat(shape.empty() ? "" : ",", size);
    json += cat(",", quote(tensor.name), R"(:{"dtype":)", quote(tensor.dtype), R"(,"shape":[)", shape,
                R"(],"data_offsets":[)", begin, ",", end, "]}");
    begin = end;
  }
  json += "}";
  json.resize((json.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');

  const std::uint64_t size = json.size();
  std::string out(kSizeBytes, '\0');
  std::memcpy(out.data(), &size, kSizeBytes);
  return out + json;
}

std::string describe_tensor(std::string_view dtype, std::span<const std::int64_t> shape) {
  std::string text = cat(dtype, " [");
  for (const std::int64_t size : shape) text += cat(text.ends_with('[') ? "" : ", ", size);
  return text + "]";
}

}  // namespace llama2cpp
