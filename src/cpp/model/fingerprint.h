// Which model is it? Enough to tell a session file of this model from one of another.
#pragma once

#include <span>
#include <string>

#include "io/checkpoint.h"

namespace llama2cpp {

// 32 hexadecimal digits: a hash of the config, and of each weight's name, format, shape and samples of its bytes (the
// first, middle and last 4 KB of each plane), so that large models take milliseconds. It does not depend on how the
// file was opened, on packing, on the machine, nor on the file's own format: arrays under a file's names, with equal
// bytes, are the same model. It tells models apart by what they are; it is no proof against a forger.
std::string fingerprint(const Checkpoint& checkpoint);

struct LowRankPart;

// The same of an adapter: a hash of each part, in order, with all of its bytes.
std::string fingerprint(std::span<const LowRankPart> parts);

}  // namespace llama2cpp
