#include "fibers.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Saves this stack's registers, leaves its pointer at *from, and goes on where `to` was left. What the x86-64 ABI wants
// kept across a call is all there is to save; the floating-point mode is the same for all fibers.
extern "C" void soft_switch_stack(void** from, void* to);
asm(R"(
.text
.p2align 4
.globl soft_switch_stack
.hidden soft_switch_stack
.type soft_switch_stack, @function
soft_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size soft_switch_stack, .-soft_switch_stack
)");

namespace soft {

Running running;

namespace {

constexpr std::size_t kStackBytes = 64 << 10;
constexpr std::size_t kGuardBytes = 4096;  // below each stack: one that grows too far ends in a segmentation fault

// The stacks of all fibers, kept for the next grid. Only pages that were used cost memory.
class Stacks {
 public:
  Stacks() {
    void* memory = mmap(nullptr, max_threads * kEach, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<std::byte*>(memory);
    for (std::size_t i = 0; i < max_threads; ++i) {
      if (mprotect(memory_ + i * kEach, kGuardBytes, PROT_NONE) != 0) throw std::bad_alloc();
    }
  }
  ~Stacks() { munmap(memory_, max_threads * kEach); }
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  std::span<std::byte> at(std::size_t thread) const { return {memory_ + thread * kEach + kGuardBytes, kStackBytes}; }

 private:
  static constexpr std::size_t kEach = kStackBytes + kGuardBytes;
  std::byte* memory_ = nullptr;
};

// Where an address sanitizer looks on, it has to know which stack is in use.
class Sanitizer {
 public:
#ifdef __SANITIZE_ADDRESS__
  void enter(std::span<std::byte> stack) { __sanitizer_start_switch_fiber(nullptr, stack.data(), stack.size()); }
  void entered() { __sanitizer_finish_switch_fiber(nullptr, &scheduler_, &scheduler_bytes_); }
  void leave() { __sanitizer_start_switch_fiber(nullptr, scheduler_, scheduler_bytes_); }
  void left() { __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr); }
  // A fault leaves a stack without unwinding it, and the marks on it.
  void renew(std::span<std::byte> stack) { __asan_unpoison_memory_region(stack.data(), stack.size()); }

 private:
  const void* scheduler_ = nullptr;
  std::size_t scheduler_bytes_ = 0;
#else
  void enter(std::span<std::byte>) {}
  void entered() {}
  void leave() {}
  void left() {}
  void renew(std::span<std::byte>) {}
#endif
};

enum class State { ready, in_simdgroup, in_threadgroup, returned };

struct Fiber {
  void* stack = nullptr;
  ThreadIds ids;
  State state = State::ready;
  CallSite site{};  // where it waits
};

struct Simdgroup {
  alignas(16) std::byte slots[2][simd_width * 16];
  unsigned phase = 0;  // which half of the slots is being filled
  std::uint32_t arrived = 0, lanes = 0;
  CallSite site{};  // of the first that arrived
};

bool same(const CallSite& a, const CallSite& b) {
  const auto equal = [](const char* x, const char* y) { return x == y || std::strcmp(x, y) == 0; };
  return a.line == b.line && equal(a.function, b.function) && equal(a.file, b.file);
}

std::string text(const CallSite& site) {
  return std::string(site.function) + " (" + site.file + ":" + std::to_string(site.line) + ")";
}

// "0-3, 7" of 0, 1, 2, 3, 7
std::string text(const std::vector<std::uint32_t>& threads) {
  std::string out;
  for (std::size_t i = 0; i < threads.size();) {
    std::size_t last = i;
    while (last + 1 < threads.size() && threads[last + 1] == threads[last] + 1) ++last;
    out += (out.empty() ? "" : ", ") + std::to_string(threads[i]);
    if (last > i) out += "-" + std::to_string(threads[last]);
    i = last + 1;
  }
  return out;
}

std::string text(const Size3& at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
}

class Grid {
 public:
  Grid(std::string_view kernel, const Size3& groups, const Size3& threads, const Orders& orders,
       const std::function<void(const ThreadIds&)>& body, GridWatcher& watcher, const Stacks& stacks)
      : kernel_(kernel),
        groups_(groups),
        threads_(threads),
        orders_(orders),
        body_(body),
        watcher_(watcher),
        stacks_(stacks),
        random_(orders.seed),
        fibers_(std::size_t{threads.x} * threads.y * threads.z),
        simdgroups_((fibers_.size() + simd_width - 1) / simd_width),
        simdgroup_order_(ordered(simdgroups_.size(), orders.simdgroups)) {
    for (std::size_t s = 0; s < simdgroups_.size(); ++s) {
      const std::size_t lanes = std::min<std::size_t>(simd_width, fibers_.size() - s * simd_width);
      simdgroups_[s].lanes = static_cast<std::uint32_t>(lanes);
      lane_orders_.push_back(ordered(lanes, orders.threads));
    }
  }

  std::uint64_t run() {
    const std::size_t count = std::size_t{groups_.x} * groups_.y * groups_.z;
    for (const std::uint32_t i : ordered(count, orders_.groups)) {
      run_group({i % groups_.x, i / groups_.x % groups_.y, i / groups_.x / groups_.y});
    }
    return switches_;
  }

  // From here on: called by fibers.

  const void* exchange(const void* value, std::size_t bytes, const CallSite& site) {
    Fiber& fiber = *current_;
    Simdgroup& simd = simdgroups_[fiber.ids.simdgroup];
    std::byte* slots = simd.slots[simd.phase & 1];
    std::memcpy(slots + fiber.ids.lane * 16, value, bytes);
    arrive(simd, site);
    return slots;
  }

  void wait_for_simdgroup(unsigned flags, const CallSite& site) {
    Simdgroup& simd = simdgroups_[current_->ids.simdgroup];
    const bool last = simd.arrived + 1 == simd.lanes;
    if (last) tell([&] { watcher_.simdgroup_barrier(current_->ids.simdgroup, flags); });
    arrive(simd, site);
  }

  void wait_for_threadgroup(unsigned flags, const CallSite& site) {
    check_site(barrier_arrived_, barrier_site_, site, "threads of one threadgroup");
    if (++barrier_arrived_ == fibers_.size()) {
      tell([&] { watcher_.threadgroup_barrier(flags); });
      barrier_arrived_ = 0;
      for (Fiber& fiber : fibers_) {
        if (fiber.state == State::in_threadgroup) fiber.state = State::ready;
      }
      return;
    }
    wait(State::in_threadgroup, site);
  }

  [[noreturn]] void fail(std::exception_ptr fault) {
    fault_ = std::move(fault);
    leave();
    std::terminate();  // the fiber is never switched to again
  }

  [[noreturn]] void fail(const std::string& what) {
    fail(std::make_exception_ptr(Fault("kernel " + kernel_ + ", threadgroup " + text(group_) + ": " + what)));
  }

  const Fiber& current() const { return *current_; }
  std::uint32_t lanes() const { return simdgroups_[current_->ids.simdgroup].lanes; }

  void run_current() {
    sanitizer_.entered();
    try {
      body_(current_->ids);
    } catch (...) {
      fault_ = std::current_exception();
    }
    current_->state = State::returned;
    --left_;
    leave();
  }

 private:
  std::vector<std::uint32_t> ordered(std::size_t count, Order order) {
    std::vector<std::uint32_t> out(count);
    std::iota(out.begin(), out.end(), 0u);
    if (order == Order::reverse) std::reverse(out.begin(), out.end());
    if (order == Order::shuffled) std::shuffle(out.begin(), out.end(), random_);
    return out;
  }

  void run_group(const Size3& group) {
    group_ = group;
    left_ = fibers_.size();
    barrier_arrived_ = 0;
    for (std::size_t i = 0; i < fibers_.size(); ++i) prepare(i);
    for (Simdgroup& simd : simdgroups_) simd.arrived = 0;
    if (orders_.threads == Order::shuffled) {
      for (auto& order : lane_orders_) std::shuffle(order.begin(), order.end(), random_);
    }
    watcher_.begin_group(group);
    // Else a simdgroup runs as far as it can (to a barrier of the threadgroup, or to its end) before the next one does.
    const bool taking_turns = orders_.simdgroups == Order::shuffled;
    while (left_ > 0) {
      bool ran = false;
      if (taking_turns) std::shuffle(simdgroup_order_.begin(), simdgroup_order_.end(), random_);
      for (const std::uint32_t s : simdgroup_order_) {
        while (run_lanes(s)) {
          ran = true;
          if (taking_turns) break;
        }
      }
      if (!ran) throw Fault(deadlock());
    }
    watcher_.end_group(group);
  }

  // Whether any lane could run.
  bool run_lanes(std::uint32_t s) {
    bool ran = false;
    for (const std::uint32_t lane : lane_orders_[s]) {
      Fiber& fiber = fibers_[s * simd_width + lane];
      if (fiber.state != State::ready) continue;
      ran = true;
      current_ = &fiber;
      const std::span<std::byte> stack = stacks_.at(fiber.ids.index);
      running = {&fiber.ids, stack.data(), stack.data() + stack.size()};
      ++switches_;
      sanitizer_.enter(stack);
      soft_switch_stack(&scheduler_, fiber.stack);
      sanitizer_.left();
      running = {};
      if (fault_) std::rethrow_exception(std::exchange(fault_, nullptr));
    }
    return ran;
  }

  void prepare(std::size_t i);

  void leave() {
    sanitizer_.leave();
    soft_switch_stack(&current_->stack, scheduler_);
    sanitizer_.entered();
  }

  void wait(State state, const CallSite& site) {
    current_->state = state;
    current_->site = site;
    leave();
  }

  // The last lane goes straight on; the others are ready to.
  void arrive(Simdgroup& simd, const CallSite& site) {
    check_site(simd.arrived, simd.site, site, "lanes of one simdgroup");
    if (++simd.arrived == simd.lanes) {
      simd.arrived = 0;
      ++simd.phase;
      const std::size_t first = std::size_t{current_->ids.simdgroup} * simd_width;
      for (std::size_t i = first; i < first + simd.lanes; ++i) {
        if (fibers_[i].state == State::in_simdgroup) fibers_[i].state = State::ready;
      }
      return;
    }
    wait(State::in_simdgroup, site);
  }

  void check_site(std::size_t arrived, CallSite& first, const CallSite& site, const char* who) {
    if (arrived == 0) {
      first = site;
    } else if (!same(first, site)) {
      fail(std::string(who) + " wait in different places: some in " + text(first) + ", thread " +
           std::to_string(current_->ids.index) + " in " + text(site));
    }
  }

  template <class Call>
  void tell(const Call& call) {
    try {
      call();
    } catch (...) {
      fault_ = std::current_exception();
    }
    if (fault_) fail(std::exchange(fault_, nullptr));
  }

  // Nobody can run and somebody waits.
  std::string deadlock() const {
    std::vector<std::uint32_t> returned;
    std::vector<std::pair<CallSite, std::vector<std::uint32_t>>> waiting;
    for (const Fiber& fiber : fibers_) {
      if (fiber.state == State::returned) {
        returned.push_back(fiber.ids.index);
        continue;
      }
      auto at = std::find_if(waiting.begin(), waiting.end(),
                             [&](const auto& entry) { return same(entry.first, fiber.site); });
      if (at == waiting.end()) at = waiting.insert(at, {fiber.site, {}});
      at->second.push_back(fiber.ids.index);
    }
    std::string out = "kernel " + kernel_ + ", threadgroup " + text(group_) + ": threads wait for ever:";
    for (const auto& [site, threads] : waiting) out += " " + text(threads) + " in " + text(site) + ";";
    return out + (returned.empty() ? " none has returned" : " returned have " + text(returned));
  }

  std::string kernel_;
  Size3 groups_, threads_;
  Orders orders_;
  const std::function<void(const ThreadIds&)>& body_;
  GridWatcher& watcher_;
  const Stacks& stacks_;
  std::mt19937_64 random_;
  std::vector<Fiber> fibers_;
  std::vector<Simdgroup> simdgroups_;
  std::vector<std::uint32_t> simdgroup_order_;
  std::vector<std::vector<std::uint32_t>> lane_orders_;
  Size3 group_{};
  Fiber* current_ = nullptr;
  void* scheduler_ = nullptr;
  std::size_t left_ = 0;
  std::size_t barrier_arrived_ = 0;
  CallSite barrier_site_{};
  std::exception_ptr fault_;
  std::uint64_t switches_ = 0;
  Sanitizer sanitizer_;
};

Grid* grid = nullptr;  // the one that runs

void fiber_main() {
  grid->run_current();
  std::terminate();  // a fiber that has returned is not switched to
}

void Grid::prepare(std::size_t i) {
  Fiber& fiber = fibers_[i];
  const auto index = static_cast<std::uint32_t>(i);
  fiber.ids = {.group = group_,
               .thread = {index % threads_.x, index / threads_.x % threads_.y, index / threads_.x / threads_.y},
               .groups = groups_,
               .threads = threads_,
               .index = index,
               .lane = index % simd_width,
               .simdgroup = index / simd_width,
               .simdgroups = static_cast<std::uint32_t>(simdgroups_.size())};
  fiber.state = State::ready;
  // As soft_switch_stack leaves a stack: six registers, then where to go on. A function begins 8 bytes off 16.
  const std::span<std::byte> stack = stacks_.at(i);
  sanitizer_.renew(stack);
  void** top = reinterpret_cast<void**>(stack.data() + stack.size());
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&fiber_main);
  for (int r = 0; r < 6; ++r) *--top = nullptr;
  fiber.stack = top;
}

}  // namespace

std::uint64_t run_grid(std::string_view kernel, const Size3& groups, const Size3& threads, const Orders& orders,
                       const std::function<void(const ThreadIds&)>& body, GridWatcher& watcher) {
  const auto product = [](const Size3& size) { return std::uint64_t{size.x} * size.y * size.z; };
  if (threads.x > max_threads || threads.y > max_threads || threads.z > max_threads || product(threads) == 0 ||
      product(threads) > max_threads) {
    throw std::invalid_argument("kernel " + std::string(kernel) + ": a threadgroup of " + text(threads) +
                                " threads; expected 1 to 1024 in all");
  }
  if (groups.x == 0 || groups.y == 0 || groups.z == 0) {
    throw std::invalid_argument("kernel " + std::string(kernel) + ": a grid of " + text(groups) + " threadgroups");
  }
  if (grid != nullptr) throw std::logic_error("a grid runs already");
  static const Stacks stacks;
  Grid here(kernel, groups, threads, orders, body, watcher, stacks);
  grid = &here;
  struct Done {
    ~Done() {
      grid = nullptr;
      running = {};
    }
  } done;
  return here.run();
}

void fail(std::exception_ptr fault) { grid->fail(std::move(fault)); }

const void* exchange(const void* value, unsigned long bytes, const CallSite& site) {
  return grid->exchange(value, bytes, site);
}

unsigned current_lane() { return grid->current().ids.lane; }

unsigned active_lanes() { return grid->lanes(); }

void wait_for_simdgroup(unsigned flags, const CallSite& site) { grid->wait_for_simdgroup(flags, site); }

void wait_for_threadgroup(unsigned flags, const CallSite& site) { grid->wait_for_threadgroup(flags, site); }

void fail_no_lane(unsigned lane, const CallSite& site) {
  grid->fail("thread " + std::to_string(grid->current().ids.index) + " asks in " + text(site) + " for lane " +
             std::to_string(lane) + "; its simdgroup has " + std::to_string(grid->lanes()));
}

void multiply_accumulate(float d[2], const float a[2], const float b[2], const float c[2], const CallSite& site) {
  const float mine[4] = {a[0], a[1], b[0], b[1]};
  const auto* all = static_cast<const std::byte*>(grid->exchange(mine, sizeof mine, site));
  float left[8][8], right[8][8];  // a, b
  for (unsigned lane = 0; lane < simd_width; ++lane) {
    float two[4];
    std::memcpy(two, all + lane * 16, sizeof two);
    const unsigned row = matrix_row(lane), column = matrix_column(lane);
    left[row][column] = two[0];
    left[row][column + 1] = two[1];
    right[row][column] = two[2];
    right[row][column + 1] = two[3];
  }
  const unsigned lane = grid->current().ids.lane;
  for (unsigned i = 0; i < 2; ++i) {
    float sum = c[i];
    for (unsigned k = 0; k < 8; ++k) sum = std::fma(left[matrix_row(lane)][k], right[k][matrix_column(lane) + i], sum);
    d[i] = sum;
  }
}

}  // namespace soft
