// The last ops of forward.cpp, on rows from outside.
#include "model/unembed.h"

#include <algorithm>

#include "core/check.h"
#include "model/session.h"

namespace llama2cpp {

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
  const auto a = model.borrow_activations(std::min(total, kChunk));
  for (std::int64_t begin = 0; begin < total; begin += kChunk) {
    if (begin > 0) poll();
    const std::int64_t rows = std::min(kChunk, total - begin);
    a->resize(rows, rows);
    std::copy_n(x.data() + begin * c.dim, rows * c.dim, a->last.row(0));
    const Backend::Lease lease(be, poll);
    Norm ln_final;
    Tensor x = a->last;
    if (norm && c.norm != NormKind::rms) {
      be.center(x, a->centered);
      x = a->centered;
    }
    if (norm) {
      be.rms_scale(x, c.norm_eps, a->scale);  // [T, dim] -> [T, 1]
      ln_final = {a->scale, model.weights().norm.view};
      if (const Vector& bias = model.weights().norm_b) {
        be.normalize(x, ln_final, a->normalized);
        be.add_bias(a->normalized, bias.view);
        x = a->normalized;
        ln_final = {};
      }
    }
    const Weight* const output[] = {&model.weights().output};
    be.matmul(output, x, {&a->logits, 1}, ln_final);  // [T, dim] -> [T, vocab_size]
    if (const Vector& multiplier = model.weights().logits_multiplier) {
      std::fill_n(a->ones.row(0), rows, 1.0F);
      be.normalize(a->logits, {a->ones, multiplier.view}, a->logits);
    }
    if (c.logits_cap > 0) be.soft_cap(a->logits, c.logits_cap, a->logits);
    be.sync();
    std::copy_n(a->logits.row(0), rows * c.vocab_size, logits.data() + begin * c.vocab_size);
  }
  reads.check();
  if (be.has_warning()) poll();
}

}  // namespace llama2cpp
