// Results are not part of the forward's own arithmetic: attn_out is one product, and their sum would round otherwise.
#include "model/head_results.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

namespace llama2cpp {
namespace {

// Some columns of a weight as a weight of its own, where the file's form can be cut there: rows in one plane.
std::optional<Weight> columns_of(const Weight& weight, std::int64_t first, std::int64_t count) {
  const Format& format = *weight.format;
  const bool one_plane = weight.planes[1].data == nullptr && format.group >= 1 && format.in_panels_of == nullptr;
  if (!one_plane || first % format.group != 0 || count % format.group != 0) return {};
  Weight part = weight;
  part.cols = count;
  part.panels = {};
  part.planes[0].data += row_bytes(format, first);
  part.planes[0].bytes -= static_cast<std::size_t>(row_bytes(format, first));
  return part;
}

}  // namespace

void show_head_results(const Config& c, Backend& backend, const LayerWeights& weights, Activations& a,
                       std::int64_t layer, std::span<const HookSpan> spans, const Hooks& hooks) {
  const std::int64_t rows = a.z.rows();
  const std::int64_t width = c.n_heads * c.dim;
  std::vector<Buffer> files;  // columns are cut out of the file's form, packed or not
  for (const Plane& plane : weights.wo.planes) plane.owner.add_to(files);
  const FileReads reads(files);
  const bool cut = columns_of(weights.wo, 0, c.head_dim).has_value();
  a.add_results(cut ? c.head_dim : c.q_dim());
  const Tensor& one_head = a.one_head;
  backend.sync();
  if (!cut) std::fill_n(one_head.row(0), rows * c.q_dim(), 0.0F);
  for (std::int64_t head = 0; head < c.n_heads; ++head) {
    const std::int64_t first = head * c.head_dim;
    for (std::int64_t t = 0; t < rows; ++t) {
      float* const row = one_head.row(t);
      if (!cut && head > 0) std::fill_n(row + first - c.head_dim, c.head_dim, 0.0F);
      std::copy_n(a.z.row(t) + first, c.head_dim, cut ? row : row + first);
    }
    Tensor out(a.results.row(0) + head * c.dim, {rows, c.dim});
    out.row_stride = width;
    const std::optional<Weight> part = cut ? columns_of(weights.wo, first, c.head_dim) : std::nullopt;
    const Weight* const wo[] = {part ? &*part : &weights.wo};
    backend.matmul(wo, one_head, {&out, 1});  // -> [T, dim] of [T, n_heads, dim]
    backend.sync();
  }
  reads.check();

  const Tensor& shown = a.results;
  const float multiplier = c.residual_multiplier;  // of attn_out, which forward multiplies afterwards
  if (multiplier != 1.0F) {
    std::transform(shown.row(0), shown.row(0) + rows * width, shown.row(0), [&](float x) { return x * multiplier; });
  }
  if (!hooks.edits(Point::result, layer)) return hooks.at(Point::result, layer, shown, spans);
  const std::vector<float> before(shown.row(0), shown.row(0) + rows * width);
  hooks.at(Point::result, layer, shown, spans);
  for (std::int64_t t = 0; t < rows; ++t) {
    const float* const row = shown.row(t);
    if (std::memcmp(row, before.data() + t * width, static_cast<std::size_t>(width) * sizeof(float)) == 0) continue;
    float* const out = a.attn_out.row(t);
    std::copy_n(row, c.dim, out);
    for (std::int64_t head = 1; head < c.n_heads; ++head) {
      for (std::int64_t i = 0; i < c.dim; ++i) out[i] += row[head * c.dim + i];
    }
    if (multiplier != 1.0F) std::transform(out, out + c.dim, out, [&](float x) { return x / multiplier; });
  }
}

}  // namespace llama2cpp
