// Included by faults.metal and by its test.
#pragma once

struct FaultArgs {
  uint32_t n;
  int32_t read;
  int32_t write;
};

struct FaultBlock {
  uint16_t scale;
  uint8_t values[4];
};
