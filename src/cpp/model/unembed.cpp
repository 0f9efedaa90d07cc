// The last ops of forward.cpp, on rows from outside.
#include "model/unembed.h"

#include <algorithm>

#include "core/check.h"
#include "model/norms.h"
#include "model/session.h"

namespace llama2cpp {

void finish_logits(const Config& c, Backend& be, const Tensor& logits) {
  if (c.logits_scaling != 1.0F) be.scale(logits, 1.0F / c.logits_scaling, logits);
  if (c.logits_cap > 0) be.soft_cap(logits, c.logits_cap, logits);
}

void unembed(const Model& model, std::span<const float> x, bool norm, std::span<float> logits,
             FunctionRef<void()> poll) {
  const Config& c = model.config();
  const auto total = static_cast<std::int64_t>(x.size()) / c.dim;
  LLAMA2CPP_CHECK(static_cast<std::int64_t>(x.size()) == total * c.dim, "x has ", x.size(),
                  " numbers, expected rows of ", c.dim);
  LLAMA2CPP_CHECK(static_cast<std::int64_t>(logits.size()) == total * c.vocab_size, "logits has ", logits.size(),
                  " numbers, expected ", total, " rows of ", c.vocab_size);
  if (total == 0) return;
  model.prepare(poll);
  const FileReads reads(model.files());
  Backend& be = model.backend();
  const Hooks hooks;
  const auto a = model.borrow_activations(std::min(total, kChunk));
  for (std::int64_t begin = 0; begin < total; begin += kChunk) {
    if (begin > 0) poll();
    const std::int64_t rows = std::min(kChunk, total - begin);
    a->resize(rows, rows);
    std::copy_n(x.data() + begin * c.dim, rows * c.dim, a->last.row(0));
    const Backend::Lease lease(be, poll);
    const Weights& w = model.weights();
    const Input input =
        norm ? Norms(c, be, *a, hooks).of(a->last, {w.norm, w.norm_b}, kLnFinal, c.n_layers - 1, {}) : Input{a->last};
    const Weight* const output[] = {&w.output};
    be.matmul(output, input.x, {&a->logits, 1}, input.norm);  // [T, dim] -> [T, vocab_size]
    finish_logits(c, be, a->logits);
    be.sync();
    std::copy_n(a->logits.row(0), rows * c.vocab_size, logits.data() + begin * c.vocab_size);
  }
  reads.check();
  if (be.has_warning()) poll();
}

}  // namespace llama2cpp
