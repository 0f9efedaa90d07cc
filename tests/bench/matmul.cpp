// How fast matmul is in each format, beside what one thread can read: GB/s of packed weights with one token, and
// billions of multiply-adds a second with many.
//
//   bench_matmul [--threads N] [--tokens N] [--cols N] [--rows N] [--megabytes N] [--isa NAME] [FORMAT | FORMAT:f32 ...]
//
// --rows is of the many tokens only; one token goes through --megabytes of weights. FORMAT:f32 leaves the input as floats.
//
// Rounds take turns over the formats and the reading, and the best one of each counts: what others do to the machine can
// only slow it down.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <exception>
#include <string>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/isa/select.h"
#include "core/half.h"
#include "format/format.h"

namespace {

using llama2cpp::Tensor;
using llama2cpp::Weight;

constexpr int kRounds = 7;

// With one thread the processor's time is measured and not the wall's: others may want the same processor.
bool g_wall = false;
double now() {
  if (!g_wall) return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double best(const std::vector<double>& values) { return *std::max_element(values.begin(), values.end()); }

// Random bytes that are neither infinite nor NaN as halves and floats.
llama2cpp::Plane random_plane(std::int64_t bytes, std::int64_t row_bytes) {
  llama2cpp::Plane plane;
  plane.owner = llama2cpp::Buffer::heap(static_cast<std::size_t>(bytes));
  plane.data = plane.owner.data();
  plane.bytes = plane.owner.size();
  plane.row_bytes = row_bytes;
  std::uint64_t state = 1;
  auto* to = reinterpret_cast<std::uint8_t*>(plane.owner.data());
  for (std::size_t i = 0; i + 8 <= plane.bytes; i += 8) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    const std::uint64_t small = (state >> 8) & 0x3F3F3F3F3F3F3F3FULL;
    for (std::size_t j = 0; j < 8; ++j) to[i + j] = static_cast<std::uint8_t>(small >> (8 * j));
  }
  return plane;
}

// Groups of 128, as most of GPTQ's files have.
Weight make_gptq(const llama2cpp::Format& format, std::int64_t cols, std::int64_t megabytes) {
  Weight w;
  w.name = format.name;
  w.format = &format;
  w.cols = cols;
  w.group = 128;
  const std::int64_t bits = format.blocks.bits;
  w.rows = megabytes * 1000000 * 8 / bits / cols / 32 * 32;
  const std::int64_t groups = (cols - 1) / w.group + 1;
  w.planes[0] = random_plane(cols * bits / 8 * w.rows, 0);
  w.planes[1] = random_plane(groups * w.rows * 2, 0);
  w.planes[2] = random_plane(groups * w.rows * bits / 8, 0);
  return w;
}

// Weights of about the wanted size, every byte random but the scales, which stay ordinary numbers.
Weight make_weight(const std::string& name, std::int64_t cols, std::int64_t megabytes) {
  const llama2cpp::Format& format = llama2cpp::find_format(name);
  if (format.blocks.zeros) return make_gptq(format, cols, megabytes);
  Weight w;
  w.name = name;
  w.format = &format;
  w.cols = cols;
  w.group = format.name == "int8_group" ? 64 : format.group;
  const std::int64_t row_bytes = format.group > 0 ? cols / format.group * format.group_bytes : cols;
  w.rows = megabytes * 1000000 / row_bytes / 16 * 16;
  w.planes[0] = random_plane(w.rows * row_bytes, row_bytes);
  if (format.name == "mxfp4") {  // a scale is a byte that is a power of two
    auto* const blocks = reinterpret_cast<std::uint8_t*>(w.planes[0].owner.data());
    for (std::size_t i = 0; i < w.planes[0].bytes; i += static_cast<std::size_t>(format.group_bytes)) blocks[i] = 126;
  }
  if (format.name == "llm_int8") {  // inputs here have no outliers, but they are looked for
    w.group = cols;
    w.outlier_threshold = 6.0F;
  }
  if (format.group == 0) {
    w.planes[1].row_bytes = cols / w.group * 4;
    w.planes[1].owner = llama2cpp::Buffer::heap(static_cast<std::size_t>(w.rows * w.planes[1].row_bytes));
    w.planes[1].data = w.planes[1].owner.data();
    w.planes[1].bytes = w.planes[1].owner.size();
  }
  return w;
}

// One pass over memory that no cache holds, in GB/s, by the C library's fastest loop that only reads.
double read_speed(const std::vector<char>& zeros) {
  const double begin = now();
  const bool found = std::memchr(zeros.data(), 1, zeros.size()) != nullptr;
  return found ? 0.0 : static_cast<double>(zeros.size()) * 1e-9 / (now() - begin);
}

struct Case {
  std::string name;
  Weight weight;
  double pack_speed = 0.0;              // GB/s of the file's bytes
  double file_bits = 0.0;               // of a weight
  std::vector<double> decode, prefill;  // GB/s of panels; billions of multiply-adds a second
};

}  // namespace

int main(int argc, char** argv) try {
  int threads = 1;
  std::int64_t tokens = 120;
  std::int64_t megabytes = 160;
  std::int64_t cols = 4096;
  std::int64_t rows = 2048;
  std::string isa;
  std::vector<std::string> names;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : "";
    if (word.substr(0, 2) != "--") {
      names.push_back(word);
      continue;
    }
    if (word == "--threads") threads = std::atoi(value);
    if (word == "--tokens") tokens = std::atoll(value);
    if (word == "--megabytes") megabytes = std::atoll(value);
    if (word == "--cols") cols = std::atoll(value);
    if (word == "--rows") rows = std::atoll(value);
    if (word == "--isa") isa = value;
    ++i;
  }
  g_wall = threads > 1;
  if (names.empty()) {
    for (const llama2cpp::Format* format : llama2cpp::all_formats()) names.emplace_back(format->name);
  }

  const llama2cpp::KernelTable& kernels = llama2cpp::select_kernels(isa);
  llama2cpp::CpuBackend backend(threads, kernels);
  const llama2cpp::Backend::Lease lease(backend, llama2cpp::kNoPoll);
  std::vector<float> x(static_cast<std::size_t>(tokens * cols));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 7919 % 1000) / 500.0F - 1.0F;

  std::vector<Case> cases;
  std::int64_t most_rows = 0;
  for (const std::string& name : names) {
    const std::size_t colon = name.find(':');
    Case c;
    c.name = name;
    c.weight = make_weight(name.substr(0, colon), cols, megabytes);
    c.weight.int8_input = c.weight.format->quantized && colon == std::string::npos;
    const auto begin = now();
    backend.pack(c.weight);
    c.pack_speed = static_cast<double>(c.weight.planes[0].bytes) * 1e-9 / (now() - begin);
    for (const llama2cpp::Plane& plane : c.weight.planes) {
      c.file_bits += static_cast<double>(plane.bytes) * 8.0 / static_cast<double>(c.weight.rows * cols);
    }
    c.weight.planes = {};
    most_rows = std::max(most_rows, c.weight.rows);
    cases.push_back(std::move(c));
  }
  std::vector<float> out(static_cast<std::size_t>(most_rows * tokens));
  const std::vector<char> memory(static_cast<std::size_t>(megabytes) * 1000000, 0);
  std::vector<double> reads;
  for (int round = 0; round < kRounds; ++round) {
    for (Case& c : cases) {
      reads.push_back(read_speed(memory));
      const Weight* const weights[] = {&c.weight};
      for (const std::int64_t count : {std::int64_t{1}, tokens}) {
        // Prefill does not wait for memory: fewer rows will do.
        Weight some = c.weight;
        if (count > 1) some.rows = std::min(some.rows, rows);
        const Weight* const few[] = {&some};
        const Tensor result(out.data(), {count, some.rows});
        const auto begin = now();
        backend.matmul(few, Tensor(x.data(), {count, cols}), {&result, 1}, {});
        const double took = (now() - begin);
        if (count == 1) {
          c.decode.push_back(static_cast<double>(weights[0]->panels.size()) * 1e-9 / took);
        } else {
          c.prefill.push_back(static_cast<double>(count * some.rows * cols) * 1e-9 / took);
        }
      }
    }
  }
  const double limit = best(reads);
  std::printf("%s kernels, %d thread%s, reading %.1f GB/s\n", std::string(backend.isa()).c_str(), threads,
              threads == 1 ? "" : "s", limit);
  std::printf("%-12s %11s %11s %9s %26s %12s\n", "format", "file bits", "panel bits", "decode",
              "of one thread's reading", "prefill");
  std::printf("%-12s %11s %11s %9s %26s %12s %10s\n", "", "a weight", "a weight", "GB/s", "", "G mul-add/s",
              "pack GB/s");
  for (const Case& c : cases) {
    const double weights = static_cast<double>(c.weight.rows * cols);
    std::printf("%-12s %11.2f %11.2f %9.1f %25.0f%% %12.0f %10.2f\n", c.name.c_str(), c.file_bits,
                static_cast<double>(c.weight.panels.size()) * 8.0 / weights, best(c.decode),
                100.0 * best(c.decode) / limit, best(c.prefill), c.pack_speed);
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "bench_matmul: %s\n", error.what());
  return 2;
}
