// The device's objects besides commands: buffers, libraries, functions, pipelines, residency sets.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "machine.h"

namespace soft {

namespace {

constexpr std::size_t kGuard = 256;  // bytes after a buffer that nobody may write to
constexpr auto kGuardByte = std::byte{0xA5};
constexpr auto kFill = std::byte{0xFF};          // of new memory: NaN as a float of any width
constexpr std::size_t kMostFilled = 256U << 20;  // larger memory stays untouched, so that it costs nothing
constexpr std::size_t kBufferAlignment = 16384;

std::size_t round_up(std::size_t value, std::size_t step) { return (value + step - 1) / step * step; }

void put_error(NS::Error** error, const char* domain, NS::Integer code, const std::string& text) {
  if (error != nullptr) *error = NS::make_error(domain, code, text)->autorelease();
}

void check_os(const char* call, unsigned needed) {
  const unsigned os = options().os;
  if (os < needed) {
    throw DeviceFault(FaultKind::too_new, std::string(call) + " needs macOS " + std::to_string(needed) +
                                              ", this one is " + std::to_string(os));
  }
}

}  // namespace

bool mapped(const void* begin, std::size_t bytes) {
  const auto system_page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<std::uintptr_t>(begin) / system_page * system_page;
  const auto last = (reinterpret_cast<std::uintptr_t>(begin) + bytes - 1) / system_page * system_page;
  unsigned char resident = 0;
  return mincore(reinterpret_cast<void*>(first), 1, &resident) == 0 &&
         mincore(reinterpret_cast<void*>(last), 1, &resident) == 0;
}

bool writable(const void* address) {
  // The kernel of the system copies from a pipe: it says EFAULT where this process may not write.
  int ends[2];
  if (pipe(ends) != 0) return true;
  const auto value = *static_cast<const volatile char*>(address);
  const bool sent = write(ends[1], const_cast<const char*>(&value), 1) == 1;
  const bool written = sent && read(ends[0], const_cast<void*>(address), 1) == 1;
  close(ends[0]);
  close(ends[1]);
  return written;
}

}  // namespace soft

namespace MTL {

using soft::DeviceFault;
using soft::FaultKind;
using soft::Maker;

// ---- device

Device* make_device() {
  static const unsigned first_forks = soft::fork_count();
  const soft::Options options = soft::options();
  if (soft::fork_count() != first_forks) {
    throw DeviceFault(FaultKind::forked, "MTLCreateSystemDefaultDevice in the child of a process that used Metal");
  }
  auto* device = Maker::make<Device>("Device");
  device->machine_ = std::make_shared<soft::Machine>();
  device->machine_->forks = soft::fork_count();
  const std::string name = options.family >= 7 ? "Software device (Apple" + std::to_string(options.family) + ")"
                                               : "Software Paravirtual device";
  device->name_ = NS::String::alloc()->init(name.c_str(), NS::UTF8StringEncoding);
  return device;
}

Device* CreateSystemDefaultDevice() { return soft::options().named ? make_device() : nullptr; }

NS::Array* CopyAllDevices() {
  Device* device = make_device();
  NS::Array* array = NS::make_array({device});
  device->release();
  return array;
}

void Device::dispose() noexcept { name_->release(); }

bool Device::supportsFamily(GPUFamily family) {
  soft::check_call(this, machine_.get(), "supportsFamily");
  const auto own = static_cast<NS::Integer>(soft::options().family);
  if (family >= GPUFamilyApple1 && family < GPUFamilyMac1) return family - 1000 <= own;
  switch (family) {
    case GPUFamilyMac1:
    case GPUFamilyMac2:
    case GPUFamilyCommon1:
    case GPUFamilyCommon2:
    case GPUFamilyCommon3:
      return true;
    case GPUFamilyMetal3:
      return own >= 7;
    case GPUFamilyMetal4:
      return own >= 7 && soft::options().os >= 26;
    default:
      return false;
  }
}
bool Device::hasUnifiedMemory() const { return soft::options().unified; }
std::uint64_t Device::recommendedMaxWorkingSetSize() const { return soft::options().memory; }
NS::UInteger Device::maxBufferLength() const { return soft::options().max_buffer; }
NS::UInteger Device::currentAllocatedSize() const {
  const std::lock_guard lock(machine_->mutex);
  return machine_->allocated;
}

// ---- buffers

Buffer* Device::make_buffer(NS::UInteger length, ResourceOptions options) {
  soft::check_call(this, machine_.get(), "newBuffer");
  if (length == 0) throw DeviceFault(FaultKind::limit, "newBuffer of 0 bytes");
  if ((options & ResourceHazardTrackingModeUntracked) != 0) {
    throw DeviceFault(FaultKind::misuse, "an untracked buffer needs fences between encoders, which are not seen here");
  }
  if (length > soft::options().max_buffer) return nullptr;  // as Metal does
  auto* buffer = Maker::make<Buffer>("Buffer");
  buffer->device_ = retain();
  buffer->options_ = options;
  buffer->length_ = length;
  buffer->allocated_ = (length + 16383) / 16384 * 16384;
  const std::lock_guard lock(machine_->mutex);
  machine_->allocated += buffer->allocated_;
  soft::State& all = soft::state();
  const std::lock_guard state_lock(all.mutex);
  ++all.counters.buffers;
  all.counters.buffer_bytes += length;
  return buffer;
}

Buffer* Device::newBuffer(NS::UInteger length, ResourceOptions options) {
  Buffer* buffer = make_buffer(length, options);
  if (buffer == nullptr) return nullptr;
  const std::size_t whole = soft::round_up(length + soft::kGuard, soft::kBufferAlignment);
  buffer->memory_ = static_cast<std::byte*>(std::aligned_alloc(soft::kBufferAlignment, whole));
  if (buffer->memory_ == nullptr) {
    buffer->release();
    return nullptr;
  }
  buffer->own_ = true;
  // Metal does not say what new memory holds: whoever reads it before writing to it gets NaN.
  if (length <= soft::kMostFilled) std::fill_n(buffer->memory_, length, soft::kFill);
  std::fill_n(buffer->memory_ + length, soft::kGuard, soft::kGuardByte);
  return buffer;
}

Buffer* Device::newBuffer(const void* pointer, NS::UInteger length, ResourceOptions options) {
  Buffer* buffer = newBuffer(length, options);
  if (buffer != nullptr) std::memcpy(buffer->memory_, pointer, length);
  return buffer;
}

Buffer* Device::newBuffer(const void* pointer, NS::UInteger length, ResourceOptions options, std::nullptr_t) {
  const std::size_t page = soft::options().page;
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  if (address % page != 0 || length % page != 0) {
    throw DeviceFault(FaultKind::page,
                      "newBuffer without a copy: address and length must be multiples of the page of " +
                          std::to_string(page) + " bytes; they are " + std::to_string(address % page) + " and " +
                          std::to_string(length % page) + " bytes past one");
  }
  if ((options >> 4 & 15) != StorageModeShared) {
    throw DeviceFault(FaultKind::misuse, "newBuffer without a copy takes shared memory only");
  }
  if (length != 0 && !soft::mapped(pointer, length)) {
    throw DeviceFault(FaultKind::page, "newBuffer without a copy over memory that is not mapped");
  }
  Buffer* buffer = make_buffer(length, options);
  if (buffer == nullptr) return nullptr;
  buffer->memory_ = const_cast<std::byte*>(static_cast<const std::byte*>(pointer));
  return buffer;
}

void Resource::setLabel(const NS::String* label) {
  const_cast<NS::String*>(label)->retain();
  if (label_ != nullptr) label_->release();
  label_ = const_cast<NS::String*>(label);
}
void Resource::dispose() noexcept {
  if (label_ != nullptr) label_->release();
  device_->release();
}

void* Buffer::contents() {
  soft::check_call(this, nullptr, "contents");
  if (storageMode() == StorageModePrivate) return nullptr;
  return memory_;
}

void Buffer::check_guard() const {
  if (!own_) return;
  const auto* guard = memory_ + length_;
  if (std::all_of(guard, guard + soft::kGuard, [](std::byte b) { return b == soft::kGuardByte; })) return;
  throw DeviceFault(FaultKind::overrun,
                    "memory after the end of a buffer of " + std::to_string(length_) + " bytes was written to");
}

void Buffer::dispose() noexcept {
  if (memory_ != nullptr) {
    try {
      check_guard();
    } catch (const DeviceFault&) {
      soft::add_late_fault(FaultKind::overrun, "found when a buffer of " + std::to_string(length_) +
                                                   " bytes was released: memory after its end was written to");
    }
  }
  if (own_) std::free(memory_);
  memory_ = nullptr;
  {
    const std::lock_guard lock(device_->machine()->mutex);
    device_->machine()->allocated -= allocated_;
  }
  Resource::dispose();
}

// ---- libraries

CompileOptions* CompileOptions::alloc() { return Maker::make<CompileOptions>("CompileOptions"); }
void CompileOptions::setMathMode(MathMode mode) {
  soft::check_os("setMathMode", 15);
  fast_ = mode == MathModeFast;
}
void CompileOptions::setMathFloatingPointFunctions(MathFloatingPointFunctions) {
  soft::check_os("setMathFloatingPointFunctions", 15);
}

Library* Device::newLibrary(const NS::String* source, const CompileOptions* options, NS::Error** error) {
  soft::check_call(this, machine_.get(), "newLibrary");
  const bool contracted = soft::options().contract;
  soft::State& all = soft::state();
  const soft::LibraryEntry* found = nullptr;
  const std::string_view text(source->utf8String());
  for (const soft::LibraryEntry& entry : soft::libraries(contracted)) {
    if (text == entry.source) found = &entry;
  }
  {
    const std::lock_guard lock(all.mutex);
    for (const soft::LibraryEntry& entry : all.added[contracted ? 1 : 0]) {
      if (text == entry.source) found = &entry;
    }
    ++all.counters.libraries;
  }
  if (found != nullptr && soft::options().refuse == found->name) {
    soft::put_error(error, "MTLLibraryErrorDomain", LibraryErrorCompileFailure, "program_source:1:1: error: refused");
    return nullptr;
  }
  if (found == nullptr) {
    soft::put_error(error, "MTLLibraryErrorDomain", LibraryErrorCompileFailure,
                    "the software device was not compiled with this text");
    return nullptr;
  }
  if (options == nullptr || options->fastMathEnabled()) {
    throw DeviceFault(FaultKind::misuse, std::string("library '") + found->name +
                                             "' is compiled with fast math, Metal's default: exp(-inf) may not be 0");
  }
  auto* library = Maker::make<Library>("Library");
  library->device_ = retain();
  library->entry_ = found;
  return library;
}

void Library::dispose() noexcept { device_->release(); }

NS::Array* Library::functionNames() const {
  std::vector<NS::Object*> names;
  for (const soft::KernelEntry& kernel : entry_->kernels) {
    names.push_back(NS::String::alloc()->init(kernel.name, NS::UTF8StringEncoding));
  }
  NS::Array* array = NS::make_array(names);
  for (NS::Object* each : names) each->release();
  return array->autorelease();
}

FunctionConstantValues* FunctionConstantValues::alloc() {
  return Maker::make<FunctionConstantValues>("FunctionConstantValues");
}
void FunctionConstantValues::setConstantValue(const void* value, DataType type, NS::UInteger index) {
  if (type != DataTypeUInt) {
    throw DeviceFault(FaultKind::constant, "function constant " + std::to_string(index) + " is set as type " +
                                               std::to_string(type) + ": all of ours are uint (" +
                                               std::to_string(DataTypeUInt) + ")");
  }
  std::uint32_t number = 0;
  std::memcpy(&number, value, sizeof number);
  values_[index] = number;
}

Function* Library::newFunction(const NS::String* name) { return newFunction(name, nullptr, nullptr); }

Function* Library::newFunction(const NS::String* name, const FunctionConstantValues* values, NS::Error** error) {
  soft::check_call(this, device_->machine(), "newFunction");
  const std::string_view wanted(name->utf8String());
  for (const soft::KernelEntry& kernel : entry_->kernels) {
    if (wanted != kernel.name) continue;
    if (values != nullptr) {
      for (const auto& [index, value] : values->values_) {
        const bool known = std::any_of(entry_->constants.begin(), entry_->constants.end(), [&](const auto& constant) {
          return static_cast<NS::UInteger>(constant.index) == index;
        });
        if (!known) {
          throw DeviceFault(FaultKind::constant, std::string("library '") + entry_->name +
                                                     "' has no function constant " + std::to_string(index) +
                                                     ", which is set for kernel '" + kernel.name + "'");
        }
      }
    }
    auto* function = Maker::make<Function>("Function");
    function->device_ = device_->retain();
    function->name_ = NS::String::alloc()->init(kernel.name, NS::UTF8StringEncoding);
    function->library_ = entry_;
    function->kernel_ = &kernel;
    if (values != nullptr) function->constants_ = values->values_;
    return function;
  }
  soft::put_error(error, "MTLLibraryErrorDomain", LibraryErrorFunctionNotFound,
                  "library '" + std::string(entry_->name) + "' has no kernel '" + std::string(wanted) + "'");
  return nullptr;
}

void Function::dispose() noexcept {
  name_->release();
  device_->release();
}

ComputePipelineState* Device::newComputePipelineState(const Function* function, NS::Error** error) {
  soft::check_call(this, machine_.get(), "newComputePipelineState");
  soft::check_call(function, nullptr, "newComputePipelineState");
  const soft::Options options = soft::options();
  if (options.refuse == function->kernel_->name) {
    soft::put_error(error, "MTLPipelineErrorDomain", 3, "Compiler encountered an internal error");
    return nullptr;
  }
  auto* pipeline = Maker::make<ComputePipelineState>("ComputePipelineState");
  pipeline->device_ = retain();
  pipeline->library_ = function->library_;
  pipeline->kernel_ = function->kernel_;
  pipeline->constants_ = function->constants_;
  pipeline->width_ = options.width;
  pipeline->most_threads_ = options.max_threads;
  soft::State& all = soft::state();
  const std::lock_guard lock(all.mutex);
  ++all.counters.pipelines;
  return pipeline;
}

void ComputePipelineState::dispose() noexcept { device_->release(); }

// ---- residency

ResidencySetDescriptor* ResidencySetDescriptor::alloc() {
  soft::check_os("MTLResidencySetDescriptor", 15);
  return Maker::make<ResidencySetDescriptor>("ResidencySetDescriptor");
}
ResidencySet* Device::newResidencySet(const ResidencySetDescriptor*, NS::Error**) {
  soft::check_call(this, machine_.get(), "newResidencySet");
  soft::check_os("newResidencySet", 15);
  auto* set = Maker::make<ResidencySet>("ResidencySet");
  set->device_ = retain();
  return set;
}
void ResidencySet::addAllocation(const Allocation* allocation) {
  soft::check_call(this, device_->machine(), "addAllocation");
  if (containsAllocation(allocation)) return;
  allocations_.push_back(const_cast<Allocation*>(allocation)->retain());
}
void ResidencySet::removeAllocation(const Allocation* allocation) {
  const auto found = std::find(allocations_.begin(), allocations_.end(), allocation);
  if (found == allocations_.end()) return;
  (*found)->release();
  allocations_.erase(found);
}
void ResidencySet::removeAllAllocations() {
  for (Allocation* allocation : std::exchange(allocations_, {})) allocation->release();
}
bool ResidencySet::containsAllocation(const Allocation* allocation) {
  return std::find(allocations_.begin(), allocations_.end(), allocation) != allocations_.end();
}
std::uint64_t ResidencySet::allocatedSize() const {
  std::uint64_t sum = 0;
  for (const Allocation* allocation : allocations_) sum += allocation->allocatedSize();
  return sum;
}
void ResidencySet::dispose() noexcept {
  removeAllAllocations();
  device_->release();
}

}  // namespace MTL
