// Keys and values move into huge pages when there are enough of them: no byte changes, and memory that nobody uses is not
// taken before half of the context is.
#include <doctest/doctest.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "model/kv_cache.h"
#include "tiny_model.h"

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

using llama2cpp::Buffer;
using llama2cpp::kHugePage;
using llama2cpp::KvCache;

namespace {

std::size_t page_size() {
#ifdef __linux__
  return static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
#else
  return 4096;
#endif
}

// Bytes of [begin, begin + bytes) that are in memory; 0 where the system does not say. begin is a page's.
std::size_t in_memory(const std::byte* begin, std::size_t bytes) {
#ifdef __linux__
  std::vector<unsigned char> there((bytes + page_size() - 1) / page_size());
  REQUIRE(::mincore(const_cast<std::byte*>(begin), bytes, there.data()) == 0);
  std::size_t pages = 0;
  for (const unsigned char state : there) pages += state & 1U;
  return pages * page_size();
#else
  static_cast<void>(begin);
  static_cast<void>(bytes);
  return 0;
#endif
}

void fill(std::byte* begin, std::size_t bytes, std::uint32_t seed) {
  for (std::size_t i = 0; i < bytes; ++i) begin[i] = static_cast<std::byte>((i * 2654435761U + seed) >> 13);
}

bool is_filled(const std::byte* begin, std::size_t bytes, std::uint32_t seed) {
  for (std::size_t i = 0; i < bytes; ++i) {
    if (begin[i] != static_cast<std::byte>((i * 2654435761U + seed) >> 13)) return false;
  }
  return true;
}

}  // namespace

TEST_CASE("reserved memory keeps its bytes in huge pages, and no byte outside takes memory") {
  const Buffer memory = Buffer::reserve(6 * kHugePage);
  constexpr std::size_t kBegin = 12345;
  constexpr std::size_t kBytes = 3 * kHugePage;
  fill(memory.data() + kBegin, kBytes, 1);
  memory.use_huge_pages(memory.data() + kBegin, kBytes);
  CHECK(is_filled(memory.data() + kBegin, kBytes, 1));
  CHECK(in_memory(memory.data(), memory.size()) <= kBytes + 2 * page_size());
  memory.use_huge_pages(memory.data() + kBegin, 100);  // no whole page, and nothing to do
  memory.use_huge_pages(memory.data(), memory.size());
  CHECK(is_filled(memory.data() + kBegin, kBytes, 1));
  fill(memory.data() + 4 * kHugePage, 100, 2);
  CHECK(is_filled(memory.data() + 4 * kHugePage, 100, 2));

  const Buffer heap = Buffer::heap(4 * kHugePage);  // has them from the beginning on
  fill(heap.data(), 1000, 3);
  heap.use_huge_pages(heap.data(), heap.size());
  CHECK(is_filled(heap.data(), 1000, 3));
}

TEST_CASE("a cache takes memory as positions are used, and at most twice that, whatever pages it has") {
  llama2cpp::Config config = tiny::config();
  config.n_layers = 1;
  config.n_heads = 2;
  config.n_kv_heads = 2;
  config.head_dim = 64;
  config.seq_len = 65536;
  const auto backend = llama2cpp::make_cpu_backend(1, llama2cpp::Arithmetic::contract);
  KvCache cache(config, config.seq_len, llama2cpp::DType::f16, *backend);
  constexpr std::size_t kRow = 64 * sizeof(std::uint16_t);
  constexpr std::size_t kHeads = 4;  // of keys and of values
  const std::size_t all = cache.memory().size();
  const std::size_t head = all / kHeads;
  REQUIRE(head == 65536 * kRow);
  const auto use = [&](std::size_t from, std::size_t to) {
    cache.need(static_cast<std::int64_t>(to));
    for (std::size_t at = 0; at < all; at += head) {
      fill(cache.memory().data() + at + from * kRow, (to - from) * kRow, static_cast<std::uint32_t>(from));
    }
  };
  const auto is_kept = [&](std::size_t from, std::size_t to) {
    bool same = true;
    for (std::size_t at = 0; at < all; at += head) {
      const std::byte* const begin = cache.memory().data() + at + from * kRow;
      same = same && is_filled(begin, (to - from) * kRow, static_cast<std::uint32_t>(from));
    }
    return same;
  };
  const std::size_t parts = kHeads * 2 * page_size();  // pages of which a part is used
  use(0, 1);
  CHECK(in_memory(cache.memory().data(), all) <= kHeads * kRow + parts);
  use(1, 20000);  // at one time: a prompt
  CHECK(in_memory(cache.memory().data(), all) <= 20000 * kHeads * kRow + parts);
  use(20000, 32767);  // more than a huge page of each head
  CHECK(in_memory(cache.memory().data(), all) <= 32767 * kHeads * kRow + parts);
  use(32767, 32768);  // half of the context
  CHECK(in_memory(cache.memory().data(), all) <= 2 * 32768 * kHeads * kRow);
  use(32768, 65536);
  CHECK(is_kept(0, 1));
  CHECK(is_kept(1, 20000));
  CHECK(is_kept(20000, 32767));
  CHECK(is_kept(32767, 32768));
  CHECK(is_kept(32768, 65536));
}
