// gram: the products of all columns with each other, in the backend's one order of sums.
#include "model/gram.h"

#include <doctest/doctest.h>

#include <cmath>
#include <thread>
#include <utility>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/kernel_table.h"
#include "tiny_model.h"

namespace {

std::vector<float> gram_of(const std::vector<float>& x, std::int64_t cols, int threads) {
  llama2cpp::CpuBackend backend(threads, *llama2cpp::scalar_kernels());
  std::vector<float> products(static_cast<std::size_t>(cols * cols), NAN);
  llama2cpp::gram(x, cols, products, backend, llama2cpp::kNoPoll);
  return products;
}

}  // namespace

TEST_CASE("gram multiplies all columns with each other") {
  for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {3, 5}, {37, 20}, {9, 130}}) {
    CAPTURE(rows);
    CAPTURE(cols);
    tiny::Random random(static_cast<std::uint64_t>(rows));
    std::vector<float> x(static_cast<std::size_t>(rows * cols));
    for (float& value : x) value = random.uniform();
    const std::vector<float> products = gram_of(x, cols, 1);
    for (std::int64_t i = 0; i < cols; ++i) {
      for (std::int64_t j = 0; j < cols; ++j) {
        double exact = 0;
        double size = 0;
        for (std::int64_t r = 0; r < rows; ++r) {
          const double product =
              double{x[static_cast<std::size_t>(r * cols + i)]} * x[static_cast<std::size_t>(r * cols + j)];
          exact += product;
          size += std::abs(product);
        }
        const float found = products[static_cast<std::size_t>(i * cols + j)];
        CHECK(std::abs(found - exact) <= size * 1e-5);
        CHECK(found == products[static_cast<std::size_t>(j * cols + i)]);
      }
    }
    CHECK(gram_of(x, cols, 3) == products);  // whatever the number of threads
  }
}

TEST_CASE("gram's wait for the backend can be ended") {
  llama2cpp::CpuBackend backend(1, *llama2cpp::scalar_kernels());
  const std::vector<float> x(4, 1.0F);
  std::vector<float> products(4, 0.0F);
  struct Ended {};
  const auto end = [] { throw Ended(); };
  {
    const llama2cpp::Backend::Lease lease(backend, llama2cpp::kNoPoll);
    std::thread([&] { CHECK_THROWS_AS(llama2cpp::gram(x, 2, products, backend, end), Ended); }).join();
  }
  CHECK(products == std::vector<float>(4, 0.0F));
}
