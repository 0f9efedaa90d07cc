// Buffer: shared ownership of memory, whatever it is: aligned heap, reserved address space, a mapped file, or
// memory that something else (a NumPy array) keeps alive. Copying a Buffer copies the handle.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace llama2cpp {

class Buffer {
 public:
  Buffer() = default;

  // Zeroed and aligned to 64 bytes.
  static Buffer heap(std::size_t bytes);

  // Zeroed address space that costs memory only where it is touched (POSIX: no-reserve; Windows: committed on demand).
  static Buffer reserve(std::size_t bytes);

  // A whole file, read-only. Throws std::system_error (errno, path) or FormatError for an empty file.
  // With use_mmap false the file is read into memory instead: then nothing that happens to the file matters any more.
  static Buffer file(const std::string& path, bool use_mmap = true);

  // Memory of someone else's, kept alive by `owner`.
  static Buffer wrap(const void* memory, std::size_t bytes, std::shared_ptr<const void> owner);

  std::byte* data() const { return memory_.get(); }
  std::size_t size() const { return size_; }
  bool mapped() const { return kind_ == Kind::file; }
  explicit operator bool() const { return memory_ != nullptr; }

  // Tells the system that what is in this memory is needed no more: it may take the pages when it is short of them, and
  // until then they are there. Whether it can: only from large memory of heap(), and where there is such a thing.
  bool forget() const;

  // Tells the system that [begin, begin + bytes) of a mapped file will be read soon, and returns at once.
  void will_need(const std::byte* begin, std::size_t bytes) const;

  // Tells the system that the file pages wholly inside [begin, begin + bytes) are not needed in memory now. They come
  // back from the file when touched. Does nothing for memory that is not a mapped file.
  void drop_pages(const std::byte* begin, std::size_t bytes) const;

 private:
  enum class Kind : unsigned char { other, file, pages };

  Buffer(std::shared_ptr<std::byte> memory, std::size_t size, Kind kind)
      : memory_(std::move(memory)), size_(size), kind_(kind) {}

  std::shared_ptr<std::byte> memory_;
  std::size_t size_ = 0;
  Kind kind_ = Kind::other;
};

// Bytes of memory that this process can still take without swapping: the system's and the cgroup's word, the lesser.
std::size_t available_memory();

}  // namespace llama2cpp
