// The C interface of the kernels. Each has a CUDA implementation in kernels/ and a twin in twins/, of the same
// signature with `_twin` behind its name, that computes the same on the CPU and ignores the stream.
//
// Pointers of the first are to the memory of the current CUDA device. All return 0, or the CUDA error of the launch.
#pragma once

#include <cstdint>

// Element types.
constexpr int OV_FLOAT32 = 0;
constexpr int OV_BFLOAT16 = 1;

extern "C" {

// [tokens, heads, head_dim] whose last dimension is dense; strides in elements.
struct OvHeads {
  const void* data;
  int64_t token_stride;
  int64_t head_stride;
  int32_t heads;
};

// Turn each pair (x[j], x[j + half]) of every head of q and k by angles[token, j], backwards where `inverse` is 1.
// angles: float32 [tokens, half], half <= 128; out_q and out_k: dense.
#define OV_ROTARY(name)                                                                                       \
  int name(int dtype, OvHeads q, OvHeads k, const float* angles, void* out_q, void* out_k, int64_t tokens, \
           int32_t half, int32_t inverse, void* stream)
OV_ROTARY(ov_rotary);
OV_ROTARY(ov_rotary_twin);

// The gradient of the angles, float32 [tokens, half], of the inputs q and k and their gradients grad_q and grad_k.
#define OV_ROTARY_ANGLES(name)                                                                                \
  int name(int dtype, OvHeads q, OvHeads k, OvHeads grad_q, OvHeads grad_k, float* out, int64_t tokens, \
           int32_t half, void* stream)
OV_ROTARY_ANGLES(ov_rotary_angles);
OV_ROTARY_ANGLES(ov_rotary_angles_twin);

// Rows first to first + rows of a sequence: out[r] = features[n] where slots[n] == first + r, else embedded[r].
// slots: [count], ascending; those outside of these rows are another rank's.
#define OV_SCATTER(name)                                                                                              \
  int name(const void* embedded, const void* features, const int64_t* slots, void* out, int64_t rows, int64_t count, \
           int64_t first, int64_t row_bytes, void* stream)
OV_SCATTER(ov_scatter);
OV_SCATTER(ov_scatter_twin);

// The gradients of embedded and features, of the gradient of out: zero where another was written, or none.
#define OV_SCATTER_BACKWARD(name)                                                                                  \
  int name(const void* grad, const int64_t* slots, void* grad_embedded, void* grad_features, int64_t rows,         \
           int64_t count, int64_t first, int64_t row_bytes, void* stream)
OV_SCATTER_BACKWARD(ov_scatter_backward);
OV_SCATTER_BACKWARD(ov_scatter_backward_twin);

}  // extern "C"
