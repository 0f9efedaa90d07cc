// Matmul on the CPU: packing weights into panels, laying the input out in tiles of tokens, and sharing panels out.
//
//   weights [rows, cols] -> panels [rows / 16][cols]         once, on first use
//   x [T, cols]          -> tiles  [T / tile][cols][tile]    each call, normalised on the way, rounded for integers
//   out [T, rows]        = for each group of panels, for each block of k: every tile
//
// A block of a few panels stays in the first-level cache while the tiles pass by.
#include <algorithm>
#include <array>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/matmul_input.h"
#include "backend/cpu/matmul_job.h"
#include "backend/cpu/panels.h"
#include "core/check.h"
#include "format/int8_group.h"
#include "format/llm_int8.h"
#include "format/weight_rows.h"

namespace llama2cpp {
namespace {

// The different forms of input of one call, and whose is whose.
constexpr std::size_t kMostForms = 4;
struct Layouts {
  std::array<InputLayout, kMostForms> all;
  std::size_t count = 0;

  std::size_t index(const Weight& weight) {
    const InputForm form = input_form(weight);
    std::size_t i = 0;
    while (i < count && all[i].form() != form) ++i;
    LLAMA2CPP_CHECK(i < kMostForms, "[matmul] the weights take their input in more than ", kMostForms, " forms");
    if (i == count) all[count++] = InputLayout(form, weight.cols);
    return i;
  }
  std::int64_t bytes(std::int64_t tokens) const {
    std::int64_t sum = 0;
    for (std::size_t i = 0; i < count; ++i) sum += all[i].bytes(tokens);
    return sum;
  }
  std::int64_t scratch_bytes() const {
    std::int64_t most = 0;
    for (std::size_t i = 0; i < count; ++i) most = std::max(most, all[i].scratch_bytes());
    return round_to_line(most);
  }
};

// Bytes of a mapped file that a worker reads at once: they stay in its second-level cache.
constexpr std::size_t kReadAtOnce = std::size_t{128} << 10;

// Panels whose rows are read together; 0 where rows are not read from a file.
std::int64_t panels_at_once(const Weight& weight) {
  if (!has_file_rows(weight)) return 0;
  const std::size_t one = std::max<std::size_t>(1, rows_memory(weight, kPanelRows));
  return static_cast<std::int64_t>(std::max<std::size_t>(1, kReadAtOnce / one));
}

}  // namespace

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
  LLAMA2CPP_CHECK(weights.size() == outs.size() && !weights.empty(), "[matmul] ", weights.size(), " weights but ",
                  outs.size(), " outs");
  const std::int64_t tokens = x.rows();
  const std::int64_t cols = x.columns();
  Layouts layouts;
  std::int64_t all_panels = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const Weight& w = *weights[i];
    LLAMA2CPP_CHECK(w.cols == cols, "[matmul] w is ", shape_text(w), " but x is ", shape_text(x));
    LLAMA2CPP_CHECK(outs[i].rows() == tokens && outs[i].columns() == w.rows, "[matmul] w is ", shape_text(w),
                    " and x is ", shape_text(x), " but out is ", shape_text(outs[i]));
    LLAMA2CPP_CHECK(w.format->group <= 1 || cols % w.format->group == 0, "[matmul] w is ", shape_text(w),
                    ", and groups of ", w.format->group, " (", w.format->name, ") do not fill its rows");
    LLAMA2CPP_CHECK(w.format != &kLlmInt8 || cols <= kMostLlmInt8Columns, "[matmul] w is ", shape_text(w), " (",
                    w.format->name, "), expected at most ", kMostLlmInt8Columns, " columns");
    LLAMA2CPP_CHECK(!w.int8_input || panel_form(w) != PanelForm::int8_group || w.group <= kMostInt8Group,
                    "[matmul] w is ", shape_text(w), " (", w.format->name, ") in groups of ", w.group,
                    ", expected at most ", kMostInt8Group);
    layouts.index(w);
    all_panels += panel_count(w);
  }
  LLAMA2CPP_CHECK(!norm.scale || (norm.scale.rows() == tokens && norm.scale.columns() == 1), "[matmul] x is ",
                  shape_text(x), " but norm.scale is ", shape_text(norm.scale));
  if (tokens == 0) return;

  const Tiles tiles(tokens, kernels_.tile);
  // Panels that go through a block together: a wide group where there are few tokens to do with each weight.
  const std::int64_t group = tokens <= 2 ? 8 : tokens <= 4 ? 4 : 2;

  // Each worker's memory: one normalised token, its rounding, a lone token's input, and weights.
  std::int64_t packed_bytes = 0;
  std::int64_t open_bytes = 0;
  std::int64_t wide_bytes = 0;
  std::int64_t sums_bytes = 0;
  for (const Weight* w : weights) {
    packed_bytes = std::max(packed_bytes, MatmulScratch::packed_bytes(*w, group));
    open_bytes = std::max(open_bytes, MatmulScratch::open_bytes(*w, group));
    wide_bytes = std::max(wide_bytes, MatmulScratch::wide_bytes(*w, group));
    sums_bytes = std::max(sums_bytes, MatmulScratch::sums_bytes(*w, group, tokens));
  }
  const std::int64_t row_bytes = round_to_line(cols * 4);
  const std::int64_t q_bytes = layouts.scratch_bytes();
  const std::int64_t input_bytes = layouts.bytes(tokens);
  const std::int64_t lone_bytes = tokens == 1 ? input_bytes : 0;
  reserve_scratch((row_bytes + q_bytes + lone_bytes + packed_bytes + open_bytes + wide_bytes + sums_bytes) / 4);
  if (tokens > 1 && tiles_.size() < static_cast<std::size_t>(input_bytes)) {
    tiles_ = Buffer::heap(static_cast<std::size_t>(input_bytes));
  }

  // Lays `mine` of the tiles out and returns the inputs. `row` and `lone` are a worker's.
  using Inputs = std::array<Input, kMostForms>;
  const auto lay_out = [&](float* row, std::byte* lone, Range mine) {  // row [cols]
    auto* const q = reinterpret_cast<std::byte*>(row) + row_bytes;
    const auto normalised = [&](std::int64_t t) -> float* {
      if (!norm.scale && norm.gain == nullptr) return x.row(t);
      // Without a scale the product with 1 leaves the bits alone.
      kernels_.scale(x.row(t), norm.scale ? 1.0F / *norm.scale.row(t) : 1.0F, norm.gain, row, cols);
      return row;
    };

    Inputs inputs;
    std::byte* next = tokens == 1 ? lone : tiles_.data();
    for (std::size_t i = 0; i < layouts.count; ++i) {
      inputs[i] = layouts.all[i].at(next, tokens);
      next += layouts.all[i].bytes(tokens);
    }
    for (std::int64_t tile = mine.begin; tile < mine.end; ++tile) {
      const Range part = tiles.of(tile);
      for (std::int64_t t = part.begin; t < part.end; ++t) {
        float* const from = normalised(t);
        for (std::size_t i = 0; i < layouts.count; ++i) {
          if (tokens == 1 && layouts.all[i].form() == InputForm{}) {
            inputs[i].f32 = from;  // a row is a tile already
            continue;
          }
          layouts.all[i].put(kernels_, from, inputs[i], tokens, part, t - part.begin, q);
        }
      }
    }
    return inputs;
  };

  if (tokens > 1) {
    region(tokens * cols,
           [&](int worker, int workers) { lay_out(scratch(worker), nullptr, share(tiles.count, worker, workers)); });
  }
  const bool integers = weights[0]->int8_input;
  region(tokens * cols * all_panels / (integers ? 4 : 1), [&](int worker, int workers) {
    auto* const row = scratch(worker);  // [cols]
    std::byte* const lone = reinterpret_cast<std::byte*>(row) + row_bytes + q_bytes;
    std::byte* const packed = lone + lone_bytes;
    const MatmulScratch memory{packed, reinterpret_cast<std::uint8_t*>(packed + packed_bytes),
                               reinterpret_cast<float*>(packed + packed_bytes + open_bytes),
                               reinterpret_cast<float*>(packed + packed_bytes + open_bytes + wide_bytes)};
    // One token: each worker makes its own input, which is cheaper than waiting for another.
    const Inputs inputs = lay_out(row, lone, {0, tokens == 1 ? 1 : 0});

    // The weights' panels count as one row of panels, of which each worker takes a contiguous share.
    const Range mine = share(all_panels, worker, workers);
    std::int64_t before = 0;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const std::int64_t panels = panel_count(*weights[i]);
      const Range part{std::max(mine.begin - before, std::int64_t{0}), std::min(mine.end - before, panels)};
      const std::size_t form = layouts.index(*weights[i]);
      const MatmulJob job{kernels_, *weights[i], outs[i], layouts.all[form], inputs[form], tiles, memory};
      if (part.begin < part.end) job.run(part, group);
      before += panels;
    }
  });
}

}  // namespace llama2cpp
