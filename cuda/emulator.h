// The part of CUDA C++ that the kernels use, on the CPU: with it a kernel's source compiles as C++20 and runs.
//
// Grids and blocks are one-dimensional. Blocks run one after the other. The threads of a block are fibers of one
// thread of the CPU: each runs until it waits at a barrier, then the next one does. The order in which they do so can be
// turned round: a kernel that lacks a barrier then gives another result. What the threads of a warp do together they do
// by giving each other words, all 32 of them at the same place of the program.
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
#define UNROLL
#define ROLLED
#define __shared__ static thread_local  // one block runs at a time

namespace emulator {

struct Index {
  unsigned x;
};

using Word = uint32_t;
constexpr unsigned WARP = 32;
constexpr int GIVEN = 6;  // words that a thread gives at once

constexpr int DIVERGED = 1;  // some threads wait at a barrier that others never reach
constexpr int TRAPPED = 2;   // a kernel called __trap()

// Run `thread` for every thread of every block. Returns 0, DIVERGED or TRAPPED.
int run(unsigned blocks, unsigned threads, const std::function<void()>& thread);

// Give `count` words to the other threads of the warp, and wait for theirs.
void give(const Word* words, int count);
// What the thread `lane` of the warp gave. Whoever has looked waits by __syncwarp() before it gives again.
const Word* given(int lane);

inline thread_local int status = 0;

}  // namespace emulator

inline thread_local emulator::Index threadIdx, blockIdx, blockDim, gridDim;

void __syncthreads();
void __syncwarp();
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

inline unsigned bfloat16_pair(float low, float high) {
  return static_cast<unsigned>(__float2bfloat16_rn(high)) << 16 | __float2bfloat16_rn(low);
}

inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }

inline void sincosf(float angle, float* sine, float* cosine) {
  *sine = std::sin(angle);
  *cosine = std::cos(angle);
}

// Bytes of the eight of b:a, one for every hexadecimal digit of `chosen`, the lowest first.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned chosen) {
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  unsigned out = 0;
  for (int n = 0; n < 4; ++n) out |= static_cast<unsigned>(both >> 8 * (chosen >> 4 * n & 7) & 255) << 8 * n;
  return out;
}

// The 32 bits of high:low from bit shift % 32 on.
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}

inline unsigned saturated_bytes(int first, int second, int third, int fourth) {
  unsigned all = 0;
  for (const int value : {fourth, third, second, first}) all = all << 8 | static_cast<unsigned>(std::clamp(value, 0, 255));
  return all;
}

inline void multiply_bytes(int (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  const emulator::Word own[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  emulator::give(own, 6);
  const int row = static_cast<int>(threadIdx.x % 32) / 4, column = static_cast<int>(threadIdx.x % 4) * 2;
  for (int n = 0; n < 4; ++n) {
    for (int k = 0; k < 32; ++k) {
      const int lane = k % 16 / 4, shift = k % 4 * 8, late = k / 16;
      const auto weight = static_cast<int8_t>(emulator::given(4 * row + lane)[n / 2 + 2 * late] >> shift & 255);
      const auto value = static_cast<uint8_t>(emulator::given(4 * (column + n % 2) + lane)[4 + late] >> shift & 255);
      sums[n] += weight * value;
    }
  }
  __syncwarp();
}

inline int __shfl_up_sync(unsigned, int value, unsigned reach) {
  const emulator::Word own = static_cast<emulator::Word>(value);
  emulator::give(&own, 1);
  const int lane = static_cast<int>(threadIdx.x % 32), from = lane - static_cast<int>(reach);
  const int found = static_cast<int>(emulator::given(from < 0 ? lane : from)[0]);
  __syncwarp();
  return found;
}

// Bit n: whether it is so in thread n of the warp, all of whose threads must come here.
inline unsigned __ballot_sync(unsigned, bool value) {
  const emulator::Word own = value;
  emulator::give(&own, 1);
  unsigned all = 0;
  for (int lane = 0; lane < 32; ++lane) all |= emulator::given(lane)[0] << lane;
  __syncwarp();
  return all;
}

inline int __shfl_sync(unsigned, int value, int from) {
  const emulator::Word own = static_cast<emulator::Word>(value);
  emulator::give(&own, 1);
  const int found = static_cast<int>(emulator::given(from)[0]);
  __syncwarp();
  return found;
}

inline int __popc(unsigned bits) { return std::popcount(bits); }

template <typename A, typename B>
auto min(A a, B b) {
  return a < b ? a : b;
}
template <typename A, typename B>
auto max(A a, B b) {
  return a > b ? a : b;
}
