#include "backend/metal/memory_map.h"

#include <Foundation/Foundation.hpp>
#include <Metal/Metal.hpp>
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "backend/metal/device.h"
#include "core/check.h"
#include "core/memory_needs.h"
#include "core/thread_number.h"
#include "core/wait_lock.h"

namespace llama2cpp::metal {
namespace {

// What is this large and begins at a page the system has given in pages of its own.
constexpr std::size_t kLarge = std::size_t{4} << 20;

// Bytes [begin, begin + bytes) of an owner's memory.
struct View {
  std::size_t begin = 0;
  std::size_t bytes = 0;
  Held<MTL::Buffer> buffer;

  bool has(std::size_t from, std::size_t count) const { return from >= begin && from + count <= begin + bytes; }
};

// What was made of an owner's memory.
struct Views {
  std::weak_ptr<const void> owner;
  std::vector<View> views;
};

}  // namespace

// The device's own, and shared with memory that outlives the map.
struct MemoryMap::State {
  explicit State(const Device& device)
      : device(device.get().retain()),
        residency(device.residency() == nullptr ? nullptr : device.residency()->retain()),
        largest(device.limits().buffer),
        page(device.limits().page) {}
  ~State() {
    if (!forked()) {
      if (!residency) return;
      residency->removeAllAllocations();
      residency->commit();
      return;
    }
    static_cast<void>(device.release());
    static_cast<void>(residency.release());
    for (auto& [address, buffer] : made) static_cast<void>(buffer.release());
    for (auto* const weights : {&owners, &planes}) {
      for (auto& [address, entry] : *weights) {
        for (View& view : entry.views) static_cast<void>(view.buffer.release());
      }
    }
    for (auto& buffer : unowned) static_cast<void>(buffer.release());
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  bool forked() const { return fork_generation() != forks; }

  Held<MTL::Buffer> make(std::size_t bytes) {
    if (bytes > largest) {
      throw OutOfMemoryError(cat(gigabytes(static_cast<double>(bytes)),
                                 " in one piece are more than a buffer of the GPU's can have, ",
                                 gigabytes(static_cast<double>(largest))));
    }
    Held<MTL::Buffer> buffer(device->newBuffer(bytes, MTL::ResourceStorageModeShared));
    if (!buffer) throw_no_memory(bytes);
    return buffer;
  }

  // A copy of [begin, begin + bytes), which lie in the owner's memory where there is one.
  Held<MTL::Buffer> copy(const Buffer& owner, const std::byte* begin, std::size_t bytes) {
    Held<MTL::Buffer> buffer = make(bytes);
    auto* const to = static_cast<std::byte*>(buffer->contents());
    if (owner) {
      owner.read(begin, {to, bytes});
    } else {
      std::copy_n(begin, bytes, to);
    }
    return buffer;
  }

  // With the lock held, as all below.
  void keep(const MTL::Buffer* buffer) {
    if (!residency) return;
    residency->addAllocation(buffer);
    residency->commit();
  }
  void let_go(const MTL::Buffer* buffer) {
    if (!residency) return;
    residency->removeAllocation(buffer);
    residency->commit();
  }
  void let_go(const Views& all) {
    for (const View& view : all.views) let_go(view.buffer.get());
  }

  Views& views_of(std::map<const std::byte*, Views>& all, const std::byte* first, const Buffer& owner) {
    Views& found = all[first];
    if (!found.owner.expired()) return found;
    let_go(found);  // of memory that was at the same address before
    found.views.clear();
    found.owner = owner.watch();
    return found;
  }

  const View& add(Views& to, View view) {
    to.views.push_back(std::move(view));
    keep(to.views.back().buffer.get());
    return to.views.back();
  }

  // A view with bytes [begin, begin + bytes) of an owner's memory, which is made if there is none.
  const View& find(Views& all, const Buffer& owner, std::size_t begin, std::size_t bytes) {
    const auto found =
        std::find_if(all.views.begin(), all.views.end(), [&](const View& view) { return view.has(begin, bytes); });
    if (found != all.views.end()) return *found;
    const bool pages = owner.mapped() || owner.size() >= kLarge;
    if (pages && reinterpret_cast<std::uintptr_t>(owner.data()) % page == 0) {
      // As much of it as a buffer can have; what reaches into the next one gets a view that begins before it.
      const std::size_t first = owner.size() <= largest / page * page ? 0 : begin / page * page;
      const std::size_t length = std::min(
          largest / page * page, (owner.size() - first + page - 1) / page * page);  // the last page is mapped whole
      if (first + length >= begin + bytes) {
        Held<MTL::Buffer> buffer(
            device->newBuffer(owner.data() + first, length, MTL::ResourceStorageModeShared, nullptr));
        if (buffer) return add(all, {first, length, std::move(buffer)});
      }
    }
    const bool whole = owner.size() <= largest;
    const std::size_t first = whole ? 0 : begin;
    const std::size_t length = whole ? owner.size() : bytes;
    return add(all, {first, length, copy(owner, owner.data() + first, length)});
  }

  const int forks = fork_generation();
  Held<MTL::Device> device;
  Held<MTL::ResidencySet> residency;
  std::size_t largest;
  std::size_t page;
  mutable WaitLock lock;
  std::map<const std::byte*, Held<MTL::Buffer>> made;  // by alloc(), by their first byte
  std::map<const std::byte*, Views> owners;            // of weights, by the first byte of their owner's memory
  std::map<const std::byte*, Views> planes;            // copies of those that lie badly, by their own first byte
  std::vector<Held<MTL::Buffer>> unowned;              // copies of those whose memory has no owner
};

MemoryMap::MemoryMap(const Device& device) : device_(device), state_(std::make_shared<State>(device)) {}

MemoryMap::~MemoryMap() = default;

Buffer MemoryMap::alloc(std::size_t bytes) {
  device_.check_process();
  const std::size_t length = std::max(bytes, std::size_t{1});
  // Metal would give more than the GPU can use, and passes would fail.
  const std::size_t free = static_cast<double>(length) < kWorthChecking ? length : left();
  if (length > free && length <= device_.limits().buffer) {
    throw OutOfMemoryError(cat(gigabytes(static_cast<double>(length)), " are more than the GPU has left, ",
                               gigabytes(static_cast<double>(free))));
  }
  Held<MTL::Buffer> buffer = state_->make(length);
  auto* const data = static_cast<std::byte*>(buffer->contents());
  std::memset(data, 0, length);
  // From here on the memory goes with its owner, which takes it out of the map.
  const auto forget = [state = state_](std::byte* memory) {
    if (state->forked()) return;  // it stays the parent's
    const std::lock_guard lock(state->lock);
    const auto found = state->made.find(memory);
    if (found == state->made.end()) return;
    state->let_go(found->second.get());
    state->made.erase(found);
  };
  const std::shared_ptr<std::byte> owner(data, forget);
  const std::lock_guard lock(state_->lock);
  const auto added = state_->made.emplace(data, std::move(buffer)).first;
  state_->keep(added->second.get());
  return Buffer::wrap(data, bytes, owner);
}

Place MemoryMap::weight(const Plane& plane, std::size_t alignment) {
  const std::lock_guard lock(state_->lock);
  const std::byte* const memory = plane.owner.data();
  if (memory == nullptr || plane.data < memory || plane.data + plane.bytes > memory + plane.owner.size()) {
    state_->unowned.push_back(state_->copy({}, plane.data, plane.bytes));
    return {state_->unowned.back().get(), 0};
  }
  const auto begin = static_cast<std::size_t>(plane.data - memory);
  if (begin % alignment == 0) {
    Views& views = state_->views_of(state_->owners, memory, plane.owner);
    const View& view = state_->find(views, plane.owner, begin, plane.bytes);
    if ((begin - view.begin) % alignment == 0) return {view.buffer.get(), begin - view.begin};
  }
  Views& copies = state_->views_of(state_->planes, plane.data, plane.owner);
  for (const View& view : copies.views) {
    if (view.has(begin, plane.bytes)) return {view.buffer.get(), begin - view.begin};
  }
  const View& copy = state_->add(copies, {begin, plane.bytes, state_->copy(plane.owner, plane.data, plane.bytes)});
  return {copy.buffer.get(), 0};
}

Place MemoryMap::resolve(const void* address, std::size_t bytes, const char* op, const char* operand) const {
  const auto* const first = static_cast<const std::byte*>(address);
  const std::lock_guard lock(state_->lock);
  auto found = state_->made.upper_bound(first);
  if (found != state_->made.begin()) {
    --found;
    const auto offset = static_cast<std::size_t>(first - found->first);
    const std::size_t length = found->second->length();
    if (offset <= length && bytes <= length - offset) return {found->second.get(), offset};
  }
  throw std::invalid_argument(
      cat("[", op, "] ", operand, " is no memory of the Metal backend's: make it with alloc()"));
}

std::size_t MemoryMap::left() const {
  device_.check_process();
  const std::size_t taken = device_.allocated();
  const std::size_t all = device_.limits().working_set;
  return taken < all ? all - taken : 0;
}

void MemoryMap::want_resident() {
  if (!state_->residency) return;
  const std::lock_guard lock(state_->lock);
  state_->residency->requestResidency();
}

void MemoryMap::purge() {
  const std::lock_guard lock(state_->lock);
  for (auto* const weights : {&state_->owners, &state_->planes}) {
    for (auto entry = weights->begin(); entry != weights->end();) {
      if (!entry->second.owner.expired()) {
        ++entry;
        continue;
      }
      state_->let_go(entry->second);
      entry = weights->erase(entry);
    }
  }
  state_->unowned.clear();
}

}  // namespace llama2cpp::metal
