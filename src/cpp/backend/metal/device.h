// The GPU as the backend sees it: its limits, its command queue, and kernels that are compiled when they are first wanted.
// No Metal header is included here: what only passes pointers on need not parse it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace NS {
class Error;
}
namespace MTL {
class Buffer;
class CommandBuffer;
class CommandQueue;
class ComputeCommandEncoder;
class ComputePipelineState;
class Device;
class Library;
class ResidencySet;
}  // namespace MTL

namespace llama2cpp::metal {

// Why Metal cannot be used here: no GPU, one that lacks what the kernels need, or a kernel that it does not take.
struct Unavailable : std::runtime_error {
  explicit Unavailable(std::string why)
      : std::runtime_error(why + "; use backend='cpu'"), reason(std::make_shared<const std::string>(std::move(why))) {}
  std::shared_ptr<const std::string> reason;  // without the advice; shared, since copying an exception must not throw
};

// A reference of ours to an object of Metal's.
template <class T>
struct Release {
  void operator()(T* object) const noexcept { object->release(); }
};
template <class T>
using Held = std::unique_ptr<T, Release<T>>;

// What Metal hands out for the moment lives until the pool goes, which is the thread's own.
class Pool {
 public:
  Pool();
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

 private:
  void* pool_;
};

// "<what>: <what Metal says>"
std::string error_text(std::string_view what, const NS::Error* error);

// The value of a function constant: `constant uint kName [[function_constant(index)]];`.
struct Constant {
  std::uint32_t index = 0;
  std::uint32_t value = 0;
};

// A kernel that is ready to run.
struct Kernel {
  std::string name;                // with its library and constants, for messages
  std::uint32_t most_threads = 0;  // of a threadgroup
  MTL::ComputePipelineState* pipeline = nullptr;
};

struct Limits {
  std::size_t buffer = 0;       // bytes of the largest MTLBuffer
  std::size_t working_set = 0;  // bytes that the GPU should have in use
  std::size_t page = 0;         // no-copy buffers are whole pages
  std::uint32_t shared = 0;     // bytes of memory of a threadgroup
  int family = 0;               // 7: Apple7 (M1), 8: M2, 9: M3 and M4 ...
  std::string device;           // "Apple M2"
};

class Device {
 public:
  // The system's own GPU. Throws Unavailable.
  Device();
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  // A kernel of kernels/<library>.metal, made for these constants: all that the kernel reads. Compiled on first use, which takes
  // long, and kept. Under the backend's lease.
  const Kernel& kernel(std::string_view library, std::string_view name, std::span<const Constant> constants = {});
  const Kernel& kernel(std::string_view library, std::string_view name, std::initializer_list<Constant> constants) {
    return kernel(library, name, std::span(constants.begin(), constants.size()));
  }

  // What is wrong with a library for this system's compiler; empty where nothing is, and then it is compiled.
  std::string problem_of(std::string_view library);

  const Limits& limits() const { return limits_; }
  std::size_t allocated() const;  // bytes of all buffers of this process

  MTL::Device& get() const { return *device_; }
  MTL::CommandQueue& queue() const { return *queue_; }
  void renew_queue();  // after an error: a queue may refuse all that follows

  // Keeps buffers in the GPU's memory between passes; null before macOS 15.
  MTL::ResidencySet* residency() const { return residency_.get(); }

  // Whether this process is a fork() of the one that made the device: then nothing of Metal's is to be touched.
  bool forked() const;
  // Throws std::runtime_error there.
  void check_process() const;

 private:
  struct Kernels;

  MTL::Library& library(std::string_view name);

  int forks_;
  Limits limits_;
  Held<MTL::Device> device_;
  Held<MTL::CommandQueue> queue_;
  Held<MTL::ResidencySet> residency_;
  std::map<std::string, Held<MTL::Library>, std::less<>> libraries_;
  std::unique_ptr<Kernels> kernels_;  // that are ready
};

}  // namespace llama2cpp::metal
