// Image features into the embedded sequence, out of place, in one pass: every row of the result is copied from where it
// comes. Slots ascend, so a row finds its feature by bisection, and the threads of a block do that for its rows at once.
// Bound by memory: a thread has a piece of each of its block's rows under way at a time.
#include "device.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int ROWS = 8;  // of a block

struct alignas(16) Piece {
  uint64_t values[2];
};

// Which of slots[count], ascending, is `place`; -1: none.
__device__ int64_t find(const int64_t* slots, int64_t count, int64_t place) {
  const int64_t after = upper_bound(slots, 0, count, place);
  return after > 0 && slots[after - 1] == place ? after - 1 : -1;
}

// Every launch looks at all slots: the bisection is silently wrong where they do not ascend.
__device__ void check_slots(const int64_t* slots, int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t n = 1 + static_cast<int64_t>(blockIdx.x) * THREADS + thread_number(); n < count; n += stride) {
    if (slots[n - 1] >= slots[n]) __trap();
  }
}

template <typename P>
__global__ void __launch_bounds__(THREADS)
    scatter_kernel(const P* embedded, const P* features, const int64_t* slots, P* out, int64_t rows, int64_t count,
                   int64_t first, int pieces) {
  __shared__ int64_t source[ROWS];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * ROWS;
  const int own = static_cast<int>(min(static_cast<int64_t>(ROWS), rows - begin));
  if (thread_number() < own) source[thread_number()] = find(slots, count, first + begin + thread_number());
  check_slots(slots, count);
  __syncthreads();
  const P* from[ROWS];
  for (int row = 0; row < ROWS; ++row) {
    const int64_t feature = source[min(row, own - 1)];
    from[row] = feature < 0 ? embedded + (begin + row) * pieces : features + feature * pieces;
  }
  for (int i = thread_number(); i < pieces; i += THREADS) {
    P values[ROWS];
    UNROLL
    for (int row = 0; row < ROWS; ++row) {
      if (row < own) values[row] = from[row][i];
    }
    UNROLL
    for (int row = 0; row < ROWS; ++row) {
      if (row < own) out[(begin + row) * pieces + i] = values[row];
    }
  }
}

// The rows of grad that are features are moved to theirs and are zero in grad_embedded; a feature whose slot lies
// outside has no gradient here. The first row_blocks blocks write grad_embedded, those after them grad_features.
template <typename P>
__global__ void __launch_bounds__(THREADS)
    scatter_backward_kernel(const P* grad, const int64_t* slots, P* grad_embedded, P* grad_features, int64_t rows,
                            int64_t count, int64_t first, int pieces, unsigned row_blocks) {
  __shared__ int64_t source[ROWS];
  const bool to_embedded = blockIdx.x < row_blocks;
  const int64_t begin = static_cast<int64_t>(to_embedded ? blockIdx.x : blockIdx.x - row_blocks) * ROWS;
  const int own = static_cast<int>(min(static_cast<int64_t>(ROWS), (to_embedded ? rows : count) - begin));
  if (thread_number() < own) {
    const int64_t n = begin + thread_number();
    const int64_t row = to_embedded ? n : slots[n] - first;
    const bool here = to_embedded ? find(slots, count, first + n) < 0 : row >= 0 && row < rows;
    source[thread_number()] = here ? row : -1;
  }
  __syncthreads();
  P* target = (to_embedded ? grad_embedded : grad_features) + begin * pieces;
  int64_t from[ROWS];
  for (int row = 0; row < ROWS; ++row) from[row] = row < own ? source[row] : -1;
  for (int i = thread_number(); i < pieces; i += THREADS) {
    P values[ROWS];
    UNROLL
    for (int row = 0; row < ROWS; ++row) values[row] = from[row] >= 0 ? grad[from[row] * pieces + i] : P{};
    UNROLL
    for (int row = 0; row < ROWS; ++row) {
      if (row < own) target[static_cast<int64_t>(row) * pieces + i] = values[row];
    }
  }
}

template <typename P>
int scatter(const void* embedded, const void* features, const int64_t* slots, void* out, int64_t rows, int64_t count,
            int64_t first, int64_t row_bytes, void* stream) {
  LAUNCH((scatter_kernel<P>), blocks_for(rows, ROWS), THREADS, stream, static_cast<const P*>(embedded),
         static_cast<const P*>(features), slots, static_cast<P*>(out), rows, count, first,
         static_cast<int>(row_bytes / sizeof(P)));
  return launch_status();
}

template <typename P>
int scatter_backward(const void* grad, const int64_t* slots, void* grad_embedded, void* grad_features, int64_t rows,
                     int64_t count, int64_t first, int64_t row_bytes, void* stream) {
  const unsigned row_blocks = blocks_for(rows, ROWS);
  LAUNCH((scatter_backward_kernel<P>), row_blocks + blocks_for(count, ROWS), THREADS, stream,
         static_cast<const P*>(grad), slots, static_cast<P*>(grad_embedded), static_cast<P*>(grad_features), rows,
         count, first, static_cast<int>(row_bytes / sizeof(P)), row_blocks);
  return launch_status();
}

bool wide(const void* a, const void* b, const void* c, int64_t row_bytes) {
  const uintptr_t together = reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) |
                             reinterpret_cast<uintptr_t>(c) | static_cast<uintptr_t>(row_bytes);
  return together % sizeof(Piece) == 0;
}

}  // namespace

OV_SCATTER(ov_scatter) {
  if (rows == 0 || row_bytes == 0) return 0;
  return wide(embedded, features, out, row_bytes)
             ? scatter<Piece>(embedded, features, slots, out, rows, count, first, row_bytes, stream)
             : scatter<uint16_t>(embedded, features, slots, out, rows, count, first, row_bytes, stream);
}

OV_SCATTER_BACKWARD(ov_scatter_backward) {
  if (rows + count == 0 || row_bytes == 0) return 0;
  return wide(grad, grad_embedded, grad_features, row_bytes)
             ? scatter_backward<Piece>(grad, slots, grad_embedded, grad_features, rows, count, first, row_bytes, stream)
             : scatter_backward<uint16_t>(grad, slots, grad_embedded, grad_features, rows, count, first, row_bytes,
                                          stream);
}
