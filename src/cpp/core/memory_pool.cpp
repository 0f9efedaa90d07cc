// A loan knows the pool weakly: memory may outlive the pool, and then it just goes.
#include "core/memory_pool.h"

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

namespace llama2cpp {
namespace {

constexpr std::size_t kPieces = 2;  // activations and logits

}  // namespace

struct MemoryPool::Idle {
  std::mutex mutex;
  std::vector<Buffer> pieces;  // the oldest first
};

struct MemoryPool::Loan {
  Loan(Buffer memory, const std::shared_ptr<Idle>& idle) : piece(std::move(memory)), pool(idle) {}
  ~Loan() {
    const std::shared_ptr<Idle> idle = pool.lock();
    if (!idle || !piece.forget()) return;
    const std::lock_guard lock(idle->mutex);
    if (idle->pieces.size() == kPieces) idle->pieces.erase(idle->pieces.begin());
    idle->pieces.push_back(std::move(piece));  // has room: see the constructor
  }
  Loan(const Loan&) = delete;
  Loan& operator=(const Loan&) = delete;

  Buffer piece;
  std::weak_ptr<Idle> pool;
};

MemoryPool::MemoryPool() : idle_(std::make_shared<Idle>()) { idle_->pieces.reserve(kPieces); }

Buffer MemoryPool::take(std::size_t bytes) {
  Buffer piece;
  {
    const std::lock_guard lock(idle_->mutex);
    // What is more than twice as large may be wanted whole.
    const auto fits = [&](const Buffer& b) { return b.size() >= bytes && b.size() / 2 <= bytes; };
    const auto found = std::find_if(idle_->pieces.begin(), idle_->pieces.end(), fits);
    if (found != idle_->pieces.end()) {
      piece = std::move(*found);
      idle_->pieces.erase(found);
    }
  }
  if (!piece) piece = Buffer::heap(bytes);
  std::byte* const data = piece.data();
  return Buffer::wrap(data, bytes, std::make_shared<Loan>(std::move(piece), idle_));
}

}  // namespace llama2cpp
