// What every kernel needs, for nvcc and for the emulator: number formats, vectors, launching.
#pragma once

#include <cstdint>

#include "kernels.h"

#ifdef ONEVISION_EMULATED
#include "emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#define LAUNCH(kernel, grid, block, stream, ...) \
  kernel<<<(grid), (block), 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
inline int launch_status() { return static_cast<int>(cudaGetLastError()); }
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")

// sums += a * b: sums of 16 rows and 8 columns, a of 16 rows and 32 signed bytes, b of 32 unsigned bytes and 8 columns.
// What thread 4 * r + c of a warp holds: sums of rows r and r + 8, columns 2 * c and 2 * c + 1; words of four bytes
// along the sum: a of rows r, r + 8, r, r + 8, words c, c, c + 4, c + 4; b of column r, words c, c + 4.
__device__ inline void multiply_bytes(int (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four numbers as bytes, the first lowest; what is below 0 or above 255 becomes that.
__device__ inline unsigned saturated_bytes(int first, int second, int third, int fourth) {
  unsigned high, all;
  asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, 0;" : "=r"(high) : "r"(fourth), "r"(third));
  asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, %3;" : "=r"(all) : "r"(second), "r"(first), "r"(high));
  return all;
}

__device__ inline unsigned bfloat16_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&pair);
}
#endif

__device__ inline int thread_number() { return static_cast<int>(threadIdx.x); }

// The bits of a bfloat16. Own type, so that the emulator needs none of CUDA's headers.
struct bf16 {
  uint16_t bits;
};

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(bf16 value) { return __uint_as_float(static_cast<unsigned>(value.bits) << 16); }

template <typename T>
__device__ inline T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
  return value;
}
template <>
__device__ inline bf16 from_float<bf16>(float value) {
  return bf16{__bfloat16_as_ushort(__float2bfloat16_rn(value))};
}

// Two values side by side, moved as one.
__device__ inline void store_pair(float* to, float low, float high) {
  to[0] = low;
  to[1] = high;
}
__device__ inline void store_pair(bf16* to, float low, float high) {
  *reinterpret_cast<unsigned*>(to) = bfloat16_pair(low, high);
}

// Byte n of a word times a factor, rounded once: the byte becomes the last places of 2^23, which leaves within the one
// operation; 2^23 times the factor is exact.
__device__ inline float byte_times(unsigned word, unsigned n, float factor) {
  return __fmaf_rn(__uint_as_float(__byte_perm(word, 0x4b000000u, 0x7540u + n)), factor, -8388608.0f * factor);
}

// WIDTH values that are moved as one.
template <typename T, int WIDTH>
struct alignas(sizeof(T) * WIDTH) Vector {
  T values[WIDTH];
};

// The first index of the ascending values[first, last) whose value is above `wanted`, or last.
__device__ inline int64_t upper_bound(const int64_t* values, int64_t first, int64_t last, int64_t wanted) {
  while (first < last) {
    const int64_t middle = first + (last - first) / 2;
    if (values[middle] <= wanted) {
      first = middle + 1;
    } else {
      last = middle;
    }
  }
  return first;
}

inline unsigned blocks_for(int64_t items, int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}
