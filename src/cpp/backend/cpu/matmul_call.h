// One call of matmul as all its workers see it: the input in the forms that its weights take, in tiles of tokens, and
// panels to be shared out. matmul.cpp has one call at a time, experts.cpp one for each expert.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <span>

#include "backend/backend.h"
#include "backend/cpu/arena.h"
#include "backend/cpu/matmul_input.h"
#include "backend/cpu/matmul_job.h"
#include "core/check.h"

namespace llama2cpp {

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

// Which rows of x a call takes, and where its results go, where they are not rows 0, 1, 2 ... of x and of the outs.
struct ScatteredRows {
  std::span<const std::int32_t> places{};  // [tokens] a row of `results` for each
  std::int64_t places_per_row = 1;         // that many of them, one after the other, have one row of x
  std::span<const Tensor> results{};       // for each weight [places, rows_i]; empty: the outs are already
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
  ScatteredRows rows;

  MatmulCall(const KernelTable& table, std::span<const Weight* const> matrices, const Tensor& input,
             std::span<const Tensor> outputs, const Norm& input_norm, const ScatteredRows& scattered = {})
      : kernels(table),
        weights(matrices),
        x(input),
        outs(outputs),
        norm(input_norm),
        tiles(outputs[0].rows(), tile_of(table, matrices, outputs[0].rows())),
        group(group_of(tiles.tokens)),
        scratch_sizes(matrices, group, tiles.tokens),
        rows(scattered) {
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
      if (part.begin < part.end) {
        job.run(part, group);
        if (!rows.results.empty()) scatter(i, part);
      }
      before += panels;
    }
  }

 private:
  // Packed units take half as many again at once: 16 tokens are one tile.
  static std::int64_t tile_of(const KernelTable& table, std::span<const Weight* const> weights, std::int64_t tokens) {
    const auto is_packed = [&](const Weight* w) { return w->int8_input && multiplied_as_packed(table, *w, tokens); };
    const bool packed = std::ranges::all_of(weights, is_packed);
    return packed ? table.tile + table.tile / 2 : table.tile;
  }

  // Many where there are few tokens to do with each weight.
  static std::int64_t group_of(std::int64_t tokens) { return tokens <= 2 ? 8 : tokens <= 4 ? 4 : 2; }

  // Takes what some panels of a weight have given to its place.
  void scatter(std::size_t i, Range panels) const {
    const std::int64_t begin = panels.begin * kPanelRows;
    const std::int64_t end = std::min(panels.end * kPanelRows, weights[i]->rows);
    for (std::int64_t t = 0; t < tiles.tokens; ++t) {
      const std::int32_t place = rows.places[static_cast<std::size_t>(t)];
      std::copy(outs[i].row(t) + begin, outs[i].row(t) + end, rows.results[i].row(place) + begin);
    }
  }

  // A token's row of x, normalised.
  float* normalised(std::int64_t token, float* row) const {
    const std::int64_t t =
        rows.places.empty() ? token : rows.places[static_cast<std::size_t>(token)] / rows.places_per_row;
    if (!norm.scale && !norm.gain) return x.row(t);
    // Without a scale the product with 1 leaves the bits alone.
    const float factor = norm.scale ? 1.0F / *norm.scale.row(t) : 1.0F;
    kernels.scale(x.row(t), factor, norm.gain ? norm.gain.row(0) : nullptr, row, x.columns());
    return row;
  }
};

// Throws std::invalid_argument for a weight that the sums of integers have no room for.
void check_columns(std::span<const Weight* const> weights);

}  // namespace llama2cpp
