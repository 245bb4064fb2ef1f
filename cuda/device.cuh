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
