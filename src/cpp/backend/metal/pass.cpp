#include "backend/metal/pass.h"

#include <Foundation/Foundation.hpp>
#include <Metal/Metal.hpp>
#include <algorithm>
#include <exception>
#include <stdexcept>
#include <utility>

#include "core/check.h"

namespace llama2cpp::metal {
namespace {

// What the slowest of these GPUs does in a second: a portion is short on it, and shorter elsewhere.
#ifdef LLAMA2CPP_SOFT_METAL
constexpr double kBytesPerSecond = 20e6;
constexpr double kFlopsPerSecond = 5e6;
#else
constexpr double kBytesPerSecond = 50e9;  // M1
constexpr double kFlopsPerSecond = 1.2e12;
#endif
constexpr double kPortion = 0.02;   // seconds
constexpr std::size_t kAtOnce = 2;  // portions under way: one that runs, and one that the GPU goes on with

NS::UInteger number(std::uint32_t value) { return value; }

MTL::Size size_of(const Size3& size) { return MTL::Size(number(size.x), number(size.y), number(size.z)); }

// Makes the buffer's arguments known to the software device, which holds kernels to them.
void declare([[maybe_unused]] MTL::ComputeCommandEncoder& encoder, [[maybe_unused]] const Operand& operand,
             [[maybe_unused]] NS::UInteger index) {
#ifdef LLAMA2CPP_SOFT_METAL
  encoder.declareRange(index, operand.bytes, operand.access != Access::read);
#endif
}

// What a user can do about an error of a command buffer's.
std::string_view advice_for(std::string_view text, NS::Integer code) {
  const auto says = [&](std::string_view part) { return text.find(part) != std::string_view::npos; };
  if (code == MTL::CommandBufferErrorOutOfMemory || says("Insufficient Memory")) {
    return "ask for a smaller context, feed fewer tokens at a time, or use backend='cpu'";
  }
  if (says("SubmissionsIgnored") || says("ignored")) {
    return "macOS takes no more work of this process: start it anew";
  }
  if (code == MTL::CommandBufferErrorTimeout || says("Impacting Interactivity")) {
    return "the system ended what kept the GPU from the display for too long: feed fewer tokens at a time, or close "
           "what "
           "else uses it";
  }
  return "use backend='cpu' if it comes again";
}

std::string problem_of(const MTL::CommandBuffer& buffer) {
  const NS::Error* const error = buffer.error();
  const std::string text = error_text("the GPU did not finish", error);
  return cat(text, ": ", advice_for(text, error == nullptr ? 0 : error->code()));
}

}  // namespace

Pass::Pass(Device& device) : device_(device) {}

Pass::~Pass() {
  if (!device_.forked()) {
    drop();
    return;
  }
  static_cast<void>(encoder_.release());
  static_cast<void>(open_.release());
  for (auto& buffer : running_) static_cast<void>(buffer.release());
}

void Pass::encode(const Kernel& kernel, std::span<const Operand> operands, const void* args, std::size_t args_bytes,
                  const Grid& grid, Cost cost) {
  if (grid.groups.x == 0 || grid.groups.y == 0 || grid.groups.z == 0) return;
  const std::size_t threads = std::size_t{grid.threads.x} * grid.threads.y * grid.threads.z;
  if (threads > kernel.most_threads) {
    throw Unavailable(cat("the kernel ", kernel.name, " runs in groups of at most ", kernel.most_threads,
                          " threads on '", device_.limits().device, "', and ", threads, " were wanted"));
  }
  if (!open_) begin();
  encoder_->setComputePipelineState(kernel.pipeline);
  NS::UInteger index = 0;
  for (const Operand& operand : operands) {
    if (operand.values != nullptr) {
      LLAMA2CPP_CHECK(operand.bytes <= kMostValues, operand.bytes, " bytes by value, expected at most ", kMostValues);
      encoder_->setBytes(operand.values, operand.bytes, index);
    } else {
      encoder_->setBuffer(operand.place.buffer, operand.place.offset, index);
      declare(*encoder_, operand, index);
    }
    ++index;
  }
  encoder_->setBytes(args, args_bytes, index);
  if (grid.shared > 0) encoder_->setThreadgroupMemoryLength((grid.shared + 15) / 16 * 16, 0);
  encoder_->dispatchThreadgroups(size_of(grid.groups), size_of(grid.threads));
  seconds_ += std::max(cost.bytes / kBytesPerSecond, cost.flops / kFlopsPerSecond);
  if (seconds_ >= kPortion) flush();
}

void Pass::begin() {
  while (running_.size() >= kAtOnce) await_oldest();
  // Both are Metal's to let go of, with the lease's pool.
  MTL::CommandBuffer* const buffer = device_.queue().commandBuffer();
  if (buffer == nullptr) throw Unavailable("Metal gives no command buffer");
  MTL::ComputeCommandEncoder* const encoder = buffer->computeCommandEncoder();
  if (encoder == nullptr) throw Unavailable("Metal gives no encoder of commands");
  open_.reset(buffer->retain());
  encoder_.reset(encoder->retain());
}

void Pass::flush() {
  if (!open_) return;
  running_.reserve(running_.size() + 1);
  encoder_->endEncoding();
  encoder_.reset();
  open_->commit();
  running_.push_back(std::move(open_));
  seconds_ = 0;
}

void Pass::await_oldest() {
  const Held<MTL::CommandBuffer> oldest = std::move(running_.front());
  running_.erase(running_.begin());
  oldest->waitUntilCompleted();
  if (oldest->status() != MTL::CommandBufferStatusError) return;
  const std::string problem = problem_of(*oldest);
  drop();
  device_.renew_queue();
  throw std::runtime_error(problem);
}

void Pass::wait() {
  flush();
  while (!running_.empty()) await_oldest();
}

void Pass::drop() noexcept {
  if (encoder_) encoder_->endEncoding();
  encoder_.reset();
  open_.reset();
  seconds_ = 0;
  for (const auto& buffer : running_) {
    try {
      buffer->waitUntilCompleted();
    } catch (...) {
      // The software device's findings. Who waited first has been told of the first of them, and of these work is dropped.
    }
  }
  running_.clear();
}

}  // namespace llama2cpp::metal
