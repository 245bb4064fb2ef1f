#include <vector>

#include "resize.h"
#include "twins/numbers.h"

namespace {

using Bytes = std::vector<uint8_t>;

// Resize one axis of pixels[lines, source, 3], whose strides are in bytes, to a dense [lines, target, 3].
Bytes resize(const uint8_t* pixels, int64_t lines, int64_t line_step, int64_t source, int64_t step, int64_t target) {
  Bytes out(lines * target * 3);
  std::vector<int32_t> plan(plan_stride(source, target));
  for (int64_t place = 0; place < target; ++place) {
    plan_sample(source, target, place, plan.data());
    for (int64_t line = 0; line < lines; ++line) {
      for (int channel = 0; channel < 3; ++channel) {
        const uint8_t* from = pixels + line * line_step + plan[0] * step + channel;
        int32_t sum = 1 << (OV_PLACES - 1);
        for (int32_t k = 0; k < plan[1]; ++k) sum += plan[2 + k] * from[k * step];
        out[(line * target + place) * 3 + channel] = static_cast<uint8_t>(nearest_byte(sum));
      }
    }
  }
  return out;
}

// Write the patches of pixels at `pixels`, 3 channels, with these steps from one pixel to the next.
template <typename T>
void cut(const uint8_t* pixels, int64_t step_y, int64_t step_x, const OvImage& image, const OvScale& scale, T* out) {
  for (int64_t row = 0; row < image.rows; row += 2) {
    for (int64_t column = 0; column < image.columns; column += 2) {
      for (int value = 0; value < 4 * OV_VALUES; ++value) {
        const OvPlace at = place_in_block(value);
        const int64_t y = row * OV_PATCH + at.y, x = column * OV_PATCH + at.x;
        const float byte = pixels[y * step_y + x * step_x + at.channel];
        *out++ = rounded<T>(byte * scale.scale[at.channel] + scale.shift[at.channel]);
      }
    }
  }
}

template <typename T>
void patches(const OvImages& in, const OvScale& scale, T* out) {
  for (int64_t n = 0; n < in.count; ++n) {
    const OvImage& image = in.images[n];
    const int64_t height = image.height, width = image.width;
    const int64_t tall = image.rows * OV_PATCH, wide = image.columns * OV_PATCH;
    const uint8_t* pixels = in.pixels + image.offset;
    if (vertical_first(height, width, tall, wide)) {
      const Bytes turned = resize(pixels, width, 3, height, 3 * width, tall);  // [width, tall, 3]
      const Bytes done = resize(turned.data(), tall, 3, width, 3 * tall, wide);  // [tall, wide, 3]
      cut(done.data(), 3 * wide, 3, image, scale, out);
    } else {
      const Bytes narrow = resize(pixels, height, 3 * width, width, 3, wide);  // [height, wide, 3]
      const Bytes turned = resize(narrow.data(), wide, 3, height, 3 * wide, tall);  // [wide, tall, 3]
      cut(turned.data(), 3, 3 * tall, image, scale, out);
    }
    out += image.rows * image.columns * OV_VALUES;
  }
}

}  // namespace

OV_RESIZE_PATCHES(ov_resize_patches_twin) {
  static_cast<void>(scratch);
  static_cast<void>(stream);
  if (dtype == OV_BFLOAT16) {
    patches(in, scale, static_cast<Bfloat16*>(out));
  } else {
    patches(in, scale, static_cast<float*>(out));
  }
  return 0;
}

bool ov_patches_simple_twin(int64_t, int64_t, int64_t, int64_t) { return false; }

int64_t ov_patches_scratch_twin(int64_t, int64_t, int64_t, int64_t) { return 0; }
