// The part of metal-cpp's Metal that a compute backend needs: the same names and signatures, run by the software device.
#pragma once

#include <Foundation/Foundation.hpp>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace soft {
struct KernelEntry;
struct LibraryEntry;
struct Machine;  // of one MTL::Device: what is committed and not run, what is hidden (machine.h)
struct Commands;
struct Maker;
struct Binding;
}  // namespace soft

namespace MTL {

class Buffer;
class CommandBuffer;
class CommandQueue;
class Device;

enum DataType : NS::UInteger {
  DataTypeNone = 0,
  DataTypeFloat = 3,
  DataTypeInt = 29,
  DataTypeUInt = 33,
  DataTypeUShort = 41,
  DataTypeBool = 53
};

enum GPUFamily : NS::Integer {
  GPUFamilyApple1 = 1001,
  GPUFamilyApple2 = 1002,
  GPUFamilyApple3 = 1003,
  GPUFamilyApple4 = 1004,
  GPUFamilyApple5 = 1005,
  GPUFamilyApple6 = 1006,
  GPUFamilyApple7 = 1007,
  GPUFamilyApple8 = 1008,
  GPUFamilyApple9 = 1009,
  GPUFamilyApple10 = 1010,
  GPUFamilyMac1 = 2001,
  GPUFamilyMac2 = 2002,
  GPUFamilyCommon1 = 3001,
  GPUFamilyCommon2 = 3002,
  GPUFamilyCommon3 = 3003,
  GPUFamilyMetal3 = 5001,
  GPUFamilyMetal4 = 5002
};

using ResourceOptions = NS::UInteger;
enum : NS::UInteger {
  ResourceCPUCacheModeDefaultCache = 0,
  ResourceCPUCacheModeWriteCombined = 1,
  ResourceStorageModeShared = 0,
  ResourceStorageModeManaged = 1 << 4,
  ResourceStorageModePrivate = 1 << 5,
  ResourceHazardTrackingModeDefault = 0,
  ResourceHazardTrackingModeUntracked = 1 << 8,
  ResourceHazardTrackingModeTracked = 1 << 9
};

enum StorageMode : NS::UInteger { StorageModeShared = 0, StorageModeManaged = 1, StorageModePrivate = 2 };

using BarrierScope = NS::UInteger;
enum : NS::UInteger { BarrierScopeBuffers = 1, BarrierScopeTextures = 2 };

using ResourceUsage = NS::UInteger;
enum : NS::UInteger { ResourceUsageRead = 1, ResourceUsageWrite = 2 };

enum DispatchType : NS::UInteger { DispatchTypeSerial = 0, DispatchTypeConcurrent = 1 };

enum LanguageVersion : NS::UInteger {
  LanguageVersion2_4 = 131076,
  LanguageVersion3_0 = 196608,
  LanguageVersion3_1 = 196609,
  LanguageVersion3_2 = 196610,
  LanguageVersion4_0 = 262144
};
enum MathMode : NS::Integer { MathModeSafe = 0, MathModeRelaxed = 1, MathModeFast = 2 };
enum MathFloatingPointFunctions : NS::Integer {
  MathFloatingPointFunctionsFast = 0,
  MathFloatingPointFunctionsPrecise = 1
};
enum LibraryError : NS::UInteger { LibraryErrorCompileFailure = 3, LibraryErrorFunctionNotFound = 5 };

enum CommandBufferStatus : NS::UInteger {
  CommandBufferStatusNotEnqueued = 0,
  CommandBufferStatusEnqueued = 1,
  CommandBufferStatusCommitted = 2,
  CommandBufferStatusScheduled = 3,
  CommandBufferStatusCompleted = 4,
  CommandBufferStatusError = 5
};

enum CommandBufferError : NS::UInteger {
  CommandBufferErrorNone = 0,
  CommandBufferErrorInternal = 1,
  CommandBufferErrorTimeout = 2,
  CommandBufferErrorPageFault = 3,
  CommandBufferErrorAccessRevoked = 4,
  CommandBufferErrorNotPermitted = 7,
  CommandBufferErrorOutOfMemory = 8,
  CommandBufferErrorInvalidResource = 9,
  CommandBufferErrorDeviceRemoved = 11,
  CommandBufferErrorStackOverflow = 12
};

struct Size {
  Size() = default;
  Size(NS::UInteger width_, NS::UInteger height_, NS::UInteger depth_)
      : width(width_), height(height_), depth(depth_) {}
  static Size Make(NS::UInteger width, NS::UInteger height, NS::UInteger depth) { return Size(width, height, depth); }
  NS::UInteger width;
  NS::UInteger height;
  NS::UInteger depth;
};

class CompileOptions : public NS::Copying<CompileOptions> {
 public:
  static CompileOptions* alloc();
  CompileOptions* init() { return this; }
  void setFastMathEnabled(bool enabled) { fast_ = enabled; }
  bool fastMathEnabled() const { return fast_; }
  void setLanguageVersion(LanguageVersion version) { version_ = version; }
  LanguageVersion languageVersion() const { return version_; }
  void setMathMode(MathMode mode);                                           // macOS 15
  void setMathFloatingPointFunctions(MathFloatingPointFunctions functions);  // macOS 15

 private:
  friend class Device;
  bool fast_ = true;  // Metal's default
  LanguageVersion version_ = LanguageVersion3_0;
};

class Allocation : public NS::Referencing<Allocation> {
 public:
  NS::UInteger allocatedSize() const { return allocated_; }

 protected:
  NS::UInteger allocated_ = 0;
};

class Resource : public NS::Referencing<Resource, Allocation> {
 public:
  Device* device() const { return device_; }
  NS::String* label() const { return label_; }
  void setLabel(const NS::String* label);
  ResourceOptions resourceOptions() const { return options_; }
  StorageMode storageMode() const { return static_cast<StorageMode>(options_ >> 4 & 15); }

 protected:
  void dispose() noexcept override;
  Device* device_ = nullptr;
  NS::String* label_ = nullptr;
  ResourceOptions options_ = 0;
};

class Buffer : public NS::Referencing<Buffer, Resource> {
 public:
  void* contents();
  NS::UInteger length() const { return length_; }

  // The software device's own: whether the memory is not the caller's, and a fault where the host wrote past its end.
  bool is_own() const { return own_; }
  void check_guard() const;

 private:
  friend class Device;
  friend struct soft::Machine;
  friend class ComputeCommandEncoder;
  void dispose() noexcept override;
  std::byte* memory_ = nullptr;
  NS::UInteger length_ = 0;
  bool own_ = false;  // else the caller's memory
};

class FunctionConstantValues : public NS::Copying<FunctionConstantValues> {
 public:
  static FunctionConstantValues* alloc();
  FunctionConstantValues* init() { return this; }
  void reset() { values_.clear(); }
  void setConstantValue(const void* value, DataType type, NS::UInteger index);

 private:
  friend class Library;
  std::map<NS::UInteger, std::uint32_t> values_;
};

class Function : public NS::Referencing<Function> {
 public:
  NS::String* name() const { return name_; }
  Device* device() const { return device_; }

 private:
  friend class Library;
  friend class Device;
  void dispose() noexcept override;
  Device* device_ = nullptr;
  NS::String* name_ = nullptr;
  const soft::LibraryEntry* library_ = nullptr;
  const soft::KernelEntry* kernel_ = nullptr;
  std::map<NS::UInteger, std::uint32_t> constants_;
};

class Library : public NS::Referencing<Library> {
 public:
  Device* device() const { return device_; }
  NS::Array* functionNames() const;  // autoreleased
  Function* newFunction(const NS::String* name);
  Function* newFunction(const NS::String* name, const FunctionConstantValues* values, NS::Error** error);

 private:
  friend class Device;
  void dispose() noexcept override;
  Device* device_ = nullptr;
  const soft::LibraryEntry* entry_ = nullptr;
};

class ComputePipelineState : public NS::Referencing<ComputePipelineState, Allocation> {
 public:
  Device* device() const { return device_; }
  NS::UInteger threadExecutionWidth() const { return width_; }
  NS::UInteger maxTotalThreadsPerThreadgroup() const { return most_threads_; }
  NS::UInteger staticThreadgroupMemoryLength() const { return 0; }

 private:
  friend class Device;
  friend class ComputeCommandEncoder;
  void dispose() noexcept override;
  Device* device_ = nullptr;
  const soft::LibraryEntry* library_ = nullptr;
  const soft::KernelEntry* kernel_ = nullptr;
  std::map<NS::UInteger, std::uint32_t> constants_;
  NS::UInteger width_ = 32;
  NS::UInteger most_threads_ = 1024;
};

class ResidencySetDescriptor : public NS::Copying<ResidencySetDescriptor> {
 public:
  static ResidencySetDescriptor* alloc();
  ResidencySetDescriptor* init() { return this; }
  void setInitialCapacity(NS::UInteger capacity) { capacity_ = capacity; }
  NS::UInteger initialCapacity() const { return capacity_; }
  void setLabel(const NS::String*) {}

 private:
  NS::UInteger capacity_ = 0;
};

class ResidencySet : public NS::Referencing<ResidencySet> {
 public:
  void addAllocation(const Allocation* allocation);
  void removeAllocation(const Allocation* allocation);
  void removeAllAllocations();
  bool containsAllocation(const Allocation* allocation);
  NS::UInteger allocationCount() const { return allocations_.size(); }
  std::uint64_t allocatedSize() const;
  void commit() {}
  void requestResidency() {}
  void endResidency() {}
  Device* device() const { return device_; }

 private:
  friend class Device;
  void dispose() noexcept override;
  Device* device_ = nullptr;
  std::vector<Allocation*> allocations_;
};

class CommandEncoder : public NS::Referencing<CommandEncoder> {
 public:
  void endEncoding();
  Device* device() const { return device_; }
  void setLabel(const NS::String*) {}

 protected:
  friend class CommandBuffer;
  Device* device_ = nullptr;
  CommandBuffer* buffer_ = nullptr;
  bool ended_ = false;
};

class ComputeCommandEncoder : public NS::Referencing<ComputeCommandEncoder, CommandEncoder> {
 public:
  void setComputePipelineState(const ComputePipelineState* state);
  void setBuffer(const Buffer* buffer, NS::UInteger offset, NS::UInteger index);
  void setBufferOffset(NS::UInteger offset, NS::UInteger index);
  void setBytes(const void* bytes, NS::UInteger length, NS::UInteger index);
  void setThreadgroupMemoryLength(NS::UInteger length, NS::UInteger index);
  void dispatchThreadgroups(Size threadgroupsPerGrid, Size threadsPerThreadgroup);
  void memoryBarrier(BarrierScope scope);
  void useResource(const Resource* resource, ResourceUsage usage);
  DispatchType dispatchType() const { return type_; }

  // The software device's own call, which macOS has no use for: the kernel touches `bytes` from where the buffer at `index`
  // is bound, and writes to them or not. It holds until the index is bound anew.
  void declareRange(NS::UInteger index, NS::UInteger bytes, bool writes);

 private:
  friend class CommandBuffer;
  void dispose() noexcept override;
  soft::Binding& at(NS::UInteger index, const char* call);
  void check_open(const char* call) const;
  DispatchType type_ = DispatchTypeSerial;
  const ComputePipelineState* state_ = nullptr;
  std::vector<soft::Binding> bindings_;
  std::array<NS::UInteger, 31> threadgroup_{};
  std::size_t since_barrier_ = 0;  // the first dispatch that a concurrent one may meet
};

using HandlerFunction = std::function<void(CommandBuffer*)>;

class CommandBuffer : public NS::Referencing<CommandBuffer> {
 public:
  ComputeCommandEncoder* computeCommandEncoder();                   // autoreleased
  ComputeCommandEncoder* computeCommandEncoder(DispatchType type);  // autoreleased
  void addCompletedHandler(const HandlerFunction& function);
  void enqueue();
  void commit();
  void waitUntilCompleted();
  CommandBufferStatus status() const { return status_; }
  NS::Error* error() const { return error_; }
  double GPUStartTime() const { return start_; }
  double GPUEndTime() const { return end_; }
  CommandQueue* commandQueue() const { return queue_; }
  Device* device() const { return device_; }
  void setLabel(const NS::String*) {}
  void useResidencySet(const ResidencySet* set);

 private:
  friend class CommandQueue;
  friend class CommandEncoder;
  friend class ComputeCommandEncoder;
  friend struct soft::Machine;
  void dispose() noexcept override;
  void encoding_ended() noexcept { encoding_ = false; }
  Device* device_ = nullptr;
  CommandQueue* queue_ = nullptr;
  CommandBufferStatus status_ = CommandBufferStatusNotEnqueued;
  NS::Error* error_ = nullptr;
  double start_ = 0;
  double end_ = 0;
  std::uint64_t number_ = 0;  // of its commit
  bool encoding_ = false;     // an encoder is open
  std::shared_ptr<soft::Commands> commands_;
  std::vector<HandlerFunction> handlers_;
};

class CommandQueue : public NS::Referencing<CommandQueue> {
 public:
  CommandBuffer* commandBuffer();  // autoreleased
  Device* device() const { return device_; }
  void setLabel(const NS::String*) {}
  void addResidencySet(const ResidencySet* set);
  void removeResidencySet(const ResidencySet* set);

 private:
  friend class Device;
  friend struct soft::Machine;
  void dispose() noexcept override;
  Device* device_ = nullptr;
  std::vector<const ResidencySet*> residency_;
  bool failed_ = false;  // one of its command buffers has: what is committed later is ignored
};

class Device : public NS::Referencing<Device> {
 public:
  NS::String* name() const { return name_; }
  bool supportsFamily(GPUFamily family);
  bool hasUnifiedMemory() const;
  bool isLowPower() const { return false; }
  std::uint64_t recommendedMaxWorkingSetSize() const;
  NS::UInteger currentAllocatedSize() const;
  NS::UInteger maxBufferLength() const;
  NS::UInteger maxThreadgroupMemoryLength() const { return 32768; }
  Size maxThreadsPerThreadgroup() const { return Size(1024, 1024, 1024); }
  std::uint64_t registryID() const { return 1; }

  Buffer* newBuffer(NS::UInteger length, ResourceOptions options);
  Buffer* newBuffer(const void* pointer, NS::UInteger length, ResourceOptions options);
  Buffer* newBuffer(const void* pointer, NS::UInteger length, ResourceOptions options,
                    std::nullptr_t deallocator);  // on macOS a block; the memory stays the caller's
  CommandQueue* newCommandQueue();
  CommandQueue* newCommandQueue(NS::UInteger maxCommandBufferCount);
  Library* newLibrary(const NS::String* source, const CompileOptions* options, NS::Error** error);
  ComputePipelineState* newComputePipelineState(const Function* function, NS::Error** error);
  ResidencySet* newResidencySet(const ResidencySetDescriptor* descriptor, NS::Error** error);  // macOS 15

  soft::Machine* machine() const { return machine_.get(); }  // the software device's own

 private:
  friend Device* make_device();  // device.cpp
  void dispose() noexcept override;
  Buffer* make_buffer(NS::UInteger length, ResourceOptions options);
  NS::String* name_ = nullptr;
  std::shared_ptr<soft::Machine> machine_;
};

Device* CreateSystemDefaultDevice();  // the caller owns it
NS::Array* CopyAllDevices();          // the caller owns it

}  // namespace MTL
