// Matmul on the CPU: packing weights into panels, laying the input out in tiles of tokens, and sharing panels out.
//
//   weights [rows, cols] -> panels [rows / 16][cols]         once, on first use
//   x [T, cols]          -> tiles  [T / tile][cols][tile]    each call, normalised on the way, rounded for integers
//   out [T, rows]        = for each group of panels, for each block of k: every tile
//
// A block of a few panels stays in the first-level cache while the tiles pass by.
#include <algorithm>
#include <array>
#include <optional>

#include "backend/cpu/arena.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/matmul_input.h"
#include "backend/cpu/matmul_job.h"
#include "backend/cpu/panels.h"
#include "backend/op_checks.h"
#include "core/check.h"
#include "format/int8_group.h"
#include "format/llm_int8.h"
#include "format/weight_rows.h"

namespace llama2cpp {
namespace {

// The input in the different forms that the weights of a call take.
constexpr std::size_t kMostForms = 4;
struct Inputs {
  std::array<std::optional<MatmulInput>, kMostForms> all;  // optional: those that are not there cost nothing
  std::size_t count = 0;

  // The first of the form, or count.
  std::size_t index(const InputForm& form) const {
    std::size_t i = 0;
    while (i < count && all[i]->form() != form) ++i;
    return i;
  }
  const MatmulInput& of(const Weight& weight) const { return *all[count == 1 ? 0 : index(input_form(weight))]; }

  void add(const Weight& weight, std::int64_t tokens) {
    const InputForm form = input_form(weight);
    const std::size_t i = index(form);
    LLAMA2CPP_CHECK(i < kMostForms, "[matmul] the weights take their input in more than ", kMostForms, " forms");
    if (i == count) all[count++].emplace(form, weight.cols, tokens);
  }
  std::int64_t bytes() const {
    std::int64_t sum = 0;
    for (std::size_t i = 0; i < count; ++i) sum += all[i]->bytes();
    return sum;
  }
  std::int64_t scratch_bytes() const {
    std::int64_t most = 0;
    for (std::size_t i = 0; i < count; ++i) most = std::max(most, all[i]->scratch_bytes());
    return most;
  }
  Inputs at(std::byte* memory) const {
    Inputs there;
    for (; there.count < count; ++there.count) {
      MatmulInput& input = there.all[there.count].emplace(*all[there.count]);
      input.use(memory);
      memory += input.bytes();
    }
    return there;
  }
};

// What a worker needs of its own.
struct WorkerMemory {
  float* row;           // [cols] a normalised token
  std::byte* rounding;  // what a layout needs to put it in its place
  std::byte* lone;      // the input, where it is one token
  MatmulScratch weights;
};

// One call, as all its workers see it.
struct MatmulCall {
  const KernelTable& kernels;
  std::span<const Weight* const> weights;
  const Tensor& x;
  std::span<const Tensor> outs;
  const Norm& norm;
  Inputs forms;  // without memory
  std::int64_t all_panels = 0;
  Tiles tiles;
  std::int64_t group;  // panels that go through a block together
  MatmulScratch::Sizes scratch_sizes;

  MatmulCall(const KernelTable& table, std::span<const Weight* const> matrices, const Tensor& input,
             std::span<const Tensor> outputs, const Norm& input_norm)
      : kernels(table),
        weights(matrices),
        x(input),
        outs(outputs),
        norm(input_norm),
        tiles(input.rows(), table.tile),
        group(group_of(input.rows())),
        scratch_sizes(matrices, group, input.rows()) {
    for (const Weight* w : weights) {
      forms.add(*w, tiles.tokens);
      all_panels += panel_count(*w);
    }
  }

  bool lone() const { return tiles.tokens == 1; }

  WorkerMemory carve(Arena& arena) const {
    auto* const row = arena.take<float>(x.columns());
    auto* const rounding = arena.take<std::byte>(forms.scratch_bytes());
    auto* const input = arena.take<std::byte>(lone() ? forms.bytes() : 0);
    return {row, rounding, input, MatmulScratch(arena, scratch_sizes)};
  }
  std::int64_t worker_bytes() const {
    Arena arena;
    carve(arena);
    return arena.used();
  }

  // Lays the tokens of some tiles out.
  void lay_out(Range mine, Inputs& inputs, const WorkerMemory& memory) const {
    for (std::int64_t tile = mine.begin; tile < mine.end; ++tile) {
      const Range part = tiles.of(tile);
      for (std::int64_t t = part.begin; t < part.end; ++t) {
        float* const from = normalised(t, memory.row);
        for (std::size_t i = 0; i < inputs.count; ++i) {
          MatmulInput& input = *inputs.all[i];
          if (lone() && input.form() == InputForm{}) {
            input.use_row(from);
          } else {
            input.put(kernels, from, part, t - part.begin, memory.rounding);
          }
        }
      }
    }
  }

  // The weights' panels count as one row of panels, of which each worker takes a contiguous share.
  void multiply(Range mine, const Inputs& inputs, const WorkerMemory& memory) const {
    std::int64_t before = 0;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const std::int64_t panels = panel_count(*weights[i]);
      const Range part{std::max(mine.begin - before, std::int64_t{0}), std::min(mine.end - before, panels)};
      const MatmulJob job{kernels, *weights[i], outs[i], inputs.of(*weights[i]), tiles, memory.weights};
      if (part.begin < part.end) job.run(part, group);
      before += panels;
    }
  }

 private:
  // Many where there are few tokens to do with each weight.
  static std::int64_t group_of(std::int64_t tokens) { return tokens <= 2 ? 8 : tokens <= 4 ? 4 : 2; }

  float* normalised(std::int64_t t, float* row) const {
    if (!norm.scale && !norm.gain) return x.row(t);
    // Without a scale the product with 1 leaves the bits alone.
    const float factor = norm.scale ? 1.0F / *norm.scale.row(t) : 1.0F;
    kernels.scale(x.row(t), factor, norm.gain ? norm.gain.row(0) : nullptr, row, x.columns());
    return row;
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

// What this backend's sums of integers have room for.
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
