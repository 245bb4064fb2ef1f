#include "twins/numbers.h"

namespace {

template <typename T>
const T* row(const OvHeads& x, int64_t token, int64_t head) {
  return static_cast<const T*>(x.data) + token * x.token_stride + head * x.head_stride;
}

template <typename T>
void turn(const OvHeads& x, const float* angles, T* out, int64_t tokens, int half, bool inverse) {
  for (int64_t token = 0; token < tokens; ++token) {
    for (int j = 0; j < half; ++j) {
      const float angle = angles[token * half + j];
      const float cosine = std::cos(angle), sine = inverse ? -std::sin(angle) : std::sin(angle);
      for (int head = 0; head < x.heads; ++head) {
        const T* from = row<T>(x, token, head);
        T* to = out + (token * x.heads + head) * 2 * half;
        to[j] = rounded<T>(from[j] * cosine - from[j + half] * sine);
        to[j + half] = rounded<T>(from[j + half] * cosine + from[j] * sine);
      }
    }
  }
}

template <typename T>
double dot(const OvHeads& x, const OvHeads& grad, int64_t token, int j, int half) {
  double sum = 0;
  for (int head = 0; head < x.heads; ++head) {
    const T *values = row<T>(x, token, head), *grads = row<T>(grad, token, head);
    sum += static_cast<double>(grads[j + half]) * values[j] - static_cast<double>(grads[j]) * values[j + half];
  }
  return sum;
}

template <typename T>
void angles_gradient(const OvHeads& q, const OvHeads& k, const OvHeads& grad_q, const OvHeads& grad_k, float* out,
                     int64_t tokens, int half) {
  for (int64_t token = 0; token < tokens; ++token) {
    for (int j = 0; j < half; ++j) {
      const double sum = dot<T>(q, grad_q, token, j, half) + dot<T>(k, grad_k, token, j, half);
      out[token * half + j] = static_cast<float>(sum);
    }
  }
}

}  // namespace

OV_ROTARY(ov_rotary_twin) {
  static_cast<void>(stream);
  if (dtype == OV_BFLOAT16) {
    turn<Bfloat16>(q, angles, static_cast<Bfloat16*>(out_q), tokens, half, inverse);
    turn<Bfloat16>(k, angles, static_cast<Bfloat16*>(out_k), tokens, half, inverse);
  } else {
    turn<float>(q, angles, static_cast<float*>(out_q), tokens, half, inverse);
    turn<float>(k, angles, static_cast<float*>(out_k), tokens, half, inverse);
  }
  return 0;
}

OV_ROTARY_ANGLES(ov_rotary_angles_twin) {
  static_cast<void>(stream);
  if (dtype == OV_BFLOAT16) {
    angles_gradient<Bfloat16>(q, k, grad_q, grad_k, out, tokens, half);
  } else {
    angles_gradient<float>(q, k, grad_q, grad_k, out, tokens, half);
  }
  return 0;
}
