// MemoryPool: what comes back is lent again, a little of it is kept, nothing is lent twice, and loans outlive the pool.
#include <doctest/doctest.h>

#include <atomic>
#include <cstring>
#include <limits>
#include <mutex>
#include <new>
#include <optional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "core/memory_pool.h"

using llama2cpp::Buffer;
using llama2cpp::MemoryPool;

namespace {

constexpr std::size_t kMega = std::size_t{1} << 20;
constexpr std::size_t kLarge = 8 * kMega;  // large enough to be kept

// Whether this system can take back pages that are kept; where it cannot, the pool keeps nothing.
bool keeps() { return Buffer::heap(kLarge).forget(); }

}  // namespace

TEST_CASE("a loan has the size that was asked for, whatever it is made of") {
  MemoryPool pool(Buffer::heap);
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{100}, kLarge, kLarge - 1}) {
    CAPTURE(bytes);
    const Buffer loan = pool.borrow(bytes);
    CHECK(loan.size() == bytes);
    CHECK(reinterpret_cast<std::uintptr_t>(loan.data()) % 64 == 0);
    std::memset(loan.data(), 1, bytes);
  }
}

TEST_CASE("a piece that came back is lent again") {
  MemoryPool pool(Buffer::heap);
  Buffer loan = pool.borrow(kLarge);
  const std::byte* const first = loan.data();
  Buffer copy = loan;
  loan = {};
  const Buffer second = pool.borrow(kLarge);
  CHECK(second.data() != first);  // `copy` still has it
  copy = {};
  const Buffer other = Buffer::heap(kLarge);  // takes the place of whatever was unmapped
  CHECK((pool.borrow(kLarge - 5).data() == first) == keeps());
  CHECK((pool.borrow(kLarge - 5).data() == first) == keeps());  // that one came back, too
}

TEST_CASE("a piece that is too small is not lent, nor one more than twice as large") {
  MemoryPool pool(Buffer::heap);
  Buffer loan = pool.borrow(4 * kLarge);
  const std::byte* const large = loan.data();
  loan = {};
  const Buffer other = Buffer::heap(4 * kLarge);
  const Buffer small = pool.borrow(kLarge);
  const Buffer larger = pool.borrow(4 * kLarge + 1);
  CHECK(small.data() != large);
  CHECK(larger.data() != large);  // nor one that is too small
  CHECK((pool.borrow(2 * kLarge).data() == large) == keeps());
}

TEST_CASE("two pieces are kept, the newest") {
  MemoryPool pool(Buffer::heap);
  std::vector<Buffer> loans;
  std::vector<const std::byte*> places;
  for (int i = 0; i < 4; ++i) {
    loans.push_back(pool.borrow(kLarge));
    places.push_back(loans.back().data());
  }
  for (Buffer& loan : loans) loan = {};
  const Buffer others[] = {Buffer::heap(kLarge), Buffer::heap(kLarge)};  // take the places of those that were let go
  const Buffer third = pool.borrow(kLarge);
  const Buffer fourth = pool.borrow(kLarge);
  const Buffer fresh = pool.borrow(kLarge);
  if (keeps()) {  // else the heap may give the same places, or others
    CHECK(third.data() == places[2]);
    CHECK(fourth.data() == places[3]);
  }
  CHECK(fresh.data() != third.data());
  CHECK(fresh.data() != fourth.data());
}

TEST_CASE("the last eight small pieces are kept") {
  MemoryPool pool(Buffer::heap);
  std::vector<Buffer> loans;
  for (int i = 1; i <= 9; ++i) {
    loans.push_back(pool.borrow(1000));
    std::memset(loans.back().data(), i, 1000);
  }
  for (Buffer& loan : loans) loan = {};
  loans.clear();
  for (int i = 2; i <= 9; ++i) {
    loans.push_back(pool.borrow(1000));
    CHECK(loans.back().data()[999] == static_cast<std::byte>(i));
  }
  CHECK(pool.borrow(1000).data()[999] == std::byte{0});  // new memory is zeroed
}

TEST_CASE("a small piece is not kept for those who want less than half") {
  MemoryPool pool(Buffer::heap);
  Buffer loan = pool.borrow(1000);
  std::memset(loan.data(), 1, 1000);
  loan = {};
  CHECK(pool.borrow(499).data()[0] == std::byte{0});
  CHECK(pool.borrow(500).data()[0] == std::byte{1});
}

TEST_CASE("a loan outlives its pool") {
  std::optional<MemoryPool> pool(std::in_place, Buffer::heap);
  Buffer idle = pool->borrow(kLarge);
  idle = {};
  Buffer loan = pool->borrow(2 * kLarge);
  Buffer copy = loan;
  pool.reset();
  std::memset(loan.data(), 1, loan.size());
  loan = {};
  CHECK(copy.data()[copy.size() - 1] == std::byte{1});
}

TEST_CASE("what cannot be had is an exception, and the pool goes on") {
  MemoryPool pool(Buffer::heap);
  CHECK_THROWS_AS(pool.borrow(std::numeric_limits<std::size_t>::max() / 4), std::bad_alloc);
  CHECK(pool.borrow(kLarge).size() == kLarge);
}

TEST_CASE("threads never hold the same piece, and may let go of each other's") {
  // What a thread writes to a loan's ends and middle must be there when whoever has it then lets it go.
  struct Held {
    Buffer loan;
    std::uint32_t mark = 0;
  };
  const auto marked = [](const Buffer& loan) {
    return std::vector<std::byte*>{loan.data(), loan.data() + loan.size() / 2, loan.data() + loan.size() - 4};
  };
  std::optional<MemoryPool> pool(std::in_place, Buffer::heap);
  std::mutex mutex;
  std::vector<Held> shared(3);
  std::atomic<int> wrong = 0;
  const auto check = [&](const Held& held) {
    if (!held.loan) return;
    for (const std::byte* at : marked(held.loan)) wrong += std::memcmp(at, &held.mark, 4) == 0 ? 0 : 1;
  };
  std::vector<std::thread> threads;
  for (std::uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::minstd_rand random(t + 1);
      for (std::uint32_t i = 0; i < 300; ++i) {
        Held held{pool->borrow(kLarge / 2 + random() % kLarge), t << 16 | i};
        for (std::byte* at : marked(held.loan)) std::memcpy(at, &held.mark, 4);
        if (random() % 2 == 0) {
          const std::lock_guard lock(mutex);
          std::swap(held, shared[random() % shared.size()]);
        }
        check(held);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  pool.reset();
  for (const Held& held : shared) check(held);
  CHECK(wrong == 0);
}
