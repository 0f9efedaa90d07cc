// The software Metal device finds what a GPU would do to us: each test plants one fault and expects it by name, and does the
// same thing right beside it.
#include <doctest/doctest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <Metal/Metal.hpp>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "backend/metal/metal_source.h"
#include "kernels/faults_args.h"
#include "soft_metal.h"

namespace {

using soft::FaultKind;

// What `action` throws, or nothing.
std::optional<soft::DeviceFault> fault_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const soft::DeviceFault& fault) {
    return fault;
  }
  return std::nullopt;
}

// A fault of this kind, whose text has all of these words.
void expect(FaultKind kind, const std::vector<std::string>& words, const std::function<void()>& action) {
  const auto fault = fault_of(action);
  REQUIRE_MESSAGE(fault.has_value(), "no fault; expected: ", soft::name(kind));
  const std::string text = fault->what();
  CAPTURE(text);
  CHECK(fault->kind == kind);
  CHECK(text.find(soft::name(kind)) != std::string::npos);
  for (const std::string& word : words) {
    CAPTURE(word);
    CHECK(text.find(word) != std::string::npos);
  }
}

NS::String* string(const char* text) { return NS::String::string(text, NS::UTF8StringEncoding); }

// Knobs for one test; what the tests before it left is gone.
class With {
 public:
  explicit With(const char* text = "") {
    soft::take_late_faults();
    soft::set_options(soft::parse_options(text));
    soft::reset_counters();
  }
  ~With() { soft::set_options(""); }
  With(const With&) = delete;
  With& operator=(const With&) = delete;
};

struct Use {  // of a buffer at the next index
  MTL::Buffer* buffer = nullptr;
  std::size_t offset = 0;
  std::optional<std::size_t> bytes;  // declared
  bool writes = false;
};
Use reads(MTL::Buffer* buffer, std::size_t offset, std::size_t bytes) { return {buffer, offset, bytes, false}; }
Use writes(MTL::Buffer* buffer, std::size_t offset, std::size_t bytes) { return {buffer, offset, bytes, true}; }
Use undeclared(MTL::Buffer* buffer, std::size_t offset = 0) { return {buffer, offset, std::nullopt, false}; }

// A device with the library of kernels/faults.metal, and one pool for all of a test.
class Bench {
 public:
  Bench() {
    pool = NS::AutoreleasePool::alloc()->init();
    device = NS::TransferPtr(MTL::CreateSystemDefaultDevice());
    queue = NS::TransferPtr(device->newCommandQueue());
    const auto options = NS::TransferPtr(MTL::CompileOptions::alloc()->init());
    options->setFastMathEnabled(false);
    NS::Error* error = nullptr;
    const std::string text(llama2cpp::metal::metal_source("faults"));
    library = NS::TransferPtr(device->newLibrary(string(text.c_str()), options.get(), &error));
    REQUIRE(library);
  }
  ~Bench() {
    library.reset();
    queue.reset();
    device.reset();
    pool->release();
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  NS::SharedPtr<MTL::ComputePipelineState> pipeline(const char* kernel, std::optional<std::uint32_t> mode = {}) {
    const auto values = NS::TransferPtr(MTL::FunctionConstantValues::alloc()->init());
    if (mode) values->setConstantValue(&*mode, MTL::DataTypeUInt, NS::UInteger{0});
    NS::Error* error = nullptr;
    const auto function = NS::TransferPtr(library->newFunction(string(kernel), values.get(), &error));
    REQUIRE(function);
    return NS::TransferPtr(device->newComputePipelineState(function.get(), &error));
  }

  NS::SharedPtr<MTL::Buffer> buffer(std::size_t bytes) {
    return NS::TransferPtr(device->newBuffer(bytes, MTL::ResourceStorageModeShared));
  }
  NS::SharedPtr<MTL::Buffer> floats(const std::vector<float>& values) {
    return NS::TransferPtr(device->newBuffer(values.data(), values.size() * 4, MTL::ResourceStorageModeShared));
  }

  // Encodes one dispatch in a command buffer of its own.
  MTL::CommandBuffer* encode(const char* kernel, const std::vector<Use>& uses, std::optional<FaultArgs> args,
                             std::size_t threads, std::size_t groups = 1, std::optional<std::uint32_t> mode = {},
                             std::size_t shared = 0) {
    MTL::CommandBuffer* commands = queue->commandBuffer();
    MTL::ComputeCommandEncoder* encoder = commands->computeCommandEncoder();
    struct End {
      MTL::ComputeCommandEncoder* encoder;
      ~End() { encoder->endEncoding(); }
    } end{encoder};
    encoder->setComputePipelineState(pipeline(kernel, mode).get());
    NS::UInteger index = 0;
    for (const Use& use : uses) {
      encoder->setBuffer(use.buffer, use.offset, index);
      if (use.bytes) encoder->declareRange(index, *use.bytes, use.writes);
      ++index;
    }
    if (args) encoder->setBytes(&*args, sizeof *args, index);
    if (shared != 0) encoder->setThreadgroupMemoryLength(shared, 0);
    encoder->dispatchThreadgroups(MTL::Size(groups, 1, 1), MTL::Size(threads, 1, 1));
    return commands;
  }
  void run(const char* kernel, const std::vector<Use>& uses, std::optional<FaultArgs> args, std::size_t threads,
           std::size_t groups = 1, std::optional<std::uint32_t> mode = {}, std::size_t shared = 0) {
    MTL::CommandBuffer* commands = encode(kernel, uses, args, threads, groups, mode, shared);
    commands->commit();
    commands->waitUntilCompleted();
    REQUIRE(commands->status() == MTL::CommandBufferStatusCompleted);
  }

  NS::AutoreleasePool* pool = nullptr;
  NS::SharedPtr<MTL::Device> device;
  NS::SharedPtr<MTL::CommandQueue> queue;
  NS::SharedPtr<MTL::Library> library;
};

float* values(const NS::SharedPtr<MTL::Buffer>& buffer) { return static_cast<float*>(buffer->contents()); }

std::vector<float> counting(std::size_t n) {
  std::vector<float> out(n);
  std::iota(out.begin(), out.end(), 1.0F);
  return out;
}

bool all_nan(const float* values, std::size_t n) {
  return std::all_of(values, values + n, [](float value) { return std::isnan(value); });
}

}  // namespace

TEST_CASE("soft device: a kernel's reads and writes stay inside of each bound range, in a buffer that is larger") {
  const With with;
  Bench bench;
  const auto x = bench.floats(counting(64));
  const auto out = bench.floats(std::vector<float>(64, 0.0F));
  const auto twice = [&](std::uint32_t n, std::int32_t read, std::int32_t write) {
    bench.run("twice", {reads(x.get(), 64, 64), writes(out.get(), 128, 64)}, FaultArgs{n, read, write}, 32);
  };
  twice(16, 0, 0);
  CHECK(values(out)[32] == 34.0F);
  CHECK(values(out)[47] == 64.0F);
  CHECK(values(out)[48] == 0.0F);
  expect(FaultKind::out_of_bounds, {"'twice'", "thread 16", "reads 4 bytes", "byte 64 of buffer 0 'x'", "64 bytes"},
         [&] {
           bench.run("twice", {reads(x.get(), 64, 64), writes(out.get(), 0, 128)}, FaultArgs{17, 0, 0}, 32);
         });
  expect(FaultKind::out_of_bounds, {"reads 4 bytes", "byte -4 of buffer 0 'x'"}, [&] { twice(16, -1, 0); });
  expect(FaultKind::out_of_bounds, {"writes 4 bytes", "byte 64 of buffer 1 'out'"}, [&] { twice(16, 0, 1); });
  expect(FaultKind::out_of_bounds, {"writes 4 bytes", "byte -4 of buffer 1 'out'"}, [&] { twice(16, 0, -1); });
  expect(FaultKind::out_of_bounds, {"nowhere near"},
         [&] { twice(16, std::numeric_limits<std::int32_t>::max() - 64, 0); });
  // Undeclared, the range ends with the buffer.
  bench.run("twice", {undeclared(x.get(), 64), undeclared(out.get())}, FaultArgs{48, 0, 0}, 64);
  expect(FaultKind::out_of_bounds, {"byte 192 of buffer 0 'x'", "192 bytes are bound"}, [&] {
    bench.run("twice", {undeclared(x.get(), 64), undeclared(out.get())}, FaultArgs{49, 0, 0}, 64);
  });
  CHECK(values(out)[0] == 34.0F);
}

TEST_CASE("soft device: a struct that is copied whole is inside too") {
  const With with;
  Bench bench;
  const auto x = bench.buffer(60), out = bench.buffer(60);
  bench.run("copy_blocks", {reads(x.get(), 0, 60), writes(out.get(), 0, 60)}, FaultArgs{10, 0, 0}, 32);
  expect(FaultKind::out_of_bounds, {"byte 60 of buffer 0"}, [&] {
    bench.run("copy_blocks", {reads(x.get(), 0, 60), writes(out.get(), 0, 60)}, FaultArgs{9, 2, 0}, 32);
  });
}

TEST_CASE("soft device: what is misaligned is said, not a crash") {
  const With with;
  Bench bench;
  const auto x = bench.floats(counting(64)), out = bench.floats(std::vector<float>(64));
  bench.run("twice4", {reads(x.get(), 16, 128), writes(out.get(), 0, 64)}, FaultArgs{16, 4, 0}, 4);
  CHECK(values(out)[0] == 18.0F);
  expect(FaultKind::misaligned, {"reads 16 bytes", "byte 4 of buffer 0 'x'", "multiple of 16"}, [&] {
    bench.run("twice4", {reads(x.get(), 0, 128), writes(out.get(), 0, 64)}, FaultArgs{16, 1, 0}, 4);
  });
  expect(FaultKind::misaligned, {"offset 4", "multiple of 16", "'out'"}, [&] {
    bench.run("twice4", {reads(x.get(), 0, 128), writes(out.get(), 4, 64)}, FaultArgs{16, 0, 0}, 4);
  });
  expect(FaultKind::misaligned, {"offset 2", "multiple of 4", "'x'"}, [&] {
    bench.run("twice", {reads(x.get(), 2, 128), writes(out.get(), 0, 64)}, FaultArgs{16, 0, 0}, 16);
  });
  bench.run("copy_blocks", {reads(x.get(), 2, 60), writes(out.get(), 4, 60)}, FaultArgs{10, 0, 0}, 32);
  expect(FaultKind::misaligned, {"offset 3", "multiple of 2"}, [&] {
    bench.run("copy_blocks", {reads(x.get(), 3, 60), writes(out.get(), 4, 60)}, FaultArgs{10, 0, 0}, 32);
  });
}

TEST_CASE("soft device: an operand that is written overlaps no other") {
  const With with;
  Bench bench;
  const auto x = bench.floats(counting(64));
  const auto twice = [&](std::size_t from, std::size_t to) {
    bench.run("twice", {reads(x.get(), from, 64), writes(x.get(), to, 64)}, FaultArgs{16, 0, 0}, 16);
  };
  twice(0, 64);
  CHECK(values(x)[16] == 2.0F);
  expect(FaultKind::alias, {"'out'", "'x'"}, [&] { twice(0, 0); });
  expect(FaultKind::alias, {"'out'", "'x'"}, [&] { twice(0, 60); });
  expect(FaultKind::alias, {"'out'", "'x'"}, [&] { twice(60, 0); });
  expect(FaultKind::alias, {}, [&] {
    bench.run("twice", {undeclared(x.get()), undeclared(x.get())}, FaultArgs{16, 0, 0}, 16);
  });
  // Two that are read may overlap; in place is one operand.
  const auto out = bench.buffer(64);
  bench.run("multiply_add", {reads(x.get(), 0, 64), reads(x.get(), 0, 64), writes(out.get(), 0, 64)}, {}, 16);
  bench.run("twice_in_place", {writes(x.get(), 0, 64)}, FaultArgs{16, 0, 0}, 16);
  CHECK(values(x)[0] == 2.0F);
}

TEST_CASE("soft device: neighbours in threadgroup memory need the right barrier") {
  const With with;
  Bench bench;
  const auto x = bench.floats(counting(128)), out = bench.buffer(512);
  const auto neighbour = [&](std::uint32_t mode, std::int32_t step, std::size_t threads = 64, std::size_t groups = 2) {
    bench.run("neighbour", {reads(x.get(), 0, 512), writes(out.get(), 0, 512)}, FaultArgs{0, step, 0}, threads, groups,
              mode, 256);
  };
  neighbour(1, 1);
  CHECK(values(out)[0] == 2.0F);
  CHECK(values(out)[63] == 1.0F);
  CHECK(values(out)[64] == 66.0F);
  neighbour(0, 0);  // each its own
  for (const std::uint32_t mode : {0U, 3U, 4U, 5U}) {
    CAPTURE(mode);  // none, one that orders no memory, one that orders device memory, simd_sum
    expect(FaultKind::race, {"'neighbour'", "threadgroup memory 0", "barrier of threadgroup memory"},
           [&] { neighbour(mode, 1); });
    expect(FaultKind::race, {"threadgroup memory 0"}, [&] { neighbour(mode, -1); });
  }
  // A simdgroup's barrier orders what its own lanes do.
  neighbour(2, 1, 32, 4);
  expect(FaultKind::race, {"threadgroup memory 0"}, [&] { neighbour(2, 1, 64, 2); });
}

TEST_CASE("soft device: races are found in each order of threads") {
  for (const char* order : {"threads=forward", "threads=reverse", "threads=shuffled", "simdgroups=reverse",
                            "simdgroups=shuffled,seed=7", "groups=reverse"}) {
    CAPTURE(order);
    const With with(order);
    Bench bench;
    const auto x = bench.floats(counting(128)), out = bench.buffer(512), between = bench.buffer(256);
    const auto run = [&](std::uint32_t mode) {
      bench.run("neighbour", {reads(x.get(), 0, 512), writes(out.get(), 0, 512)}, FaultArgs{0, 1, 0}, 64, 2, mode, 256);
    };
    run(1);
    CHECK(values(out)[127] == 65.0F);
    expect(FaultKind::race, {"byte"}, [&] { run(0); });
    const auto through_device = [&](std::uint32_t mode) {
      bench.run("neighbour_device", {reads(x.get(), 0, 256), writes(out.get(), 0, 256), writes(between.get(), 0, 256)},
                FaultArgs{0, 1, 0}, 64, 1, mode);
    };
    through_device(1);
    CHECK(values(out)[63] == 1.0F);
    expect(FaultKind::race, {"'between'", "barrier of device memory"}, [&] { through_device(0); });
    expect(FaultKind::race, {"'between'", "barrier of device memory"}, [&] { through_device(2); });
    expect(FaultKind::race, {"'between'", "barrier of device memory"}, [&] { through_device(4); });
  }
}

TEST_CASE("soft device: many may read, and one writes after a barrier of all that read") {
  const With with;
  Bench bench;
  const auto out = bench.buffer(256);
  for (const std::uint32_t mode : {1U, 2U}) {
    bench.run("read_then_write", {writes(out.get(), 0, 256)}, {}, 64, 1, mode, 16);
    CHECK(values(out)[40] == 1.0F);
  }
  expect(FaultKind::race, {"writes", "read", "of simdgroup"},
         [&] { bench.run("read_then_write", {writes(out.get(), 0, 256)}, {}, 64, 1, 0, 16); });
}

TEST_CASE("soft device: threadgroups of one dispatch do not meet in device memory") {
  for (const char* order : {"", "groups=reverse", "groups=shuffled"}) {
    const With with(order);
    Bench bench;
    const auto out = bench.floats(std::vector<float>(8));
    const auto meet = [&](std::uint32_t mode) {
      bench.run("groups_meet", {writes(out.get(), 0, 32)}, {}, 32, 7, mode);
    };
    meet(2);
    expect(FaultKind::race, {"byte 0 of buffer 0 'out'", "another threadgroup wrote"}, [&] { meet(0); });
    expect(FaultKind::race, {"another threadgroup"}, [&] { meet(1); });
    expect(FaultKind::race, {"another threadgroup"}, [&] { meet(3); });
    meet(2);
  }
}

TEST_CASE("soft device: narrow neighbours do not race, nor do a thread's own variables") {
  const With with;
  Bench bench;
  const auto x = bench.floats(counting(64)), halves = bench.buffer(128), bytes = bench.buffer(64);
  bench.run("narrow", {reads(x.get(), 0, 256), writes(halves.get(), 0, 128), writes(bytes.get(), 0, 64)}, {}, 64);
  CHECK(static_cast<std::uint16_t*>(halves->contents())[1] == 0x4000);
  CHECK(static_cast<std::uint8_t*>(bytes->contents())[63] == 63);
  const auto out = bench.buffer(256);
  bench.run("own_array", {reads(x.get(), 0, 64), writes(out.get(), 0, 256)}, FaultArgs{3, 0, 0}, 64);
  CHECK(values(out)[0] == 1.0F);
}

TEST_CASE("soft device: orders of threads, simdgroups and threadgroups") {
  const auto order = [](const char* text) {
    const With with((std::string("check=off,") + text).c_str());
    Bench bench;
    const auto out = bench.buffer(4 * 129);
    auto* numbers = static_cast<std::uint32_t*>(out->contents());
    numbers[0] = 0;
    bench.run("order", {writes(out.get(), 0, 4 * 129)}, {}, 64, 2);
    CHECK(numbers[0] == 128);
    return std::vector<std::uint32_t>(numbers + 1, numbers + 129);
  };
  std::vector<std::uint32_t> all(128);
  std::iota(all.begin(), all.end(), 0U);
  CHECK(order("") == all);
  CHECK(order("threads=reverse")[0] == 31);
  CHECK(order("simdgroups=reverse")[0] == 32);
  CHECK(order("groups=reverse")[0] == 64);
  auto reversed = all;
  std::reverse(reversed.begin(), reversed.end());
  CHECK(order("threads=reverse,simdgroups=reverse,groups=reverse") == reversed);
  for (const char* text :
       {"threads=shuffled", "simdgroups=shuffled,threads=shuffled", "groups=shuffled,threads=shuffled"}) {
    auto shuffled = order(text);
    CHECK(shuffled != all);
    CHECK(shuffled == order(text));  // the seed decides
    CHECK(shuffled != order((std::string(text) + ",seed=5").c_str()));
    std::sort(shuffled.begin(), shuffled.end());
    CHECK(shuffled == all);
  }
  // What nobody looks at is not found.
  const With with;
  Bench bench;
  const auto out = bench.floats(std::vector<float>(129, 0.0F));
  expect(FaultKind::race, {"'order'"}, [&] { bench.run("order", {writes(out.get(), 0, 4 * 129)}, {}, 64, 2); });
}

TEST_CASE("soft device: memory holds NaN until it is written") {
  const With with;
  Bench bench;
  for (const NS::UInteger mode : {MTL::ResourceStorageModeShared, MTL::ResourceStorageModePrivate}) {
    const auto x = NS::TransferPtr(bench.device->newBuffer(256, mode));
    const auto out = bench.floats(std::vector<float>(64, 0.0F));
    if (mode == MTL::ResourceStorageModeShared) CHECK(all_nan(values(x), 64));
    if (mode == MTL::ResourceStorageModePrivate) CHECK(x->contents() == nullptr);
    bench.run("twice", {reads(x.get(), 0, 256), writes(out.get(), 0, 256)}, FaultArgs{64, 0, 0}, 64);
    CHECK(all_nan(values(out), 64));
  }
  // Threadgroup memory: in each threadgroup anew, though the one before wrote to it.
  const auto out = bench.floats(std::vector<float>(12, 0.0F));
  bench.run("unwritten", {writes(out.get(), 0, 48)}, {}, 4, 3, {}, 16);
  CHECK(all_nan(values(out), 12));
}

TEST_CASE("soft device: results are there after the wait, not before") {
  const With with;
  Bench bench;
  const auto x = bench.floats(counting(64)), out = bench.floats(std::vector<float>(64, 7.0F));
  auto* first = bench.encode("twice", {reads(x.get(), 0, 256), writes(out.get(), 0, 256)}, FaultArgs{32, 0, 0}, 64);
  CHECK(values(out)[0] == 7.0F);
  first->commit();
  CHECK(first->status() == MTL::CommandBufferStatusCommitted);
  CHECK(all_nan(values(out), 64));
  // A second one in flight, whose range overlaps.
  auto* second = bench.encode("twice", {reads(out.get(), 0, 64), writes(out.get(), 64, 64)}, FaultArgs{4, 0, 0}, 64);
  second->commit();
  first->waitUntilCompleted();
  CHECK(values(out)[0] == 2.0F);
  CHECK(all_nan(values(out) + 16, 16));
  CHECK(values(out)[32] == 7.0F);  // not written: as it was
  second->waitUntilCompleted();
  CHECK(values(out)[16] == 4.0F);
  CHECK(values(out)[20] == 42.0F);
  CHECK(values(out)[63] == 7.0F);
  CHECK(second->GPUEndTime() >= second->GPUStartTime());
  CHECK(second->GPUStartTime() > 0);
  second->waitUntilCompleted();  // again: no harm
  CHECK(soft::counters().waits == 3);

  auto* third = bench.encode("twice", {reads(x.get(), 0, 256), writes(out.get(), 0, 256)}, FaultArgs{32, 0, 0}, 64);
  third->commit();
  values(out)[40] = 1.0F;
  expect(FaultKind::in_flight, {"host wrote"}, [&] { third->waitUntilCompleted(); });
  CHECK(third->status() == MTL::CommandBufferStatusError);
  CHECK(values(out)[63] == 7.0F);
}

TEST_CASE("soft device: what a committed command reads stays as it is") {
  const With with;
  Bench bench;
  const auto x = bench.floats(counting(64)), out = bench.buffer(256);
  auto* commands = bench.encode("twice", {reads(x.get(), 0, 256), writes(out.get(), 0, 256)}, FaultArgs{32, 0, 0}, 64);
  values(x)[1] = 5.0F;  // not committed yet
  commands->commit();
  values(x)[2] = 5.0F;
  expect(FaultKind::in_flight, {"'twice'", "'x'", "host"}, [&] { commands->waitUntilCompleted(); });
  auto* again = bench.encode("twice", {reads(x.get(), 0, 128), writes(out.get(), 0, 256)}, FaultArgs{32, 0, 0}, 64);
  again->commit();
  values(x)[32] = 5.0F;  // nobody reads it
  again->waitUntilCompleted();
  CHECK(values(out)[1] == 10.0F);
}

TEST_CASE("soft device: dispatches of a concurrent encoder need a barrier between them") {
  const With with;
  Bench bench;
  const auto x = bench.floats(counting(16)), middle = bench.buffer(64), out = bench.buffer(64);
  const auto two = [&](MTL::DispatchType type, bool barrier, MTL::Buffer* from, std::size_t offset) {
    MTL::CommandBuffer* commands = bench.queue->commandBuffer();
    MTL::ComputeCommandEncoder* encoder = commands->computeCommandEncoder(type);
    const FaultArgs args{4, 0, 0};
    encoder->setComputePipelineState(bench.pipeline("twice").get());
    encoder->setBytes(&args, sizeof args, 2);
    encoder->setBuffer(x.get(), 0, 0);
    encoder->declareRange(0, 16, false);
    encoder->setBuffer(middle.get(), 0, 1);
    encoder->declareRange(1, 16, true);
    encoder->dispatchThreadgroups(MTL::Size(1, 1, 1), MTL::Size(4, 1, 1));
    if (barrier) encoder->memoryBarrier(MTL::BarrierScopeBuffers);
    encoder->setBuffer(from, offset, 0);
    encoder->declareRange(0, 16, false);
    encoder->setBuffer(out.get(), 0, 1);
    encoder->declareRange(1, 16, true);
    struct End {
      MTL::ComputeCommandEncoder* encoder;
      ~End() { encoder->endEncoding(); }
    } end{encoder};
    encoder->dispatchThreadgroups(MTL::Size(1, 1, 1), MTL::Size(4, 1, 1));
    return commands;
  };
  const auto finish = [](MTL::CommandBuffer* commands) {
    commands->commit();
    commands->waitUntilCompleted();
  };
  finish(two(MTL::DispatchTypeSerial, false, middle.get(), 0));
  CHECK(values(out)[3] == 16.0F);
  finish(two(MTL::DispatchTypeConcurrent, true, middle.get(), 0));
  finish(two(MTL::DispatchTypeConcurrent, false, x.get(), 0));
  finish(two(MTL::DispatchTypeConcurrent, false, middle.get(), 16));
  expect(FaultKind::missing_barrier, {"buffer 0 'x'", "buffer 1 'out'"},
         [&] { two(MTL::DispatchTypeConcurrent, false, middle.get(), 0); });
}

TEST_CASE("soft device: what is bound is what the kernel takes") {
  const With with;
  Bench bench;
  const auto x = bench.floats(counting(16)), out = bench.buffer(64);
  const FaultArgs args{16, 0, 0};
  // Each step of the binding left out, or changed.
  const auto bind = [&](const std::function<void(MTL::ComputeCommandEncoder&)>& change) {
    MTL::CommandBuffer* commands = bench.queue->commandBuffer();
    MTL::ComputeCommandEncoder* encoder = commands->computeCommandEncoder();
    struct End {
      MTL::ComputeCommandEncoder* encoder;
      ~End() { encoder->endEncoding(); }
    } end{encoder};
    encoder->setComputePipelineState(bench.pipeline("twice").get());
    encoder->setBuffer(x.get(), 0, 0);
    encoder->setBuffer(out.get(), 0, 1);
    encoder->setBytes(&args, sizeof args, 2);
    change(*encoder);
    encoder->dispatchThreadgroups(MTL::Size(1, 1, 1), MTL::Size(16, 1, 1));
    return commands;
  };
  using Encoder = MTL::ComputeCommandEncoder;
  auto* right = bind([](Encoder&) {});
  right->commit();
  right->waitUntilCompleted();
  CHECK(values(out)[15] == 32.0F);

  expect(FaultKind::unbound, {"buffer 1 'out'"}, [&] { bind([](Encoder& e) { e.setBuffer(nullptr, 0, 1); }); });
  for (const std::size_t bytes : {4U, 8U, 16U}) {
    expect(FaultKind::bytes_size, {"buffer 2 'args'", std::to_string(bytes), "12"}, [&] {
      const std::uint32_t wrong[4] = {16, 0, 0, 0};
      bind([&](Encoder& e) { e.setBytes(wrong, bytes, 2); });
    });
  }
  std::vector<std::byte> many(4097);
  expect(FaultKind::limit, {"4097"}, [&] { bind([&](Encoder& e) { e.setBytes(many.data(), 4097, 2); }); });
  expect(FaultKind::limit, {"0 bytes"}, [&] { bind([&](Encoder& e) { e.setBytes(many.data(), 0, 2); }); });
  auto* elements = bind([&](Encoder& e) { e.setBytes(many.data(), 4096, 0); });  // constant data for a pointer
  elements->commit();
  elements->waitUntilCompleted();
  CHECK(values(out)[15] == 0.0F);
  expect(FaultKind::bytes_size, {"buffer 0 'x'", "6 bytes"},
         [&] { bind([&](Encoder& e) { e.setBytes(many.data(), 6, 0); }); });
  expect(FaultKind::write_to_read, {"buffer 1 'out'"},
         [&] { bind([&](Encoder& e) { e.setBytes(many.data(), 64, 1); }); });
  expect(FaultKind::direction, {"buffer 1 'out'", "read"},
         [&] { bind([](Encoder& e) { e.declareRange(1, 64, false); }); });
  expect(FaultKind::direction, {"buffer 0 'x'", "written"},
         [&] { bind([](Encoder& e) { e.declareRange(0, 64, true); }); });
  expect(FaultKind::out_of_bounds, {"65 bytes", "64"}, [&] { bind([](Encoder& e) { e.declareRange(0, 65, false); }); });
  expect(FaultKind::out_of_bounds, {"offset 64"}, [&] { bind([&](Encoder& e) { e.setBuffer(x.get(), 64, 0); }); });
  expect(FaultKind::limit, {"index 31"}, [&] { bind([&](Encoder& e) { e.setBuffer(x.get(), 0, 31); }); });
  expect(FaultKind::limit, {"multiple of 16"}, [&] { bind([](Encoder& e) { e.setThreadgroupMemoryLength(24, 0); }); });
  // A struct may be in a buffer too, if all of it is.
  const auto in_buffer = NS::TransferPtr(bench.device->newBuffer(&args, sizeof args, 0));
  bind([&](Encoder& e) { e.setBuffer(in_buffer.get(), 0, 2); });
  expect(FaultKind::out_of_bounds, {"buffer 2 'args'", "8 bytes"},
         [&] { bind([&](Encoder& e) { e.setBuffer(in_buffer.get(), 4, 2); }); });

  expect(FaultKind::unbound, {"threadgroup memory 0"}, [&] { bench.run("unwritten", {undeclared(out.get())}, {}, 4); });
  expect(FaultKind::limit, {"32784"}, [&] { bench.run("unwritten", {undeclared(out.get())}, {}, 4, 1, {}, 32784); });
  bench.run("unwritten", {undeclared(out.get())}, {}, 4, 1, {}, 32768);
  expect(FaultKind::limit, {"1025"}, [&] {
    bench.run("twice", {undeclared(x.get()), undeclared(out.get())}, args, 1025);
  });
  expect(FaultKind::limit, {"grid of 0"}, [&] {
    bench.run("twice", {undeclared(x.get()), undeclared(out.get())}, args, 4, 0);
  });
  soft::set_options(soft::parse_options("max_threads=256"));
  expect(FaultKind::limit, {"at most 256"}, [&] {
    bench.run("twice", {undeclared(x.get()), undeclared(out.get())}, args, 257);
  });
  CHECK(bench.pipeline("twice")->maxTotalThreadsPerThreadgroup() == 256);
}

TEST_CASE("soft device: all threads reach a barrier or none") {
  const With with;
  Bench bench;
  const auto out = bench.buffer(256);
  bench.run("barrier_for_some", {writes(out.get(), 0, 256)}, {}, 64, 1, 1);
  expect(FaultKind::divergence, {"barrier_for_some"},
         [&] { bench.run("barrier_for_some", {writes(out.get(), 0, 256)}, {}, 64, 1, 0); });
}

TEST_CASE("soft device: function constants are set before they are read") {
  const With with;
  Bench bench;
  const auto out = bench.buffer(64);
  bench.run("reads_never", {writes(out.get(), 0, 64)}, {}, 16, 1, 0);  // it is not read
  expect(FaultKind::constant, {"'kNever'", "7", "not set"},
         [&] { bench.run("reads_never", {writes(out.get(), 0, 64)}, {}, 16, 1, 1); });
  const auto constants = NS::TransferPtr(MTL::FunctionConstantValues::alloc()->init());
  const std::uint32_t mode = 1, never = 9;
  constants->setConstantValue(&mode, MTL::DataTypeUInt, NS::UInteger{0});
  constants->setConstantValue(&never, MTL::DataTypeUInt, NS::UInteger{7});
  expect(FaultKind::constant, {"type"},
         [&] { constants->setConstantValue(&never, MTL::DataTypeBool, NS::UInteger{7}); });
  const auto wrong = NS::TransferPtr(MTL::FunctionConstantValues::alloc()->init());
  wrong->setConstantValue(&never, MTL::DataTypeUInt, NS::UInteger{5});
  expect(FaultKind::constant, {"no function constant 5"},
         [&] { bench.library->newFunction(string("reads_never"), wrong.get(), nullptr); });
  NS::Error* error = nullptr;
  CHECK(bench.library->newFunction(string("nothing"), constants.get(), &error) == nullptr);
  REQUIRE(error != nullptr);
  CHECK(std::string(error->localizedDescription()->utf8String()).find("nothing") != std::string::npos);

  // Two pipelines of one kernel: each has its own.
  const auto function = NS::TransferPtr(bench.library->newFunction(string("reads_never"), constants.get(), &error));
  const auto pipeline = NS::TransferPtr(bench.device->newComputePipelineState(function.get(), &error));
  MTL::CommandBuffer* commands = bench.queue->commandBuffer();
  MTL::ComputeCommandEncoder* encoder = commands->computeCommandEncoder();
  encoder->setBuffer(out.get(), 0, 0);
  for (const auto& state : {pipeline, bench.pipeline("reads_never", 0)}) {
    encoder->setComputePipelineState(state.get());
    encoder->dispatchThreadgroups(MTL::Size(1, 1, 1), MTL::Size(16, 1, 1));
  }
  encoder->endEncoding();
  commands->commit();
  commands->waitUntilCompleted();
  CHECK(values(out)[15] == 9.0F);
}

TEST_CASE("soft device: contraction and denormals, as a GPU has them") {
  const float third = 1.0F / 3.0F;
  const auto multiply_add = [&](const char* text, float a, float b) {
    const With with(text);
    Bench bench;
    const auto x = bench.floats({a}), y = bench.floats({b}), out = bench.buffer(4);
    bench.run("multiply_add", {reads(x.get(), 0, 4), reads(y.get(), 0, 4), writes(out.get(), 0, 4)}, {}, 1);
    return values(out)[0];
  };
  CHECK(multiply_add("contract=off", third, 3.0F) == 0.0F);
  CHECK(multiply_add("contract=on", third, 3.0F) == std::fma(third, 3.0F, -1.0F));
  CHECK(std::fma(third, 3.0F, -1.0F) != 0.0F);

  const float tiny = std::numeric_limits<float>::denorm_min();
  const auto twice = [&](const char* text, float value) {
    const With with(text);
    Bench bench;
    const auto x = bench.floats({value}), out = bench.buffer(4);
    bench.run("twice", {reads(x.get(), 0, 4), writes(out.get(), 0, 4)}, FaultArgs{1, 0, 0}, 1);
    return values(out)[0];
  };
  CHECK(twice("ftz=off", tiny) == 2.0F * tiny);
  CHECK(twice("ftz=on", tiny) == 0.0F);
  CHECK(twice("", tiny) == 0.0F);
  CHECK(twice("ftz=on", 1e-37F) == 2e-37F);
  volatile float here = tiny;
  CHECK(here * 2.0F != 0.0F);  // the host's own mode is left alone
}

TEST_CASE("soft device: no-copy memory is whole pages that are mapped, and may be written where it is") {
  Bench bench;
  const std::size_t page = 16384;
  auto* memory =
      static_cast<std::byte*>(mmap(nullptr, 5 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  REQUIRE(memory != MAP_FAILED);
  std::byte* aligned = memory + (page - reinterpret_cast<std::uintptr_t>(memory) % page) % page;
  const auto wrap = [&](std::byte* begin, std::size_t bytes) {
    return NS::TransferPtr(bench.device->newBuffer(begin, bytes, MTL::ResourceStorageModeShared, nullptr));
  };
  {
    const With with("page=16k");
    CHECK(wrap(aligned, 2 * page)->contents() == aligned);
    expect(FaultKind::page, {"16384", "4096"}, [&] { wrap(aligned + 4096, page); });
    expect(FaultKind::page, {"16384", "4096"}, [&] { wrap(aligned, page + 4096); });
    expect(FaultKind::page, {"not mapped"}, [&] { wrap(aligned, 1 << 30); });
  }
  const With with;  // as Linux has them
  CHECK(wrap(aligned + 4096, 4096));
  expect(FaultKind::page, {"4096"}, [&] { wrap(aligned + 4096, 2048); });

  std::memset(aligned, 0, page);
  const auto x = wrap(aligned, page), out = wrap(aligned + page, page);
  bench.run("twice", {reads(x.get(), 0, 64), writes(out.get(), 0, 64)}, FaultArgs{16, 0, 0}, 16);
  CHECK(values(out)[0] == 0.0F);
  REQUIRE(mprotect(aligned + page, page, PROT_READ) == 0);
  expect(FaultKind::page, {"'out'", "read-only"}, [&] {
    bench.run("twice", {reads(x.get(), 0, 64), writes(out.get(), 0, 64)}, FaultArgs{16, 0, 0}, 16);
  });
  auto* commands = bench.encode("twice", {reads(out.get(), 0, 64), writes(x.get(), 0, 64)}, FaultArgs{16, 0, 0}, 16);
  REQUIRE(munmap(aligned + page, page) == 0);
  commands->commit();
  expect(FaultKind::page, {"'x'", "not mapped any more"}, [&] { commands->waitUntilCompleted(); });
  munmap(memory, static_cast<std::size_t>(aligned - memory) + page);
  munmap(aligned + 2 * page, static_cast<std::size_t>(memory + 5 * page - (aligned + 2 * page)));
}

TEST_CASE("soft device: limits of memory") {
  const With with("max_buffer=64k,memory=128k");
  Bench bench;
  CHECK(bench.device->maxBufferLength() == 65536);
  CHECK(bench.device->recommendedMaxWorkingSetSize() == 131072);
  CHECK(bench.device->newBuffer(65537, 0) == nullptr);
  const auto x = bench.buffer(65536);
  CHECK(bench.device->currentAllocatedSize() == 65536);
  expect(FaultKind::limit, {"0 bytes"}, [&] { bench.device->newBuffer(0, 0); });
  expect(FaultKind::misuse, {"untracked"},
         [&] { bench.device->newBuffer(16, MTL::ResourceHazardTrackingModeUntracked); });
  {
    // More than the GPU can have in use: memory is given, commands fail.
    const auto y = bench.buffer(65536), z = bench.buffer(1);
    CHECK(bench.device->currentAllocatedSize() == 131072 + 16384);
    auto* commands = bench.encode("twice_in_place", {writes(x.get(), 0, 64)}, FaultArgs{16, 0, 0}, 16);
    commands->commit();
    commands->waitUntilCompleted();
    CHECK(commands->status() == MTL::CommandBufferStatusError);
    CHECK(commands->error()->code() == MTL::CommandBufferErrorOutOfMemory);
  }
  CHECK(bench.device->currentAllocatedSize() == 65536);
  bench.queue = NS::TransferPtr(bench.device->newCommandQueue());
  bench.run("twice_in_place", {writes(x.get(), 0, 64)}, FaultArgs{16, 0, 0}, 16);

  const auto y = bench.buffer(60);
  static_cast<std::byte*>(y->contents())[60] = std::byte{1};
  expect(FaultKind::overrun, {"60 bytes"}, [&] {
    bench.run("twice_in_place", {writes(y.get(), 0, 60)}, FaultArgs{15, 0, 0}, 16);
  });
}

TEST_CASE("soft device: offsets beyond 32 bits are the ones that were meant") {
  const With with("max_buffer=8g");
  Bench bench;
  // Nothing of it but two pages is ever touched.
  const std::size_t bytes = (std::size_t{5} << 30);
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REQUIRE(memory != MAP_FAILED);
  {
    const auto x = NS::TransferPtr(bench.device->newBuffer(memory, bytes, MTL::ResourceStorageModeShared, nullptr));
    const auto out = bench.floats(std::vector<float>(16, 0.0F));
    static_cast<float*>(memory)[bytes / 4 - 16] = 3.0F;
    bench.run("twice", {reads(x.get(), bytes - 64, 64), writes(out.get(), 0, 64)}, FaultArgs{16, 0, 0}, 16);
    CHECK(values(out)[0] == 6.0F);
    // A kernel that loses the upper half of an offset is 4 GiB off.
    expect(FaultKind::out_of_bounds, {"'x'", "-4294967296"}, [&] {
      bench.run("twice", {reads(x.get(), bytes - 64, 64), writes(out.get(), 0, 64)}, FaultArgs{16, -(1 << 30), 0}, 16);
    });
    expect(FaultKind::out_of_bounds, {"declareRange"}, [&] {
      bench.run("twice", {reads(x.get(), bytes - 64, 68), writes(out.get(), 0, 64)}, FaultArgs{16, 0, 0}, 16);
    });
  }
  munmap(memory, bytes);
}

TEST_CASE("soft device: threads of the host may each have their own command buffers") {
  const With with;
  Bench bench;
  std::vector<std::thread> threads;
  std::vector<float> sums(4);
  for (std::size_t t = 0; t < sums.size(); ++t) {
    threads.emplace_back([&, t] {
      auto* pool = NS::AutoreleasePool::alloc()->init();
      {
        const auto x = bench.floats(counting(64)), out = bench.buffer(256);
        for (int again = 0; again < 20; ++again) {
          auto* commands =
              bench.encode("twice", {reads(x.get(), 0, 256), writes(out.get(), 0, 256)}, FaultArgs{64, 0, 0}, 64);
          commands->commit();
          commands->waitUntilCompleted();
          sums[t] += values(out)[63];
        }
      }
      pool->release();
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(sums == std::vector<float>(4, 20 * 128.0F));
  CHECK(soft::take_late_faults().empty());
}

TEST_CASE("soft device: a command buffer that fails") {
  struct Case {
    const char* name;
    const char* text;
    MTL::CommandBufferError code;
  };
  for (const Case& each : {Case{"timeout", "Timeout", MTL::CommandBufferErrorTimeout},
                           Case{"interactivity", "Impacting Interactivity", MTL::CommandBufferErrorInternal},
                           Case{"out_of_memory", "Insufficient Memory", MTL::CommandBufferErrorOutOfMemory},
                           Case{"submissions_ignored", "SubmissionsIgnored", MTL::CommandBufferErrorAccessRevoked}}) {
    CAPTURE(each.name);
    const With with((std::string("fail=") + each.name + "@2").c_str());
    Bench bench;
    const auto x = bench.floats(counting(16)), out = bench.floats(std::vector<float>(16, 0.0F));
    const auto commit = [&] {
      auto* commands =
          bench.encode("twice", {reads(x.get(), 0, 64), writes(out.get(), 0, 64)}, FaultArgs{16, 0, 0}, 16);
      commands->commit();
      return commands;
    };
    auto* first = commit();
    auto* second = commit();
    auto* third = commit();
    third->waitUntilCompleted();
    CHECK(first->status() == MTL::CommandBufferStatusCompleted);
    CHECK(first->error() == nullptr);
    CHECK(second->status() == MTL::CommandBufferStatusError);
    REQUIRE(second->error() != nullptr);
    CHECK(second->error()->code() == static_cast<NS::Integer>(each.code));
    CHECK(std::string(second->error()->localizedDescription()->utf8String()).find(each.text) != std::string::npos);
    CHECK(third->status() == MTL::CommandBufferStatusError);  // it was on the GPU too
    const auto is_ignored = [&] {
      auto* commands = commit();
      commands->waitUntilCompleted();
      return commands->error() != nullptr && commands->error()->code() == MTL::CommandBufferErrorAccessRevoked;
    };
    CHECK(is_ignored());  // as is all that is committed to its queue
    bench.queue = NS::TransferPtr(bench.device->newCommandQueue());
    CHECK(is_ignored() == (std::string(each.name) == "submissions_ignored"));
    CHECK(values(out)[0] == 2.0F);
  }
}

TEST_CASE("soft device: objects are counted, and what is left over is known by name") {
  const With with;
  CHECK(soft::describe_live_objects() == "");
  {
    Bench bench;
    const auto x = bench.floats(counting(16));
    bench.run("twice_in_place", {writes(x.get(), 0, 64)}, FaultArgs{16, 0, 0}, 16);
    CHECK(soft::live_objects("Buffer") == 1);
    CHECK(soft::live_objects("CommandQueue") == 1);
    CHECK(soft::live_objects() > 5);
    MTL::Buffer* leaked = bench.device->newBuffer(16, 0);
    CHECK(soft::describe_live_objects().find("2 Buffer") != std::string::npos);
    leaked->retain();
    CHECK(leaked->retainCount() == 2);
    leaked->release();
    leaked->release();
    CHECK(soft::live_objects("Buffer") == 1);
    CHECK(soft::take_late_faults().empty());
    leaked->release();
    expect(FaultKind::released, {"Buffer"}, [] { soft::throw_late_faults(); });
    expect(FaultKind::released, {"contents", "Buffer"}, [&] { leaked->contents(); });
    expect(FaultKind::released, {"retain", "Buffer"}, [&] { leaked->retain(); });
    // A committed buffer that nobody waits for stays.
    bench.encode("twice_in_place", {writes(x.get(), 0, 64)}, FaultArgs{16, 0, 0}, 16);
    CHECK(soft::live_objects("CommandBuffer") == 2);
  }
  CHECK(soft::describe_live_objects() == "");
}

TEST_CASE("soft device: temporary objects need a pool, of the same thread") {
  const With with;
  const auto device = NS::TransferPtr(MTL::CreateSystemDefaultDevice());
  const auto queue = NS::TransferPtr(device->newCommandQueue());
  expect(FaultKind::no_pool, {"CommandBuffer"}, [&] { queue->commandBuffer(); });
  expect(FaultKind::no_pool, {"String"}, [] { string("text"); });
  auto* outer = NS::AutoreleasePool::alloc()->init();
  {
    auto* inner = NS::AutoreleasePool::alloc()->init();
    const auto kept = NS::RetainPtr(queue->commandBuffer());
    MTL::CommandBuffer* gone = queue->commandBuffer();
    inner->release();
    CHECK(kept->status() == MTL::CommandBufferStatusNotEnqueued);
    expect(FaultKind::released, {"commit", "CommandBuffer"}, [&] { gone->commit(); });
    kept->commit();
    kept->waitUntilCompleted();
  }
  NS::AutoreleasePool::alloc()->init();  // forgotten: the outer one takes it along
  string("text");
  outer->release();
  CHECK(soft::live_objects("AutoreleasePool") == 0);
  CHECK(soft::take_late_faults().empty());
}

TEST_CASE("soft device: encoders and command buffers in the wrong order") {
  const With with;
  Bench bench;
  MTL::CommandBuffer* commands = bench.queue->commandBuffer();
  expect(FaultKind::misuse, {"before commit"}, [&] { commands->waitUntilCompleted(); });
  MTL::ComputeCommandEncoder* encoder = commands->computeCommandEncoder();
  expect(FaultKind::misuse, {"another encoder"}, [&] { commands->computeCommandEncoder(); });
  expect(FaultKind::misuse, {"endEncoding is missing"}, [&] { commands->commit(); });
  expect(FaultKind::unbound, {"pipeline state"},
         [&] { encoder->dispatchThreadgroups(MTL::Size(1, 1, 1), MTL::Size(1, 1, 1)); });
  encoder->endEncoding();
  expect(FaultKind::misuse, {"endEncoding twice"}, [&] { encoder->endEncoding(); });
  expect(FaultKind::misuse, {"after endEncoding"}, [&] { encoder->setBuffer(nullptr, 0, 0); });
  commands->commit();
  expect(FaultKind::misuse, {"commit twice"}, [&] { commands->commit(); });
  expect(FaultKind::misuse, {"after commit"}, [&] { commands->computeCommandEncoder(); });
  int called = 0;
  MTL::CommandBuffer* handled = bench.queue->commandBuffer();
  handled->addCompletedHandler([&](MTL::CommandBuffer* done) { called += done == handled ? 1 : 0; });
  handled->commit();
  handled->waitUntilCompleted();
  CHECK(called == 1);
  MTL::CommandBuffer* throws = bench.queue->commandBuffer();
  throws->addCompletedHandler([](MTL::CommandBuffer*) { throw std::runtime_error("x"); });
  throws->commit();
  expect(FaultKind::misuse, {"completion handler"}, [&] { throws->waitUntilCompleted(); });

  auto* pool = NS::AutoreleasePool::alloc()->init();
  bench.queue->commandBuffer()->computeCommandEncoder();
  pool->release();
  expect(FaultKind::misuse, {"released without endEncoding"}, [&] { bench.queue->commandBuffer(); });
}

TEST_CASE("soft device: a forked child must not touch it") {
  const With with;
  Bench bench;
  const auto x = bench.floats(counting(16));
  const auto in_child = [](const std::function<void()>& action) {
    const pid_t child = fork();
    if (child == 0) {
      const auto fault = fault_of(action);
      _exit(fault && fault->kind == FaultKind::forked ? 0 : 1);
    }
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
  };
  CHECK(in_child([&] { bench.device->newBuffer(16, 0); }));
  CHECK(in_child([&] { bench.queue->commandBuffer(); }));
  CHECK(in_child([&] { bench.device->newCommandQueue(); }));
  CHECK(in_child([&] { bench.library->newFunction(string("twice")); }));
  CHECK(in_child([] { MTL::CreateSystemDefaultDevice(); }));
  CHECK_FALSE(in_child([&] { x->contents(); }));  // plain memory
  bench.run("twice_in_place", {writes(x.get(), 0, 64)}, FaultArgs{16, 0, 0}, 16);
}

TEST_CASE("soft device: what it says of itself, and methods that an older macOS lacks") {
  {
    const With with("family=apple9,os=26");
    Bench bench;
    CHECK(bench.device->supportsFamily(MTL::GPUFamilyApple9));
    CHECK_FALSE(bench.device->supportsFamily(MTL::GPUFamilyApple10));
    CHECK(bench.device->supportsFamily(MTL::GPUFamilyMetal4));
    CHECK(bench.device->hasUnifiedMemory());
    const auto set = NS::TransferPtr(
        bench.device->newResidencySet(NS::TransferPtr(MTL::ResidencySetDescriptor::alloc()->init()).get(), nullptr));
    const auto x = bench.buffer(16);
    set->addAllocation(x.get());
    CHECK(set->allocationCount() == 1);
    CHECK(set->allocatedSize() == 16384);
    bench.queue->addResidencySet(set.get());
    set->removeAllocation(x.get());
    CHECK_FALSE(set->containsAllocation(x.get()));
  }
  const With with("family=5,os=14,unified=off,width=16");
  Bench bench;
  CHECK_FALSE(bench.device->supportsFamily(MTL::GPUFamilyApple7));
  CHECK_FALSE(bench.device->supportsFamily(MTL::GPUFamilyMetal3));
  CHECK_FALSE(bench.device->hasUnifiedMemory());
  CHECK(bench.pipeline("twice")->threadExecutionWidth() == 16);
  CHECK(NS::ProcessInfo::processInfo()->isOperatingSystemAtLeastVersion({14, 0, 0}));
  CHECK_FALSE(NS::ProcessInfo::processInfo()->isOperatingSystemAtLeastVersion({15, 0, 0}));
  const auto options = NS::TransferPtr(MTL::CompileOptions::alloc()->init());
  expect(FaultKind::too_new, {"setMathMode", "macOS 15"}, [&] { options->setMathMode(MTL::MathModeSafe); });
  expect(FaultKind::too_new, {"macOS 15"}, [] { MTL::ResidencySetDescriptor::alloc(); });
  const std::string text(llama2cpp::metal::metal_source("faults"));
  expect(FaultKind::misuse, {"fast math"},
         [&] { bench.device->newLibrary(string(text.c_str()), options.get(), nullptr); });
  options->setFastMathEnabled(false);
  NS::Error* error = nullptr;
  CHECK(bench.device->newLibrary(string((text + " ").c_str()), options.get(), &error) == nullptr);
  REQUIRE(error != nullptr);
  CHECK(std::string(error->localizedDescription()->utf8String()).find("not compiled with this text") !=
        std::string::npos);
}

TEST_CASE("soft device: knobs are read, and what is not one is refused by name") {
  const With with;
  const soft::Options options = soft::parse_options(
      "threads=reverse,simdgroups=shuffled,groups=shuffled,seed=3,contract=on,ftz=off,check=off,hide=off,exit=on,"
      "unified=off,default=off,"
      "family=apple9,os=13,max_buffer=1g,memory=2m,page=16k,width=64,max_threads=512,fail=timeout@5");
  CHECK(options.orders.threads == soft::Order::reverse);
  CHECK(options.orders.simdgroups == soft::Order::shuffled);
  CHECK(options.orders.groups == soft::Order::shuffled);
  CHECK(options.orders.seed == 3);
  CHECK(options.contract);
  CHECK_FALSE(options.ftz);
  CHECK_FALSE(options.check);
  CHECK_FALSE(options.hide);
  CHECK(options.exit);
  CHECK_FALSE(options.unified);
  CHECK_FALSE(options.named);
  CHECK(options.family == 9);
  CHECK(options.os == 13);
  CHECK(options.max_buffer == std::size_t{1} << 30);
  CHECK(options.memory == std::size_t{2} << 20);
  CHECK(options.page == 16384);
  CHECK(options.width == 64);
  CHECK(options.max_threads == 512);
  CHECK(options.fail == soft::Failure::timeout);
  CHECK(options.fail_at == 5);
  CHECK(soft::parse_options("").orders.threads == soft::Order::forward);
  CHECK_THROWS_WITH_AS(soft::parse_options("thread=reverse"), doctest::Contains("thread=reverse"),
                       std::invalid_argument);
  for (const char* wrong : {"threads=up", "seed=x", "seed=", "contract=1", "family=apple0", "max_buffer=1q", "page=3",
                            "fail=never", "fail=timeout@", "memory=99999999999999999999g", "threads"}) {
    CAPTURE(wrong);
    CHECK_THROWS_AS(soft::parse_options(wrong), std::invalid_argument);
  }
}

TEST_CASE("soft device: counters") {
  const With with;
  Bench bench;
  const auto x = bench.floats(counting(16)), out = bench.buffer(64);
  soft::reset_counters();
  bench.run("twice", {reads(x.get(), 0, 64), writes(out.get(), 0, 32)}, FaultArgs{8, 0, 0}, 16, 2);
  const soft::Counters counters = soft::counters();
  CHECK(counters.commits == 1);
  CHECK(counters.waits == 1);
  CHECK(counters.encoders == 1);
  CHECK(counters.dispatches == 1);
  CHECK(counters.threadgroups == 2);
  CHECK(counters.threads == 32);
  CHECK(counters.bytes_read == 64 + sizeof(FaultArgs));
  CHECK(counters.bytes_written == 32);
  CHECK(counters.accesses >= 16);  // 8 reads, 8 writes, and what the arguments take
  CHECK(counters.pipelines == 1);
  CHECK(counters.buffers == 0);
}
