// llama2.c's checkpoints, little-endian, tensors one after another without gaps:
//
//   v0   7 x i32 sizes, then f32 tensors. No magic: known by sizes that a Llama can have, and by the exact length.
//        A negative vocab_size says that the classifier is a matrix of its own.
//   v1   256 bytes: u32 magic, i32 version, 7 x i32 sizes, u8 shared classifier, zeros; then f32 tensors.
//   v2   as v1 with i32 group size after the u8; norms f32, each matrix as its int8 values and then its f32 scales.
//
// The sizes: dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len.
// The rest of a v1 or v2 header must be zeros: a writer that says more there may mean another model than we would run.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <vector>

#include "core/check.h"
#include "format/f32.h"
#include "format/int8_group.h"
#include "io/checkpoint.h"

namespace llama2cpp {
namespace {

constexpr std::uint32_t kMagic = 0x616B3432;  // "ak42"
constexpr std::size_t kSizesBytes = 7 * sizeof(std::int32_t);
constexpr std::size_t kHeaderBytes = 256;  // v1 and v2

using Item = std::optional<Part>;
constexpr Item kRotaryTables = std::nullopt;  // cos and sin, [seq_len, head_dim / 2] each: we compute our own

// Tensors in the order of the file: kind after kind, each through all layers. Only what every Llama
// has has a place there.
std::vector<Item> order_of(int version) {
  std::vector<Item> order;
  const auto add = [&](auto wanted) {
    for (const PartFacts& row : kParts) {
      if (is_needed(Config(), row.part).value_or(false) && wanted(row)) order.emplace_back(row.part);
    }
  };
  if (version == 0) {
    add([](const PartFacts& row) { return row.need != Need::untied; });
    order.push_back(kRotaryTables);
    add([](const PartFacts& row) { return row.need == Need::untied; });
  } else {
    add([](const PartFacts& row) { return is_vector(row.kind); });
    add([](const PartFacts& row) { return !is_vector(row.kind); });
  }
  return order;
}

struct Header {
  int version = 0;
  std::size_t bytes = 0;  // the tensors begin here
  Config config;
  std::int64_t group = 0;  // v2: values that share a scale; else 0
};

// Where one tensor lies in the file.
struct Place {
  Item item;
  std::int64_t layer;
  std::size_t begin;
  std::size_t value_bytes;
  std::size_t scale_bytes;  // they follow the values; 0 for f32

  std::size_t end() const { return begin + value_bytes + scale_bytes; }
};

template <class Number>
Number read(const Buffer& file, std::size_t offset) {
  Number number{};
  std::memcpy(&number, file.data() + offset, sizeof(number));
  return number;
}

Config read_sizes(const Buffer& file, std::size_t offset) {
  const auto size = [&](std::size_t i) { return std::int64_t{read<std::int32_t>(file, offset + i * 4)}; };
  Config config;
  config.dim = size(0);
  config.hidden_dim = size(1);
  config.n_layers = size(2);
  config.n_heads = size(3);
  config.n_kv_heads = size(4);
  config.vocab_size = size(5);
  config.seq_len = size(6);
  return config;
}

void check_sizes(Config& config) {
  if (config.dim > 0 && config.n_heads > 0) {
    if (config.dim % config.n_heads != 0) {
      throw FormatError(cat("config: dim is ", config.dim, ", which n_heads ", config.n_heads, " does not divide"));
    }
    config.head_dim = config.dim / config.n_heads;
  }
  config.validate();
}

Header read_header_v0(const Buffer& file) {
  if (file.size() < kSizesBytes) {
    throw FormatError(cat("a header takes ", kSizesBytes, " bytes, the file has ", file.size()));
  }
  Header header{0, kSizesBytes, read_sizes(file, 0)};
  header.config.tied = header.config.vocab_size > 0;
  header.config.vocab_size = std::abs(header.config.vocab_size);
  check_sizes(header.config);
  return header;
}

void check_group(const Header& header) {
  const Config& config = header.config;
  const std::int64_t group = header.group;
  if (group < 1 || config.dim % group != 0 || config.hidden_dim % group != 0) {
    throw FormatError(cat("group size (byte 37) is ", group, ", expected a number that divides dim ", config.dim,
                          " and hidden_dim ", config.hidden_dim, ", so that no group straddles two rows"));
  }
  if (group > kMostInt8Group) {
    throw FormatError(cat("group size (byte 37) is ", group, ", expected at most ", kMostInt8Group));
  }
}

Header read_header_v1(const Buffer& file) {
  if (file.size() < kHeaderBytes) {
    throw FormatError(cat("a header takes ", kHeaderBytes, " bytes, the file has ", file.size()));
  }
  Header header{read<std::int32_t>(file, 4), kHeaderBytes, read_sizes(file, 8)};
  if (header.version != 1 && header.version != 2) {
    throw FormatError(cat("version (byte 4) is ", header.version, ", expected 1 or 2"));
  }
  check_sizes(header.config);
  const auto shared = read<std::uint8_t>(file, 36);
  if (shared > 1) throw FormatError(cat("shared classifier (byte 36) is ", int{shared}, ", expected 0 or 1"));
  header.config.tied = shared == 1;
  std::size_t used = 37;
  if (header.version == 2) {
    header.group = read<std::int32_t>(file, used);
    used += sizeof(std::int32_t);
    check_group(header);
  }
  const std::byte* const start = file.data();
  const std::byte* const end = start + kHeaderBytes;
  const std::byte* stray = std::find_if(start + used, end, [](std::byte b) { return b != std::byte{0}; });
  if (stray != end) {
    throw FormatError(cat("byte ", stray - start, " of the header is ", static_cast<int>(*stray),
                          ", expected 0: the padding goes from byte ", used, " to ", kHeaderBytes));
  }
  return header;
}

Place place_of(const Header& header, Item item, std::int64_t layer, std::size_t begin) {
  const Config& config = header.config;
  const MatrixShape shape = item ? part_shape(config, *item) : MatrixShape{config.seq_len, config.head_dim};
  const std::size_t count =
      checked_mul(static_cast<std::size_t>(shape.rows), static_cast<std::size_t>(shape.cols), "tensor");
  Place place{item, layer, begin, 0, 0};
  if (header.group != 0 && item && !is_vector(*item)) {
    place.value_bytes = count;
    place.scale_bytes = checked_mul(count / static_cast<std::size_t>(header.group), sizeof(float), "scales");
  } else {
    place.value_bytes = checked_mul(count, sizeof(float), "tensor");
  }
  checked_add(begin, checked_add(place.value_bytes, place.scale_bytes, "tensor"), "file");
  return place;
}

// Calls visit(place) for every tensor in the order of the file, whatever the file's length is. Returns the length that
// the header stands for.
template <class Visit>
std::size_t for_each_place(const Header& header, Visit visit) {
  std::size_t begin = header.bytes;
  for (const Item item : order_of(header.version)) {
    if (header.config.tied && item && facts(*item).need == Need::untied) continue;
    const std::int64_t layers = item && per_layer(*item) ? header.config.n_layers : 1;
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      const Place place = place_of(header, item, layer, begin);
      visit(place);
      begin = place.end();
    }
  }
  return begin;
}

std::string name_of(const Place& place) {
  return place.item ? weight_name(Naming::meta, *place.item, place.layer) : "the rotary tables";
}

void check_length(const Header& header, const Buffer& file) {
  const std::size_t expected = for_each_place(header, [](const Place&) {});
  if (file.size() == expected) return;
  std::string where;
  for_each_place(header, [&](const Place& place) {
    if (where.empty() && place.end() > file.size()) {
      where = cat("it ends in ", name_of(place), ", which takes bytes ", place.begin, " to ", place.end());
    }
  });
  if (where.empty()) where = cat(file.size() - expected, " bytes follow the last tensor");
  const Config& config = header.config;
  throw FormatError(cat("expected ", expected, " bytes, found ", file.size(), ": ", where, ". (llama2.c v",
                        header.version, " header: dim ", config.dim, ", hidden_dim ", config.hidden_dim, ", n_layers ",
                        config.n_layers, ", n_heads ", config.n_heads, ", n_kv_heads ", config.n_kv_heads,
                        ", vocab_size ", config.vocab_size, ", seq_len ", config.seq_len,
                        config.tied ? ", shared classifier)" : ", own classifier)"));
}

Weight weight_at(const Place& place, const Header& header, const Buffer& file) {
  const MatrixShape shape = part_shape(header.config, *place.item);
  const auto plane = [&](std::size_t begin, std::size_t bytes) {
    return Plane{file.data() + begin, bytes, static_cast<std::int64_t>(bytes) / shape.rows, file};
  };
  Weight weight;
  weight.name = name_of(place);
  weight.format = place.scale_bytes != 0 ? &kInt8Group : &kF32;
  weight.rows = shape.rows;
  weight.cols = shape.cols;
  weight.group = place.scale_bytes != 0 ? header.group : 1;
  weight.planes[0] = plane(place.begin, place.value_bytes);
  if (place.scale_bytes != 0) weight.planes[1] = plane(place.begin + place.value_bytes, place.scale_bytes);
  return weight;
}

// An early exporter of llama2.c put the scales of all tensors at the end of the file, and nothing in the header tells.
// There, what lies in the place of scales are more values, and as floats half of those are negative.
void check_scales(const Weight& weight, const Buffer& file) {
  constexpr std::size_t kEnough = 64;
  const Plane& plane = weight.planes[1];
  for (std::size_t i = 0; i < std::min(plane.bytes / sizeof(float), kEnough); ++i) {
    const std::size_t offset = static_cast<std::size_t>(plane.data - file.data()) + i * sizeof(float);
    const auto scale = read<float>(file, offset);
    if (scale >= 0.0F && std::isfinite(scale)) continue;
    throw FormatError(cat(weight.name, ": scale ", i, " (byte ", offset, ") is ", scale,
                          ", expected a finite number of 0 or more. Either the file is damaged, or it is from an early "
                          "export.py that put all scales last: export it again"));
  }
}

Checkpoint open_with(const Header& header, const Buffer& file) {
  check_length(header, file);
  Checkpoint checkpoint;
  checkpoint.file_format = cat("llama2.c v", header.version);
  checkpoint.llama2c_arithmetic = header.version == 2;
  checkpoint.config = header.config;
  for_each_place(header, [&](const Place& place) {
    if (!place.item) return;
    Weight weight = weight_at(place, header, file);
    std::string name = weight.name;
    checkpoint.weights.emplace(std::move(name), std::move(weight));
  });
  if (header.version == 2) check_scales(checkpoint.weight(Part::tok_embeddings), file);
  return checkpoint;
}

std::string why_not_v0(const Buffer& file) {
  try {
    read_header_v0(file);
  } catch (const FormatError& error) {
    return error.what();
  }
  return {};
}

Checkpoint open_v0(const std::string& /*path*/, const Buffer& file, const OpenBeside& /*open_beside*/) {
  return open_with(read_header_v0(file), file);
}

std::string why_not_v1(const Buffer& file) {
  const bool has_magic = file.size() >= sizeof(kMagic) && read<std::uint32_t>(file, 0) == kMagic;
  return has_magic ? "" : "no magic 'ak42' (bytes 32 34 6b 61)";
}

Checkpoint open_v1(const std::string& /*path*/, const Buffer& file, const OpenBeside& /*open_beside*/) {
  return open_with(read_header_v1(file), file);
}

}  // namespace

const Reader kLlama2cV0{"llama2.c v0", why_not_v0, open_v0};
const Reader kLlama2cV1{"llama2.c v1 and v2", why_not_v1, open_v1};

}  // namespace llama2cpp
