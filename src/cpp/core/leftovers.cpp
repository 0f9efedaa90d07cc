#include "core/leftovers.h"

#include <string>
#include <system_error>

#include "core/new_entry.h"
#include "core/random_name.h"

namespace llama2cpp {
namespace fs = std::filesystem;
namespace {

bool is_ours(const std::string& name, const std::string& suffix) {
  const std::string prefix = kNewEntryPrefix;
  if (!name.starts_with(prefix) || !name.ends_with(suffix) || name.size() < prefix.size() + suffix.size()) return false;
  return is_random_name(name.substr(prefix.size(), name.size() - prefix.size() - suffix.size()));
}

void remove_entry(const fs::path& entry) {
  std::error_code ignored;
  fs::remove_all(entry, ignored);
}

// `holder` has one entry, which had this name in the folder around it.
void put_back(const fs::path& holder) {
  for_each_entry(holder, [&](const fs::path& entry) {
    rename_to_free(entry, holder.parent_path() / entry.filename());  // else a newer one is there
  });
  remove_entry(holder);
}

}  // namespace

void remove_leftovers(const fs::path& folder) {
  for_each_entry(folder, [](const fs::path& entry) {
    const std::string name = from_native(entry.filename());
    try {
      if (is_ours(name, kNewEntrySuffix)) if_abandoned(entry, remove_entry);
      if (is_ours(name, kPutAsideSuffix)) if_abandoned(entry, put_back);
    } catch (const std::system_error&) {  // of this one; perhaps the next can be removed
    }
  });
}

}  // namespace llama2cpp
