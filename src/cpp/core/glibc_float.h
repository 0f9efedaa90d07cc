// Numbers that the GNU C library's float functions (since 2.28, on processors with fma) are made of. With them our own
// code gives its results to the bit on every platform: the kernels of Arithmetic::llama2c and the sampler its expf, rotary
// embedding its powf, sinf and cosf. Data only: files of any instruction set may include it.
#pragma once

#include <cstdint>
#include <limits>

namespace llama2cpp {

// e^x = 2^(k / 32) * 2^(r / 32), where k is the integer next to x * kExpScale and r is what is left, in [-1/2, 1/2].
inline constexpr double kExpScale = 0x1.71547652b82fep+5;  // 32 / ln 2
inline constexpr double kExpRound = 0x1.8p+52;             // adding it rounds to an integer, to nearest even

// 2^(r / 32) = ((kExpCubic r + kExpSquare) r^2) + (kExpLinear r + 1)
inline constexpr double kExpCubic = 0x1.c6af84b912394p-20;
inline constexpr double kExpSquare = 0x1.ebfce50fac4f3p-13;
inline constexpr double kExpLinear = 0x1.62e42ff0c52d6p-6;

// Below and above these e^x is 0 and infinity.
inline constexpr float kExpLowest = -0x1.9fe368p+6F;
inline constexpr float kExpHighest = 0x1.62e42ep+6F;
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The bits of 2^(i / 32) as a double, less i << 47: adding any k << 47 with k = i mod 32 gives the bits of 2^(k / 32).
inline constexpr std::uint64_t kExpTable[32] = {
    0x3ff0000000000000, 0x3fefd9b0d3158574, 0x3fefb5586cf9890f, 0x3fef9301d0125b51, 0x3fef72b83c7d517b,
    0x3fef54873168b9aa, 0x3fef387a6e756238, 0x3fef1e9df51fdee1, 0x3fef06fe0a31b715, 0x3feef1a7373aa9cb,
    0x3feedea64c123422, 0x3feece086061892d, 0x3feebfdad5362a27, 0x3feeb42b569d4f82, 0x3feeab07dd485429,
    0x3feea47eb03a5585, 0x3feea09e667f3bcd, 0x3fee9f75e8ec5f74, 0x3feea11473eb0187, 0x3feea589994cce13,
    0x3feeace5422aa0db, 0x3feeb737b0cdc5e5, 0x3feec49182a3f090, 0x3feed503b23e255d, 0x3feee89f995ad3ad,
    0x3feeff76f2fb5e47, 0x3fef199bdd85529c, 0x3fef3720dcef9069, 0x3fef5818dcfba487, 0x3fef7c97337b9b5f,
    0x3fefa4afa2a490da, 0x3fefd0765b6e4540};

}  // namespace llama2cpp
