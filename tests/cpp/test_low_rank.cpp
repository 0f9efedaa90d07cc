// LoRA adapters: what they add to outputs, against plain loops, to the bit; and what is refused.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "model/adapter.h"
#include "model/forward.h"
#include "model/low_rank.h"
#include "tiny_model.h"

using llama2cpp::AdaptedOutput;
using llama2cpp::Adapter;
using llama2cpp::Backend;
using llama2cpp::Config;
using llama2cpp::LowRankPart;
using llama2cpp::LowRankProducts;
using llama2cpp::Model;
using llama2cpp::ModelOptions;
using llama2cpp::Part;
using llama2cpp::SequenceInput;
using llama2cpp::Session;
using llama2cpp::Tensor;
using llama2cpp::Work;

namespace {

using Floats = std::vector<float>;

Floats random_floats(std::int64_t count, std::uint64_t seed) {
  tiny::Random random(seed);
  Floats values(static_cast<std::size_t>(count));
  for (float& value : values) value = random.uniform();
  return values;
}

// Random factors of some parts of all layers, and who keeps their numbers.
struct Factors {
  std::vector<Floats> numbers;
  std::vector<LowRankPart> parts;

  Factors(const Config& config, std::vector<Part> of, std::int64_t rank, float scale, std::uint64_t seed) {
    numbers.reserve(2 * of.size() * static_cast<std::size_t>(config.n_layers));
    for (std::int64_t layer = 0; layer < config.n_layers; ++layer) {
      for (const Part part : of) {
        const auto [rows, cols] = llama2cpp::part_shape(config, part);
        numbers.push_back(random_floats(rank * cols, ++seed));
        numbers.push_back(random_floats(rows * rank, ++seed));
        parts.push_back({part, layer, rank, scale, numbers[numbers.size() - 2], numbers.back()});
      }
    }
  }

  std::shared_ptr<const Adapter> adapter(const std::shared_ptr<const Model>& model) const {
    return std::make_shared<const Adapter>(model, parts, tiny::no_poll);
  }

  const LowRankPart& part(Part wanted, std::int64_t layer) const {
    return *std::find_if(parts.begin(), parts.end(),
                         [&](const LowRankPart& p) { return p.part == wanted && p.layer == layer; });
  }
};

// sum of w[k] * x[k] in the order of docs/internals/numerics.md: blocks of 256, each from 0 by fma, added in order.
float dot(std::span<const float> w, std::span<const float> x) {
  float sum = 0.0F;
  for (std::size_t first = 0; first < w.size(); first += 256) {
    float p = 0.0F;
    for (std::size_t k = first; k < std::min(w.size(), first + 256); ++k) p = std::fma(w[k], x[k], p);
    sum = sum + p;
  }
  return sum;
}

// y += B . (scale * (A . x)), one row.
void add_by_loops(const LowRankPart& part, std::span<const float> x, std::span<float> y) {
  const auto rank = static_cast<std::size_t>(part.rank);
  Floats low(rank);
  for (std::size_t r = 0; r < rank; ++r) {
    low[r] = dot(part.a.subspan(r * x.size(), x.size()), x);
    if (part.scale != 1.0F) low[r] = low[r] * part.scale;
  }
  for (std::size_t i = 0; i < y.size(); ++i) {
    const float change = dot(part.b.subspan(i * rank, rank), low);
    y[i] = y[i] + change;
  }
}

Tensor tensor_in(Backend& backend, std::vector<llama2cpp::Buffer>& kept, const Floats& values, std::int64_t rows,
                 std::int64_t cols) {
  kept.push_back(backend.alloc(values.size() * sizeof(float)));
  auto* const data = reinterpret_cast<float*>(kept.back().data());
  std::copy(values.begin(), values.end(), data);
  return Tensor(data, {rows, cols});
}

Config wide() {
  Config config = tiny::config();
  config.dim = 300;  // more than a block of a product
  config.n_heads = 50;
  return config;
}

}  // namespace

TEST_CASE("low_rank: products beside weights are those of plain loops") {
  const Config config = wide();
  for (const int threads : {1, 3}) {
    for (const char* pack : {"never", "always"}) {
      const auto model = tiny::model(config, {.threads = threads, .pack = pack});
      const Factors first(config, {Part::wq, Part::wv, Part::wo}, 5, 1.5F, 100);
      const Factors second(config, {Part::wq}, 17, 1.0F, 200);
      const auto one = first.adapter(model);
      const auto two = second.adapter(model);
      const std::vector<std::int32_t> ids = {1, 2, 3, 4};
      const std::span<const std::int32_t> tokens(ids);
      // Rows 0, 1: the first; 2: none; 3, 4, 5: the second; 6, 7, 8: the first, of two sequences.
      const std::vector<std::pair<std::size_t, const Adapter*>> order = {
          {2, one.get()}, {1, nullptr}, {3, two.get()}, {1, one.get()}, {2, one.get()}};
      std::vector<SequenceInput> sequences;
      std::vector<const Factors*> of_row;
      for (const auto& [count, adapter] : order) {
        SequenceInput sequence;
        sequence.tokens = tokens.first(count);
        sequence.adapter = adapter;
        sequences.push_back(sequence);
        const Factors* const factors = adapter == one.get() ? &first : adapter == two.get() ? &second : nullptr;
        of_row.insert(of_row.end(), count, factors);
      }
      constexpr std::int64_t kRows = 9;
      const std::int64_t layer = 1;
      const Floats x = random_floats(kRows * config.dim, 1);
      const Floats scales = random_floats(kRows, 2);
      const Floats gain = random_floats(config.dim, 3);
      const Floats q = random_floats(kRows * config.q_dim(), 4);
      const Floats v = random_floats(kRows * config.kv_dim(), 5);
      Backend& backend = model->backend();
      std::vector<llama2cpp::Buffer> kept;
      const Tensor in = tensor_in(backend, kept, x, kRows, config.dim);
      const Tensor scale = tensor_in(backend, kept, scales, kRows, 1);
      const Tensor row_of_gain = tensor_in(backend, kept, gain, 1, config.dim);
      const Tensor gains(row_of_gain.row(0), {config.dim});
      const Tensor q_out = tensor_in(backend, kept, q, kRows, config.q_dim());
      const Tensor v_out = tensor_in(backend, kept, v, kRows, config.kv_dim());
      {
        const Backend::Lease lease(backend, tiny::no_poll);
        LowRankProducts products(*model, sequences);
        const AdaptedOutput outputs[] = {{Part::wq, q_out}, {Part::wv, v_out}};
        products.add({in, {scale, gains}}, outputs, layer);
        backend.sync();
      }
      Floats q_expected = q;
      Floats v_expected = v;
      for (std::size_t row = 0; row < kRows; ++row) {
        if (of_row[row] == nullptr) continue;
        Floats normed(static_cast<std::size_t>(config.dim));
        for (std::size_t k = 0; k < normed.size(); ++k) {
          normed[k] = (x[row * normed.size() + k] * (1.0F / scales[row])) * gain[k];
        }
        const auto q_width = static_cast<std::size_t>(config.q_dim());
        const auto v_width = static_cast<std::size_t>(config.kv_dim());
        add_by_loops(of_row[row]->part(Part::wq, layer), normed, std::span(q_expected).subspan(row * q_width, q_width));
        if (of_row[row] == &second) continue;
        add_by_loops(of_row[row]->part(Part::wv, layer), normed, std::span(v_expected).subspan(row * v_width, v_width));
      }
      CHECK(tiny::bits_of({q_out.row(0), q.size()}) == tiny::bits_of(q_expected));
      CHECK(tiny::bits_of({v_out.row(0), v.size()}) == tiny::bits_of(v_expected));
      CHECK(q_expected != q);
    }
  }
}

TEST_CASE("low_rank: a session with an adapter has the bits that it has alone, in any pass") {
  const Config config = tiny::config();
  const auto model = tiny::model(config, {.threads = 2});
  const std::vector<Part> all = {Part::wq, Part::wk, Part::wv, Part::wo, Part::w1, Part::w2, Part::w3};
  const Factors first(config, all, 3, 0.25F, 7);
  const Factors second(config, {Part::w2}, 1, 0.5F, 8);
  const std::shared_ptr<const Adapter> adapters[] = {first.adapter(model), nullptr, second.adapter(model)};
  std::vector<tiny::Bits> alone;
  for (std::size_t i = 0; i < 3; ++i) {
    Session session(model, 0, adapters[i]);
    tiny::feed(session, tiny::tokens(11, i));
    alone.push_back(tiny::logits_of(session));
  }
  CHECK(alone[0] != alone[1]);
  for (const std::int64_t chunk : {1, 4, 128}) {
    std::vector<std::unique_ptr<Session>> sessions;
    std::vector<std::vector<std::int32_t>> ids;
    for (std::size_t i = 0; i < 3; ++i) {
      sessions.push_back(std::make_unique<Session>(model, 0, adapters[i]));
      ids.push_back(tiny::tokens(11, i));
    }
    std::vector<Work> work;
    for (std::size_t i = 0; i < 3; ++i) work.push_back({sessions[i].get(), ids[i], nullptr});
    llama2cpp::run(work, {}, tiny::no_poll, chunk);
    for (std::size_t i = 0; i < 3; ++i) CHECK(tiny::logits_of(*sessions[i]) == alone[i]);
    CHECK(sessions[0]->fork(tiny::no_poll)->adapter() == adapters[0]);
  }
}

TEST_CASE("low_rank: what is no adapter of the model is refused by name") {
  const Config config = tiny::config();
  const auto model = tiny::model(config, {.threads = 1});
  const Factors good(config, {Part::wq}, 2, 1.0F, 1);
  const auto made = [&](auto edit) {
    std::vector<LowRankPart> parts = good.parts;
    edit(parts);
    return Adapter(model, parts, tiny::no_poll);
  };
  CHECK_THROWS_WITH(made([](auto& parts) { parts.clear(); }), "the adapter has no factors of any matrix");
  CHECK_THROWS_WITH(made([](auto& parts) { parts[1] = parts[0]; }),
                    "there are factors of 'layers.0.attention.wq.weight' twice");
  CHECK_THROWS_WITH(made([](auto& parts) { parts[0].layer = 3; }), "layer is 3, expected 0 to 2");
  CHECK_THROWS_WITH(made([](auto& parts) { parts[0].layer = -1; }), "layer is -1, expected 0 to 2");
  CHECK_THROWS_WITH(made([](auto& parts) { parts[0].rank = 0; }),
                    "the rank of 'layers.0.attention.wq.weight' is 0, expected 1 or more");
  CHECK_THROWS_WITH(
      made([](auto& parts) { parts[0].part = Part::wk; }),
      "the factors of 'layers.0.attention.wk.weight' have 72 and 72 numbers, expected [2, 36] and [12, 2]");
  CHECK_THROWS_WITH(made([](auto& parts) { parts[0].scale = std::numeric_limits<float>::infinity(); }),
                    "the scale of 'layers.0.attention.wq.weight' is not finite");
  CHECK_THROWS_WITH(made([](auto& parts) { parts[0].part = Part::output; }),
                    "output belongs to no layer, and adapters are computed beside matrices of layers only");
  CHECK_THROWS_WITH(made([](auto& parts) { parts[0].part = Part::attention_norm; }), "attention_norm is no matrix");
  CHECK_THROWS_WITH(made([](auto& parts) { parts[0].part = Part::e1; }),
                    "e1 is a part of experts, beside which adapters are not computed");
  CHECK_THROWS_WITH(made([](auto& parts) { parts[0].rank = std::numeric_limits<std::int64_t>::max(); }),
                    doctest::Contains("overflows the address space"));
  Floats wrong(good.numbers[0]);
  wrong[5] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH(made([&](auto& parts) { parts[0].a = wrong; }),
                    "the factors of 'layers.0.attention.wq.weight' have numbers that are not finite");
  const auto other = tiny::model(config, {.threads = 1});
  CHECK_THROWS_WITH(Session(other, 0, good.adapter(model)),
                    "the adapter was loaded for another model: load it with this one");
}
