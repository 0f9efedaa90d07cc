// What lies behind the software device's objects. Not for tests: soft_metal.h is.
#pragma once

#include <Metal/Metal.hpp>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "soft_metal.h"

namespace soft {

// Makes objects and keeps count of them.
struct Maker {
  template <class T>
  static T* make(const char* kind) {
    T* object = new T;
    static_cast<Counted*>(object)->kind_ = kind;
    count(kind, 1);
    return object;
  }
  static void count(const char* kind, long by);
};

// A reference that is held for as long as the holder lives.
template <class T>
class Kept {
 public:
  Kept() = default;
  explicit Kept(const T* object) : object_(object) {
    if (object_ != nullptr) retain(object_);
  }
  Kept(const Kept& other) : Kept(other.object_) {}
  Kept(Kept&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Kept& operator=(Kept other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Kept() {
    if (object_ != nullptr) release(object_);
  }
  T* get() const { return const_cast<T*>(object_); }
  T* operator->() const { return get(); }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  const T* object_ = nullptr;
};

// Memory that setBytes copied.
struct alignas(16) Word {
  std::byte bytes[16];
};

// What an encoder holds at one buffer index.
struct Binding {
  Kept<MTL::Buffer> buffer;
  std::size_t offset = 0;
  std::shared_ptr<std::vector<Word>> copied;  // by setBytes, instead of a buffer
  std::size_t length = 0;                     // of `copied`
  bool declared = false;                      // by declareRange
  std::size_t bytes = 0;
  bool writes = false;

  bool bound() const { return static_cast<bool>(buffer) || copied != nullptr; }
};

// A buffer argument of a dispatch: [begin, begin + bytes) is all that the kernel may touch through it.
struct Operand {
  const BufferParameter* parameter = nullptr;
  Kept<MTL::Buffer> buffer;  // null: setBytes
  std::shared_ptr<std::vector<Word>> copied;
  std::byte* begin = nullptr;
  std::size_t bytes = 0;
  bool writes = false;
  bool declared = false;
};

struct Dispatch {
  Kept<MTL::ComputePipelineState> state;
  const LibraryEntry* library = nullptr;
  const KernelEntry* kernel = nullptr;
  const std::map<NS::UInteger, std::uint32_t>* constants = nullptr;  // of `state`
  std::vector<Operand> operands;                                     // in the order of kernel->buffers
  std::array<std::size_t, 31> threadgroup{};                         // bytes
  Size3 groups, threads;
};

struct Commands {
  std::vector<Dispatch> dispatches;
};

// Runs one dispatch on this thread. Throws DeviceFault.
void run(const Dispatch& dispatch, const Options& options);

// One per MTL::Device.
struct Machine {
  std::recursive_mutex mutex;
  std::vector<Kept<MTL::CommandBuffer>> pending;  // committed, in that order
  std::size_t allocated = 0;
  unsigned forks = 0;

  // What committed commands will write is taken out of the host's sight until they have run.
  struct Hidden {
    std::byte* begin;
    std::vector<std::byte> truth;
  };
  std::vector<Hidden> hidden;

  // What they read, where it is small and no pending command writes it: the host must not either.
  struct Input {
    std::vector<std::byte> value;
    std::string reader;
  };
  std::map<const std::byte*, Input> inputs;

  void hide(const Commands& commands);
  void show();  // throws where the host has written to what is in use; everything is shown in any case
  void wait(MTL::CommandBuffer& until);

 private:
  void run_one(MTL::CommandBuffer& commands, bool victim);
};

// The process's state: Metal is one per process.
struct State {
  std::mutex mutex;
  Options options;
  Counters counters;
  std::uint64_t commits = 0;  // since the options were set
  bool ignoring = false;      // SubmissionsIgnored has happened
  std::map<std::string, long, std::less<>> live;
  std::vector<DeviceFault> late;
  std::vector<LibraryEntry> added[2];  // by contracted
};
State& state();

void add_late_fault(FaultKind kind, const std::string& text) noexcept;

// Throws where a call cannot be made: in a forked child, on an object that was released, with a late fault waiting.
void check_call(const Counted* object, const Machine* machine, const char* call);
unsigned fork_count();

// Whether [begin, begin + bytes) is mapped at its two ends.
bool mapped(const void* begin, std::size_t bytes);
// Whether the page of this address may be written to.
bool writable(const void* address);

}  // namespace soft
