// Buffer: shared ownership of memory, whatever it is: aligned heap, reserved address space, a mapped file, or
// memory that something else (a NumPy array) keeps alive. Copying a Buffer copies the handle.
#pragma once

#include <cstddef>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace llama2cpp {

class File;

// Of which huge pages of memory are the multiples, on the systems that have them.
inline constexpr std::size_t kHugePage = std::size_t{2} << 20;

// More than any file of text that is read whole: tokenizers, configurations, templates, prompts. One that has more is not read.
inline constexpr std::size_t kMostText = std::size_t{1} << 30;

class Buffer {
 public:
  Buffer() = default;

  // Zeroed and aligned to 64 bytes.
  static Buffer heap(std::size_t bytes);

  // Zeroed address space that costs memory only where it is touched (POSIX: no-reserve; Windows: committed on demand).
  static Buffer reserve(std::size_t bytes);

  // A whole file, read-only. Throws what File does, and FormatError for a file that is empty or has more than `most` bytes.
  // With use_mmap false the file is read into memory instead: then nothing that happens to the file matters any more, and
  // one that does not fit is an OutOfMemoryError.
  static Buffer file(const std::string& path, bool use_mmap = true,
                     std::size_t most = std::numeric_limits<std::size_t>::max());

  // Memory of someone else's, kept alive by `owner`.
  static Buffer wrap(const void* memory, std::size_t bytes, std::shared_ptr<const void> owner);

  std::byte* data() const { return memory_.get(); }
  std::size_t size() const { return size_; }
  bool mapped() const { return kind_ == Kind::file; }

  // Expired when nobody has this memory any more: for what is made of it, and goes when it does.
  std::weak_ptr<const void> watch() const { return memory_; }

  // Copies bytes from `begin` on, which lie in this memory. From a mapped file they are read instead of touched: then what goes
  // wrong is an exception. Throws what File::read does.
  void read(const std::byte* begin, std::span<std::byte> to) const;

  // Appends this to a list of mapped files, unless it is none or its file is there already.
  void add_to(std::vector<Buffer>& files) const;

  explicit operator bool() const { return memory_ != nullptr; }

  // Tells the system that what is in this memory is needed no more: it may take the pages when it is short of them, and
  // until then they are there. Whether it can: only from large memory of heap(), and where there is such a thing.
  bool forget() const;

  // Lets the system put what is in [begin, begin + bytes) of reserved memory into huge pages, wherever a whole one fits: fewer
  // addresses to look up for who reads all of it. What is there stays, and no byte outside takes memory. Does nothing where the
  // system cannot, and for other memory.
  void use_huge_pages(const std::byte* begin, std::size_t bytes) const;

  // Tells the system that [begin, begin + bytes) of a mapped file will be read soon, and returns at once.
  void will_need(const std::byte* begin, std::size_t bytes) const;

  // Tells the system that the file pages wholly inside [begin, begin + bytes) are not needed in memory now. They come
  // back from the file when touched. Does nothing for memory that is not a mapped file.
  void drop_pages(const std::byte* begin, std::size_t bytes) const;

 private:
  enum class Kind : unsigned char { other, file, pages, reserved };

  Buffer(std::shared_ptr<std::byte> memory, std::size_t size, Kind kind)
      : memory_(std::move(memory)), size_(size), kind_(kind) {}

  std::shared_ptr<std::byte> memory_;
  std::size_t size_ = 0;
  Kind kind_ = Kind::other;
  const File* file_ = nullptr;  // where it is mapped; memory_ keeps it alive

  friend class FileReads;
};

// A call that reads mapped files where they lie. While it lives, what a file cannot give any more is zeros instead of the end
// of the process; so the call ends with check(). `files` must outlive it; what is not mapped is left out.
class FileReads {
 public:
  explicit FileReads(std::span<const Buffer> files);
  ~FileReads();
  FileReads(const FileReads&) = delete;
  FileReads& operator=(const FileReads&) = delete;

  // Throws FormatError, which names the file, where one is not as it was opened: shortened, written to, unreadable.
  void check() const;

 private:
  std::span<const Buffer> files_;
};

}  // namespace llama2cpp
