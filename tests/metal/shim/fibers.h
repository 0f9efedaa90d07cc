// Runs the threads of a Metal grid on one thread of this machine: each GPU thread is a fiber, which gives way only where
// threads wait for each other (barriers, simdgroup functions). Any order is a legal one on a GPU, so tests choose several:
// where a barrier is missing, results differ.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string_view>

#include "simdgroup.h"

namespace soft {

inline constexpr std::uint32_t simd_width = 32;
inline constexpr std::uint32_t max_threads = 1024;  // of a threadgroup

struct Size3 {
  std::uint32_t x = 1, y = 1, z = 1;
};

// What a kernel may ask about its thread.
struct ThreadIds {
  Size3 group;                   // threadgroup_position_in_grid
  Size3 thread;                  // thread_position_in_threadgroup
  Size3 groups;                  // threadgroups_per_grid
  Size3 threads;                 // threads_per_threadgroup
  std::uint32_t index = 0;       // thread_index_in_threadgroup
  std::uint32_t lane = 0;        // thread_index_in_simdgroup
  std::uint32_t simdgroup = 0;   // simdgroup_index_in_threadgroup
  std::uint32_t simdgroups = 0;  // simdgroups_per_threadgroup
};

// What a kernel did that a GPU would not forgive.
class Fault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

enum class Order { forward, reverse, shuffled };

struct Orders {
  Order threads = Order::forward;     // of a simdgroup
  Order simdgroups = Order::forward;  // of a threadgroup; shuffled ones also take turns between two barriers
  Order groups = Order::forward;      // of the grid
  std::uint64_t seed = 1;
};

// As Metal's mem_flags: which memory a barrier orders.
inline constexpr unsigned mem_device = 1;
inline constexpr unsigned mem_threadgroup = 2;

// What the device wants to know of while a grid runs. No fiber runs meanwhile; what is thrown ends the grid.
class GridWatcher {
 public:
  virtual ~GridWatcher() = default;
  virtual void begin_group(const Size3& /*group*/) {}                                 // before the first of its threads
  virtual void end_group(const Size3& /*group*/) {}                                   // after the last
  virtual void threadgroup_barrier(unsigned /*flags*/) {}                             // all its threads have come
  virtual void simdgroup_barrier(std::uint32_t /*simdgroup*/, unsigned /*flags*/) {}  // all its lanes have come
};

// The thread that runs now; `ids` is null outside of a kernel.
struct Running {
  const ThreadIds* ids = nullptr;
  const std::byte* stack_begin = nullptr;
  const std::byte* stack_end = nullptr;
};
extern Running running;

// Runs `body` once for each thread of groups x threads. One grid at a time: the caller sees to it (std::logic_error).
// Throws Fault where threads of one threadgroup, or lanes of one simdgroup, wait in different places or for ones that have
// returned: the text names kernel, threads, functions and lines. Returns how often fibers were switched.
std::uint64_t run_grid(std::string_view kernel, const Size3& groups, const Size3& threads, const Orders& orders,
                       const std::function<void(const ThreadIds&)>& body, GridWatcher& watcher);

// Ends the grid from within a thread: run_grid throws `fault`. The thread's stack is dropped, not unwound, so this may be
// called from where nothing may be thrown (trace.h).
[[noreturn]] void fail(std::exception_ptr fault);

}  // namespace soft
