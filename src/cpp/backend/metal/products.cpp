#include "backend/metal/products.h"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <string_view>

#include "backend/metal/kernels/args.h"
#include "core/check.h"
#include "format/f32.h"

namespace llama2cpp::metal {
namespace {

constexpr std::int64_t kFewTokens = 8;  // up to here matvec is faster than tiles
constexpr std::size_t kTileBytes = (kTileRows + kTileTokens) * kTileColumns * sizeof(float);
constexpr std::size_t kMostIds = kMostValues / sizeof(std::int32_t);

// How the planes of a weight are read.
enum class Kind : std::uint8_t { numbers, blocks, int8_group, gptq };

struct FormatFacts {
  std::string_view format;
  Kind kind;
  std::uint32_t bytes;  // that plane 0 is read by, at least: its alignment
  std::uint32_t rows;   // of a simdgroup of matvec: the library's kRows; 0 where lanes are rows

  // GPTQ's two versions have one.
  std::string_view library() const { return format.substr(0, format.find("_v2")); }
};

// THE list of formats that have kernels.
constexpr FormatFacts kFormats[] = {
    {"f32", Kind::numbers, 4, 2},  {"f16", Kind::numbers, 2, 2},
    {"bf16", Kind::numbers, 2, 2}, {"q8_0", Kind::blocks, 2, 2},
    {"q4_0", Kind::blocks, 2, 4},  {"q4_1", Kind::blocks, 2, 4},
    {"q5_0", Kind::blocks, 2, 2},  {"q5_1", Kind::blocks, 2, 2},
    {"q2_k", Kind::blocks, 2, 2},  {"q3_k", Kind::blocks, 2, 2},
    {"q4_k", Kind::blocks, 2, 2},  {"q5_k", Kind::blocks, 2, 2},
    {"q6_k", Kind::blocks, 2, 2},  {"int8_group", Kind::int8_group, 1, 4},
    {"gptq2", Kind::gptq, 4, 0},   {"gptq2_v2", Kind::gptq, 4, 0},
    {"gptq3", Kind::gptq, 4, 0},   {"gptq3_v2", Kind::gptq, 4, 0},
    {"gptq4", Kind::gptq, 4, 0},   {"gptq4_v2", Kind::gptq, 4, 0},
    {"gptq8", Kind::gptq, 4, 0},   {"gptq8_v2", Kind::gptq, 4, 0},
};

const FormatFacts* find_facts(const Weight& weight) {
  const auto* const found = std::ranges::find(kFormats, weight.format->name, &FormatFacts::format);
  return found == std::end(kFormats) || weight.format->in_panels_of != nullptr ? nullptr : found;
}

std::uint32_t ceil_div(std::uint32_t a, std::uint32_t b) { return a / b + (a % b != 0 ? 1 : 0); }

// How kernels may load four neighbours of rows of numbers of `size` bytes: kFours of kernels/common.metal.
std::uint32_t fours_of(const Operand& operand, std::int64_t row_bytes, std::int64_t size, std::int64_t columns) {
  if (columns % 4 != 0) return 0;
  const bool aligned = static_cast<std::int64_t>(operand.place.offset) % (4 * size) == 0 && row_bytes % (4 * size) == 0;
  return aligned ? 2 : 1;
}

// A weight as kernels are given it: buffers 0 to 3, what goes into args, and the constants of its library.
struct Bound {
  const FormatFacts* facts = nullptr;
  std::array<Operand, 4> planes{};
  WeightArgs args{};
  std::array<Constant, 5> constants{};  // the first is kFours, which x decides too
  std::size_t constant_count = 1;
  std::uint32_t fours = 2;
  double bytes = 0;  // of memory that all rows take
};

struct Binder {
  Tools& tools;
  const Weight& weight;
  const char* op;

  // The first `bytes` of a plane.
  Operand plane(std::size_t index, std::size_t bytes, std::size_t alignment) const {
    const Plane& plane = weight.planes[index];
    LLAMA2CPP_CHECK(plane.data != nullptr && plane.bytes >= bytes, "[", op, "] w is ", shape_text(weight), " (",
                    weight.format->name, "), but plane ", index, " has ", plane.bytes, " bytes, expected ", bytes);
    return {.place = tools.memory.weight(plane, alignment), .bytes = bytes, .access = Access::read};
  }

  // Rows of `used` bytes.
  Operand rows(std::size_t index, std::int64_t used, std::size_t alignment) const {
    const std::int64_t bytes = (weight.rows - 1) * weight.planes[index].row_bytes + used;
    return plane(index, static_cast<std::size_t>(bytes), alignment);
  }

  void bind_int8_group(Bound& bound) const {
    const std::int64_t groups = weight.cols / weight.group;
    bound.planes[0] = rows(0, weight.cols, 1);
    bound.planes[1] = rows(1, groups * 4, 4);
    bound.args.scale_bytes = size32(weight.planes[1].row_bytes, op);
    bound.args.groups = size32(groups, op);
    bound.constants[1] = {1, size32(weight.group, op)};
    bound.constant_count = 2;
    // A piece is 8 columns.
    bound.fours = weight.cols % 8 == 0 ? fours_of(bound.planes[0], weight.planes[0].row_bytes, 1, weight.cols) : 0;
  }

  void bind_gptq(Bound& bound) const {
    const auto bits = static_cast<std::size_t>(weight.format->blocks.bits);
    const auto cols = static_cast<std::size_t>(weight.cols);
    const auto n = static_cast<std::size_t>(weight.rows);
    LLAMA2CPP_CHECK(n * bits % 32 == 0 && cols * bits % 32 == 0, "[", op, "] w is ", shape_text(weight), " (",
                    weight.format->name, "), which words of 32 bits do not fill");
    const bool indexed = weight.planes[3].data != nullptr;
    const bool floats = weight.planes[1].row_bytes != 0;
    const std::size_t group_bytes = n * (floats ? 4 : 2);
    const std::size_t groups = weight.planes[1].bytes / group_bytes;
    LLAMA2CPP_CHECK(groups > 0, "[", op, "] w is ", shape_text(weight), " (", weight.format->name,
                    ") and has no scales");
    bound.planes[0] = plane(0, cols * bits / 32 * n * 4, 4);
    bound.planes[1] = plane(1, groups * group_bytes, floats ? 4 : 2);
    bound.planes[2] = plane(2, groups * (n * bits / 32) * 4, 4);
    if (indexed) bound.planes[3] = plane(3, cols * 4, 4);
    bound.args.groups = size32(static_cast<std::int64_t>(groups), op);
    bound.constants[1] = {1, size32(weight.group, op)};
    bound.constants[2] = {2, indexed ? 1U : 0U};
    bound.constants[3] = {3, floats ? 1U : 0U};
    bound.constants[4] = {4, weight.format->name.ends_with("_v2") ? 0U : 1U};
    bound.constant_count = 5;
  }

  Bound bind() const {
    Bound bound;
    bound.facts = find_facts(weight);
    if (bound.facts == nullptr) throw FormatError(cat("[", op, "] ", refused(weight), "; use backend='cpu'"));
    bound.args.rows = size32(weight.rows, op);
    bound.args.columns = size32(weight.cols, op);
    bound.args.row_bytes = size32(weight.planes[0].row_bytes, op);
    switch (bound.facts->kind) {
      case Kind::int8_group:
        bind_int8_group(bound);
        break;
      case Kind::gptq:
        bind_gptq(bound);
        break;
      case Kind::numbers:
      case Kind::blocks:
        bound.planes[0] = rows(0, row_bytes(*weight.format, weight.cols), bound.facts->bytes);
        if (bound.facts->kind == Kind::numbers) {
          bound.fours = fours_of(bound.planes[0], weight.planes[0].row_bytes, bound.facts->bytes, weight.cols);
        }
        break;
    }
    for (Operand& operand : bound.planes) {
      bound.bytes += static_cast<double>(operand.bytes);
      if (operand.bytes == 0) operand = bound.planes[0];  // kernels have the parameter, and do not look
    }
    return bound;
  }
};

const Kernel& kernel_of(Tools& tools, const Bound& bound, std::string_view name, std::uint32_t fours) {
  std::array<Constant, 5> constants = bound.constants;
  constants[0] = {0, fours};
  return tools.device.kernel(bound.facts->library(), name, std::span(constants).first(bound.constant_count));
}

struct Form {
  std::string_view kernel;
  Grid grid;
};

// Tokens in `tokens` columns of the grid's groups, weights in the other.
Form form_of(const FormatFacts& facts, std::uint32_t rows, std::uint32_t tokens) {
  if (tokens > kFewTokens) {
    return {"matmul",
            {.groups = {ceil_div(tokens, kTileTokens), ceil_div(rows, kTileRows)},
             .threads = {kTileThreads},
             .shared = kTileBytes}};
  }
  const std::uint32_t together = tokens <= 2 ? tokens : 4;  // that share one read of the weights
  const std::string_view kernel = together == 1 ? "matvec_1" : together == 2 ? "matvec_2" : "matvec_4";
  if (facts.kind == Kind::gptq) {
    return {kernel,
            {.groups = {ceil_div(rows, kSimdgroup), ceil_div(tokens, together)},
             .threads = {kRowSimdgroups * kSimdgroup},
             .shared = std::size_t{kRowSimdgroups} * together * kSimdgroup * sizeof(float)}};
  }
  return {kernel,
          {.groups = {ceil_div(rows, 2 * facts.rows), ceil_div(tokens, together)}, .threads = {2 * kSimdgroup}}};
}

void encode_product(Tools& tools, const Weight& weight, const Tensor& x, const Tensor& out) {
  const Bound bound = Binder{tools, weight, "matmul"}.bind();
  const Operand input = tools.reads(x, "matmul", "x");
  const Operand output = tools.writes(out, "matmul", "out");
  const ProductArgs args{.weight = bound.args,
                         .tokens = size32(x.rows(), "matmul"),
                         .x_stride = size32(x.row_stride, "matmul"),
                         .out_stride = size32(out.row_stride, "matmul")};
  const Form form = form_of(*bound.facts, args.weight.rows, args.tokens);
  const std::uint32_t fours = std::min(bound.fours, fours_of(input, x.row_stride * 4, 4, x.columns()));
  const Kernel& kernel = kernel_of(tools, bound, form.kernel, fours);
  const Operand operands[] = {bound.planes[0], bound.planes[1], bound.planes[2], bound.planes[3], input, output};
  const double macs = static_cast<double>(weight.rows) * static_cast<double>(weight.cols);
  tools.pass.dispatch(kernel, operands, args, form.grid,
                      {.bytes = bound.bytes + static_cast<double>(input.bytes + output.bytes),
                       .flops = 2 * macs * static_cast<double>(x.rows())});
}

}  // namespace

std::string refused(const Weight& weight) {
  // A part of a wider array: its plane does not say how far the memory goes that the GPU would be given.
  const bool apart = weight.format == &kF32 && weight.planes[0].row_bytes != row_bytes(kF32, weight.cols);
  if (apart) return "its rows do not follow each other in memory; pass numpy.ascontiguousarray of it";
  if (find_facts(weight) != nullptr) return {};
  if (weight.format->in_panels_of != nullptr) return "its weights are in panels, which are made for the CPU";
  return cat("there is no Metal kernel for weights of format ", weight.format->name);
}

std::string_view library_of(const Weight& weight) {
  const FormatFacts* const facts = find_facts(weight);
  LLAMA2CPP_CHECK(facts != nullptr, refused(weight));
  return facts->library();
}

void matmul(Tools& tools, std::span<const Weight* const> weights, const Tensor& x, std::span<const Tensor> outs,
            const Norm& norm) {
  if (x.rows() == 0) return;
  Tensor input = x;
  if (norm.scale || norm.gain) {
    input = tools.scratch(Scratch::normalized, x.rows(), x.columns());
    encode_normalize(tools, x, norm, input, "matmul");
  }
  for (std::size_t i = 0; i < weights.size(); ++i) encode_product(tools, *weights[i], input, outs[i]);
}

void embed(Tools& tools, const Weight& table, std::span<const std::int32_t> tokens, const Tensor& out) {
  const Bound bound = Binder{tools, table, "embed"}.bind();
  const Kernel& kernel = kernel_of(tools, bound, "embed", bound.fours);
  for (std::size_t first = 0; first < tokens.size(); first += kMostIds) {
    const auto ids = tokens.subspan(first, std::min(kMostIds, tokens.size() - first));
    const auto count = static_cast<std::int64_t>(ids.size());
    const Tensor part = out.slice(static_cast<std::int64_t>(first), count);
    const Operand output = tools.writes(part, "embed", "out");
    const EmbedArgs args{
        .weight = bound.args, .tokens = size32(count, "embed"), .out_stride = size32(out.row_stride, "embed")};
    const Operand operands[] = {bound.planes[0],
                                bound.planes[1],
                                bound.planes[2],
                                bound.planes[3],
                                Operand::copied(ids.data(), ids.size_bytes()),
                                output};
    // A piece has at least four columns; threads of pieces that are not there leave at once.
    tools.pass.dispatch(kernel, operands, args,
                        {.groups = {ceil_div(args.weight.columns, 4 * 256), args.tokens}, .threads = {256}},
                        {.bytes = 2 * static_cast<double>(output.bytes), .flops = 0});
  }
}

}  // namespace llama2cpp::metal
