// Pass: what has been asked of the GPU and not been waited for. Dispatches run in their order, each after all before it is
// done, so no barrier is needed between them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <type_traits>
#include <vector>

#include "backend/metal/device.h"
#include "backend/metal/memory_map.h"

namespace llama2cpp::metal {

enum class Access : std::uint8_t { read, write, read_write };

// A buffer argument of a kernel: where it begins, the bytes from its first element to its last, and what is done to them.
struct Operand {
  Place place;
  std::size_t bytes = 0;
  Access access = Access::read;
  const void* values = nullptr;  // instead of a place: host memory, copied at once

  // Host memory of at most kMostValues bytes, for a parameter `constant T* name`.
  static Operand copied(const void* values, std::size_t bytes) { return {{}, bytes, Access::read, values}; }
};
inline constexpr std::size_t kMostValues = 4096;  // Metal takes no more by value

struct Size3 {
  std::uint32_t x = 1, y = 1, z = 1;
};

// Threadgroups of a dispatch, threads of each, and the bytes of the kernel's parameter [[threadgroup(0)]].
struct Grid {
  Size3 groups;
  Size3 threads;
  std::size_t shared = 0;  // rounded up to 16 by dispatch()
};

// What a dispatch is expected to take: the pass is handed to the GPU in portions, so that none takes long.
struct Cost {
  double bytes = 0;  // of memory moved
  double flops = 0;
};

// Used under the backend's lease only, by the thread that has it.
class Pass {
 public:
  explicit Pass(Device& device);
  ~Pass();
  Pass(const Pass&) = delete;
  Pass& operator=(const Pass&) = delete;

  // Binds the operands to buffer(0), buffer(1), ... and `args` to the one after them. Nothing is done where the grid is empty.
  // An operand that is written overlaps no other (Apple's compiler counts on it): in place is one operand, read_write.
  // May wait, for portions that were handed over before; then it throws what wait() does.
  template <class Args>
  void dispatch(const Kernel& kernel, std::span<const Operand> operands, const Args& args, const Grid& grid,
                Cost cost) {
    static_assert(std::is_trivially_copyable_v<Args> && alignof(Args) == 4,
                  "only scalars of 4 bytes: see kernels/args.h");
    encode(kernel, operands, &args, sizeof(Args), grid, cost);
  }
  template <class Args>
  void dispatch(const Kernel& kernel, std::initializer_list<Operand> operands, const Args& args, const Grid& grid,
                Cost cost) {
    dispatch(kernel, std::span(operands.begin(), operands.size()), args, grid, cost);
  }

  // Hands what there is over to the GPU.
  void flush();

  // Returns when all is done. Throws std::runtime_error with what Metal says where it was not: then nothing of this pass is to be
  // used.
  void wait();

  // Throws away what was not handed over, and waits for what was: it writes to memory that may go now.
  void drop() noexcept;

 private:
  void encode(const Kernel& kernel, std::span<const Operand> operands, const void* args, std::size_t args_bytes,
              const Grid& grid, Cost cost);
  void begin();
  void await_oldest();

  Device& device_;
  Held<MTL::CommandBuffer> open_;  // not handed over yet
  Held<MTL::ComputeCommandEncoder> encoder_;
  double seconds_ = 0;                             // estimate of the open one
  std::vector<Held<MTL::CommandBuffer>> running_;  // oldest first
};

}  // namespace llama2cpp::metal
