// bfloat16 on the CPU.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels.h"

struct Bfloat16 {
  uint16_t bits;
  operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

template <typename T>
T rounded(float value);
template <>
inline float rounded<float>(float value) {
  return value;
}
template <>
inline Bfloat16 rounded<Bfloat16>(float value) {  // to the nearest, ties to even
  if (std::isnan(value)) return {0x7fff};
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
