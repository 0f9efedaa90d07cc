// Encoding, committing and waiting. What Metal's validation layer would say is said here, at the call that does it; what
// only a run can show is in run.cpp.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>

#include "machine.h"

namespace soft {

namespace {

std::string size_text(MTL::Size size) {
  return std::to_string(size.width) + " x " + std::to_string(size.height) + " x " + std::to_string(size.depth);
}

// Saturates: only compared with small limits.
std::size_t volume(MTL::Size size) {
  std::size_t product = 1;
  for (const std::size_t side : {size.width, size.height, size.depth}) {
    if (side == 0) return 0;
    product = product > std::numeric_limits<std::size_t>::max() / side ? std::numeric_limits<std::size_t>::max()
                                                                       : product * side;
  }
  return product;
}

Size3 narrow(MTL::Size size) {
  return {static_cast<std::uint32_t>(size.width), static_cast<std::uint32_t>(size.height),
          static_cast<std::uint32_t>(size.depth)};
}

bool overlap(const Operand& a, const Operand& b) { return a.begin < b.begin + b.bytes && b.begin < a.begin + a.bytes; }

std::string describe(const Dispatch& dispatch, const Operand& operand) {
  return std::string("kernel '") + dispatch.kernel->name + "', buffer " + std::to_string(operand.parameter->index) +
         " '" + operand.parameter->name + "'";
}

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct FailureText {
  NS::Integer code;
  const char* text;
};

// What macOS says, as people report it.
FailureText failure_text(Failure failure) {
  switch (failure) {
    case Failure::none:
      break;
    case Failure::timeout:
      return {MTL::CommandBufferErrorTimeout,
              "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)"};
    case Failure::interactivity:
      return {MTL::CommandBufferErrorInternal,
              "Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)"};
    case Failure::out_of_memory:
      return {MTL::CommandBufferErrorOutOfMemory,
              "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"};
    case Failure::submissions_ignored:
      return {MTL::CommandBufferErrorAccessRevoked,
              "Ignored (for causing prior/excessive GPU errors) "
              "(00000004:kIOGPUCommandBufferCallbackErrorSubmissionsIgnored)"};
  }
  return {MTL::CommandBufferErrorInternal, "Innocent Victim (00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim)"};
}

constexpr std::size_t kMostHidden = 1U << 20;    // of one range; of longer ones its two ends
constexpr std::size_t kMostWatched = 64U << 10;  // of one range that is read; longer ones are not compared

}  // namespace

// ---- machine

void Machine::hide(const Commands& commands) {
  const auto hide_one = [&](std::byte* begin, std::size_t bytes) {
    std::byte* const end = begin + bytes;
    // What is hidden already stays; the gaps between are hidden too.
    std::vector<std::pair<std::byte*, std::byte*>> gaps{{begin, end}};
    for (const Hidden& old : hidden) {
      std::byte* const old_end = old.begin + old.truth.size();
      std::vector<std::pair<std::byte*, std::byte*>> rest;
      for (const auto& [from, to] : gaps) {
        if (old.begin >= to || old_end <= from) {
          rest.emplace_back(from, to);
          continue;
        }
        if (from < old.begin) rest.emplace_back(from, old.begin);
        if (old_end < to) rest.emplace_back(old_end, to);
      }
      gaps = std::move(rest);
    }
    for (const auto& [from, to] : gaps) {
      hidden.push_back({from, std::vector<std::byte>(from, to)});
      std::fill(from, to, std::byte{0xFF});
    }
  };
  for (const Dispatch& dispatch : commands.dispatches) {
    for (const Operand& operand : dispatch.operands) {
      if (!operand.writes || !operand.declared || !operand.buffer->is_own()) continue;
      if (operand.bytes <= kMostHidden) {
        hide_one(operand.begin, operand.bytes);
      } else {
        hide_one(operand.begin, kMostHidden / 2);
        hide_one(operand.begin + operand.bytes - kMostHidden / 2, kMostHidden / 2);
      }
    }
  }
  for (const Dispatch& dispatch : commands.dispatches) {
    for (const Operand& operand : dispatch.operands) {
      if (operand.writes || !operand.declared || !operand.buffer->is_own() || operand.bytes > kMostWatched) continue;
      const bool computed = std::any_of(hidden.begin(), hidden.end(), [&](const Hidden& each) {
        return each.begin < operand.begin + operand.bytes && operand.begin < each.begin + each.truth.size();
      });
      if (computed) continue;
      Input& input = inputs[operand.begin];
      if (input.value.size() >= operand.bytes) continue;
      input.value.assign(operand.begin, operand.begin + operand.bytes);
      input.reader = describe(dispatch, operand);
    }
  }
}

void Machine::show() {
  bool touched = false;
  for (Hidden& each : hidden) {
    touched = touched || !std::all_of(each.begin, each.begin + each.truth.size(),
                                      [](std::byte byte) { return byte == std::byte{0xFF}; });
    std::memcpy(each.begin, each.truth.data(), each.truth.size());
  }
  hidden.clear();
  std::string changed;
  for (const auto& [begin, input] : inputs) {
    if (std::memcmp(begin, input.value.data(), input.value.size()) != 0) changed = input.reader;
  }
  inputs.clear();
  if (!changed.empty()) {
    throw DeviceFault(FaultKind::in_flight, changed + ": the host wrote to it after the commit, before it had waited");
  }
  if (touched) {
    throw DeviceFault(FaultKind::in_flight,
                      "the host wrote to memory that a committed command writes, before it had waited");
  }
}

void Machine::run_one(MTL::CommandBuffer& commands, bool victim) {
  const Options options = soft::options();
  State& all = state();
  Failure failure = Failure::none;
  {
    const std::lock_guard lock(all.mutex);
    if (all.ignoring || commands.queue_->failed_) failure = Failure::submissions_ignored;
  }
  if (options.fail != Failure::none && commands.number_ == options.fail_at) {
    failure = options.fail;
    const std::lock_guard lock(all.mutex);
    if (failure == Failure::submissions_ignored) all.ignoring = true;
  }
  if (allocated > options.memory) failure = Failure::out_of_memory;
  const auto end_with = [&](const FailureText& text) {
    commands.error_ = NS::make_error("MTLCommandBufferErrorDomain", text.code, text.text);
    commands.status_ = MTL::CommandBufferStatusError;
  };
  commands.start_ = now();
  const auto& dispatches = commands.commands_->dispatches;
  // A buffer that fails has done some of its work; those that were behind it on the GPU do none.
  std::size_t count = dispatches.size();
  if (failure != Failure::none) count /= 2;
  if (failure == Failure::submissions_ignored || victim) count = 0;
  try {
    for (std::size_t i = 0; i < count; ++i) run(dispatches[i], options);
  } catch (const DeviceFault& fault) {
    end_with({MTL::CommandBufferErrorPageFault, fault.what()});
    commands.end_ = now();
    throw;
  }
  commands.end_ = now();
  if (failure != Failure::none || victim) {
    commands.queue_->failed_ = commands.queue_->failed_ || failure != Failure::none;
    end_with(failure_text(failure));
  } else {
    commands.status_ = MTL::CommandBufferStatusCompleted;
  }
}

void Machine::wait(MTL::CommandBuffer& until) {
  const std::lock_guard lock(mutex);
  if (until.status_ != MTL::CommandBufferStatusCommitted) return;
  // In order, those of its queue up to it.
  std::vector<Kept<MTL::CommandBuffer>> due, rest;
  bool reached = false;
  for (Kept<MTL::CommandBuffer>& each : pending) {
    const bool mine = each->queue_ == until.queue_ && !reached;
    reached = reached || each.get() == &until;
    (mine ? due : rest).push_back(std::move(each));
  }
  pending = std::move(rest);
  std::exception_ptr fault;
  try {
    show();
  } catch (...) {
    fault = std::current_exception();
  }
  bool victim = false;
  for (Kept<MTL::CommandBuffer>& each : due) {
    try {
      run_one(*each.get(), victim || fault != nullptr);
    } catch (...) {
      if (fault == nullptr) fault = std::current_exception();
    }
    victim = victim || each->status_ == MTL::CommandBufferStatusError;
    for (const auto& handler : std::exchange(each->handlers_, {})) {
      try {
        handler(each.get());
      } catch (...) {
        if (fault == nullptr) {
          fault = std::make_exception_ptr(
              DeviceFault(FaultKind::misuse, "an exception left a completion handler: macOS ends the process"));
        }
      }
    }
  }
  if (victim || fault != nullptr) {
    for (Kept<MTL::CommandBuffer>& each : pending) {
      if (each->queue_ == until.queue_) run_one(*each.get(), true);
    }
    std::erase_if(pending, [&](const auto& each) { return each->queue_ == until.queue_; });
  }
  if (options().hide) {
    for (Kept<MTL::CommandBuffer>& each : pending) hide(*each->commands_);
  }
  if (fault != nullptr) std::rethrow_exception(fault);
}

}  // namespace soft

namespace MTL {

using soft::Binding;
using soft::DeviceFault;
using soft::FaultKind;
using soft::Kept;
using soft::Maker;

// ---- encoder

void ComputeCommandEncoder::check_open(const char* call) const {
  soft::check_call(this, device_->machine(), call);
  if (ended_) throw DeviceFault(FaultKind::misuse, std::string(call) + " after endEncoding");
}

Binding& ComputeCommandEncoder::at(NS::UInteger index, const char* call) {
  check_open(call);
  if (index >= 31) {
    throw DeviceFault(FaultKind::limit,
                      std::string(call) + ": index " + std::to_string(index) + ", the last one is 30");
  }
  bindings_.resize(31);
  return bindings_[index];
}

void CommandEncoder::endEncoding() {
  soft::check_call(this, device_->machine(), "endEncoding");
  if (ended_) throw DeviceFault(FaultKind::misuse, "endEncoding twice");
  ended_ = true;
  buffer_->encoding_ended();
}

void ComputeCommandEncoder::dispose() noexcept {
  if (!ended_) {
    soft::add_late_fault(FaultKind::misuse, "an encoder was released without endEncoding");
    buffer_->encoding_ended();
  }
  bindings_.clear();
  if (state_ != nullptr) soft::release(state_);
  buffer_->release();
  device_->release();
}

void ComputeCommandEncoder::setComputePipelineState(const ComputePipelineState* state) {
  check_open("setComputePipelineState");
  soft::retain(state);
  if (state_ != nullptr) soft::release(state_);
  state_ = state;
}

void ComputeCommandEncoder::setBuffer(const Buffer* buffer, NS::UInteger offset, NS::UInteger index) {
  Binding& binding = at(index, "setBuffer");
  binding = Binding();
  if (buffer == nullptr) return;
  soft::check_call(buffer, nullptr, "setBuffer");
  if (offset >= buffer->length_) {
    throw DeviceFault(FaultKind::out_of_bounds, "setBuffer at index " + std::to_string(index) + ": offset " +
                                                    std::to_string(offset) + " of a buffer of " +
                                                    std::to_string(buffer->length_) + " bytes");
  }
  binding.buffer = Kept<Buffer>(buffer);
  binding.offset = offset;
}

void ComputeCommandEncoder::setBufferOffset(NS::UInteger offset, NS::UInteger index) {
  const Kept<Buffer> buffer = at(index, "setBufferOffset").buffer;
  if (!buffer)
    throw DeviceFault(FaultKind::unbound, "setBufferOffset at index " + std::to_string(index) + ": no buffer");
  setBuffer(buffer.get(), offset, index);
}

void ComputeCommandEncoder::setBytes(const void* bytes, NS::UInteger length, NS::UInteger index) {
  Binding& binding = at(index, "setBytes");
  if (length == 0 || length > 4096) {
    throw DeviceFault(FaultKind::limit, "setBytes of " + std::to_string(length) + " bytes at index " +
                                            std::to_string(index) + ": 1 to 4096 are allowed");
  }
  binding = Binding();
  binding.copied = std::make_shared<std::vector<soft::Word>>((length + sizeof(soft::Word) - 1) / sizeof(soft::Word));
  binding.length = length;
  std::memcpy(binding.copied->data(), bytes, length);
}

void ComputeCommandEncoder::setThreadgroupMemoryLength(NS::UInteger length, NS::UInteger index) {
  at(index, "setThreadgroupMemoryLength");
  if (length % 16 != 0) {
    throw DeviceFault(FaultKind::limit, "setThreadgroupMemoryLength of " + std::to_string(length) +
                                            " bytes: it must be a multiple of 16");
  }
  threadgroup_[index] = length;
}

void ComputeCommandEncoder::declareRange(NS::UInteger index, NS::UInteger bytes, bool writes) {
  Binding& binding = at(index, "declareRange");
  const std::size_t room = binding.buffer ? binding.buffer->length_ - binding.offset : binding.length;
  if (!binding.bound() || bytes > room) {
    throw DeviceFault(FaultKind::out_of_bounds, "declareRange at index " + std::to_string(index) + ": " +
                                                    std::to_string(bytes) + " bytes where " + std::to_string(room) +
                                                    " are bound");
  }
  binding.declared = true;
  binding.bytes = bytes;
  binding.writes = writes;
}

void ComputeCommandEncoder::memoryBarrier(BarrierScope) {
  check_open("memoryBarrier");
  since_barrier_ = buffer_->commands_->dispatches.size();
}

void ComputeCommandEncoder::useResource(const Resource*, ResourceUsage) { check_open("useResource"); }

void ComputeCommandEncoder::dispatchThreadgroups(Size groups, Size threads) {
  check_open("dispatchThreadgroups");
  if (state_ == nullptr) throw DeviceFault(FaultKind::unbound, "dispatchThreadgroups without a pipeline state");
  const soft::KernelEntry& kernel = *state_->kernel_;
  const std::string who = std::string("kernel '") + kernel.name + "'";
  if (soft::volume(groups) == 0 || std::max({groups.width, groups.height, groups.depth}) > 0xFFFFFFFFU) {
    throw DeviceFault(FaultKind::limit, who + ": a grid of " + soft::size_text(groups) + " threadgroups");
  }
  if (soft::volume(threads) == 0 || soft::volume(threads) > state_->most_threads_) {
    throw DeviceFault(FaultKind::limit, who + ": threadgroups of " + soft::size_text(threads) +
                                            " threads, this pipeline has at most " +
                                            std::to_string(state_->most_threads_));
  }
  soft::Dispatch dispatch;
  dispatch.state = Kept<ComputePipelineState>(state_);
  dispatch.library = state_->library_;
  dispatch.kernel = &kernel;
  dispatch.constants = &state_->constants_;
  dispatch.groups = soft::narrow(groups);
  dispatch.threads = soft::narrow(threads);

  bindings_.resize(31);
  for (const soft::BufferParameter& parameter : kernel.buffers) {
    const Binding& binding = bindings_[static_cast<std::size_t>(parameter.index)];
    const std::string operand_text = who + ", buffer " + std::to_string(parameter.index) + " '" + parameter.name + "'";
    if (!binding.bound()) throw DeviceFault(FaultKind::unbound, operand_text + ": nothing is bound");
    soft::Operand operand;
    operand.parameter = &parameter;
    operand.buffer = binding.buffer;
    operand.copied = binding.copied;
    operand.declared = binding.declared;
    operand.writes = parameter.writes;
    if (binding.copied != nullptr) {
      operand.begin = reinterpret_cast<std::byte*>(binding.copied->data());
      operand.bytes = binding.length;
      if (parameter.writes) {
        throw DeviceFault(FaultKind::write_to_read, operand_text + ": the kernel writes to what setBytes gave");
      }
      if (parameter.reference ? binding.length != parameter.size : binding.length % parameter.size != 0) {
        throw DeviceFault(FaultKind::bytes_size, operand_text + ": setBytes gave " + std::to_string(binding.length) +
                                                     " bytes, the kernel's " +
                                                     (parameter.reference ? "struct" : "elements") + " have " +
                                                     std::to_string(parameter.size));
      }
    } else {
      soft::check_call(binding.buffer.get(), nullptr, "dispatchThreadgroups");
      operand.begin = binding.buffer->memory_ + binding.offset;
      operand.bytes = binding.declared ? binding.bytes : binding.buffer->length_ - binding.offset;
      if (binding.declared && binding.writes != parameter.writes) {
        throw DeviceFault(FaultKind::direction,
                          operand_text + ": declared as " + (binding.writes ? "written" : "read") +
                              ", the kernel's pointer is " + (parameter.writes ? "not const" : "const"));
      }
      // Of the address too: no-copy memory may begin anywhere where pages are small.
      if (reinterpret_cast<std::uintptr_t>(operand.begin) % parameter.alignment != 0) {
        throw DeviceFault(FaultKind::misaligned, operand_text + ": offset " + std::to_string(binding.offset) +
                                                     " is no multiple of " + std::to_string(parameter.alignment));
      }
      if (parameter.reference && operand.bytes < parameter.size) {
        throw DeviceFault(FaultKind::out_of_bounds, operand_text + ": " + std::to_string(operand.bytes) +
                                                        " bytes are bound, the kernel's struct has " +
                                                        std::to_string(parameter.size));
      }
    }
    dispatch.operands.push_back(std::move(operand));
  }

  std::size_t shared = 0;
  for (const int index : kernel.threadgroup) {
    const auto at = static_cast<std::size_t>(index);
    if (threadgroup_[at] == 0) {
      throw DeviceFault(FaultKind::unbound, who + ": threadgroup memory " + std::to_string(index) + " has no length");
    }
    dispatch.threadgroup[at] = threadgroup_[at];
    shared += threadgroup_[at];
  }
  if (shared > 32768) {
    throw DeviceFault(FaultKind::limit,
                      who + ": " + std::to_string(shared) + " bytes of threadgroup memory, 32768 are there");
  }

  // Apple's compiler takes it for granted that buffer arguments do not overlap where one is written.
  for (const soft::Operand& a : dispatch.operands) {
    if (!a.writes) continue;
    for (const soft::Operand& b : dispatch.operands) {
      if (&a == &b || !soft::overlap(a, b)) continue;
      // Without declarations all that is known is where they begin.
      if (!(a.declared && b.declared) && a.begin != b.begin) continue;
      throw DeviceFault(FaultKind::alias, soft::describe(dispatch, a) + " is written and overlaps buffer " +
                                              std::to_string(b.parameter->index) + " '" + b.parameter->name + "'");
    }
  }

  if (type_ == DispatchTypeConcurrent) {
    const auto& before = buffer_->commands_->dispatches;
    for (std::size_t i = since_barrier_; i < before.size(); ++i) {
      for (const soft::Operand& a : before[i].operands) {
        for (const soft::Operand& b : dispatch.operands) {
          if (!(a.writes || b.writes) || !soft::overlap(a, b)) continue;
          throw DeviceFault(FaultKind::missing_barrier, soft::describe(dispatch, b) + " and " +
                                                            soft::describe(before[i], a) +
                                                            " run at the same time: no memoryBarrier is between them");
        }
      }
    }
  }
  buffer_->commands_->dispatches.push_back(std::move(dispatch));
}

// ---- command buffer

ComputeCommandEncoder* CommandBuffer::computeCommandEncoder() { return computeCommandEncoder(DispatchTypeSerial); }

ComputeCommandEncoder* CommandBuffer::computeCommandEncoder(DispatchType type) {
  soft::check_call(this, device_->machine(), "computeCommandEncoder");
  if (encoding_) throw DeviceFault(FaultKind::misuse, "computeCommandEncoder while another encoder is open");
  if (status_ != CommandBufferStatusNotEnqueued && status_ != CommandBufferStatusEnqueued) {
    throw DeviceFault(FaultKind::misuse, "computeCommandEncoder after commit");
  }
  auto* encoder = Maker::make<ComputeCommandEncoder>("ComputeCommandEncoder");
  encoder->device_ = device_->retain();
  encoder->buffer_ = retain();
  encoder->type_ = type;
  encoder->since_barrier_ = commands_->dispatches.size();
  encoding_ = true;
  {
    soft::State& all = soft::state();
    const std::lock_guard lock(all.mutex);
    ++all.counters.encoders;
  }
  return encoder->autorelease();
}

void CommandBuffer::addCompletedHandler(const HandlerFunction& function) {
  soft::check_call(this, device_->machine(), "addCompletedHandler");
  if (status_ >= CommandBufferStatusCommitted) throw DeviceFault(FaultKind::misuse, "addCompletedHandler after commit");
  handlers_.push_back(function);
}

void CommandBuffer::enqueue() {
  if (status_ == CommandBufferStatusNotEnqueued) status_ = CommandBufferStatusEnqueued;
}

void CommandBuffer::useResidencySet(const ResidencySet*) {}

void CommandBuffer::commit() {
  soft::check_call(this, device_->machine(), "commit");
  if (status_ >= CommandBufferStatusCommitted) throw DeviceFault(FaultKind::misuse, "commit twice");
  if (encoding_) throw DeviceFault(FaultKind::misuse, "commit while an encoder is open: endEncoding is missing");
  soft::Machine& machine = *device_->machine();
  const std::lock_guard lock(machine.mutex);
  status_ = CommandBufferStatusCommitted;
  {
    soft::State& all = soft::state();
    const std::lock_guard state_lock(all.mutex);
    ++all.counters.commits;
    number_ = ++all.commits;
  }
  if (soft::options().hide) machine.hide(*commands_);
  machine.pending.emplace_back(this);
}

void CommandBuffer::waitUntilCompleted() {
  soft::check_call(this, device_->machine(), "waitUntilCompleted");
  if (status_ < CommandBufferStatusCommitted) {
    throw DeviceFault(FaultKind::misuse, "waitUntilCompleted before commit: it would never return");
  }
  {
    soft::State& all = soft::state();
    const std::lock_guard lock(all.mutex);
    ++all.counters.waits;
  }
  device_->machine()->wait(*this);
}

void CommandBuffer::dispose() noexcept {
  commands_.reset();
  if (error_ != nullptr) error_->release();
  queue_->release();
  device_->release();
}

// ---- queue

CommandQueue* Device::newCommandQueue() { return newCommandQueue(64); }

CommandQueue* Device::newCommandQueue(NS::UInteger) {
  soft::check_call(this, machine_.get(), "newCommandQueue");
  auto* queue = Maker::make<CommandQueue>("CommandQueue");
  queue->device_ = retain();
  return queue;
}

CommandBuffer* CommandQueue::commandBuffer() {
  soft::check_call(this, device_->machine(), "commandBuffer");
  auto* buffer = Maker::make<CommandBuffer>("CommandBuffer");
  buffer->device_ = device_->retain();
  buffer->queue_ = retain();
  buffer->commands_ = std::make_shared<soft::Commands>();
  return buffer->autorelease();
}

void CommandQueue::addResidencySet(const ResidencySet* set) {
  soft::check_call(this, device_->machine(), "addResidencySet");
  residency_.push_back(set);
  soft::retain(set);
}

void CommandQueue::removeResidencySet(const ResidencySet* set) {
  const auto found = std::find(residency_.begin(), residency_.end(), set);
  if (found == residency_.end()) return;
  residency_.erase(found);
  soft::release(set);
}

void CommandQueue::dispose() noexcept {
  for (const ResidencySet* set : residency_) soft::release(set);
  device_->release();
}

}  // namespace MTL
