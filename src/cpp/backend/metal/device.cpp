#include "backend/metal/device.h"

#ifdef _WIN32
#error "Metal is of Apple's systems, and the software device of Linux"
#endif
#include <unistd.h>

#include <Foundation/Foundation.hpp>
#include <Metal/Metal.hpp>
#include <atomic>
#include <utility>

#include "backend/metal/kernels/args.h"
#include "backend/metal/metal_source.h"
#include "core/check.h"
#include "core/thread_number.h"

namespace llama2cpp::metal {
namespace {

constexpr int kLeastFamily = 7;  // M1: reductions over simdgroups, and their matrices
constexpr int kMostFamily = 15;  // that is asked for

// The fork_generation() that first had a device; -1: none yet. What Metal was then is dead in a child, and asking it for
// anything, a device of the child's own too, ends the process.
std::atomic<int> first_user{-1};

void check_first_user(int forks) {
  int first = -1;
  if (first_user.compare_exchange_strong(first, forks) || first == forks) return;
  throw Unavailable(
      "this process is a fork of one that has used Metal, which does not work in a fork: start processes with "
      "multiprocessing's 'spawn'");
}

std::string text_of(const NS::String* text) { return text == nullptr ? std::string() : text->utf8String(); }

NS::String* string_of(std::string_view text) {
  return NS::String::string(std::string(text).c_str(), NS::UTF8StringEncoding);
}

bool has_macos(NS::Integer major) {
  return NS::ProcessInfo::processInfo()->isOperatingSystemAtLeastVersion({major, 0, 0});
}

// Arithmetic as it is written, but for products and sums that the compiler fuses.
void be_exact(MTL::CompileOptions& options) {
  options.setLanguageVersion(MTL::LanguageVersion3_0);
  if (has_macos(15)) {
    options.setMathMode(MTL::MathModeSafe);
  } else {
    options.setFastMathEnabled(false);
  }
}

// The system names a default device only to programs that are linked with its graphics, as Python need not be. The list of all
// devices has it anyway.
MTL::Device* find_device() {
  if (MTL::Device* const device = MTL::CreateSystemDefaultDevice()) return device;
  const Held<NS::Array> all(MTL::CopyAllDevices());
  if (!all || all->count() == 0) return nullptr;
  return all->object<MTL::Device>(0)->retain();
}

}  // namespace

Pool::Pool() : pool_(NS::AutoreleasePool::alloc()->init()) {}

Pool::~Pool() { static_cast<NS::AutoreleasePool*>(pool_)->release(); }

std::string error_text(std::string_view what, const NS::Error* error) {
  if (error == nullptr) return cat(what, ": failed, and Metal does not say why");
  return cat(what, ": ", text_of(error->localizedDescription()));
}

struct Device::Kernels {
  std::map<std::string, Kernel, std::less<>> by_key;
  std::vector<Held<MTL::ComputePipelineState>> pipelines;
};

Device::Device() : forks_(fork_generation()), kernels_(std::make_unique<Kernels>()) {
  check_first_user(forks_);
  const Pool pool;
  device_.reset(find_device());
  if (!device_) throw Unavailable("this machine has no GPU that Metal can use");
  limits_.device = text_of(device_->name());
  for (int family = kLeastFamily; family <= kMostFamily; ++family) {
    if (device_->supportsFamily(static_cast<MTL::GPUFamily>(1000 + family))) limits_.family = family;
  }
  if (limits_.family == 0) {
    throw Unavailable(cat("the GPU '", limits_.device, "' is not of the family Apple", kLeastFamily,
                          " or a later one (M1 and later), which the kernels need"));
  }
  if (!device_->hasUnifiedMemory()) {
    throw Unavailable(
        cat("the GPU '", limits_.device, "' has a memory of its own, and weights are used where they lie"));
  }
  limits_.buffer = device_->maxBufferLength();
  limits_.working_set = static_cast<std::size_t>(device_->recommendedMaxWorkingSetSize());
  limits_.shared = static_cast<std::uint32_t>(device_->maxThreadgroupMemoryLength());
  limits_.page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  if (has_macos(15)) {
    const Held<MTL::ResidencySetDescriptor> descriptor(MTL::ResidencySetDescriptor::alloc()->init());
    NS::Error* error = nullptr;
    residency_.reset(device_->newResidencySet(descriptor.get(), &error));  // none: only slower
  }
  renew_queue();
}

Device::~Device() {
  if (forked()) {  // Metal's objects are of the parent's: not even to be let go of
    static_cast<void>(kernels_.release());
    for (auto& [name, library] : libraries_) static_cast<void>(library.release());
    static_cast<void>(residency_.release());
    static_cast<void>(queue_.release());
    static_cast<void>(device_.release());
    return;
  }
  const Pool pool;
  if (residency_) queue_->removeResidencySet(residency_.get());
  kernels_.reset();
  libraries_.clear();
  residency_.reset();
  queue_.reset();
  device_.reset();
}

bool Device::forked() const { return fork_generation() != forks_; }

void Device::check_process() const {
  if (!forked()) return;
  throw std::runtime_error(
      "this process is a fork of the one that opened the model, and Metal does not work in a fork: start processes "
      "with multiprocessing's 'spawn'");
}

std::size_t Device::allocated() const { return device_->currentAllocatedSize(); }

void Device::renew_queue() {
  Held<MTL::CommandQueue> fresh(device_->newCommandQueue());
  if (!fresh) throw Unavailable(cat("Metal gives no command queue on '", limits_.device, "'"));
  if (residency_) fresh->addResidencySet(residency_.get());
  queue_ = std::move(fresh);
}

MTL::Library& Device::library(std::string_view name) {
  const auto found = libraries_.find(name);
  if (found != libraries_.end()) return *found->second;
  const std::string_view source = metal_source(name);
  LLAMA2CPP_CHECK(!source.empty(), "there are no kernels called '", name, "'");
  const Held<MTL::CompileOptions> options(MTL::CompileOptions::alloc()->init());
  be_exact(*options);
  NS::Error* error = nullptr;
  Held<MTL::Library> made(device_->newLibrary(string_of(source), options.get(), &error));
  if (!made) throw Unavailable(error_text(cat("compiling the kernels of '", name, "'"), error));
  return *libraries_.emplace(name, std::move(made)).first->second;
}

std::string Device::problem_of(std::string_view library_name) {
  try {
    const Pool pool;
    library(library_name);
    return {};
  } catch (const Unavailable& e) {
    return *e.reason;
  }
}

const Kernel& Device::kernel(std::string_view library_name, std::string_view name,
                             std::span<const Constant> constants) {
  std::string key;
  key.append(library_name).append("/").append(name);
  for (const Constant& constant : constants) {
    key.append(" ").append(std::to_string(constant.index)).append("=").append(std::to_string(constant.value));
  }
  const auto found = kernels_->by_key.find(key);
  if (found != kernels_->by_key.end()) return found->second;

  const Held<MTL::FunctionConstantValues> values(MTL::FunctionConstantValues::alloc()->init());
  for (const Constant& constant : constants) {
    values->setConstantValue(&constant.value, MTL::DataTypeUInt, NS::UInteger{constant.index});
  }
  NS::Error* error = nullptr;
  const Held<MTL::Function> function(library(library_name).newFunction(string_of(name), values.get(), &error));
  if (!function) throw Unavailable(error_text(cat("the kernel ", key), error));
  Held<MTL::ComputePipelineState> pipeline(device_->newComputePipelineState(function.get(), &error));
  if (!pipeline) throw Unavailable(error_text(cat("preparing the kernel ", key), error));
  if (pipeline->threadExecutionWidth() != kSimdgroup) {
    throw Unavailable(cat("the GPU '", limits_.device, "' has simdgroups of ", pipeline->threadExecutionWidth(),
                          " threads, expected ", kSimdgroup));
  }
  const auto threads = static_cast<std::uint32_t>(pipeline->maxTotalThreadsPerThreadgroup());
  MTL::ComputePipelineState* const state = pipeline.get();
  kernels_->pipelines.push_back(std::move(pipeline));
  return kernels_->by_key.emplace(key, Kernel{key, threads, state}).first->second;
}

}  // namespace llama2cpp::metal
