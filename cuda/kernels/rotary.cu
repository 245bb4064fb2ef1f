// Rotary embedding of packed q and k. Bound by memory: 16 bytes move at once, and an angle's sine is computed once for
// all heads. Sums are in float32 and rounded once.
#include "device.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int TOKENS = 4;  // of a block
constexpr int MAX_HALF = 128;

template <typename T, int WIDTH>
__device__ void turn(const OvHeads& from, T* to, int64_t token, int head, int group, int half, const float* cosine,
                     const float* sine) {
  using Values = Vector<T, WIDTH>;
  const T* source = static_cast<const T*>(from.data) + token * from.token_stride + head * from.head_stride;
  T* target = to + (token * from.heads + head) * 2 * half;
  const int low = group * WIDTH, high = low + half;
  const Values a = *reinterpret_cast<const Values*>(source + low);
  const Values b = *reinterpret_cast<const Values*>(source + high);
  Values turned_a, turned_b;
  for (int i = 0; i < WIDTH; ++i) {
    const float x = to_float(a.values[i]), y = to_float(b.values[i]);
    turned_a.values[i] = from_float<T>(x * cosine[low + i] - y * sine[low + i]);
    turned_b.values[i] = from_float<T>(y * cosine[low + i] + x * sine[low + i]);
  }
  *reinterpret_cast<Values*>(target + low) = turned_a;
  *reinterpret_cast<Values*>(target + high) = turned_b;
}

template <typename T, int WIDTH>
__global__ void __launch_bounds__(THREADS)
    rotary_kernel(OvHeads q, OvHeads k, const float* angles, T* out_q, T* out_k, int64_t tokens, int half, int inverse) {
  __shared__ float cosine[TOKENS * MAX_HALF];
  __shared__ float sine[TOKENS * MAX_HALF];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * TOKENS;
  const int count = static_cast<int>(min(static_cast<int64_t>(TOKENS), tokens - first));
  for (int i = thread_number(); i < count * half; i += THREADS) {
    float s, c;
    sincosf(angles[first * half + i], &s, &c);
    cosine[i] = c;
    sine[i] = inverse ? -s : s;
  }
  __syncthreads();
  const int groups = half / WIDTH, heads = q.heads + k.heads;
  for (int item = thread_number(); item < count * heads * groups; item += THREADS) {
    const int group = item % groups, rest = item / groups;
    const int head = rest % heads, row = rest / heads;
    const float *c = cosine + row * half, *s = sine + row * half;
    if (head < q.heads) {
      turn<T, WIDTH>(q, out_q, first + row, head, group, half, c, s);
    } else {
      turn<T, WIDTH>(k, out_k, first + row, head - q.heads, group, half, c, s);
    }
  }
}

constexpr int LANES = 32;  // angles that a block sums at once
constexpr int PARTS = 8;   // parts of the heads that it sums apart

template <typename T>
__device__ float sum_heads(const OvHeads& x, const OvHeads& grad, int64_t token, int part, int j, int half) {
  float sum = 0;
  for (int head = part; head < x.heads; head += PARTS) {
    const T* values = static_cast<const T*>(x.data) + token * x.token_stride + head * x.head_stride;
    const T* grads = static_cast<const T*>(grad.data) + token * grad.token_stride + head * grad.head_stride;
    sum += to_float(grads[j + half]) * to_float(values[j]) - to_float(grads[j]) * to_float(values[j + half]);
  }
  return sum;
}

// The turn by an angle changes the pair at right angles to itself; in the frame of the inputs that is (-y, x).
template <typename T>
__global__ void __launch_bounds__(LANES* PARTS)
    rotary_angles_kernel(OvHeads q, OvHeads k, OvHeads grad_q, OvHeads grad_k, float* out, int half) {
  __shared__ float sums[PARTS][LANES];
  const int64_t token = blockIdx.x;
  const int lane = thread_number() % LANES, part = thread_number() / LANES;
  for (int base = 0; base < half; base += LANES) {
    const int j = base + lane;
    if (j < half) {
      sums[part][lane] =
          sum_heads<T>(q, grad_q, token, part, j, half) + sum_heads<T>(k, grad_k, token, part, j, half);
    }
    __syncthreads();
    if (part == 0 && j < half) {
      float sum = 0;
      for (int p = 0; p < PARTS; ++p) sum += sums[p][lane];
      out[token * half + j] = sum;
    }
    __syncthreads();
  }
}

bool aligned(const OvHeads& x, int64_t bytes, int64_t element) {
  return reinterpret_cast<uintptr_t>(x.data) % bytes == 0 && x.token_stride * element % bytes == 0 &&
         x.head_stride * element % bytes == 0;
}

template <typename T>
int rotary(OvHeads q, OvHeads k, const float* angles, void* out_q, void* out_k, int64_t tokens, int half, int inverse,
           void* stream) {
  constexpr int WIDE = 16 / sizeof(T);
  T *to_q = static_cast<T*>(out_q), *to_k = static_cast<T*>(out_k);
  const unsigned blocks = blocks_for(tokens, TOKENS);
  if (half % WIDE == 0 && aligned(q, 16, sizeof(T)) && aligned(k, 16, sizeof(T))) {
    LAUNCH((rotary_kernel<T, WIDE>), blocks, THREADS, stream, q, k, angles, to_q, to_k, tokens, half, inverse);
  } else {
    LAUNCH((rotary_kernel<T, 1>), blocks, THREADS, stream, q, k, angles, to_q, to_k, tokens, half, inverse);
  }
  return launch_status();
}

}  // namespace

OV_ROTARY(ov_rotary) {
  if (tokens == 0) return 0;
  return dtype == OV_BFLOAT16 ? rotary<bf16>(q, k, angles, out_q, out_k, tokens, half, inverse, stream)
                              : rotary<float>(q, k, angles, out_q, out_k, tokens, half, inverse, stream);
}

OV_ROTARY_ANGLES(ov_rotary_angles) {
  if (tokens == 0) return 0;
  const unsigned blocks = static_cast<unsigned>(tokens);
  if (dtype == OV_BFLOAT16) {
    LAUNCH((rotary_angles_kernel<bf16>), blocks, LANES * PARTS, stream, q, k, grad_q, grad_k, out, half);
  } else {
    LAUNCH((rotary_angles_kernel<float>), blocks, LANES * PARTS, stream, q, k, grad_q, grad_k, out, half);
  }
  return launch_status();
}
