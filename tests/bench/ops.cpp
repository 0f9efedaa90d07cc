// Each op of a pass beside what limits it, on the shape of a 1.1B model, and what a fork-join region costs.
//
//   bench_ops [--threads N] [--tokens N] [--depth N] [--rounds N] [FORMAT ...]
//
// The limit of what touches memory once (a matmul with one token, attention of one token, the small ops) is how fast the
// same threads read as many bytes, from wherever these bytes lie after a round. The limit of what multiplies (a matmul with
// many tokens, attention of many) is the matmul kernel on one block that never leaves the first-level cache. Rounds take
// turns over all of them; told is the median.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/isa/select.h"
#include "backend/cpu/panels.h"
#include "core/check.h"
#include "core/read_bandwidth.h"
#include "core/thread_pool.h"
#include "format/format.h"

namespace {

using llama2cpp::Tensor;
using llama2cpp::Weight;

constexpr std::int64_t kDim = 2048;
constexpr std::int64_t kHidden = 5632;
constexpr std::int64_t kHeads = 32;
constexpr std::int64_t kKvHeads = 4;
constexpr std::int64_t kHeadDim = 64;
constexpr std::int64_t kContext = 2048;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Seconds of one call, of as many as take ten milliseconds.
double seconds_of(const std::function<void()>& call) {
  call();
  const double begin = now();
  std::int64_t calls = 0;
  double took = 0.0;
  while (took < 0.01) {
    call();
    ++calls;
    took = now() - begin;
  }
  return took / static_cast<double>(calls);
}

// Every byte random, but small enough that scales are neither infinite nor NaN.
Weight random_weight(const std::string& format, std::int64_t rows, std::int64_t cols) {
  Weight w;
  w.name = format;
  w.format = &llama2cpp::find_format(format);
  w.rows = rows;
  w.cols = cols;
  w.group = w.format->group;
  LLAMA2CPP_CHECK(w.group > 0, format, " is no format of one plane");
  llama2cpp::Plane& plane = w.planes[0];
  plane.row_bytes = cols / w.group * w.format->group_bytes;
  plane.bytes = static_cast<std::size_t>(rows * plane.row_bytes);
  plane.owner = llama2cpp::Buffer::heap(plane.bytes);
  plane.data = plane.owner.data();
  std::uint32_t state = 1;
  for (std::size_t i = 0; i < plane.bytes; ++i) {
    state = state * 1664525U + 1013904223U;
    plane.owner.data()[i] = static_cast<std::byte>(state >> 24 & 0x3FU);
  }
  return w;
}

struct Op {
  std::string name;
  double work;  // bytes, or multiply-adds
  const char* unit;
  std::function<double()> limit;  // of work a second
  std::function<void()> run;
  std::vector<double> speeds;
  std::vector<double> limits;
};

// Multiply-adds a second of float kernels on one block of 256 columns, on each thread.
double float_peak(const llama2cpp::KernelTable& kernels, int threads) {
  const std::vector<float> panels(2 * 256 * 16, 0.5F);
  const std::vector<float> x(static_cast<std::size_t>(256 * kernels.tile), 0.5F);
  llama2cpp::ThreadPool pool(threads);
  const double seconds = seconds_of([&] {
    pool.run([&](int, int) {
      std::vector<float> out(static_cast<std::size_t>(kernels.tile * 32));
      for (int i = 0; i < 1000; ++i) {
        kernels.matmul_f32({.panels = panels.data(),
                            .panel_stride = 256 * 16,
                            .n_panels = 2,
                            .n_k = 256,
                            .x = x.data(),
                            .n_tokens = kernels.tile,
                            .out = out.data(),
                            .out_stride = 32,
                            .last_rows = 16,
                            .first = true});
      }
    });
  });
  return static_cast<double>(threads * 1000 * 32 * 256 * kernels.tile) / seconds;
}

// The same of block formats' integers.
double integer_peak(const llama2cpp::KernelTable& kernels, const llama2cpp::BlockLayout& layout, int threads) {
  const std::vector<std::uint8_t> open(2 * llama2cpp::kUnpackedBytes, 0);
  const auto tile = static_cast<std::size_t>(kernels.tile);
  const std::vector<std::int8_t> x(256 * tile, 1);
  const std::vector<float> scales(16 * tile, 0.5F);
  const std::vector<std::int32_t> starts(16 * tile, 0);
  llama2cpp::ThreadPool pool(threads);
  const double seconds = seconds_of([&] {
    pool.run([&](int, int) {
      std::vector<float> out(32 * tile);
      for (int i = 0; i < 1000; ++i) {
        kernels.matmul_open({.layout = layout,
                             .panels = open.data(),
                             .panel_stride = llama2cpp::kUnpackedBytes,
                             .n_panels = 2,
                             .blocks = 8,
                             .input = {x.data(), scales.data(), starts.data(), scales.data()},
                             .n_tokens = kernels.tile,
                             .out = out.data(),
                             .out_stride = 32,
                             .last_rows = 16,
                             .first = true});
      }
    });
  });
  return static_cast<double>(threads * 1000 * 32 * 256 * kernels.tile) / seconds;
}

void print_pool(int threads) {
  llama2cpp::ThreadPool pool(threads);
  pool.run([](int, int) {});
  std::vector<double> nanoseconds;
  for (int round = 0; round < 101; ++round) {
    const double begin = now();
    for (int i = 0; i < 1000; ++i) pool.run([](int, int) {});
    nanoseconds.push_back((now() - begin) * 1e6);
  }
  std::printf("an empty region on %d thread%s: %.0f ns\n", threads, threads == 1 ? "" : "s", median(nanoseconds));
}

}  // namespace

int main(int argc, char** argv) try {
  int threads = 1;
  std::int64_t tokens = 128;
  std::int64_t depth = 512;
  int rounds = 7;
  std::vector<std::string> formats;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.substr(0, 2) != "--") {
      formats.push_back(word);
      continue;
    }
    const char* value = ++i < argc ? argv[i] : "";
    if (word == "--threads") threads = std::atoi(value);
    if (word == "--tokens") tokens = std::atoll(value);
    if (word == "--depth") depth = std::atoll(value);
    if (word == "--rounds") rounds = std::atoi(value);
  }
  if (formats.empty()) formats = {"q4_0", "q8_0", "q4_k", "q6_k", "f16", "bf16", "f32"};
  tokens = std::min(tokens, kContext / 2);
  depth = std::min(depth, kContext - tokens);

  const llama2cpp::KernelTable& kernels = llama2cpp::select_kernels("");
  llama2cpp::CpuBackend backend(threads, kernels);
  const llama2cpp::Backend::Lease lease(backend, llama2cpp::kNoPoll);
  std::vector<Op> ops;
  const auto memory_op = [&](const std::string& name, double bytes, std::function<void()> run) {
    const auto limit = [=] {
      llama2cpp::ThreadPool pool(threads);
      return llama2cpp::ReadLimit(pool, static_cast<std::size_t>(bytes)).measure(0.02).bytes_per_second;
    };
    ops.push_back({name, bytes, "GB/s", limit, std::move(run), {}, {}});
  };

  std::vector<Weight> weights;
  weights.reserve(formats.size());
  std::vector<float> x(static_cast<std::size_t>(tokens * kHidden));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 7919 % 1000) / 500.0F - 1.0F;
  std::vector<float> y = x;
  std::vector<float> out(static_cast<std::size_t>(tokens * 3 * kHidden));
  for (const std::string& format : formats) {
    Weight& w = weights.emplace_back(random_weight(format, 3 * kHidden, kDim));
    w.int8_input = w.format->quantized;
    backend.pack(w);
    w.planes = {};
    const auto multiply = [&backend, &x, &out, &w](std::int64_t count) {
      const Weight* const one[] = {&w};
      const Tensor result(out.data(), {count, w.rows});
      backend.matmul(one, Tensor(x.data(), {count, kDim}), {&result, 1}, {});
    };
    memory_op("matmul " + format + ", 1 token", static_cast<double>(w.panels.size()), [=] { multiply(1); });
    const auto peak = [&kernels, &w, threads] {
      return w.int8_input ? integer_peak(kernels, llama2cpp::layout_of(w), threads) : float_peak(kernels, threads);
    };
    ops.push_back({"matmul " + format + ", " + std::to_string(tokens) + " tokens",
                   static_cast<double>(tokens * w.rows * kDim),
                   "G mul-add/s",
                   peak,
                   [=] { multiply(tokens); },
                   {},
                   {}});
  }

  std::vector<std::uint16_t> keys(static_cast<std::size_t>(kKvHeads * kContext * kHeadDim), 0x3000);
  std::vector<std::uint16_t> values = keys;
  const auto attend = [&](std::int64_t count, std::int64_t position) {
    llama2cpp::AttentionSpan span;
    span.count = count;
    span.position = position;
    span.divisor = std::sqrt(static_cast<float>(kHeadDim));
    span.keys = Tensor(keys.data(), llama2cpp::DType::f16, {kKvHeads, kContext, kHeadDim});
    span.values = Tensor(values.data(), llama2cpp::DType::f16, {kKvHeads, kContext, kHeadDim});
    backend.attention(Tensor(x.data(), {count, kDim}), {&span, 1}, Tensor(out.data(), {count, kDim}),
                      llama2cpp::AttentionStage::scores, llama2cpp::AttentionStage::values);
  };
  memory_op("attention, 1 token after " + std::to_string(depth),
            static_cast<double>(2 * kKvHeads * (depth + 1) * kHeadDim * 2), [&] { attend(1, depth); });
  const double keys_seen =
      static_cast<double>(tokens) * (static_cast<double>(depth) + 0.5 * static_cast<double>(tokens));
  ops.push_back({"attention, " + std::to_string(tokens) + " tokens after " + std::to_string(depth),
                 2.0 * keys_seen * static_cast<double>(kHeads * kHeadDim),
                 "G mul-add/s",
                 [&] { return float_peak(kernels, threads); },
                 [&] { attend(tokens, depth); },
                 {},
                 {}});

  std::vector<float> scale(static_cast<std::size_t>(tokens));
  std::vector<std::int8_t> rounded(x.size());
  std::vector<std::int32_t> starts(x.size());
  for (const std::int64_t count : {std::int64_t{1}, tokens}) {
    const Tensor a(x.data(), {count, kDim});
    const Tensor b(out.data(), {count, kDim});
    const Tensor wide(x.data(), {count, kHidden});
    const Tensor wide_up(y.data(), {count, kHidden});
    const Tensor wide_out(out.data(), {count, kHidden});
    const Tensor angles(y.data(), {count, kHeadDim / 2});
    const double row = static_cast<double>(count * kDim) * 4.0;
    const std::string times = ", " + std::to_string(count) + (count == 1 ? " token" : " tokens");
    memory_op("rms_scale" + times, row, [&, a, count] {
      backend.rms_scale(a, 1e-5F, Tensor(scale.data(), {count, 1}));
    });
    memory_op("rope" + times, 2.0 * row,
              [&, b, angles] { backend.rope(b, angles, angles, kHeadDim, llama2cpp::RopeStyle::interleaved); });
    memory_op("swiglu" + times, static_cast<double>(count * kHidden) * 12.0,
              [&, wide, wide_up, wide_out] { backend.gated(llama2cpp::Activation::silu, wide, wide_up, wide_out); });
    memory_op("add" + times, 3.0 * row, [&, a, b] { backend.add(a, b, b); });
  }
  memory_op("quantize activations", static_cast<double>(kDim) * 5.0, [&] {
    kernels.quantize_blocks({.x = x.data(),
                             .blocks = kDim / 32,
                             .halves = 1,
                             .n_tokens = 1,
                             .q = rounded.data(),
                             .scales = out.data(),
                             .starts = starts.data(),
                             .sums = out.data() + kDim / 32});
  });

  for (int round = 0; round < rounds; ++round) {
    for (Op& op : ops) {
      op.limits.push_back(op.limit());
      op.speeds.push_back(op.work / seconds_of(op.run));
    }
  }
  std::printf("%s kernels, %d thread%s, median of %d rounds\n", std::string(backend.isa()).c_str(), threads,
              threads == 1 ? "" : "s", rounds);
  std::printf("%-34s %14s %10s %12s %9s\n", "op", "microseconds", "speed", "limit", "share");
  for (const Op& op : ops) {
    const double speed = median(op.speeds);
    const double limit = median(op.limits);
    std::printf("%-34s %14.2f %10.1f %12.1f %8.0f%%  %s\n", op.name.c_str(), op.work / speed * 1e6, speed * 1e-9,
                limit * 1e-9, 100.0 * speed / limit, op.unit);
  }
  for (int n = 1; n <= threads; ++n) print_pool(n);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "bench_ops: %s\n", error.what());
  return 2;
}
