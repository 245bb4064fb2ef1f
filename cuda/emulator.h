// The part of CUDA C++ that the kernels use, on the CPU: with it a kernel's source compiles as C++20 and runs.
//
// Grids and blocks are one-dimensional. Blocks run one after the other. The threads of a block are fibers of one
// thread of the CPU: each runs until it waits at a barrier, then the next one does. The order in which they do so can be
// turned round: a kernel that lacks a barrier then gives another result.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static thread_local  // one block runs at a time

namespace emulator {

struct Index {
  unsigned x;
};

constexpr int DIVERGED = 1;  // some threads of a block wait at a barrier that others never reach
constexpr int TRAPPED = 2;   // a kernel called __trap()

// Run `thread` for every thread of every block. Returns 0, DIVERGED or TRAPPED.
int run(unsigned blocks, unsigned threads, const std::function<void()>& thread);

inline thread_local int status = 0;

}  // namespace emulator

inline thread_local emulator::Index threadIdx, blockIdx, blockDim, gridDim;

void __syncthreads();
[[noreturn]] void __trap();

#define LAUNCH(kernel, grid, block, stream, ...)                             \
  do {                                                                       \
    static_cast<void>(stream);                                               \
    const int ended = emulator::run(grid, block, [&] { kernel(__VA_ARGS__); }); \
    if (ended && !emulator::status) emulator::status = ended;                \
  } while (false)

inline int launch_status() {
  const int status = emulator::status;
  emulator::status = 0;
  return status;
}

inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }

// To the nearest, ties to even; a NaN stays one.
inline uint16_t __float2bfloat16_rn(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (value != value) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline uint16_t __bfloat16_as_ushort(uint16_t bits) { return bits; }

inline void sincosf(float angle, float* sine, float* cosine) {
  *sine = std::sin(angle);
  *cosine = std::cos(angle);
}

template <typename A, typename B>
auto min(A a, B b) {
  return a < b ? a : b;
}
template <typename A, typename B>
auto max(A a, B b) {
  return a > b ? a : b;
}
