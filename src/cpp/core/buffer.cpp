// Asks the operating system for memory, so that POSIX and Windows meet in one place. Files are opened in file.cpp and written
// in file_writer.cpp.
#include "core/buffer.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>

#include "core/check.h"
#include "core/file.h"
#include "core/memory_needs.h"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#else
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace llama2cpp {
namespace {

constexpr std::size_t kAlignment = 64;  // one cache line, one AVX-512 register

}  // namespace

Buffer Buffer::heap(std::size_t bytes) {
  // The system would give more than there is, and end the process when it is touched.
  if (static_cast<double>(bytes) >= kWorthChecking) {
    need_memory(static_cast<double>(bytes), "an array", "", "ask for less at a time");
  }
#ifndef _WIN32
  constexpr std::size_t kLarge = std::size_t{4} << 20;  // from here on, pages instead of the heap
  if (bytes >= kLarge) {  // fresh pages are zero already, and are touched by the threads that fill them
    void* pages = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) throw_no_memory(bytes);
#ifdef MADV_HUGEPAGE
    ::madvise(pages, bytes, MADV_HUGEPAGE);
#endif
    return {{static_cast<std::byte*>(pages), [bytes](std::byte* p) { ::munmap(p, bytes); }}, bytes, Kind::pages};
  }
#endif
  auto* memory = static_cast<std::byte*>(::operator new(bytes, std::align_val_t{kAlignment}));
  std::shared_ptr<std::byte> owner(memory, [](std::byte* p) { ::operator delete(p, std::align_val_t{kAlignment}); });
  std::memset(memory, 0, bytes);
  return {std::move(owner), bytes, Kind::other};
}

Buffer Buffer::reserve(std::size_t bytes) {
#ifdef _WIN32
  void* memory = VirtualAlloc(nullptr, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
  if (memory == nullptr) throw_no_memory(bytes);
  return {{static_cast<std::byte*>(memory), [](std::byte* p) { VirtualFree(p, 0, MEM_RELEASE); }}, bytes, Kind::other};
#else
#ifdef MAP_NORESERVE
  constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
#else
  constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#endif
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (memory == MAP_FAILED) throw_no_memory(bytes);
#ifdef MADV_NOHUGEPAGE
  // A huge page would make the first token of every head cost 2 MB. See use_huge_pages().
  ::madvise(memory, bytes, MADV_NOHUGEPAGE);
#endif
  return {{static_cast<std::byte*>(memory), [bytes](std::byte* p) { ::munmap(p, bytes); }}, bytes, Kind::reserved};
#endif
}

Buffer Buffer::file(const std::string& path, bool use_mmap, std::size_t most) {
  const auto file = std::make_shared<File>(path);
  const std::size_t size = file->size();
  if (size == 0) throw FormatError(cat(path, ": the file is empty"));
  if (size > most) throw FormatError(cat(path, ": the file has ", size, " bytes, expected at most ", most));
  if (use_mmap) {
    file->map();
    // The const is given back by everyone who reads a file: only owners of heap memory write.
    Buffer mapped{{file, const_cast<std::byte*>(file->data())}, size, Kind::file};
    mapped.file_ = file.get();
    return mapped;
  }
  if (static_cast<double>(size) >= kWorthChecking) {
    need_memory(static_cast<double>(size), path, "", "let it be mapped (mmap=True)");
  }
  Buffer copy = heap(size);
  file->read(0, {copy.data(), size});
  return copy;
}

Buffer Buffer::wrap(const void* memory, std::size_t bytes, std::shared_ptr<const void> owner) {
  // The const is given back by everyone who reads a file or an array: only owners of heap memory write.
  auto* start = const_cast<std::byte*>(static_cast<const std::byte*>(memory));
  return {std::shared_ptr<std::byte>(std::move(owner), start), bytes, Kind::other};
}

void Buffer::read(const std::byte* begin, std::span<std::byte> to) const {
  if (file_ == nullptr) {
    std::copy_n(begin, to.size(), to.data());
  } else {
    file_->read(static_cast<std::size_t>(begin - data()), to);
  }
}

void Buffer::add_to(std::vector<Buffer>& files) const {
  const auto same = [&](const Buffer& other) { return other.file_ == file_; };
  if (mapped() && std::none_of(files.begin(), files.end(), same)) files.push_back(*this);
}

FileReads::FileReads(std::span<const Buffer> files) : files_(files) {
  for (const Buffer& buffer : files_) {
    if (buffer.file_ != nullptr) buffer.file_->begin_reading();
  }
}

FileReads::~FileReads() {
  for (const Buffer& buffer : files_) {
    if (buffer.file_ != nullptr) buffer.file_->end_reading();
  }
}

void FileReads::check() const {
  for (const Buffer& buffer : files_) {
    if (buffer.file_ != nullptr) buffer.file_->check();
  }
}

bool Buffer::forget() const {
#if defined(MADV_HUGEPAGE) && defined(MADV_FREE)
  return kind_ == Kind::pages && ::madvise(data(), size_, MADV_FREE) == 0;
#else
  return false;
#endif
}

void Buffer::use_huge_pages(const std::byte* begin, std::size_t bytes) const {
#ifdef MADV_HUGEPAGE
  if (kind_ != Kind::reserved) return;
  const auto address = reinterpret_cast<std::uintptr_t>(begin);
  const std::uintptr_t first = (address + kHugePage - 1) / kHugePage * kHugePage;
  const std::uintptr_t last = (address + bytes) / kHugePage * kHugePage;
  if (last <= first) return;
  constexpr int kCollapse = 25;  // MADV_COLLAPSE of Linux 6.1: pages that are there already; an older system refuses
  auto* const memory = reinterpret_cast<void*>(first);
  if (::madvise(memory, last - first, MADV_HUGEPAGE) == 0) ::madvise(memory, last - first, kCollapse);
#else
  static_cast<void>(begin);
  static_cast<void>(bytes);
#endif
}

void Buffer::will_need(const std::byte* begin, std::size_t bytes) const {
#ifdef _WIN32
  static_cast<void>(begin);
  static_cast<void>(bytes);
#else
  if (!mapped() || bytes == 0) return;
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<std::uintptr_t>(begin) / page * page;
  ::madvise(reinterpret_cast<void*>(first), reinterpret_cast<std::uintptr_t>(begin) + bytes - first, MADV_WILLNEED);
#endif
}

void Buffer::drop_pages(const std::byte* begin, std::size_t bytes) const {
#ifdef _WIN32
  static_cast<void>(begin);
  static_cast<void>(bytes);
#else
  if (!mapped()) return;
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = (reinterpret_cast<std::uintptr_t>(begin) + page - 1) / page * page;
  const auto last = (reinterpret_cast<std::uintptr_t>(begin) + bytes) / page * page;
  if (last > first) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
#endif
}

}  // namespace llama2cpp
