// The one thing that GPTQ wants to know of a layer's inputs: how an error in one column is made up for in those after it.
#pragma once

#include <cstdint>
#include <span>

#include "core/thread_pool.h"

namespace llama2cpp {

// H [n, n] is symmetric and is used up. U [n, n] becomes the upper triangle with a positive diagonal for which
// H^-1 = U^T U; below it are zeros. False where H is not positive definite, as far as rounding lets one see.
// Every number is summed in one order, whatever the number of threads.
bool gptq_factor(std::span<double> h, std::span<double> u, std::int64_t n, ThreadPool& pool);

// The same of H plus `damp` times its diagonal's mean on the diagonal; where that is not positive definite ten times as much,
// and again. H stays as it is. Returns the share that was added. Throws std::invalid_argument for numbers that are not finite
// and where no damping helps.
double gptq_damped_factor(std::span<const double> h, double damp, std::span<double> u, std::int64_t n,
                          ThreadPool& pool);

}  // namespace llama2cpp
