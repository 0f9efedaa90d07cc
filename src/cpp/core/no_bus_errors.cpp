// For systems without SIGBUS, which do not let a mapped file become shorter.
#include "core/bus_errors.h"

namespace llama2cpp {

struct MapWatch::Entry {};

MapWatch::MapWatch(const std::byte* /*begin*/, std::size_t /*bytes*/, const std::string& /*path*/) {}
MapWatch::~MapWatch() = default;
void MapWatch::begin_reading() const { static_cast<void>(entry_); }
void MapWatch::end_reading() const {}
std::optional<std::size_t> MapWatch::broken() const { return {}; }

}  // namespace llama2cpp
