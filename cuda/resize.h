// The arithmetic of resizing and of the order of patches, for kernel and twin. It is Pillow's (and that of
// onevision.data.decode.kernels) to the last bit, so no sum may be contracted: -fmad=false, -ffp-contract=off.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define OV_BOTH __host__ __device__ inline
#else
#define OV_BOTH inline
#endif

constexpr int OV_PATCH = 14;    // pixels along a patch's side
constexpr int OV_VALUES = 588;  // of a patch
constexpr int OV_PLACES = 22;   // binary places of a weight

// Weight of a sample at a distance in samples: the cubic convolution with a = -0.5.
OV_BOTH double cubic_weight(double distance) {
  const double x = distance < 0 ? -distance : distance;
  if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5;
  return 0.0;
}

// Samples that a target sample reaches to either side; a shrinking filter is widened, that is the antialiasing.
OV_BOTH double reach_of(int64_t source, int64_t target) {
  const double scale = static_cast<double>(source) / static_cast<double>(target);
  return 2.0 * (scale > 1.0 ? scale : 1.0);
}

// Numbers of a plan: the first source sample, how many there are, a weight for each.
OV_BOTH int64_t plan_stride(int64_t source, int64_t target) {
  return 3 + 2 * static_cast<int64_t>(ceil(reach_of(source, target)));
}

// Samples that `pixels` target samples side by side reach, at most.
OV_BOTH int64_t reached_of(int64_t source, int64_t target, int64_t pixels) {
  const double scale = static_cast<double>(source) / static_cast<double>(target);
  const double far = ceil(static_cast<double>(pixels - 1) * scale + 2.0 * reach_of(source, target));
  const int64_t reached = static_cast<int64_t>(far) + 2;
  return reached < source ? reached : source;
}

// The plan of one of `target` samples.
OV_BOTH void plan_sample(int64_t source, int64_t target, int64_t place, int32_t* plan) {
  const double scale = static_cast<double>(source) / static_cast<double>(target);
  const double reach = reach_of(source, target), narrow = 1.0 / (reach / 2.0);
  const double center = (static_cast<double>(place) + 0.5) * scale;
  const int64_t begin = static_cast<int64_t>(center - reach + 0.5);  // cut towards zero, as Pillow does
  const int64_t low = begin > 0 ? begin : 0;
  const int64_t end = static_cast<int64_t>(center + reach + 0.5);
  const int64_t count = (end < source ? end : source) - low;
  double total = 0.0;
  for (int64_t k = 0; k < count; ++k) total += cubic_weight((static_cast<double>(k + low) - center + 0.5) * narrow);
  plan[0] = static_cast<int32_t>(low);
  plan[1] = static_cast<int32_t>(count);
  for (int64_t k = 0; k < count; ++k) {
    const double exact = cubic_weight((static_cast<double>(k + low) - center + 0.5) * narrow) / total;
    const double weight = exact * (1 << OV_PLACES);
    plan[2 + k] = static_cast<int32_t>(weight < 0.0 ? weight - 0.5 : weight + 0.5);
  }
}

// A weight as three digits of 8 bits, each from -128 to 127, the lowest first.
OV_BOTH int32_t weight_digits(int32_t weight) {
  const int32_t first = static_cast<int8_t>(weight & 255), rest = (weight - first) / 256;
  const int32_t second = static_cast<int8_t>(rest & 255), third = (rest - second) / 256;
  return (third & 255) << 16 | (second & 255) << 8 | (first & 255);
}

// Whether Pillow 13 resizes the height before the width: where that leaves it much less to do.
OV_BOTH bool vertical_first(int64_t height, int64_t width, int64_t tall, int64_t wide) {
  return tall < height && 2 * (width - wide) < height - tall;
}

// A sum of weights that began with half of the last place, as a byte.
OV_BOTH int32_t nearest_byte(int32_t sum) {
  const int32_t value = sum >> OV_PLACES;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

struct OvPlace {
  int x, y, channel;  // within the 28 x 28 pixels of a 2 x 2 block of patches
};

// Where the value is that a block has at place `value` of its 4 patches' values: channel first, patches row by row.
OV_BOTH OvPlace place_in_block(int value) {
  const int patch = value / OV_VALUES, channel = value % OV_VALUES / (OV_PATCH * OV_PATCH);
  const int pixel = value % (OV_PATCH * OV_PATCH);
  return {patch % 2 * OV_PATCH + pixel % OV_PATCH, patch / 2 * OV_PATCH + pixel / OV_PATCH, channel};
}
