#include "model/gram.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "format/f32.h"

namespace llama2cpp {

void gram(std::span<const float> x, std::int64_t cols, std::span<float> products, Backend& backend,
          FunctionRef<void()> poll) {
  const std::int64_t rows = static_cast<std::int64_t>(x.size()) / cols;
  std::vector<float> turned(x.size());  // [cols, rows]
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) {
      turned[static_cast<std::size_t>(c * rows + r)] = x[static_cast<std::size_t>(r * cols + c)];
    }
  }
  Weight weight;
  weight.name = "x";
  weight.format = &kF32;
  weight.rows = cols;
  weight.cols = rows;
  weight.planes[0].data = reinterpret_cast<const std::byte*>(turned.data());
  weight.planes[0].bytes = turned.size() * sizeof(float);
  weight.planes[0].row_bytes = row_bytes(kF32, rows);
  const Backend::Lease lease(backend, poll);
  backend.pack(weight);
  const Weight* const weights[] = {&weight};
  constexpr std::int64_t kAtOnce = 128;  // as many as a forward pass has tokens: the kernels are made for that
  for (std::int64_t first = 0; first < cols; first += kAtOnce) {
    const std::int64_t count = std::min(kAtOnce, cols - first);
    const Tensor outs[] = {Tensor(products.data() + first * cols, {count, cols})};
    backend.matmul(weights, Tensor(turned.data() + first * rows, {count, rows}), outs);
  }
  backend.sync();
}

}  // namespace llama2cpp
