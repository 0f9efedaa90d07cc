// A loan knows the pool weakly: memory may outlive the pool, and then it just goes.
#include "core/memory_pool.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "core/wait_lock.h"

namespace llama2cpp {
namespace {

constexpr std::size_t kSmall = std::size_t{1} << 20;  // bytes: up to here a piece is kept as it is
constexpr std::size_t kSmallPieces = 8;               // logits of steps, the ones that the caller still has among them
constexpr std::size_t kLargePieces = 2;               // activations and logits of a prompt

}  // namespace

struct MemoryPool::Idle {
  WaitLock lock;
  std::vector<Buffer> small;  // the oldest first
  std::vector<Buffer> large;

  // With the lock held.
  std::vector<Buffer>& pieces(std::size_t bytes) {
    if (lock.inherited()) {  // half written, perhaps: left alone
      std::construct_at(&small);
      std::construct_at(&large);
    }
    return bytes <= kSmall ? small : large;
  }
};

struct MemoryPool::Loan {
  Loan(Buffer memory, const std::shared_ptr<Idle>& idle) : piece(std::move(memory)), pool(idle) {}
  ~Loan() {
    const std::shared_ptr<Idle> idle = pool.lock();
    const bool small = piece.size() <= kSmall;
    if (!idle || !(small || piece.forget())) return;
    const std::lock_guard lock(idle->lock);
    std::vector<Buffer>& pieces = idle->pieces(piece.size());
    if (pieces.capacity() == 0) return;  // the constructor made room; a child of fork() may have begun anew
    if (pieces.size() == (small ? kSmallPieces : kLargePieces)) pieces.erase(pieces.begin());
    pieces.push_back(std::move(piece));
  }
  Loan(const Loan&) = delete;
  Loan& operator=(const Loan&) = delete;

  Buffer piece;
  std::weak_ptr<Idle> pool;
};

MemoryPool::MemoryPool(std::function<Buffer(std::size_t)> alloc)
    : alloc_(std::move(alloc)), idle_(std::make_shared<Idle>()) {
  idle_->small.reserve(kSmallPieces);
  idle_->large.reserve(kLargePieces);
}

Buffer MemoryPool::borrow(std::size_t bytes) {
  Buffer piece;
  {
    const std::lock_guard lock(idle_->lock);
    std::vector<Buffer>& pieces = idle_->pieces(bytes);
    // What is more than twice as large may be wanted whole.
    const auto fits = [&](const Buffer& b) { return b.size() >= bytes && b.size() / 2 <= bytes; };
    const auto found = std::find_if(pieces.begin(), pieces.end(), fits);
    if (found != pieces.end()) {
      piece = std::move(*found);
      pieces.erase(found);
    }
  }
  if (!piece) piece = alloc_(bytes);
  std::byte* const data = piece.data();
  return Buffer::wrap(data, bytes, std::make_shared<Loan>(std::move(piece), idle_));
}

}  // namespace llama2cpp
