// Included by probe.metal.
#pragma once

struct ProbeArgs {
  uint32_t n;
};
