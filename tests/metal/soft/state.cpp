// Knobs, counters and late faults of the software device.
#include <pthread.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "machine.h"

namespace soft {

namespace {

std::atomic<unsigned> forks{0};

std::invalid_argument unknown(std::string_view key, std::string_view value, const char* expected) {
  return std::invalid_argument("LLAMA2CPP_SOFT_METAL: " + std::string(key) + "=" + std::string(value) + ": expected " +
                               expected);
}

Order order(std::string_view key, std::string_view value) {
  if (value == "forward") return Order::forward;
  if (value == "reverse") return Order::reverse;
  if (value == "shuffled") return Order::shuffled;
  throw unknown(key, value, "forward, reverse or shuffled");
}

bool truth(std::string_view key, std::string_view value) {
  if (value == "on") return true;
  if (value == "off") return false;
  throw unknown(key, value, "on or off");
}

// "4096", "16k", "2m", "1g"
std::uint64_t number(std::string_view key, std::string_view value) {
  unsigned shift = 0;
  std::string_view digits = value;
  if (!digits.empty()) {
    const char unit = digits.back();
    shift = unit == 'k' ? 10 : unit == 'm' ? 20 : unit == 'g' ? 30 : 0;
    if (shift != 0) digits.remove_suffix(1);
  }
  std::uint64_t result = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), result);
  if (error != std::errc{} || end != digits.data() + digits.size() || result > (~std::uint64_t{0} >> shift)) {
    throw unknown(key, value, "a number, which may end in k, m or g");
  }
  return result << shift;
}

unsigned small(std::string_view key, std::string_view value) {
  return static_cast<unsigned>(std::min<std::uint64_t>(number(key, value), 1U << 30));
}

void set_failure(Options& options, std::string_view key, std::string_view value) {
  const std::size_t at = value.find('@');
  const std::string_view what = value.substr(0, at);
  options.fail_at = at == std::string_view::npos ? 1 : number(key, value.substr(at + 1));
  if (what == "none") {
    options.fail = Failure::none;
  } else if (what == "timeout") {
    options.fail = Failure::timeout;
  } else if (what == "interactivity") {
    options.fail = Failure::interactivity;
  } else if (what == "out_of_memory") {
    options.fail = Failure::out_of_memory;
  } else if (what == "submissions_ignored") {
    options.fail = Failure::submissions_ignored;
  } else {
    throw unknown(key, value, "none, timeout, interactivity, out_of_memory or submissions_ignored, and @ which commit");
  }
}

void set_one(Options& options, std::string_view key, std::string_view value) {
  if (key == "threads") {
    options.orders.threads = order(key, value);
  } else if (key == "simdgroups") {
    options.orders.simdgroups = order(key, value);
  } else if (key == "groups") {
    options.orders.groups = order(key, value);
  } else if (key == "seed") {
    options.orders.seed = number(key, value);
  } else if (key == "contract") {
    options.contract = truth(key, value);
  } else if (key == "ftz") {
    options.ftz = truth(key, value);
  } else if (key == "check") {
    options.check = truth(key, value);
  } else if (key == "hide") {
    options.hide = truth(key, value);
  } else if (key == "exit") {
    options.exit = truth(key, value);
  } else if (key == "unified") {
    options.unified = truth(key, value);
  } else if (key == "default") {
    options.named = truth(key, value);
  } else if (key == "family") {
    std::string_view digits = value;
    if (digits.starts_with("apple")) digits.remove_prefix(5);
    options.family = small(key, digits);
    if (options.family < 1 || options.family > 10) throw unknown(key, value, "apple1 to apple10");
  } else if (key == "os") {
    options.os = small(key, value);
  } else if (key == "max_buffer") {
    options.max_buffer = number(key, value);
  } else if (key == "memory") {
    options.memory = number(key, value);
  } else if (key == "page") {
    options.page = number(key, value);
    if (options.page == 0 || (options.page & (options.page - 1)) != 0) throw unknown(key, value, "a power of two");
  } else if (key == "width") {
    options.width = small(key, value);
  } else if (key == "max_threads") {
    options.max_threads = small(key, value);
  } else if (key == "refuse") {
    options.refuse = value;
  } else if (key == "fail") {
    set_failure(options, key, value);
  } else {
    throw unknown(
        key, value,
        "one of threads, simdgroups, groups, seed, contract, ftz, check, hide, exit, unified, default, family, os, "
        "max_buffer, memory, page, width, max_threads, refuse, fail");
  }
}

void at_exit() {
  if (!options().exit || fork_count() != 0) return;
  std::string text = describe_live_objects();
  if (!text.empty()) text = "never released: " + text + "\n";
  for (const std::string& fault : take_late_faults()) text += fault + "\n";
  if (text.empty()) return;
  std::fflush(nullptr);
  std::fputs(("soft Metal at exit: " + text).c_str(), stderr);
  std::_Exit(70);
}

}  // namespace

const char* name(FaultKind kind) noexcept {
  switch (kind) {
    case FaultKind::out_of_bounds:
      return "out of bounds";
    case FaultKind::write_to_read:
      return "write to what may only be read";
    case FaultKind::misaligned:
      return "misaligned";
    case FaultKind::alias:
      return "alias";
    case FaultKind::race:
      return "race";
    case FaultKind::divergence:
      return "divergence";
    case FaultKind::kernel_failure:
      return "kernel failure";
    case FaultKind::unbound:
      return "unbound";
    case FaultKind::bytes_size:
      return "setBytes size";
    case FaultKind::direction:
      return "direction";
    case FaultKind::constant:
      return "function constant";
    case FaultKind::limit:
      return "limit";
    case FaultKind::page:
      return "page";
    case FaultKind::misuse:
      return "misuse";
    case FaultKind::missing_barrier:
      return "missing barrier";
    case FaultKind::in_flight:
      return "in flight";
    case FaultKind::overrun:
      return "overrun";
    case FaultKind::no_pool:
      return "no pool";
    case FaultKind::released:
      return "released";
    case FaultKind::forked:
      return "forked";
    case FaultKind::too_new:
      return "too new";
  }
  return "?";
}

Options parse_options(std::string_view text, const Options& base) {
  Options options = base;
  while (!text.empty()) {
    const std::size_t comma = text.find(',');
    const std::string_view item = text.substr(0, comma);
    text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
    if (item.empty()) continue;
    const std::size_t equals = item.find('=');
    if (equals == std::string_view::npos) {
      throw std::invalid_argument("LLAMA2CPP_SOFT_METAL: '" + std::string(item) + "': expected name=value");
    }
    set_one(options, item.substr(0, equals), item.substr(equals + 1));
  }
  return options;
}

State& state() {
  // Never destroyed: objects may be released by whatever ends after it.
  static State* const all = [] {
    auto* made = new State;
    const char* text = std::getenv("LLAMA2CPP_SOFT_METAL");
    if (text != nullptr) made->options = parse_options(text);
    pthread_atfork(nullptr, nullptr, [] { ++forks; });
    std::atexit(at_exit);
    return made;
  }();
  return *all;
}

unsigned fork_count() { return forks.load(); }

Options options() {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  return all.options;
}

void set_options(const Options& options) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  all.options = options;
  all.commits = 0;
  all.ignoring = false;
}

void set_options(std::string_view text) { set_options(parse_options(text)); }

Counters counters() {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  return all.counters;
}

void reset_counters() {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  all.counters = {};
}

long live_objects() {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  long sum = 0;
  for (const auto& [kind, count] : all.live) sum += count;
  return sum;
}

long live_objects(std::string_view kind) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  const auto found = all.live.find(kind);
  return found == all.live.end() ? 0 : found->second;
}

std::string describe_live_objects() {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  std::string text;
  for (const auto& [kind, count] : all.live) {
    if (count == 0) continue;
    if (!text.empty()) text += ", ";
    text += std::to_string(count) + " " + kind;
  }
  return text;
}

void add_late_fault(FaultKind kind, const std::string& text) noexcept {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  all.late.emplace_back(kind, text);
}

void throw_late_faults() {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  if (all.late.empty()) return;
  const DeviceFault first = all.late.front();
  all.late.clear();
  throw first;
}

std::vector<std::string> take_late_faults() {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  std::vector<std::string> texts;
  for (const DeviceFault& fault : all.late) texts.emplace_back(fault.what());
  all.late.clear();
  return texts;
}

void check_call(const Counted* object, const Machine* machine, const char* call) {
  if (count_of(object) <= 0) {
    throw DeviceFault(FaultKind::released, std::string(call) + " on a " + object->kind() + " that is no more");
  }
  if (machine != nullptr && machine->forks != fork_count()) {
    throw DeviceFault(FaultKind::forked, std::string(call) + " in a forked child: Metal belongs to the parent");
  }
  throw_late_faults();
}

void add_libraries(std::span<const LibraryEntry> entries, bool contracted) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  auto& list = all.added[contracted ? 1 : 0];
  list.insert(list.end(), entries.begin(), entries.end());
}

}  // namespace soft
