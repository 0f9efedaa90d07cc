// Where every tensor of llama2.c's three versions lies, by numbers written down by hand; and what is said of files
// that are damaged or foreign.
#include <doctest/doctest.h>

#include <array>
#include <cstring>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "io/checkpoint.h"

namespace {

using llama2cpp::Buffer;
using llama2cpp::Checkpoint;
using llama2cpp::FormatError;
using llama2cpp::Naming;
using llama2cpp::Part;
using llama2cpp::Weight;

using Bytes = std::vector<std::byte>;
using Sizes = std::array<std::int32_t, 7>;

// dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len: small, and no two products alike by accident
constexpr Sizes kSizes{4, 6, 2, 2, 1, 5, 3};

template <class Value>
void append(Bytes& bytes, Value value) {
  const std::size_t end = bytes.size();
  bytes.resize(end + sizeof(value));
  std::memcpy(bytes.data() + end, &value, sizeof(value));
}

void append_sizes(Bytes& bytes, const Sizes& sizes) {
  for (const std::int32_t size : sizes) append(bytes, size);
}

// `count` floats, each its own index.
void append_indices(Bytes& bytes, int count) {
  for (int i = 0; i < count; ++i) append(bytes, static_cast<float>(i));
}

Bytes file_v0(Sizes sizes, int floats) {
  Bytes bytes;
  append_sizes(bytes, sizes);
  append_indices(bytes, floats);
  return bytes;
}

Bytes header_v1(std::int32_t version, const Sizes& sizes, std::uint8_t shared) {
  Bytes bytes;
  append(bytes, std::uint32_t{0x616B3432});
  append(bytes, version);
  append_sizes(bytes, sizes);
  append(bytes, shared);
  bytes.resize(256);
  return bytes;
}

Bytes file_v1(const Sizes& sizes, std::uint8_t shared, int floats) {
  Bytes bytes = header_v1(1, sizes, shared);
  append_indices(bytes, floats);
  return bytes;
}

Bytes header_v2(const Sizes& sizes, std::uint8_t shared, std::int32_t group) {
  Bytes bytes = header_v1(2, sizes, shared);
  std::memcpy(bytes.data() + 37, &group, sizeof(group));
  return bytes;
}

Checkpoint open(const Bytes& bytes) {
  Buffer file = Buffer::heap(bytes.size());
  if (!bytes.empty()) std::memcpy(file.data(), bytes.data(), bytes.size());
  return llama2cpp::open_checkpoint(file, "test.bin");
}

std::string error_of(const Bytes& bytes) {
  try {
    open(bytes);
  } catch (const FormatError& error) {
    return error.what();
  }
  return "no error";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

Bytes text_file(const std::string& text) {
  Bytes bytes;
  for (const char c : text) bytes.push_back(static_cast<std::byte>(c));
  return bytes;
}

struct Expected {
  const char* name;
  std::int64_t rows;
  std::int64_t cols;
  int first;  // in the file's order; v0 and v1: the index of the first float, v2: the offset in bytes
};

constexpr Expected kV0[] = {
    {"tok_embeddings.weight", 5, 4, 0},
    {"layers.0.attention_norm.weight", 1, 4, 20},
    {"layers.1.attention_norm.weight", 1, 4, 24},
    {"layers.0.attention.wq.weight", 4, 4, 28},
    {"layers.1.attention.wq.weight", 4, 4, 44},
    {"layers.0.attention.wk.weight", 2, 4, 60},
    {"layers.1.attention.wk.weight", 2, 4, 68},
    {"layers.0.attention.wv.weight", 2, 4, 76},
    {"layers.1.attention.wv.weight", 2, 4, 84},
    {"layers.0.attention.wo.weight", 4, 4, 92},
    {"layers.1.attention.wo.weight", 4, 4, 108},
    {"layers.0.ffn_norm.weight", 1, 4, 124},
    {"layers.1.ffn_norm.weight", 1, 4, 128},
    {"layers.0.feed_forward.w1.weight", 6, 4, 132},
    {"layers.1.feed_forward.w1.weight", 6, 4, 156},
    {"layers.0.feed_forward.w2.weight", 4, 6, 180},
    {"layers.1.feed_forward.w2.weight", 4, 6, 204},
    {"layers.0.feed_forward.w3.weight", 6, 4, 228},
    {"layers.1.feed_forward.w3.weight", 6, 4, 252},
    {"norm.weight", 1, 4, 276},
    {"output.weight", 5, 4, 286},  // two rotary tables of 3 floats lie between
};

constexpr Expected kV1[] = {
    {"layers.0.attention_norm.weight", 1, 4, 0},
    {"layers.1.attention_norm.weight", 1, 4, 4},
    {"layers.0.ffn_norm.weight", 1, 4, 8},
    {"layers.1.ffn_norm.weight", 1, 4, 12},
    {"norm.weight", 1, 4, 16},
    {"tok_embeddings.weight", 5, 4, 20},
    {"layers.0.attention.wq.weight", 4, 4, 40},
    {"layers.1.attention.wq.weight", 4, 4, 56},
    {"layers.0.attention.wk.weight", 2, 4, 72},
    {"layers.1.attention.wk.weight", 2, 4, 80},
    {"layers.0.attention.wv.weight", 2, 4, 88},
    {"layers.1.attention.wv.weight", 2, 4, 96},
    {"layers.0.attention.wo.weight", 4, 4, 104},
    {"layers.1.attention.wo.weight", 4, 4, 120},
    {"layers.0.feed_forward.w1.weight", 6, 4, 136},
    {"layers.1.feed_forward.w1.weight", 6, 4, 160},
    {"layers.0.feed_forward.w2.weight", 4, 6, 184},
    {"layers.1.feed_forward.w2.weight", 4, 6, 208},
    {"layers.0.feed_forward.w3.weight", 6, 4, 232},
    {"layers.1.feed_forward.w3.weight", 6, 4, 256},
    {"output.weight", 5, 4, 280},
};

// Group size 2. Each matrix: rows * cols bytes, then half as many scales of 4 bytes.
constexpr Expected kV2[] = {
    {"layers.0.attention_norm.weight", 1, 4, 256},
    {"layers.1.attention_norm.weight", 1, 4, 272},
    {"layers.0.ffn_norm.weight", 1, 4, 288},
    {"layers.1.ffn_norm.weight", 1, 4, 304},
    {"norm.weight", 1, 4, 320},
    {"tok_embeddings.weight", 5, 4, 336},
    {"layers.0.attention.wq.weight", 4, 4, 396},
    {"layers.1.attention.wq.weight", 4, 4, 444},
    {"layers.0.attention.wk.weight", 2, 4, 492},
    {"layers.1.attention.wk.weight", 2, 4, 516},
    {"layers.0.attention.wv.weight", 2, 4, 540},
    {"layers.1.attention.wv.weight", 2, 4, 564},
    {"layers.0.attention.wo.weight", 4, 4, 588},
    {"layers.1.attention.wo.weight", 4, 4, 636},
    {"layers.0.feed_forward.w1.weight", 6, 4, 684},
    {"layers.1.feed_forward.w1.weight", 6, 4, 756},
    {"layers.0.feed_forward.w2.weight", 4, 6, 828},
    {"layers.1.feed_forward.w2.weight", 4, 6, 900},
    {"layers.0.feed_forward.w3.weight", 6, 4, 972},
    {"layers.1.feed_forward.w3.weight", 6, 4, 1044},
    {"output.weight", 5, 4, 1116},
};
constexpr int kV2Bytes = 1176;

template <std::size_t N>
void check_indices(const Checkpoint& checkpoint, const Expected (&expected)[N], std::size_t count) {
  CHECK(checkpoint.weights.size() == count);
  for (std::size_t t = 0; t < count; ++t) {
    const Expected& tensor = expected[t];
    CAPTURE(tensor.name);
    const Weight& weight = checkpoint.weight(tensor.name);
    CHECK(weight.name == tensor.name);
    CHECK(weight.format->name == "f32");
    CHECK(weight.rows == tensor.rows);
    CHECK(weight.cols == tensor.cols);
    CHECK(weight.planes[0].bytes == static_cast<std::size_t>(tensor.rows * tensor.cols * 4));
    CHECK(weight.planes[0].row_bytes == tensor.cols * 4);
    CHECK(weight.planes[1].data == nullptr);
    std::vector<float> wanted(static_cast<std::size_t>(tensor.cols));
    std::vector<float> found(static_cast<std::size_t>(tensor.cols));
    for (std::int64_t row = 0; row < tensor.rows; ++row) {
      std::iota(wanted.begin(), wanted.end(), static_cast<float>(tensor.first + row * tensor.cols));
      weight.decode_row(row, found.data());
      CHECK(found == wanted);
    }
  }
}

}  // namespace

TEST_CASE("llama2.c v0: every float is where the format says") {
  SUBCASE("shared classifier") {
    const Checkpoint checkpoint = open(file_v0(kSizes, 286));
    CHECK(checkpoint.file_format == "llama2.c v0");
    CHECK(checkpoint.path == "test.bin");
    CHECK(checkpoint.config.tied);
    check_indices(checkpoint, kV0, std::size(kV0) - 1);
  }
  SUBCASE("a classifier of its own: vocab_size is negative") {
    Sizes sizes = kSizes;
    sizes[5] = -5;
    const Checkpoint checkpoint = open(file_v0(sizes, 306));
    CHECK_FALSE(checkpoint.config.tied);
    CHECK(checkpoint.config.vocab_size == 5);
    check_indices(checkpoint, kV0, std::size(kV0));
  }
}

TEST_CASE("llama2.c v1: every float is where the format says") {
  SUBCASE("shared classifier") {
    const Checkpoint checkpoint = open(file_v1(kSizes, 1, 280));
    CHECK(checkpoint.file_format == "llama2.c v1");
    CHECK(checkpoint.config.tied);
    check_indices(checkpoint, kV1, std::size(kV1) - 1);
  }
  SUBCASE("a classifier of its own") {
    const Checkpoint checkpoint = open(file_v1(kSizes, 0, 300));
    CHECK_FALSE(checkpoint.config.tied);
    check_indices(checkpoint, kV1, std::size(kV1));
  }
}

TEST_CASE("llama2.c v2: values and scales are where the format says") {
  Bytes bytes = header_v2(kSizes, 0, 2);
  bytes.resize(kV2Bytes);
  const Checkpoint checkpoint = open(bytes);
  CHECK(checkpoint.file_format == "llama2.c v2");
  CHECK(checkpoint.weights.size() == std::size(kV2));
  for (const Expected& tensor : kV2) {
    CAPTURE(tensor.name);
    const Weight& weight = checkpoint.weight(tensor.name);
    const auto count = static_cast<std::size_t>(tensor.rows * tensor.cols);
    CHECK(weight.rows == tensor.rows);
    CHECK(weight.cols == tensor.cols);
    CHECK(weight.planes[0].data - weight.planes[0].owner.data() == tensor.first);
    const bool gain = tensor.rows == 1;
    CHECK(weight.format->name == (gain ? "f32" : "int8_group"));
    CHECK(weight.group == (gain ? 1 : 2));
    CHECK(weight.planes[0].bytes == (gain ? count * 4 : count));
    if (gain) continue;
    CHECK(weight.planes[0].row_bytes == tensor.cols);
    CHECK(weight.planes[1].data == weight.planes[0].data + count);
    CHECK(weight.planes[1].bytes == count / 2 * 4);
    CHECK(weight.planes[1].row_bytes == tensor.cols / 2 * 4);
  }
}

TEST_CASE("llama2.c v2: a weight is its value times its group's scale") {
  Bytes bytes = header_v2(kSizes, 1, 2);
  bytes.resize(kV2Bytes - 60);
  // the first row of layer 1's w2 [4, 6]: values at 900, scales after 24 of them
  const std::array<std::int8_t, 6> values{-128, 127, 0, -1, 5, 100};
  const std::array<float, 3> scales{0.5F, -2.0F, 1e-3F};
  std::memcpy(bytes.data() + 900, values.data(), sizeof(values));
  std::memcpy(bytes.data() + 924, scales.data(), sizeof(scales));
  const Checkpoint checkpoint = open(bytes);
  const Weight& weight = checkpoint.weight(Part::w2, 1);
  std::vector<float> row(6);
  weight.decode_row(0, row.data());
  CHECK(row == std::vector<float>{-64.0F, 63.5F, -0.0F, 2.0F, 5.0F * 1e-3F, 100.0F * 1e-3F});
  std::vector<float> middle(2);
  weight.format->decode(weight, 0, 2, 2, middle.data());
  CHECK(middle == std::vector<float>{-0.0F, 2.0F});
  std::vector<float> across(4);
  weight.format->decode(weight, 0, 1, 4, across.data());  // begins and ends inside a group
  CHECK(across == std::vector<float>{63.5F, -0.0F, 2.0F, 5.0F * 1e-3F});
}

TEST_CASE("the config of a llama2.c file") {
  const llama2cpp::Config config =
      open(file_v1({8, 6, 1, 4, 2, 3, 7}, 1, 8 * 3 + 24 + 2 * 64 + 2 * 32 + 3 * 48)).config;
  CHECK(config.dim == 8);
  CHECK(config.hidden_dim == 6);
  CHECK(config.n_layers == 1);
  CHECK(config.n_heads == 4);
  CHECK(config.n_kv_heads == 2);
  CHECK(config.head_dim == 2);
  CHECK(config.vocab_size == 3);
  CHECK(config.seq_len == 7);
  CHECK(config.norm_eps == 1e-5F);
  CHECK(config.rope_theta == 10000.0F);
  CHECK(config.rope_style == llama2cpp::RopeStyle::interleaved);
}

TEST_CASE("weights keep the file alive") {
  Weight kept;
  {
    const Checkpoint checkpoint = open(file_v0(kSizes, 286));
    kept = checkpoint.weight(Part::wo, 1);
  }
  std::vector<float> row(4);
  kept.decode_row(3, row.data());
  CHECK(row == std::vector<float>{120.0F, 121.0F, 122.0F, 123.0F});
}

TEST_CASE("a file of the wrong length: what was expected, what was found, and where it ends") {
  Bytes bytes = file_v0(kSizes, 286);
  SUBCASE("cut in a matrix") {
    bytes.resize(28 + 4 * 70 - 1);
    const std::string error = error_of(bytes);
    CHECK(contains(error, "test.bin: expected 1172 bytes, found 307"));
    CHECK(contains(error, "it ends in layers.1.attention.wk.weight, which takes bytes 300 to 332"));
    CHECK(
        contains(error, "llama2.c v0 header: dim 4, hidden_dim 6, n_layers 2, n_heads 2, n_kv_heads 1, vocab_size 5"));
  }
  SUBCASE("cut in the rotary tables") {
    bytes.resize(bytes.size() - 1);
    CHECK(contains(error_of(bytes), "it ends in the rotary tables, which takes bytes 1148 to 1172"));
  }
  SUBCASE("only a header") {
    bytes.resize(28);
    CHECK(contains(error_of(bytes), "it ends in tok_embeddings.weight, which takes bytes 28 to 108"));
  }
  SUBCASE("one byte too long") {
    bytes.resize(bytes.size() + 1);
    CHECK(contains(error_of(bytes), "expected 1172 bytes, found 1173: 1 bytes follow the last tensor"));
  }
  SUBCASE("v1, cut") {
    bytes = file_v1(kSizes, 0, 299);
    CHECK(contains(error_of(bytes), "expected 1456 bytes, found 1452: it ends in output.weight"));
  }
  SUBCASE("v1, cut in its header") {
    bytes = file_v1(kSizes, 0, 299);
    bytes.resize(255);
    CHECK(contains(error_of(bytes), "a header takes 256 bytes, the file has 255"));
  }
  SUBCASE("v2, cut in the scales") {
    bytes = header_v2(kSizes, 1, 2);
    bytes.resize(kV2Bytes - 61);
    CHECK(contains(error_of(bytes), "it ends in layers.1.feed_forward.w3.weight, which takes bytes 1044 to 1116"));
  }
}

TEST_CASE("every length but the right one is refused") {
  Bytes v0 = file_v0(kSizes, 286);
  Bytes v1 = file_v1(kSizes, 1, 280);
  Bytes v2 = header_v2(kSizes, 1, 2);
  v2.resize(kV2Bytes - 60);
  for (const Bytes& whole : {v0, v1, v2}) {
    for (std::size_t length = 0; length < whole.size() + 9; ++length) {
      CAPTURE(length);
      Bytes bytes = whole;
      bytes.resize(length);
      if (length == whole.size()) {
        CHECK_NOTHROW(open(bytes));
      } else {
        CHECK_THROWS_AS(open(bytes), FormatError);
      }
    }
  }
}

TEST_CASE("headers that cannot be a Llama's") {
  const auto sizes_with = [](std::size_t i, std::int32_t value) {
    Sizes sizes = kSizes;
    sizes[i] = value;
    return sizes;
  };
  for (std::size_t i = 0; i < 7; ++i) {
    CAPTURE(i);
    for (const std::int32_t value : {0, -1, INT32_MIN, INT32_MAX}) {
      CHECK_THROWS_AS(open(file_v1(sizes_with(i, value), 1, 280)), FormatError);
      CHECK_THROWS_AS(open(file_v0(sizes_with(i, value), 286)), FormatError);
    }
  }
  CHECK(contains(error_of(file_v1(sizes_with(3, 3), 1, 280)), "dim is 4, which n_heads 3 does not divide"));
  CHECK(contains(error_of(file_v1(sizes_with(4, 4), 1, 280)), "n_heads is 2, which n_kv_heads 4 does not divide"));
  CHECK(contains(error_of(file_v1(sizes_with(3, 4), 1, 280)), "head_dim is 1, expected an even number"));
  CHECK(contains(error_of(file_v1(kSizes, 2, 280)), "shared classifier (byte 36) is 2, expected 0 or 1"));
  CHECK(contains(error_of(header_v1(3, kSizes, 1)), "version (byte 4) is 3, expected 1 or 2"));
}

TEST_CASE("sizes whose product overflows are an error before anything is allocated") {
  constexpr std::int32_t kHuge = 1 << 30;
  CHECK(contains(error_of(file_v1({kHuge, kHuge, 100'000, 1 << 20, 1 << 20, kHuge, kHuge}, 0, 1)), "overflows"));
  CHECK(contains(error_of(file_v0({kHuge, 2, 1, 1 << 20, 1, kHuge, kHuge}, 1)), "it ends in tok_embeddings.weight"));
  CHECK(contains(error_of(file_v1({2, 2, 100'000, 1, 1, 2, 2}, 1, 1)), "it ends in layers.0.attention_norm.weight"));
}

TEST_CASE("padding that is not zero is refused: it may say something that we would not do") {
  Bytes bytes = file_v1(kSizes, 1, 280);
  bytes[37] = std::byte{1};
  CHECK(contains(error_of(bytes), "byte 37 of the header is 1, expected 0"));
  bytes[37] = std::byte{0};
  bytes[255] = std::byte{255};
  CHECK(contains(error_of(bytes), "byte 255 of the header is 255, expected 0"));
}

TEST_CASE("a group size must divide every row") {
  for (const std::int32_t group : {0, -2, 3, 4, 5, INT32_MIN, INT32_MAX}) {
    CAPTURE(group);
    Bytes bytes = header_v2(kSizes, 1, group);
    bytes.resize(kV2Bytes - 60);
    CHECK(contains(error_of(bytes),
                   llama2cpp::cat("group size (byte 37) is ", group, ", expected a number that divides dim 4")));
  }
  Bytes bytes = header_v2(kSizes, 1, 1);
  bytes.resize(256 + 80 + 5 * 260);  // 260 weights of 1 byte and 1 scale
  CHECK_NOTHROW(open(bytes));
}

TEST_CASE("scales that cannot be: the layout of an early exporter, of the same length") {
  Bytes bytes = header_v2(kSizes, 1, 2);
  bytes.resize(kV2Bytes - 60);
  const float scale = -1.5F;
  std::memcpy(bytes.data() + 356 + 3 * 4, &scale, sizeof(scale));  // tok_embeddings: 20 values at 336, then 10 scales
  CHECK(contains(error_of(bytes), "tok_embeddings.weight: scale 3 (byte 368) is -1.5, expected a finite number"));
}

TEST_CASE("foreign files are named") {
  const auto padded = [](std::string start) { return text_file(start.append(300, '\0')); };
  CHECK(contains(error_of(padded("lmgg")),
                 "This looks like a GGML file (the format before GGUF). It has 304 bytes and begins with "
                 "6c 6d 67 67 00 00 00 00 (lmgg....)"));
  CHECK(contains(error_of(padded(std::string("GGUF\x01\0\0\0", 8))), "GGUF version (byte 4) is 1, expected 2 or 3"));
  CHECK(contains(error_of(padded("PK\x03\x04")), "a zip archive, as PyTorch's .pt, .pth and .bin files are"));
  CHECK(contains(error_of(padded("\x80\x02")), "a Python pickle"));
  CHECK(contains(error_of(padded(std::string("\x02\0\0\0\0\0\0\0{}", 10))), "a safetensors file"));
  CHECK(contains(error_of(padded(std::string("\x07\0\0\0\0\0\0\0\x05\0\0\0<unk>", 17))), "a llama2.c tokenizer.bin"));
  CHECK(contains(error_of(padded("version https://git-lfs.github.com/spec/v1\n")), "a Git LFS pointer"));
  CHECK(contains(error_of(padded("<!DOCTYPE html>")), "an HTML page"));
  CHECK(contains(error_of(text_file("{\"model_type\": \"llama\", \"hidden_size\": 64}")), "a JSON file"));
}

TEST_CASE("a file that nobody knows: its first bytes, and who was asked") {
  const std::string error = error_of(text_file("hello, this is some text that is long enough"));
  CHECK(contains(error,
                 "test.bin: not a checkpoint that this version reads. It has 44 bytes and begins with "
                 "68 65 6c 6c 6f 2c 20 74 (hello, t). Tried GGUF: no magic 'GGUF' (bytes 47 47 55 46); "));
  CHECK(contains(error, "; llama2.c v1 and v2: no magic 'ak42'"));
  CHECK(contains(error, "llama2.c v0: config: dim is 1819043176, which n_heads 1931506537 does not divide"));
  CHECK(contains(error_of({}), "It has 0 bytes"));
  CHECK(contains(error_of(text_file("x")), "llama2.c v0: a header takes 28 bytes, the file has 1"));
}

TEST_CASE("a tensor that is not there is named") {
  const Checkpoint checkpoint = open(file_v0(kSizes, 286));
  CHECK_THROWS_WITH_AS(checkpoint.weight(Part::output),
                       "test.bin: tensor 'output.weight' is missing from the 20 tensors of this llama2.c v0 checkpoint",
                       FormatError);
}

TEST_CASE("names of all families") {
  using llama2cpp::weight_name;
  CHECK(weight_name(Naming::meta, Part::wq, 3) == "layers.3.attention.wq.weight");
  CHECK(weight_name(Naming::meta, Part::norm, 3) == "norm.weight");
  CHECK(weight_name(Naming::hugging_face, Part::w1, 12) == "model.layers.12.mlp.gate_proj.weight");
  CHECK(weight_name(Naming::hugging_face, Part::w2, 0) == "model.layers.0.mlp.down_proj.weight");
  CHECK(weight_name(Naming::hugging_face, Part::w3, 0) == "model.layers.0.mlp.up_proj.weight");
  CHECK(weight_name(Naming::hugging_face, Part::ffn_norm, 0) == "model.layers.0.post_attention_layernorm.weight");
  CHECK(weight_name(Naming::hugging_face, Part::output) == "lm_head.weight");
  CHECK(weight_name(Naming::gguf, Part::wo, 7) == "blk.7.attn_output.weight");
  CHECK(weight_name(Naming::gguf, Part::norm) == "output_norm.weight");
  CHECK(weight_name(Naming::hugging_face, Part::bq, 1) == "model.layers.1.self_attn.q_proj.bias");
  CHECK(weight_name(Naming::hugging_face, Part::sinks, 3) == "model.layers.3.self_attn.sinks");
  CHECK(weight_name(Naming::gguf, Part::sinks, 3) == "blk.3.attn_sinks.weight");
  CHECK(weight_name(Naming::gguf, Part::e3_b, 3, 12) == "blk.3.ffn_up.12.bias");
  CHECK(llama2cpp::per_layer(Part::ffn_norm));
  CHECK_FALSE(llama2cpp::per_layer(Part::tok_embeddings));
}

TEST_CASE("a name tells its part and layer") {
  using llama2cpp::find_part;
  for (const Naming naming : llama2cpp::kNamings) {
    for (const llama2cpp::PartFacts& row : llama2cpp::kParts) {
      const std::int64_t layer = llama2cpp::per_layer(row.part) ? 120 : 0;
      const auto found = find_part(naming, llama2cpp::weight_name(naming, row.part, layer));
      REQUIRE(found);
      CHECK(found->part == row.part);
      CHECK(found->layer == layer);
    }
  }
  for (const char* name : {"", "blk.00.attn_q.weight", "blk.-1.attn_q.weight", "blk..attn_q.weight", "attn_q.weight",
                           "blk.1.attn_q.weight ", "blk.1234567890.attn_q.weight", "blk.1.attn_q"}) {
    CHECK_FALSE(find_part(Naming::gguf, name));
  }
}

TEST_CASE("a set of names tells its family") {
  using llama2cpp::detect_naming;
  using Names = std::vector<std::string>;
  CHECK(detect_naming(Names{"freqs", "layers.10.attention.wk.weight"}) == Naming::meta);
  CHECK(detect_naming(Names{"model.layers.0.self_attn.rotary_emb.inv_freq", "lm_head.weight"}) == Naming::hugging_face);
  CHECK(detect_naming(Names{"output.weight", "blk.0.attn_q.weight"}) == Naming::gguf);
  CHECK(detect_naming(Names{"output.weight", "norm.weight"}) == Naming::meta);
  CHECK_THROWS_WITH_AS(detect_naming(Names{"norm.weight", "model.norm.weight"}),
                       "the names mix two families: 'norm.weight' is Llama's and llama2.c's, 'model.norm.weight' is "
                       "Hugging Face's",
                       std::invalid_argument);
  for (const Names& names :
       {Names{}, Names{"output.weight"}, Names{"layers..ffn_norm.weight"}, Names{"layers.x1.ffn_norm.weight"},
        Names{"ln_f.weight"}, Names{"layers.ffn_norm.weight"}}) {
    CHECK_THROWS_AS(detect_naming(names), std::invalid_argument);
  }
}
