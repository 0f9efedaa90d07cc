// Where the threads of a simdgroup or of a threadgroup wait for each other: what metal_stdlib calls. It includes nothing, so
// that a kernel sees no name that Metal does not have.
#pragma once

namespace soft {

// Where a kernel calls a function that threads wait in.
struct CallSite {
  const char* function;
  const char* file;
  int line;
};

// All lanes hand over `bytes` (at most 16) and see what all 32 did: lane k's at k * 16. It holds until the lane's
// next-but-one exchange.
const void* exchange(const void* value, unsigned long bytes, const CallSite& site);

unsigned current_lane();
unsigned active_lanes();  // of the running thread's simdgroup: 32, or fewer in the last one of an odd threadgroup

// flags: which memory the barrier orders (fibers.h).
void wait_for_simdgroup(unsigned flags, const CallSite& site);
void wait_for_threadgroup(unsigned flags, const CallSite& site);

// Ends the grid: `lane` of the simdgroup has no thread, or is none.
[[noreturn]] void fail_no_lane(unsigned lane, const CallSite& site);

// A simdgroup's 8x8 matrix is two elements a lane: (row, column) and (row, column + 1).
constexpr unsigned matrix_row(unsigned lane) { return ((lane / 4) & 4) + lane / 2 % 4; }
constexpr unsigned matrix_column(unsigned lane) { return ((lane / 4) & 2) * 2 + lane % 2 * 2; }

// d = a b + c, each of this lane's two elements one chain of fma over k = 0..7.
void multiply_accumulate(float d[2], const float a[2], const float b[2], const float c[2], const CallSite& site);

}  // namespace soft
