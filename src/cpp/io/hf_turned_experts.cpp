// gpt-oss's experts in Hugging Face folders: all of a layer's in one tensor of floats whose columns come first, or in blocks
// of MXFP4 as OpenAI writes them, with their scales in a tensor of their own; and gate and up in one matrix, whose rows are one
// of each in turn. They are copied into what the rest reads: floats of the same type, row by row, and GGUF's blocks.
#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/memory_needs.h"
#include "core/quote.h"
#include "format/mxfp4.h"
#include "io/families.h"
#include "io/hf.h"
#include "io/names.h"

namespace llama2cpp {
namespace {

constexpr std::string_view kFloats[] = {"F32", "F16", "BF16", "F64"};

// A tensor of a layer's experts: e.g. gate_up_proj, whose rows are e1's and e3's in turn.
struct Stacked {
  const std::string& name;
  std::int64_t layer;
  std::span<const Part> parts;
  const Config& config;

  std::int64_t experts() const { return config.n_experts; }
  std::int64_t turns() const { return static_cast<std::int64_t>(parts.size()); }
  std::int64_t rows() const { return part_shape(config, parts[0]).rows; }
  std::int64_t cols() const { return part_shape(config, parts[0]).cols; }
};

[[noreturn]] void throw_other(const std::string& name, const Placed& placed, std::string_view expected) {
  throw FormatError(
      cat(placed.file_name, ": tensor ", excerpt(name), " is ", placed.describe(), ", expected ", expected));
}

void need_shape(const std::string& name, const Placed& placed, std::string_view dtype,
                const std::vector<std::int64_t>& shape) {
  const bool fits = placed.tensor.dtype == dtype && placed.tensor.shape == shape;
  if (!fits) throw_other(name, placed, describe_tensor(dtype, shape));
}

// Floats of any type: bytes of one.
std::size_t need_floats(const std::string& name, const Placed& placed, const std::vector<std::int64_t>& shape) {
  const std::string_view dtype = placed.tensor.dtype;
  const bool floats = std::find(std::begin(kFloats), std::end(kFloats), dtype) != std::end(kFloats);
  if (!floats || placed.tensor.shape != shape) {
    throw_other(name, placed, cat(describe_tensor(floats ? dtype : "F32", shape), floats ? "" : ", F16, BF16 or F64"));
  }
  return dtype == "F64" ? 8 : dtype == "F32" ? 4 : 2;
}

// Memory for what a part of a tensor becomes.
Buffer copy_of(const std::string& name, std::size_t bytes) {
  if (static_cast<double>(bytes) >= kWorthChecking) {
    need_memory(static_cast<double>(bytes), cat("a copy of tensor ", excerpt(name), ", whose matrices lie otherwise,"),
                "", "a GGUF file of the model is used where it lies");
  }
  return Buffer::heap(bytes);
}

// Each expert's part of a copy, `bytes` of it, under its own name.
void add(const Stacked& whole, Part part, const Placed& like, const Buffer& copy, std::size_t bytes,
         const std::vector<std::int64_t>& shape, Tensors& tensors) {
  for (std::int64_t e = 0; e < whole.experts(); ++e) {
    Placed placed = like;
    placed.file = copy;
    placed.tensor.shape = shape;
    placed.tensor.begin = static_cast<std::size_t>(e) * bytes;
    placed.tensor.end = placed.tensor.begin + bytes;
    const std::string own = weight_name(Naming::hugging_face, part, whole.layer, e);
    if (!tensors.emplace(own, std::move(placed)).second) {
      throw FormatError(
          cat(like.file_name, ": tensor ", excerpt(whole.name), " holds ", excerpt(own), ", which is there too"));
    }
  }
}

// in [E, cols, rows * turns] -> out [E, rows, cols], of every `turns`-th row from `first` on
template <std::size_t kSize>
void turn(const Stacked& whole, std::int64_t first, const std::byte* in, std::byte* out) {
  constexpr std::int64_t kTile = 32;  // columns whose lines of the tensor stay in the cache
  const std::int64_t rows = whole.rows();
  const std::int64_t cols = whole.cols();
  const std::int64_t width = rows * whole.turns();
  const auto at = [](std::int64_t index) { return index * static_cast<std::int64_t>(kSize); };
  for (std::int64_t e = 0; e < whole.experts(); ++e, in += at(cols * width), out += at(rows * cols)) {
    for (std::int64_t begin = 0; begin < cols; begin += kTile) {
      const std::int64_t end = std::min(begin + kTile, cols);
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t c = begin; c < end; ++c) {
          std::memcpy(out + at(r * cols + c), in + at(c * width + r * whole.turns() + first), kSize);
        }
      }
    }
  }
}

void add_floats(const Stacked& whole, Tensors& tensors) {
  const auto found = tensors.find(whole.name);
  if (found == tensors.end()) return;
  const Placed placed = found->second;
  const std::size_t size =
      need_floats(whole.name, placed, {whole.experts(), whole.cols(), whole.rows() * whole.turns()});
  const FileReads reads({&placed.file, 1});
  tensors.erase(found);
  for (std::int64_t i = 0; i < whole.turns(); ++i) {
    const std::size_t bytes = static_cast<std::size_t>(whole.rows() * whole.cols()) * size;
    const Buffer copy = copy_of(whole.name, static_cast<std::size_t>(whole.experts()) * bytes);
    if (size == 8) turn<8>(whole, i, placed.bytes(), copy.data());
    if (size == 4) turn<4>(whole, i, placed.bytes(), copy.data());
    if (size == 2) turn<2>(whole, i, placed.bytes(), copy.data());
    add(whole, whole.parts[static_cast<std::size_t>(i)], placed, copy, bytes, {whole.rows(), whole.cols()}, tensors);
  }
  reads.check();
}

// 32 weights in 16 bytes: from 2i in the low half of byte i and 2i + 1 in its high half to i and i + 16.
void regroup(const std::byte* in, std::byte* out) {
  std::array<std::uint8_t, 32> weights{};
  for (std::size_t i = 0; i < 16; ++i) {
    weights[2 * i] = static_cast<std::uint8_t>(byte_at(in + i) & 15U);
    weights[2 * i + 1] = static_cast<std::uint8_t>(byte_at(in + i) >> 4U);
  }
  for (std::size_t i = 0; i < 16; ++i) out[i] = static_cast<std::byte>(weights[i] | weights[i + 16] << 4U);
}

// blocks [E, rows * turns, cols / 32, 16] and scales [E, rows * turns, cols / 32]: the same powers of two as GGUF's.
void add_blocks(const Stacked& whole, Tensors& tensors) {
  const std::string blocks_name = whole.name + "_blocks";
  const std::string scales_name = whole.name + "_scales";
  const auto found = tensors.find(blocks_name);
  const auto beside = tensors.find(scales_name);
  if (found == tensors.end() && beside == tensors.end()) return;
  if (found == tensors.end() || beside == tensors.end()) {
    const bool no_blocks = found == tensors.end();
    throw FormatError(cat("tensor ", excerpt(no_blocks ? blocks_name : scales_name), " is missing, beside ",
                          excerpt(no_blocks ? scales_name : blocks_name)));
  }
  const Placed blocks = found->second;
  const Placed scales = beside->second;
  constexpr std::int64_t kPacked = 16;  // bytes of a block's weights
  const std::int64_t rows = whole.rows();
  const std::int64_t groups = whole.cols() / kMXFP4.group;
  if (whole.cols() % kMXFP4.group != 0) {
    throw FormatError(cat(blocks.file_name, ": tensor ", excerpt(blocks_name), " has blocks of ", kMXFP4.group,
                          " weights, which do not fill rows of ", whole.cols()));
  }
  need_shape(blocks_name, blocks, "U8", {whole.experts(), rows * whole.turns(), groups, kPacked});
  need_shape(scales_name, scales, "U8", {whole.experts(), rows * whole.turns(), groups});
  std::vector<Buffer> files;
  blocks.file.add_to(files);
  scales.file.add_to(files);
  const FileReads reads(files);
  tensors.erase(found);
  tensors.erase(beside);
  Placed like = blocks;
  like.tensor.dtype = "MXFP4";
  like.format = &kMXFP4;
  for (std::int64_t i = 0; i < whole.turns(); ++i) {
    const auto bytes = static_cast<std::size_t>(rows * groups * kMXFP4.group_bytes);
    const Buffer copy = copy_of(blocks_name, static_cast<std::size_t>(whole.experts()) * bytes);
    std::byte* out = copy.data();
    for (std::int64_t row = i; row < whole.experts() * rows * whole.turns(); row += whole.turns()) {
      for (std::int64_t place = row * groups; place < (row + 1) * groups; ++place, out += kMXFP4.group_bytes) {
        *out = scales.bytes()[place];
        regroup(blocks.bytes() + place * kPacked, out + 1);
      }
    }
    add(whole, whole.parts[static_cast<std::size_t>(i)], like, copy, bytes, {rows, whole.cols()}, tensors);
  }
  reads.check();
}

// A tensor of biases, [E, rows * turns].
void add_biases(const Stacked& whole, Tensors& tensors) {
  const auto found = tensors.find(whole.name);
  if (found == tensors.end()) return;
  const Placed placed = found->second;
  const std::int64_t n = part_shape(whole.config, whole.parts[0]).cols;
  const std::size_t size = need_floats(whole.name, placed, {whole.experts(), n * whole.turns()});
  const FileReads reads({&placed.file, 1});
  tensors.erase(found);
  const std::size_t bytes = static_cast<std::size_t>(n) * size;
  for (std::int64_t i = 0; i < whole.turns(); ++i) {
    const Buffer copy = copy_of(whole.name, static_cast<std::size_t>(whole.experts()) * bytes);
    for (std::int64_t place = 0; place < whole.experts() * n; ++place) {
      const auto from = static_cast<std::size_t>(place * whole.turns() + i);
      std::memcpy(copy.data() + static_cast<std::size_t>(place) * size, placed.bytes() + from * size, size);
    }
    add(whole, whole.parts[static_cast<std::size_t>(i)], placed, copy, bytes, {n}, tensors);
  }
  reads.check();
}

}  // namespace

bool says_mxfp4(const Json& config) {
  const std::optional<Json> settings = config.find("quantization_config");
  const std::optional<Json> method = settings ? settings->find("quant_method") : std::nullopt;
  return method && method->string() == kMXFP4.name;
}

void name_turned_experts(const ExpertFacts& facts, const Config& config, Tensors& tensors) {
  if (facts.turned_inputs.empty()) return;
  struct Kind {
    std::string_view stem;
    std::vector<Part> matrices, biases;
  };
  const Kind kinds[] = {{facts.turned_inputs, {Part::e1, Part::e3}, {Part::e1_b, Part::e3_b}},
                        {facts.turned_output, {Part::e2}, {Part::e2_b}}};
  for (std::int64_t layer = 0; layer < config.n_layers; ++layer) {
    for (const Kind& kind : kinds) {
      const std::string name = cat(kLayers, layer, ".", kind.stem);
      const std::string bias = name + "_bias";
      add_floats({name, layer, kind.matrices, config}, tensors);
      add_blocks({name, layer, kind.matrices, config}, tensors);
      add_biases({bias, layer, kind.biases, config}, tensors);
    }
  }
}

}  // namespace llama2cpp
