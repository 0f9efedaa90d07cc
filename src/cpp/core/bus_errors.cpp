// The handler for SIGBUS. A handler belongs to the process, so the list of watched maps does too: it is reached without a lock,
// and its entries are used again but never freed. The handler itself calls only what may be called in one: write, mmap (a bare
// system call), sigaction, raise.
#include "core/bus_errors.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <string_view>

#include "core/quote.h"

namespace llama2cpp {

struct MapWatch::Entry {
  std::atomic<bool> taken{false};
  std::atomic<std::uintptr_t> begin{0};
  std::atomic<std::uintptr_t> end{0};  // 0: watches nothing; set last and cleared first
  std::atomic<int> readers{0};
  std::atomic<bool> is_broken{false};
  std::atomic<std::size_t> broken_at{0};
  std::array<char, 512> path{};  // for the handler: the end of a longer one
  Entry* next = nullptr;         // fixed before the entry is in the list
};

struct BusErrors {
  static std::atomic<MapWatch::Entry*> list;
  static struct sigaction previous;
  static std::uintptr_t page;
  static bool installed;

  static void say(std::string_view text) {
    while (!text.empty()) {
      const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
      if (written <= 0) return;
      text.remove_prefix(static_cast<std::size_t>(written));
    }
  }

  static void say(std::size_t number) {
    char digits[24];
    char* begin = std::end(digits);
    do {
      *--begin = static_cast<char>('0' + number % 10);
      number /= 10;
    } while (number != 0);
    say(std::string_view(begin, static_cast<std::size_t>(std::end(digits) - begin)));
  }

  static MapWatch::Entry* find(std::uintptr_t address) {
    for (MapWatch::Entry* entry = list.load(); entry != nullptr; entry = entry->next) {
      const std::uintptr_t end = entry->end.load();
      const std::uintptr_t begin = entry->begin.load();
      if (begin <= address && address < end && entry->end.load() == end) return entry;
    }
    return nullptr;
  }

  // Whether the instruction can be tried again.
  static bool mend(MapWatch::Entry& entry, std::uintptr_t address) {
    const std::uintptr_t begin = entry.begin.load();
    const std::uintptr_t end = (entry.end.load() + page - 1) / page * page;
    const std::uintptr_t first = address / page * page;
    if (!entry.is_broken.exchange(true)) {
      entry.broken_at.store(address - begin);
      say("llama2cpp: SIGBUS: ");
      say(entry.path.data());
      say(": byte ");
      say(address - begin);
      say(" of the mapped file cannot be read: it has become shorter, or its disk has failed\n");
    }
    if (entry.readers.load() == 0) return false;
    void* const zeros =
        ::mmap(reinterpret_cast<void*>(first), end - first, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    return zeros != MAP_FAILED;
  }

  static void handle(int signal, siginfo_t* info, void* context) {
    const int saved_errno = errno;
    const bool is_fault = info != nullptr && info->si_code > 0;  // else another process, or raise, has sent it
    const auto address = is_fault ? reinterpret_cast<std::uintptr_t>(info->si_addr) : 0;
    MapWatch::Entry* const entry = is_fault ? find(address) : nullptr;
    if (entry == nullptr || !mend(*entry, address)) pass_on(signal, info, context);
    errno = saved_errno;
  }

  static void pass_on(int signal, siginfo_t* info, void* context) {
    if ((previous.sa_flags & SA_SIGINFO) != 0) return previous.sa_sigaction(signal, info, context);
    const bool is_fault = info != nullptr && info->si_code > 0;
    if (previous.sa_handler == SIG_IGN && !is_fault) return;
    if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) return previous.sa_handler(signal);
    struct sigaction standard {};
    standard.sa_handler = SIG_DFL;
    ::sigaction(signal, &standard, nullptr);
    ::raise(signal);  // delivered when this handler returns
  }

  // Whether there is a handler.
  static bool install() {
    static std::once_flag once;
    std::call_once(once, [] {
      const char* const wish = std::getenv("LLAMA2CPP_SIGBUS");
      if (wish != nullptr && std::string_view(wish) == "0") return;
      page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
      struct sigaction ours {};
      ours.sa_sigaction = handle;
      ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
      sigemptyset(&ours.sa_mask);
      installed = ::sigaction(SIGBUS, &ours, &previous) == 0;
    });
    return installed;
  }
};

std::atomic<MapWatch::Entry*> BusErrors::list{nullptr};
struct sigaction BusErrors::previous {};
std::uintptr_t BusErrors::page = 4096;
bool BusErrors::installed = false;

MapWatch::MapWatch(const std::byte* begin, std::size_t bytes, const std::string& path) {
  if (!BusErrors::install()) return;
  const std::string quoted = quote(path);  // without control characters, for the handler writes to a terminal
  for (Entry* entry = BusErrors::list.load(); entry != nullptr && entry_ == nullptr; entry = entry->next) {
    if (!entry->taken.exchange(true)) entry_ = entry;
  }
  const bool is_new = entry_ == nullptr;
  if (is_new) {
    entry_ = new Entry;
    entry_->taken.store(true);
  }
  std::string_view shown = std::string_view(quoted).substr(1, quoted.size() - 2);
  shown.remove_prefix(shown.size() - std::min(shown.size(), entry_->path.size() - 1));
  entry_->path.fill('\0');
  std::copy(shown.begin(), shown.end(), entry_->path.begin());
  entry_->readers.store(0);
  entry_->is_broken.store(false);
  entry_->begin.store(reinterpret_cast<std::uintptr_t>(begin));
  entry_->end.store(reinterpret_cast<std::uintptr_t>(begin) + bytes);
  if (!is_new) return;
  entry_->next = BusErrors::list.load();
  while (!BusErrors::list.compare_exchange_weak(entry_->next, entry_)) {
  }
}

MapWatch::~MapWatch() {
  if (entry_ == nullptr) return;
  entry_->end.store(0);
  entry_->taken.store(false);
}

void MapWatch::begin_reading() const {
  if (entry_ != nullptr) entry_->readers.fetch_add(1);
}

void MapWatch::end_reading() const {
  if (entry_ != nullptr) entry_->readers.fetch_sub(1);
}

std::optional<std::size_t> MapWatch::broken() const {
  if (entry_ == nullptr || !entry_->is_broken.load()) return {};
  return entry_->broken_at.load();
}

}  // namespace llama2cpp
