// What processes that were killed while they wrote have left in a folder.
#pragma once

#include <filesystem>

namespace llama2cpp {

// Removes it, of whatever target; gives a folder that was put aside its name back where nothing else has that name. What
// cannot be removed stays. Throws std::bad_alloc alone.
void remove_leftovers(const std::filesystem::path& folder);

}  // namespace llama2cpp
