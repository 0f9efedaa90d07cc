// Rotary angles as llama2.c has them: what the GNU C library's float functions give, on every platform.
#pragma once

namespace llama2cpp {

// powf(10000, y) for y in [0, 1].
float llama2c_power_of_10000(float y);

// sinf and cosf of an angle, which is finite and not below 0.
struct SinCos {
  float sin;
  float cos;
};
SinCos llama2c_sin_cos(float angle);

}  // namespace llama2cpp
