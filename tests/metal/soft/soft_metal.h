// The software Metal device: runs a Metal backend's commands on the CPU and finds what a GPU would do to it.
//
// Foundation/Foundation.hpp and Metal/Metal.hpp are the API; this header is what tests add: knobs, counters, faults.
// Commands run when they are waited for, one dispatch after the other, one threadgroup after the other, each thread a
// fiber. Metal is one per process (MTL::CreateSystemDefaultDevice()), so the state here is too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "fibers.h"
#include "kernel_table.h"

namespace soft {

// What a GPU, the driver or Metal's validation layer would punish. Each name is the start of the fault's text.
enum class FaultKind {
  out_of_bounds,    // a kernel touches memory outside of the ranges that were bound to it
  write_to_read,    // a kernel writes to an operand that was declared as read, or to setBytes memory
  misaligned,       // an access or an offset that is no multiple of what the type needs
  alias,            // an operand that is written overlaps another operand
  race,             // two threads touch one byte without a barrier between them, and one of them writes
  divergence,       // threads of one group reach different barriers, or some of them none
  kernel_failure,   // another exception out of a kernel
  unbound,          // an operand, threadgroup memory or the pipeline state was not set
  bytes_size,       // setBytes of another size than the kernel's argument has
  direction,        // declareRange says read where the kernel writes, or the other way round
  constant,         // a function constant is unset, of the wrong type, or not the library's
  limit,            // more than Metal allows: setBytes, threads, threadgroup memory, buffer index
  page,             // no-copy memory that is not whole pages, or not mapped
  misuse,           // commit twice, encoder not ended, wait before commit ...
  missing_barrier,  // two concurrent dispatches conflict
  in_flight,        // the host wrote to memory that a committed command uses
  overrun,          // the host wrote past the end of a buffer
  no_pool,          // an object was autoreleased where no pool is
  released,         // a call on an object that was released too often
  forked,           // a call in a forked child
  too_new,          // a method that the chosen macOS lacks
};
const char* name(FaultKind kind) noexcept;

// Every fault that the device finds. Fault is its base, which run_grid throws too: the device gives those a kind.
class DeviceFault : public Fault {
 public:
  DeviceFault(FaultKind kind_, const std::string& what)
      : Fault(std::string("soft Metal: ") + name(kind_) + ": " + what), kind(kind_) {}
  const FaultKind kind;
};

// What a command buffer ends with instead of its results.
enum class Failure { none, timeout, interactivity, out_of_memory, submissions_ignored };

struct Options {
  Orders orders;          // of threads, simdgroups and threadgroups, and the seed of shuffled ones
  bool contract = false;  // a * b + c as one fma where the compiler may
  bool ftz = true;        // denormals are flushed, as in all kernels that Apple compiles
  bool check = true;      // see each load and store
  bool hide = true;       // results are NaN between commit and wait
  bool unified = true;    // hasUnifiedMemory
  bool named = true;      // whether there is a system default device; the list of all has it anyway
  unsigned family = 7;    // the highest Apple family; 5 is the paravirtual GPU of hosted runners
  unsigned os = 15;       // macOS
  std::size_t max_buffer = std::size_t{1} << 33;
  std::size_t memory = std::size_t{1} << 34;  // recommendedMaxWorkingSetSize
  std::size_t page = 4096;      // of no-copy memory; Apple's is 16k, and mmap of Linux gives no more than this
  unsigned width = 32;          // threadExecutionWidth that pipelines report
  unsigned max_threads = 1024;  // maxTotalThreadsPerThreadgroup that pipelines report
  bool exit = false;   // end the process with status 70 where it leaves objects or late faults behind, and say which
  std::string refuse;  // the library that newLibrary does not compile, or the kernel that becomes no pipeline
  Failure fail = Failure::none;
  std::uint64_t fail_at = 1;  // the how-manieth commit after the options were set fails
};

// "threads=reverse,groups=shuffled,contract=on,fail=timeout@5,max_buffer=1g"; text that it does not know is an
// invalid_argument. `base` holds what the text does not name.
Options parse_options(std::string_view text, const Options& base = {});
// At first, what the environment variable LLAMA2CPP_SOFT_METAL says.
Options options();
void set_options(const Options& options);
// The knobs that the text names are set, all others are as at first.
void set_options(std::string_view text);

struct Counters {
  std::uint64_t commits = 0, waits = 0, encoders = 0;
  std::uint64_t dispatches = 0, threadgroups = 0, threads = 0;  // that have run
  std::uint64_t bytes_read = 0, bytes_written = 0;              // sums of the bound ranges of these dispatches
  std::uint64_t accesses = 0;                                   // loads and stores that were checked
  std::uint64_t libraries = 0, pipelines = 0, buffers = 0, buffer_bytes = 0;
};
Counters counters();
void reset_counters();

// Objects that were made and not released: all of them, or those of one class ("Buffer", "CommandBuffer" ...).
long live_objects();
long live_objects(std::string_view kind);
// "2 Buffer, 1 Library"; empty where nothing lives.
std::string describe_live_objects();

// Faults found where nothing can be thrown (release, ends of pools) are kept and thrown by the next call of the API that
// can; this throws the first of them now, and takes them away.
void throw_late_faults();
std::vector<std::string> take_late_faults();

// Kernels of tests, besides libraries(contracted). The span must outlive the process's last use of the device.
void add_libraries(std::span<const LibraryEntry> entries, bool contracted);

}  // namespace soft
