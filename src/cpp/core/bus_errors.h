// What becomes of a fault in a mapped file (SIGBUS): a page that the file does not have any more, because it was shortened, or
// that its disk cannot read. Where there is no such signal, no_bus_errors.cpp does nothing.
#pragma once

#include <cstddef>
#include <optional>
#include <string>

namespace llama2cpp {

// One mapped file that is watched. The first one puts a handler in front of the process's own for SIGBUS, unless the environment
// variable LLAMA2CPP_SIGBUS is 0. For an address in a watched map the handler names the file on the standard error. If the
// core is reading the map (begin_reading), zeros take the place of the file from there on, and broken() says so. Everything
// else goes to the handler that was there before.
class MapWatch {
 public:
  MapWatch(const std::byte* begin, std::size_t bytes, const std::string& path);
  ~MapWatch();
  MapWatch(const MapWatch&) = delete;
  MapWatch& operator=(const MapWatch&) = delete;

  void begin_reading() const;
  void end_reading() const;

  // The byte at which a fault was turned into zeros.
  std::optional<std::size_t> broken() const;

 private:
  struct Entry;
  friend struct BusErrors;
  Entry* entry_ = nullptr;
};

}  // namespace llama2cpp
