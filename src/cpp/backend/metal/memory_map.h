// From the addresses that the engine uses to the buffers that kernels use. The GPU of an Apple chip reads the host's memory,
// but only through an MTLBuffer made over it.
#pragma once

#include <cstddef>
#include <memory>

#include "core/buffer.h"
#include "core/tensor.h"
#include "format/format.h"

namespace MTL {
class Buffer;
}

namespace llama2cpp::metal {

class Device;

// An address as kernels are given it. The pass that it is bound in keeps the buffer alive.
struct Place {
  MTL::Buffer* buffer = nullptr;
  std::size_t offset = 0;
};

// One per backend. Any thread may ask, with the lease or without.
class MemoryMap {
 public:
  explicit MemoryMap(const Device& device);
  ~MemoryMap();
  MemoryMap(const MemoryMap&) = delete;
  MemoryMap& operator=(const MemoryMap&) = delete;

  // Zeroed memory that both sides use. It may outlive the map. Throws OutOfMemoryError.
  Buffer alloc(std::size_t bytes);

  // All bytes of a plane, [data, data + bytes). In whole pages, such as a mapped file's, they are used where they lie. Other memory
  // is copied when it is first asked for, and the copy goes when its owner has; so is a plane that does not lie at a multiple of `alignment`.
  Place weight(const Plane& plane, std::size_t alignment);

  // [address, address + bytes) of memory that alloc() made. Throws std::invalid_argument with the names of op and operand
  // for any other.
  Place resolve(const void* address, std::size_t bytes, const char* op, const char* operand) const;

  // Bytes that alloc() can still give.
  std::size_t left() const;

  // Asks the system to have all of it ready: what a second has passed over is taken from the GPU.
  void want_resident();

  // Lets go of what was made for weights that are no more.
  void purge();

 private:
  struct State;
  const Device& device_;
  std::shared_ptr<State> state_;  // memory of alloc() knows it too
};

}  // namespace llama2cpp::metal
