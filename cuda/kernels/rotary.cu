// Rotary embedding of packed q and k. Bound by memory: 16 bytes move at once, and an angle's sine is computed once for
// all heads, while the first pieces of q and k are under way. Sums are in float32 and rounded once.
//
// 32,768 tokens of 16 heads of 64 in BF16 are 273 MB a call, forward as for the gradient of the angles: 91 us at the
// 3.0 TB/s of an H100's copy; the first was measured at 92 to 94 % of that. The gradient of the angles takes about 5,500
// instructions of a warp for the 32 KB of a block, 1,400 of the 2,500 cycles that these bytes take: memory binds, with
// eight loads of 16 bytes a thread; 75 to 85 % are to be expected, where an earlier form had 59 %.
#include "device.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int TOKENS = 8;  // of a block
constexpr int AHEAD = 2;   // pieces of q and k that a thread has under way at a time
constexpr int MAX_HALF = 128;

// WIDTH pairs of a head of one of two tensors.
template <typename T, int WIDTH>
struct Piece {
  const T* from;
  T* to;
  int angle;  // the place of its first among the block's
};

template <typename T, int WIDTH>
__device__ Piece<T, WIDTH> piece_of(const OvHeads& q, const OvHeads& k, T* out_q, T* out_k, int64_t first, int half,
                                    int item) {
  const int groups = half / WIDTH, heads = q.heads + k.heads;
  const int group = item % groups, rest = item / groups;
  const int head = rest % heads, row = rest / heads;
  const bool of_q = head < q.heads;
  const OvHeads& x = of_q ? q : k;
  const int64_t token = first + row, own = of_q ? head : head - q.heads;
  const T* from = static_cast<const T*>(x.data) + token * x.token_stride + own * x.head_stride + group * WIDTH;
  T* to = (of_q ? out_q : out_k) + (token * x.heads + own) * 2 * half + group * WIDTH;
  return {from, to, row * half + group * WIDTH};
}

template <typename T, int WIDTH>
__global__ void __launch_bounds__(THREADS, 4)
    rotary_kernel(OvHeads q, OvHeads k, const float* angles, T* out_q, T* out_k, int64_t tokens, int half, int inverse) {
  using Values = Vector<T, WIDTH>;
  using Floats = Vector<float, WIDTH>;
  alignas(32) __shared__ float cosine[TOKENS * MAX_HALF];
  alignas(32) __shared__ float sine[TOKENS * MAX_HALF];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * TOKENS;
  const int count = static_cast<int>(min(static_cast<int64_t>(TOKENS), tokens - first));
  const int items = count * (q.heads + k.heads) * (half / WIDTH);
  bool ready = false;  // cosine and sine
  for (int begin = 0; begin < items; begin += AHEAD * THREADS) {
    Piece<T, WIDTH> pieces[AHEAD];
    Values low[AHEAD], high[AHEAD];
    UNROLL
    for (int i = 0; i < AHEAD; ++i) {
      const int item = begin + i * THREADS + thread_number();
      pieces[i] = piece_of<T, WIDTH>(q, k, out_q, out_k, first, half, min(item, items - 1));
      low[i] = *reinterpret_cast<const Values*>(pieces[i].from);
      high[i] = *reinterpret_cast<const Values*>(pieces[i].from + half);
    }
    if (!ready) {  // while the first pieces come
      for (int i = thread_number(); i < count * half; i += THREADS) {
        float s, c;
        sincosf(angles[first * half + i], &s, &c);
        cosine[i] = c;
        sine[i] = inverse ? -s : s;
      }
      __syncthreads();
      ready = true;
    }
    UNROLL
    for (int i = 0; i < AHEAD; ++i) {
      if (begin + i * THREADS + thread_number() >= items) break;
      const Floats c = *reinterpret_cast<const Floats*>(cosine + pieces[i].angle);
      const Floats s = *reinterpret_cast<const Floats*>(sine + pieces[i].angle);
      Values turned_low, turned_high;
      for (int n = 0; n < WIDTH; ++n) {
        const float x = to_float(low[i].values[n]), y = to_float(high[i].values[n]);
        turned_low.values[n] = from_float<T>(x * c.values[n] - y * s.values[n]);
        turned_high.values[n] = from_float<T>(y * c.values[n] + x * s.values[n]);
      }
      *reinterpret_cast<Values*>(pieces[i].to) = turned_low;
      *reinterpret_cast<Values*>(pieces[i].to + half) = turned_high;
    }
  }
}

constexpr int SUMMED = 4;  // tokens whose angles' gradients a block sums

// The turn by an angle changes the pair at right angles to itself; in the frame of the inputs that is (-y, x).
template <typename T, int WIDTH>
__device__ void add_heads(const OvHeads& x, const OvHeads& grad, int64_t token, int head, int low, int half,
                          float* sums) {
  using Values = Vector<T, WIDTH>;
  const T* values = static_cast<const T*>(x.data) + token * x.token_stride + head * x.head_stride + low;
  const T* grads = static_cast<const T*>(grad.data) + token * grad.token_stride + head * grad.head_stride + low;
  const Values a = *reinterpret_cast<const Values*>(values), b = *reinterpret_cast<const Values*>(values + half);
  const Values c = *reinterpret_cast<const Values*>(grads), d = *reinterpret_cast<const Values*>(grads + half);
  for (int n = 0; n < WIDTH; ++n) {
    sums[n] += to_float(d.values[n]) * to_float(a.values[n]) - to_float(c.values[n]) * to_float(b.values[n]);
  }
}

// THREADS / SUMMED threads share a token: each sums a piece of some heads, then their sums are added up.
template <typename T, int WIDTH>
__global__ void __launch_bounds__(THREADS) rotary_angles_kernel(OvHeads q, OvHeads k, OvHeads grad_q, OvHeads grad_k,
                                                                float* out, int64_t tokens, int half) {
  constexpr int SHARE = THREADS / SUMMED;
  constexpr int ROW = THREADS + 32 / WIDTH;  // the sums of a piece's values lie in different banks
  __shared__ float sums[ROW * WIDTH];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * SUMMED;
  const int lane = thread_number() % SHARE;
  const int64_t token = first + thread_number() / SHARE;
  const int groups = half / WIDTH;
  const int at_once = min(groups, SHARE);  // pieces of a head
  const int parts = SHARE / at_once;       // of the heads
  for (int base = 0; base < groups; base += at_once) {
    const int group = base + lane % at_once, part = lane / at_once;
    float own[WIDTH] = {};
    if (token < tokens && group < groups && part < parts) {
      for (int head = part; head < q.heads; head += parts) {
        add_heads<T, WIDTH>(q, grad_q, token, head, group * WIDTH, half, own);
      }
      for (int head = part; head < k.heads; head += parts) {
        add_heads<T, WIDTH>(k, grad_k, token, head, group * WIDTH, half, own);
      }
    }
    for (int n = 0; n < WIDTH; ++n) sums[n * ROW + thread_number()] = own[n];
    __syncthreads();
    const int wide = min(at_once, groups - base) * WIDTH;
    for (int i = thread_number(); i < SUMMED * wide; i += THREADS) {
      const int row = i / wide, j = i % wide;
      if (first + row >= tokens) continue;
      float sum = 0;
      for (int p = 0; p < parts; ++p) sum += sums[j % WIDTH * ROW + row * SHARE + p * at_once + j / WIDTH];
      out[(first + row) * half + base * WIDTH + j] = sum;
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

template <typename T>
int rotary_angles(OvHeads q, OvHeads k, OvHeads grad_q, OvHeads grad_k, float* out, int64_t tokens, int half,
                  void* stream) {
  constexpr int WIDE = 16 / sizeof(T);
  const unsigned blocks = blocks_for(tokens, SUMMED);
  bool wide = half % WIDE == 0;
  for (const OvHeads& x : {q, k, grad_q, grad_k}) wide = wide && aligned(x, 16, sizeof(T));
  if (wide) {
    LAUNCH((rotary_angles_kernel<T, WIDE>), blocks, THREADS, stream, q, k, grad_q, grad_k, out, tokens, half);
  } else {
    LAUNCH((rotary_angles_kernel<T, 1>), blocks, THREADS, stream, q, k, grad_q, grad_k, out, tokens, half);
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
  return dtype == OV_BFLOAT16 ? rotary_angles<bf16>(q, k, grad_q, grad_k, out, tokens, half, stream)
                              : rotary_angles<float>(q, k, grad_q, grad_k, out, tokens, half, stream);
}
