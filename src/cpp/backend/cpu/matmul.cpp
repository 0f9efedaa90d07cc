// Matmul on the CPU: packing weights into panels, laying the input out in tiles of tokens, and sharing panels out.
//
//   weights [rows, cols] -> panels [rows / 16][cols]         once, on first use
//   x [T, cols]          -> tiles  [T / tile][cols][tile]    each call, normalised on the way, rounded for integers
//   out [T, rows]        = for each group of panels, for each block of k: every tile
//
// A block of a few panels stays in the first-level cache while the tiles pass by.
#include <algorithm>

#include "backend/cpu/arena.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/matmul_call.h"
#include "backend/cpu/panels.h"
#include "backend/op_checks.h"
#include "core/check.h"
#include "format/int8_group.h"
#include "format/llm_int8.h"
#include "format/weight_rows.h"

namespace llama2cpp {
namespace {

// Bytes of a mapped file that a worker reads at once: they stay in its second-level cache.
constexpr std::size_t kReadAtOnce = std::size_t{128} << 10;

// Panels whose rows are read together; 0 where rows are not read from a file.
std::int64_t panels_at_once(const Weight& weight) {
  if (!has_file_rows(weight)) return 0;
  const std::size_t one = std::max<std::size_t>(1, rows_memory(weight, kPanelRows));
  return static_cast<std::int64_t>(std::max<std::size_t>(1, kReadAtOnce / one));
}

}  // namespace

void check_columns(std::span<const Weight* const> weights) {
  for (const Weight* weight : weights) {
    const Weight& w = *weight;
    LLAMA2CPP_CHECK(w.format != &kLlmInt8 || w.cols <= kMostLlmInt8Columns, "[matmul] w is ", shape_text(w), " (",
                    w.format->name, "), expected at most ", kMostLlmInt8Columns, " columns");
    LLAMA2CPP_CHECK(!w.int8_input || panel_form(w) != PanelForm::int8_group || w.group <= kMostInt8Group,
                    "[matmul] w is ", shape_text(w), " (", w.format->name, ") in groups of ", w.group,
                    ", expected at most ", kMostInt8Group);
  }
}

std::size_t CpuBackend::packed_bytes(const Weight& weight) const {
  return static_cast<std::size_t>(panel_count(weight) * panel_bytes(weight, weight.cols));
}

Weight CpuBackend::read_planes(const Weight& weight) {
  Weight copy = weight;
  for (Plane& plane : copy.planes) {
    if (!plane.owner.mapped()) continue;
    const Buffer memory = Buffer::heap(plane.bytes);
    region(static_cast<std::int64_t>(plane.bytes), [&](int w, int workers) {
      const Range mine = share(static_cast<std::int64_t>(plane.bytes), w, workers);
      plane.owner.read(plane.data + mine.begin,
                       {memory.data() + mine.begin, static_cast<std::size_t>(mine.end - mine.begin)});
    });
    plane.data = memory.data();
    plane.owner = memory;
  }
  return copy;
}

void CpuBackend::pack(std::span<Weight* const> weights) {
  std::size_t all_bytes = 0;
  std::size_t rows_bytes = 0;
  for (const Weight* weight : weights) {
    if (weight->panels) continue;
    all_bytes += packed_bytes(*weight);
    rows_bytes = std::max(rows_bytes, rows_memory(*weight, panels_at_once(*weight) * kPanelRows));
  }
  if (all_bytes == 0) return;
  const Buffer rows_read = Buffer::heap(rows_bytes * static_cast<std::size_t>(threads()));  // what each worker has read
  const auto all = std::make_shared<const Buffer>(Buffer::heap(all_bytes));
  std::byte* next = all->data();
  // The disk reads the next weight while this one is packed: a mapped file alone is read ahead in small pieces.
  const auto read_ahead = [&](std::size_t i) {
    if (i >= weights.size() || weights[i]->panels) return;
    for (const Plane& plane : weights[i]->planes) plane.owner.will_need(plane.data, plane.bytes);
  };
  read_ahead(0);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    Weight* const weight = weights[i];
    read_ahead(i + 1);
    if (weight->panels) continue;
    const std::int64_t panels = panel_count(*weight);
    const std::int64_t bytes = panel_bytes(*weight, weight->cols);
    const std::int64_t step = step_cols(input_form(*weight));
    // Panels [begin, end) of the weight, from one whose panel 0 is the weight's panel `first`.
    const auto pack_panels = [&](const Weight& from, std::int64_t first, std::int64_t begin, std::int64_t end) {
      for (std::int64_t panel = begin; panel < end; ++panel) {
        for (std::int64_t k = 0; k < weight->cols; k += step) {
          pack_panel(from, panel - first, k, std::min(step, weight->cols - k),
                     next + panel * bytes + panel_bytes(*weight, k));
        }
      }
    };
    const std::int64_t at_once = panels_at_once(*weight);
    const Weight whole = at_once == 0 && is_mapped(*weight) ? read_planes(*weight) : Weight{};
    const Weight& in_memory = whole.format != nullptr ? whole : *weight;
    region(panels * bytes / 4, [&](int w, int workers) {
      const Range mine = share(panels, w, workers);
      if (at_once == 0) return pack_panels(in_memory, 0, mine.begin, mine.end);
      std::byte* const memory = rows_read.data() + rows_bytes * static_cast<std::size_t>(w);
      for (std::int64_t begin = mine.begin; begin < mine.end; begin += at_once) {
        const std::int64_t end = std::min(begin + at_once, mine.end);
        const std::int64_t rows = std::min(end * kPanelRows, weight->rows) - begin * kPanelRows;
        pack_panels(read_rows(*weight, begin * kPanelRows, rows, memory), begin, begin, end);
      }
    });
    weight->panels = Buffer::wrap(next, packed_bytes(*weight), all);
    next += packed_bytes(*weight);
    for (const Plane& plane : weight->planes) plane.owner.drop_pages(plane.data, plane.bytes);
  }
}

void CpuBackend::matmul(std::span<const Weight* const> weights, const Tensor& x, std::span<const Tensor> outs,
                        const Norm& norm) {
  op_checks::matmul(weights, x, outs, norm);
  check_columns(weights);
  if (x.rows() == 0) return;
  const MatmulCall call(kernels_, weights, x, outs, norm);
  reserve_scratch(call.worker_bytes());
  const std::int64_t inputs_cost = x.rows() * x.columns();
  if (!call.lone()) {
    const auto bytes = static_cast<std::size_t>(call.forms.bytes());
    if (tiles_.size() < bytes) tiles_ = Buffer::heap(bytes);
    region(inputs_cost, [&](int worker, int workers) {
      Arena arena(scratch(worker));
      Inputs inputs = call.forms.at(tiles_.data());
      call.lay_out(share(call.tiles.count, worker, workers), inputs, call.carve(arena));
    });
  }
  const bool integers = weights[0]->int8_input;
  region(inputs_cost * call.all_panels / (integers ? 4 : 1), [&](int worker, int workers) {
    Arena arena(scratch(worker));
    const WorkerMemory memory = call.carve(arena);
    Inputs inputs = call.forms.at(call.lone() ? memory.lone : tiles_.data());
    // One token: each worker makes its own input, which is cheaper than waiting for another.
    if (call.lone()) call.lay_out({0, 1}, inputs, memory);
    call.multiply(share(call.all_panels, worker, workers), inputs, memory);
  });
}

}  // namespace llama2cpp
