#include "backend/metal/attention.h"

#include <algorithm>
#include <cstdint>
#include <string>

#include "backend/metal/kernels/args.h"

namespace llama2cpp::metal {
namespace {

constexpr const char* kOp = "attention";

// How a span lies, as its kernels are told. q, k, v and z are the span's rows.
SpanArgs args_of(const AttentionSpan& span, const Tensor& in, const Tensor& out, const char* op) {
  const std::int64_t head_dim = span.keys.columns();
  LLAMA2CPP_CHECK(span.keys.row_stride == span.values.row_stride, "[", op, "] keys and values have rows of ",
                  span.keys.row_stride, " and of ", span.values.row_stride, " numbers");
  return {.rows = size32(span.count, op),
          .position = size32(span.position, op),
          .window = size32(span.window, op),
          .heads = size32(in.columns() / head_dim, op),
          .kv_heads = size32(span.keys.dim(0), op),
          .head_dim = size32(head_dim, op),
          .context = size32(span.keys.dim(1), op),
          .cache_stride = size32(span.keys.row_stride, op),
          .in_stride = size32(in.row_stride, op),
          .out_stride = size32(out.row_stride, op),
          .keys = size32(span.position + span.count, op),
          .splits = 1,
          .scores_stride = size32(span.scores ? span.scores.row_stride : 0, op),
          .pattern_stride = size32(span.pattern ? span.pattern.row_stride : 0, op),
          .factor = 1.0F / span.divisor,
          .cap = span.score_cap};
}

// A span of attention, as its stages need it.
class SpanJob {
 public:
  SpanJob(Tools& tools, const AttentionSpan& span, const Tensor& q, const Tensor& z)
      : tools_(tools),
        span_(span),
        q_(q.slice(span.row, span.count)),
        z_(z.slice(span.row, span.count)),
        args_(args_of(span, q_, z_, kOp)),
        type_(span.keys.dtype == DType::f16 ? "_f16" : "_f32") {
    const std::int64_t keys = span.position + span.count;
    most_keys_ = span.window > 0 ? std::min(span.window, keys) : keys;  // of a row
    simdgroups_ = std::clamp<std::int64_t>((most_keys_ + kKeys - 1) / kKeys, 1, kMostSimdgroups);
  }

  // z from q, with nothing to be seen between.
  void decode() {
    const std::int64_t splits = (most_keys_ + kSplit - 1) / kSplit;
    args_.splits = size32(splits, kOp);
    const std::int64_t room = kSplit + 2 * kMostSimdgroups + simdgroups_ * kColumns;  // floats
    const Grid grid{.groups = {args_.heads, args_.rows, args_.splits},
                    .threads = {threads(), 1, 1},
                    .shared = static_cast<std::size_t>(room) * sizeof(float)};
    const Tensor out =
        splits == 1 ? z_ : tools_.scratch(Scratch::partial, heads() * span_.count * splits, head_dim() + 2);
    tools_.pass.dispatch(kernel("decode" + type_),
                         {tools_.reads(q_, kOp, "q"), tools_.reads(span_.keys, kOp, "keys"),
                          tools_.reads(span_.values, kOp, "values"), sinks(), tools_.writes(out, kOp, "z")},
                         args_, grid, cost(2));
    if (splits == 1) return;
    tools_.pass.dispatch(kernel("combine"), {tools_.reads(out, kOp, "parts"), sinks(), tools_.writes(z_, kOp, "z")},
                         args_, {.groups = {args_.heads, args_.rows, 1}, .threads = {64, 1, 1}}, {});
  }

  void scores(const Tensor& to) {
    args_.scores_stride = size32(to.row_stride, kOp);
    const Grid grid{.groups = {size32((to.columns() + kKeyPiece - 1) / kKeyPiece, kOp), args_.heads, args_.rows},
                    .threads = {threads(), 1, 1}};
    tools_.pass.dispatch(
        kernel("scores" + type_),
        {tools_.reads(q_, kOp, "q"), tools_.reads(span_.keys, kOp, "keys"), tools_.writes(to, kOp, "scores")}, args_,
        grid, cost(1));
  }

  // `to` may be the scores.
  void pattern(const Tensor& scores, const Tensor& to) {
    args_.scores_stride = size32(scores.row_stride, kOp);
    args_.pattern_stride = size32(to.row_stride, kOp);
    const Grid grid{.groups = {args_.heads, args_.rows, 1},
                    .threads = {threads(), 1, 1},
                    .shared = 2 * kMostSimdgroups * sizeof(float)};
    if (same(to, scores)) {
      tools_.pass.dispatch(kernel("softmax_rows_in_place"),
                           {tools_.operand(to, Access::read_write, kOp, "pattern"), sinks()}, args_, grid, {});
    } else {
      tools_.pass.dispatch(kernel("softmax_rows"),
                           {tools_.reads(scores, kOp, "scores"), sinks(), tools_.writes(to, kOp, "pattern")}, args_,
                           grid, {});
    }
  }

  void values(const Tensor& pattern) {
    args_.pattern_stride = size32(pattern.row_stride, kOp);
    const Grid grid{.groups = {args_.heads, args_.rows, 1},
                    .threads = {threads(), 1, 1},
                    .shared = static_cast<std::size_t>(simdgroups_ * kColumns) * sizeof(float)};
    tools_.pass.dispatch(
        kernel("values" + type_),
        {tools_.reads(pattern, kOp, "pattern"), tools_.reads(span_.values, kOp, "values"), tools_.writes(z_, kOp, "z")},
        args_, grid, cost(1));
  }

  // [n_heads, count, keys], where the span has no place for it.
  Tensor place() {
    const std::int64_t keys = span_.position + span_.count;
    Tensor made = tools_.scratch(Scratch::pattern, heads() * span_.count, keys);
    made.rank = 3;
    made.shape = {heads(), span_.count, keys};
    return made;
  }

 private:
  const Kernel& kernel(const std::string& name) const {
    return tools_.device.kernel(
        "attention", name, {{0, args_.head_dim}, {1, span_.score_cap > 0.0F ? 1U : 0U}, {2, span_.sinks ? 1U : 0U}});
  }
  // Where there are none, a kernel is given another operand that nothing writes to, and does not read it.
  Operand sinks() const { return tools_.reads(span_.sinks ? span_.sinks : q_, kOp, "sinks"); }
  std::uint32_t threads() const { return static_cast<std::uint32_t>(kSimdgroup * simdgroups_); }
  std::int64_t heads() const { return args_.heads; }
  std::int64_t head_dim() const { return args_.head_dim; }

  // Of reading so many of keys and values for each query.
  Cost cost(int caches) const {
    const double numbers =
        static_cast<double>(span_.count * most_keys_) * static_cast<double>(heads() * head_dim()) * caches;
    const double queries = static_cast<double>(heads()) / static_cast<double>(args_.kv_heads);
    return {.bytes = numbers / queries * static_cast<double>(size_of(span_.keys.dtype)), .flops = 2 * numbers};
  }

  Tools& tools_;
  const AttentionSpan& span_;
  Tensor q_, z_;
  SpanArgs args_;
  std::string type_;
  std::int64_t most_keys_ = 0;
  std::int64_t simdgroups_ = 0;
};

}  // namespace

void store_kv(Tools& tools, const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans) {
  constexpr const char* op = "store_kv";
  for (const AttentionSpan& span : spans) {
    const Tensor from_k = k.slice(span.row, span.count);
    const Tensor from_v = v.slice(span.row, span.count);
    SpanArgs args = args_of(span, from_k, from_k, op);
    args.out_stride = size32(from_v.row_stride, op);
    Grid grid = by_pieces(span.count, k.columns(), kStorePiece, op);
    grid.groups.z = 2;
    const Kernel& kernel = tools.device.kernel(
        "attention", span.keys.dtype == DType::f16 ? "store_kv_f16" : "store_kv_f32", {{0, args.head_dim}});
    tools.pass.dispatch(kernel,
                        {tools.reads(from_k, op, "k"), tools.reads(from_v, op, "v"),
                         tools.writes(span.keys, op, "keys"), tools.writes(span.values, op, "values")},
                        args, grid, {});
  }
}

void attention(Tools& tools, const Tensor& q, std::span<const AttentionSpan> spans, const Tensor& z,
               AttentionStage first, AttentionStage last) {
  for (const AttentionSpan& span : spans) {
    SpanJob job(tools, span, q, z);
    const bool all = first == AttentionStage::scores && last == AttentionStage::values;
    if (all && !span.scores && !span.pattern) {
      job.decode();
      continue;
    }
    const Tensor pattern = span.pattern ? span.pattern : last == AttentionStage::scores ? span.scores : job.place();
    const Tensor& scores = span.scores ? span.scores : pattern;
    if (first == AttentionStage::scores) job.scores(scores);
    if (last == AttentionStage::scores) continue;
    if (first != AttentionStage::values) job.pattern(scores, pattern);
    if (last == AttentionStage::values) job.values(pattern);
  }
}

}  // namespace llama2cpp::metal
