// Runs one dispatch, and looks at each load and store while it does.
//
// What is looked for: memory outside of the bound ranges, writes to what may only be read, misaligned accesses, function
// constants that were not set, and races. For races, each piece of memory that can be written has a cell that says who
// wrote it last and who read it, and when: time moves on at each barrier. Two accesses are ordered if a barrier of both
// threads lies between them, and by nothing else: not by the order in which the device happens to run threads, nor by
// simd_sum and its kin.
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "machine.h"
#include "trace.h"

namespace soft {

namespace {

std::string hex(std::uintptr_t value) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (; value != 0; value >>= 4) text.insert(text.begin(), digits[value & 15]);
  return "0x" + (text.empty() ? "0" : text);
}

std::string position(const Size3& at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
}

// Denormals as zero, in what is read and what is computed; as the caller had it afterwards.
class FlushDenormals {
 public:
  explicit FlushDenormals(bool flush) {
#if defined(__x86_64__)
    before_ = _mm_getcsr();
    _mm_setcsr(flush ? before_ | 0x8040U : before_ & ~0x8040U);
#else
    (void)flush;
#endif
  }
  ~FlushDenormals() {
#if defined(__x86_64__)
    _mm_setcsr(before_);
#endif
  }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  unsigned before_ = 0;
};

// Who touched a piece of memory last, and when. Times never go back, so cells of earlier dispatches need no clearing.
struct Cell {
  std::uint32_t write_time;
  std::uint32_t read_time;
  std::uint16_t writer;  // index of the thread
  std::uint16_t reader;  // the same, or one of these:
};
constexpr std::uint16_t kManyOfSimdgroup = 0x8000;  // | simdgroup: several of its threads
constexpr std::uint16_t kMany = 0xFFFF;             // threads of several simdgroups

// Zeroed memory for cells, that costs nothing where it is not touched.
class Cells {
 public:
  ~Cells() { drop(); }
  Cell* at_least(std::size_t count) {
    if (count > count_) {
      drop();
      count_ = std::max(count, std::size_t{1} << 16);
      void* const memory = mmap(nullptr, count_ * sizeof(Cell), PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) {
        count_ = 0;
        throw std::bad_alloc();
      }
      cells_ = static_cast<Cell*>(memory);
    }
    return cells_;
  }
  void drop() {
    if (cells_ != nullptr) munmap(cells_, count_ * sizeof(Cell));
    cells_ = nullptr;
    count_ = 0;
  }

 private:
  Cell* cells_ = nullptr;
  std::size_t count_ = 0;
};

enum Space : unsigned { device_space = 0, threadgroup_space = 1 };

struct Range {
  std::uintptr_t begin = 0;
  std::size_t bytes = 0;
  bool writable = false;
  std::uint8_t shift = 2;  // of the piece that one cell stands for
  Space space = device_space;
  Cell* cells = nullptr;             // null: never written, so no race
  const Operand* operand = nullptr;  // null: threadgroup memory
  int index = 0;                     // of threadgroup memory
};

// Of one process: grids run one at a time.
struct Memory {
  std::mutex mutex;
  Cells device, threadgroup;
  std::vector<Word> shared;
  std::uint32_t time = 1;
};
Memory& memory() {
  static Memory memory;
  return memory;
}

class Watch final : public GridWatcher {
 public:
  Watch(const Dispatch& dispatch, Memory& memory, bool check) : dispatch_(dispatch), memory_(memory) {
    std::size_t words = 0;
    for (const std::size_t bytes : dispatch.threadgroup) words += bytes / sizeof(Word);
    memory_.shared.resize(std::max<std::size_t>(words, 1));
    std::byte* next = reinterpret_cast<std::byte*>(memory_.shared.data());
    for (std::size_t i = 0; i < dispatch.threadgroup.size(); ++i) {
      if (dispatch.threadgroup[i] == 0) continue;
      arguments_.threadgroup[i] = next;
      Range range;
      range.begin = reinterpret_cast<std::uintptr_t>(next);
      range.bytes = dispatch.threadgroup[i];
      range.writable = true;
      range.space = threadgroup_space;
      range.index = static_cast<int>(i);
      ranges_.push_back(range);
      next += dispatch.threadgroup[i];
    }
    std::size_t written = 0;
    for (const Operand& operand : dispatch.operands) {
      arguments_.buffers[static_cast<std::size_t>(operand.parameter->index)] = operand.begin;
      Range range;
      range.begin = reinterpret_cast<std::uintptr_t>(operand.begin);
      range.bytes = operand.bytes;
      range.writable = operand.writes;
      range.operand = &operand;
      range.shift = operand.parameter->alignment >= 4 ? 2 : operand.parameter->alignment == 2 ? 1 : 0;
      if (operand.writes) written += (operand.bytes >> range.shift) + 1;
      ranges_.push_back(range);
    }
    if (!check) return;
    constexpr std::uint32_t late = 0xC0000000U;
    if (memory_.time > late) {
      memory_.device.drop();
      memory_.threadgroup.drop();
      memory_.time = 1;
    }
    Cell* device_cell = memory_.device.at_least(written);
    Cell* threadgroup_cell = memory_.threadgroup.at_least(words * sizeof(Word) / 4);
    for (Range& range : ranges_) {
      if (range.space == threadgroup_space) {
        range.cells = threadgroup_cell;
        threadgroup_cell += range.bytes >> range.shift;
      } else if (range.writable) {
        range.cells = device_cell;
        device_cell += (range.bytes >> range.shift) + 1;
      }
    }
    first_ = ranges_.data();
    last_ = first_ + ranges_.size();
    for (const ConstantParameter& constant : dispatch.library->constants) {
      if (dispatch.constants->contains(static_cast<NS::UInteger>(constant.index))) {
        constants_.push_back(reinterpret_cast<std::uintptr_t>(constant.variable));
      }
    }
    dispatch_time_ = ++memory_.time;
    empty_before_[device_space] = dispatch_time_;
  }

  const Arguments& arguments() const { return arguments_; }
  std::uint64_t accesses() const { return accesses_; }

  void begin_group(const Size3&) override {
    // Threadgroup memory holds anything at first: here NaN.
    std::memset(memory_.shared.data(), 0xFF, memory_.shared.size() * sizeof(Word));
    group_time_ = ++memory_.time;
    empty_before_[threadgroup_space] = group_time_;
    for (const Space space : {device_space, threadgroup_space}) {
      barrier_time_[space] = group_time_;
      std::fill(simdgroup_time_[space].begin(), simdgroup_time_[space].end(), group_time_);
    }
  }
  void threadgroup_barrier(unsigned flags) override {
    ++memory_.time;
    if ((flags & mem_device) != 0) barrier_time_[device_space] = memory_.time;
    if ((flags & mem_threadgroup) != 0) barrier_time_[threadgroup_space] = memory_.time;
  }
  void simdgroup_barrier(std::uint32_t simdgroup, unsigned flags) override {
    ++memory_.time;
    if ((flags & mem_device) != 0) simdgroup_time_[device_space][simdgroup] = memory_.time;
    if ((flags & mem_threadgroup) != 0) simdgroup_time_[threadgroup_space][simdgroup] = memory_.time;
  }

  void access(std::uintptr_t address, std::size_t bytes, std::size_t alignment, bool writes) {
    ++accesses_;
    for (const Range* range = first_; range != last_; ++range) {
      const std::size_t offset = address - range->begin;
      if (offset >= range->bytes || bytes > range->bytes - offset) continue;
      if ((address & (alignment - 1)) != 0) misaligned(*range, offset, bytes, alignment, writes);
      if (writes && !range->writable) write_to_read(*range, offset, bytes);
      if (range->cells != nullptr) cells(*range, offset, bytes, writes);
      return;
    }
    elsewhere(address, bytes, writes);
  }

  std::string where() const {
    const ThreadIds* ids = running.ids;
    std::string text = std::string("kernel '") + dispatch_.kernel->name + "'";
    if (ids != nullptr) {
      text += ", threadgroup " + position(ids->group) + ", thread " + std::to_string(ids->index);
    }
    return text;
  }

 private:
  [[noreturn]] void found(FaultKind kind, const std::string& text) const {
    throw DeviceFault(kind, where() + ": " + text);
  }

  static std::string verb(std::size_t bytes, bool writes) {
    return (writes ? "writes " : "reads ") + std::to_string(bytes) + " bytes ";
  }

  static std::string describe(const Range& range) {
    if (range.operand == nullptr) return "threadgroup memory " + std::to_string(range.index);
    return "buffer " + std::to_string(range.operand->parameter->index) + " '" + range.operand->parameter->name + "'";
  }

  [[noreturn]] void misaligned(const Range& range, std::size_t offset, std::size_t bytes, std::size_t alignment,
                               bool writes) const {
    found(FaultKind::misaligned, verb(bytes, writes) + "at byte " + std::to_string(offset) + " of " + describe(range) +
                                     ", as if its address were a multiple of " + std::to_string(alignment));
  }
  [[noreturn]] void write_to_read(const Range& range, std::size_t offset, std::size_t bytes) const {
    found(FaultKind::write_to_read, verb(bytes, true) + "at byte " + std::to_string(offset) + " of " + describe(range));
  }

  // Not in a bound range: a variable of the thread that has an address, a function constant, or a fault.
  void elsewhere(std::uintptr_t address, std::size_t bytes, bool writes) const {
    const auto stack_begin = reinterpret_cast<std::uintptr_t>(running.stack_begin);
    const auto stack_end = reinterpret_cast<std::uintptr_t>(running.stack_end);
    if (address - stack_begin < stack_end - stack_begin || bytes == 0) return;
    if (!writes && std::find(constants_.begin(), constants_.end(), address) != constants_.end()) return;
    for (const ConstantParameter& constant : dispatch_.library->constants) {
      if (address != reinterpret_cast<std::uintptr_t>(constant.variable) || writes) continue;
      found(FaultKind::constant, "reads function constant " + std::to_string(constant.index) + " '" + constant.name +
                                     "', which was not set for this pipeline");
    }
    // The nearest range before or after is most likely what was meant.
    const Range* nearest = nullptr;
    std::size_t distance = ~std::size_t{0};
    for (const Range& range : ranges_) {
      const std::size_t end = range.begin + range.bytes;
      const std::size_t gap =
          address >= range.begin ? (address + bytes > end ? address + bytes - end : 0) : range.begin - address;
      if (gap < distance) {
        distance = gap;
        nearest = &range;
      }
    }
    if (nearest == nullptr || distance > (std::size_t{6} << 30)) {
      found(FaultKind::out_of_bounds,
            verb(bytes, writes) + "at " + hex(address) + ", which is nowhere near a bound buffer");
    }
    const auto offset = static_cast<std::int64_t>(address - nearest->begin);
    found(FaultKind::out_of_bounds,
          verb(bytes, writes) + "at byte " + std::to_string(offset) + " of " + describe(*nearest) + ", of which " +
              std::to_string(nearest->bytes) + " bytes are " +
              (nearest->operand != nullptr && nearest->operand->declared ? "declared" : "bound"));
  }

  // Whether what was done then is done before what `thread` does now.
  bool ordered(std::uint32_t time, std::uint16_t who, Space space, std::uint32_t thread) const {
    if (time < empty_before_[space]) return true;  // never, in this dispatch (or in this threadgroup's memory)
    if (time < group_time_) return false;          // by another threadgroup
    if (time < barrier_time_[space]) return true;
    if (who == thread) return true;
    const std::uint32_t simdgroup = thread / simd_width;
    const std::uint32_t other = (who & kManyOfSimdgroup) != 0 ? (who & ~kManyOfSimdgroup) : who / simd_width;
    return who != kMany && other == simdgroup && time < simdgroup_time_[space][simdgroup];
  }

  [[noreturn]] void race(const Range& range, std::size_t cell, const char* mine, const char* theirs, std::uint32_t time,
                         std::uint16_t who) const {
    std::string other;
    if (time < group_time_) {
      other = "a thread of another threadgroup";
    } else if (who == kMany) {
      other = "several threads";
    } else if ((who & kManyOfSimdgroup) != 0) {
      other = "several threads of simdgroup " + std::to_string(who & ~kManyOfSimdgroup);
    } else {
      other = "thread " + std::to_string(who);
    }
    found(FaultKind::race, std::string(mine) + " byte " + std::to_string(cell << range.shift) + " of " +
                               describe(range) + ", which " + other + " " + theirs + " with no barrier of " +
                               (range.space == device_space ? "device" : "threadgroup") + " memory between");
  }

  void cells(const Range& range, std::size_t offset, std::size_t bytes, bool writes) {
    const std::uint32_t thread = running.ids->index;
    const auto me = static_cast<std::uint16_t>(thread);
    const std::size_t end = (offset + bytes - 1) >> range.shift;
    for (std::size_t i = offset >> range.shift; i <= end; ++i) {
      Cell& cell = range.cells[i];
      if (!ordered(cell.write_time, cell.writer, range.space, thread)) {
        race(range, i, writes ? "writes" : "reads", "wrote", cell.write_time, cell.writer);
      }
      if (writes) {
        if (!ordered(cell.read_time, cell.reader, range.space, thread)) {
          race(range, i, "writes", "read", cell.read_time, cell.reader);
        }
        cell.write_time = memory_.time;
        cell.writer = me;
        continue;
      }
      if (cell.read_time == memory_.time && cell.reader == me) continue;
      if (ordered(cell.read_time, cell.reader, range.space, thread)) {
        cell.reader = me;
      } else if (cell.read_time < group_time_) {
        cell.reader = kMany;
      } else if (cell.reader != kMany) {
        const std::uint32_t other =
            (cell.reader & kManyOfSimdgroup) != 0 ? (cell.reader & ~kManyOfSimdgroup) : cell.reader / simd_width;
        cell.reader = other == thread / simd_width ? static_cast<std::uint16_t>(kManyOfSimdgroup | other) : kMany;
      }
      cell.read_time = memory_.time;
    }
  }

  const Dispatch& dispatch_;
  Memory& memory_;
  Arguments arguments_;
  std::vector<Range> ranges_;
  std::vector<std::uintptr_t> constants_;  // that were set
  const Range* first_ = nullptr;
  const Range* last_ = nullptr;
  std::uint64_t accesses_ = 0;
  std::uint32_t dispatch_time_ = 0;
  std::uint32_t group_time_ = 0;
  std::array<std::uint32_t, 2> empty_before_{};
  std::array<std::uint32_t, 2> barrier_time_{};
  std::array<std::array<std::uint32_t, max_threads / simd_width>, 2> simdgroup_time_{};
};

Watch* watch = nullptr;  // of the grid that runs

void trace(const void* address, std::size_t bytes, std::size_t alignment, bool writes) {
  if (running.ids == nullptr) return;
  std::exception_ptr fault;
  try {
    watch->access(reinterpret_cast<std::uintptr_t>(address), bytes, alignment, writes);
  } catch (const DeviceFault&) {
    fault = std::current_exception();
  }
  // The kernel's own frames are dropped, not unwound: nothing can be thrown through them.
  if (fault != nullptr) fail(std::move(fault));
}

void check_memory(const Dispatch& dispatch) {
  for (const Operand& operand : dispatch.operands) {
    if (!operand.buffer) continue;
    const std::string who = std::string("kernel '") + dispatch.kernel->name + "', buffer " +
                            std::to_string(operand.parameter->index) + " '" + operand.parameter->name + "'";
    if (!operand.buffer->is_own()) {
      if (operand.bytes != 0 && !mapped(operand.begin, operand.bytes)) {
        throw DeviceFault(FaultKind::page, who + ": the memory of its no-copy buffer is not mapped any more");
      }
      if (operand.writes && operand.bytes != 0 && !writable(operand.begin)) {
        throw DeviceFault(FaultKind::page, who + ": is written, and the memory of its no-copy buffer is read-only");
      }
    }
    operand.buffer->check_guard();
  }
}

}  // namespace

void run(const Dispatch& dispatch, const Options& options) {
  Memory& all_memory = memory();
  const std::lock_guard lock(all_memory.mutex);
  check_memory(dispatch);
  for (const ConstantParameter& constant : dispatch.library->constants) {
    const auto found = dispatch.constants->find(static_cast<NS::UInteger>(constant.index));
    *constant.variable = found == dispatch.constants->end() ? 0xFFFFFFFFU : found->second;
  }
  Watch mine(dispatch, all_memory, options.check);
  struct Tracing {
    ~Tracing() {
      tracer = nullptr;
      watch = nullptr;
    }
  } tracing;
  watch = &mine;
  tracer = options.check ? &trace : nullptr;
  const std::string name = std::string(dispatch.library->name) + "/" + dispatch.kernel->name;
  try {
    const FlushDenormals denormals(options.ftz);
    const auto& kernel = *dispatch.kernel;
    const Arguments& arguments = mine.arguments();
    run_grid(
        name, dispatch.groups, dispatch.threads, options.orders,
        [&](const ThreadIds& ids) { kernel.run(arguments, ids); }, mine);
  } catch (const DeviceFault&) {
    throw;
  } catch (const Fault& fault) {
    throw DeviceFault(FaultKind::divergence, fault.what());
  } catch (const std::exception& error) {
    throw DeviceFault(FaultKind::kernel_failure, "kernel '" + name + "': " + error.what());
  }
  check_memory(dispatch);
  State& all = state();
  const std::lock_guard state_lock(all.mutex);
  Counters& counters = all.counters;
  const std::uint64_t groups = std::uint64_t{dispatch.groups.x} * dispatch.groups.y * dispatch.groups.z;
  ++counters.dispatches;
  counters.threadgroups += groups;
  counters.threads += groups * dispatch.threads.x * dispatch.threads.y * dispatch.threads.z;
  counters.accesses += mine.accesses();
  for (const Operand& operand : dispatch.operands) {
    (operand.writes ? counters.bytes_written : counters.bytes_read) += operand.bytes;
  }
}

}  // namespace soft
