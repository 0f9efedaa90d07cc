// Names of parts, in both directions.
#include "io/names.h"

#include <algorithm>
#include <string_view>

#include "core/check.h"

namespace llama2cpp {
namespace {

// What a family puts around the table's names.
struct Family {
  Naming naming;
  std::string_view whose;
  std::string_view layer;             // before a layer's number
  std::string_view PartFacts::*stem;  // what names a part
};

// In the order of Naming.
constexpr Family kFamilies[] = {
    {Naming::meta, "Llama's and llama2.c's", "layers.", &PartFacts::meta},
    {Naming::hugging_face, "Hugging Face's", "model.layers.", &PartFacts::hugging_face},
    {Naming::gguf, "GGUF's", "blk.", &PartFacts::gguf},
};

constexpr std::size_t kMaxLayerDigits = 9;  // a layer's number is below 10^9, whatever a file calls its tensors

const Family& family_of(Naming naming) { return kFamilies[static_cast<std::size_t>(naming)]; }

std::string_view ending_of(const Family& family, const PartFacts& row) {
  if (row.kind == PartKind::sinks && family.naming == Naming::hugging_face) return "";
  return row.kind == PartKind::bias || row.kind == PartKind::expert_biases ? ".bias" : ".weight";
}

constexpr std::string_view kExpert = "{}";  // its number's place in a stem

std::string name_of(const Family& family, const PartFacts& row, std::string_view layer, std::string_view expert) {
  std::string stem(row.*family.stem);
  if (per_expert(row.kind)) stem.replace(stem.find(kExpert), kExpert.size(), expert);
  if (row.scope == Scope::model) return cat(stem, ending_of(family, row));
  return cat(family.layer, layer, ".", stem, ending_of(family, row));
}

// A layer's number, or an expert's.
std::optional<std::int64_t> number_of(std::string_view digits) {
  if (digits.empty() || digits.size() > kMaxLayerDigits || (digits.size() > 1 && digits.front() == '0')) return {};
  std::int64_t number = 0;
  for (const char c : digits) {
    if (c < '0' || c > '9') return {};
    number = number * 10 + (c - '0');
  }
  return number;
}

// The layer and the expert in a name that is this part's: 0 where no layer or no expert has it.
std::optional<NamedPart> match(std::string_view name, const Family& family, const PartFacts& row) {
  const auto take_end = [&](std::string_view end) {
    const bool ends_so = name.ends_with(end);
    if (ends_so) name.remove_suffix(end.size());
    return ends_so;
  };
  const std::string_view stem = row.*family.stem;
  const std::size_t place = per_expert(row.kind) ? stem.find(kExpert) : stem.size();
  NamedPart found{row.part, 0, 0};
  if (!take_end(ending_of(family, row))) return {};
  if (per_expert(row.kind)) {
    if (!take_end(stem.substr(place + kExpert.size()))) return {};
    const std::size_t digits = name.find_last_not_of("0123456789") + 1;
    const std::optional<std::int64_t> expert = number_of(name.substr(digits));
    if (!expert) return {};
    found.expert = *expert;
    name = name.substr(0, digits);
  }
  if (!take_end(stem.substr(0, place))) return {};
  if (row.scope == Scope::model) return name.empty() ? std::optional(found) : std::nullopt;
  if (!take_end(".") || !name.starts_with(family.layer)) return {};
  const std::optional<std::int64_t> layer = number_of(name.substr(family.layer.size()));
  if (!layer) return {};
  found.layer = *layer;
  return found;
}

// The first of `names` that this family has and no other, or null.
const std::string* find_name(std::span<const std::string> names, Naming naming) {
  const auto own = [&](const std::string& name) {
    return std::all_of(std::begin(kFamilies), std::end(kFamilies), [&](const Family& family) {
      return find_part(family.naming, name).has_value() == (family.naming == naming);
    });
  };
  const auto found = std::find_if(names.begin(), names.end(), own);
  return found == names.end() ? nullptr : &*found;
}

[[noreturn]] void throw_no_family(std::span<const std::string> names) {
  std::string looked_for;
  for (const Family& family : kFamilies) {
    looked_for += cat(looked_for.empty() ? "" : ", ", "'", weight_name(family.naming, Part::tok_embeddings), "' and '",
                      weight_name(family.naming, Part::wq), "' (", family.whose, ")");
  }
  throw std::invalid_argument(cat("none of the ", names.size(), " names is a Llama's: looked for names such as ",
                                  looked_for, names.empty() ? "" : "; the first is '",
                                  names.empty() ? "" : names.front(), names.empty() ? "" : "'"));
}

}  // namespace

std::string weight_name(Naming naming, Part part, std::int64_t layer, std::int64_t expert) {
  return name_of(family_of(naming), facts(part), cat(layer), cat(expert));
}

std::string weight_pattern(Naming naming, Part part) { return name_of(family_of(naming), facts(part), "{}", kExpert); }

std::optional<NamedPart> find_part(Naming naming, std::string_view name) {
  for (const PartFacts& row : kParts) {
    if (const auto found = match(name, family_of(naming), row)) return found;
  }
  return {};
}

std::optional<NamedPart> find_part(Naming naming, std::string_view name, const Config& config) {
  const std::optional<NamedPart> found = find_part(naming, name);
  if (!found || (per_layer(found->part) && found->layer >= config.n_layers)) return {};
  const bool other_mlp = config.n_experts > 0 ? of_dense_mlp(found->part) : of_experts(found->part);
  return other_mlp || found->expert >= count_of(config, found->part) ? std::nullopt : found;
}

Naming detect_naming(std::span<const std::string> names) {
  const Family* found = nullptr;
  const std::string* example = nullptr;
  for (const Family& family : kFamilies) {
    const std::string* name = find_name(names, family.naming);
    if (name == nullptr) continue;
    if (found != nullptr) {
      throw std::invalid_argument(
          cat("the names mix two families: '", *example, "' is ", found->whose, ", '", *name, "' is ", family.whose));
    }
    found = &family;
    example = name;
  }
  if (found == nullptr) throw_no_family(names);
  return found->naming;
}

}  // namespace llama2cpp
