// Decoded images of any sizes -> resized, normalised, cut into patches: one pass over the pixels, nothing in between
// reaches memory. A block makes one 2 x 2 block of patches, 28 x 28 pixels, whose values lie together in the result.
//
// The sums are Pillow's: weights of 22 binary places, one axis after the other with a byte between the two. The first
// axis is resized for some lines of the image at a time; each such piece is added to the sums of the second.
#include "device.cuh"
#include "resize.h"

namespace {

constexpr int THREADS = 256;
constexpr int SIDE = 2 * OV_PATCH;          // pixels along the side of a block of patches
constexpr int VALUES = 3 * SIDE * SIDE;     // of a block of patches
constexpr int EACH = (VALUES + THREADS - 1) / THREADS;
constexpr int LINES = 32;                   // lines of the image whose first axis is resized together

// First source pixel and weights of every pixel along both sides of all images.
__global__ void __launch_bounds__(THREADS) plan_kernel(OvImages in, int32_t* plans) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t n = static_cast<int64_t>(blockIdx.x) * THREADS + thread_number(); n < in.plan_count; n += stride) {
    const int64_t axis = upper_bound(in.plan_offsets, 0, 2 * in.count, n) - 1;
    const OvImage& image = in.images[axis / 2];
    const int64_t source = axis % 2 ? image.height : image.width;
    const int64_t target = OV_PATCH * (axis % 2 ? image.rows : image.columns);
    const int64_t place = n - in.plan_offsets[axis];
    const int64_t begin = (axis % 2 ? image.plan_y : image.plan_x) + place * plan_stride(source, target);
    plan_sample(source, target, place, plans + begin);
  }
}

struct Axis {
  const int32_t* plans;  // of the block's 28 pixels
  int stride;            // from one to the next
  int64_t step;          // bytes from one source pixel to the next
};

__device__ Axis axis_of(const OvImage& image, const int32_t* plans, bool vertical, int64_t begin) {
  const int64_t source = vertical ? image.height : image.width;
  const int64_t target = OV_PATCH * (vertical ? image.rows : image.columns);
  const int stride = static_cast<int>(plan_stride(source, target));
  return {plans + (vertical ? image.plan_y : image.plan_x) + begin * stride, stride, vertical ? 3 * image.width : 3};
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
    patches_kernel(OvImages in, const int32_t* plans, OvScale scale, T* out) {
  __shared__ uint8_t lines[LINES][3 * SIDE];
  __shared__ int64_t number;
  const int own = thread_number();
  if (own == 0) number = upper_bound(in.tile_offsets, 0, in.count, blockIdx.x) - 1;
  __syncthreads();
  const OvImage image = in.images[number];
  const int64_t tile = blockIdx.x - in.tile_offsets[number], across = image.columns / 2;
  const int64_t begin_y = tile / across * SIDE, begin_x = tile % across * SIDE;
  const bool vertical = vertical_first(image.height, image.width, OV_PATCH * image.rows, OV_PATCH * image.columns);
  const Axis one = axis_of(image, plans, vertical, vertical ? begin_y : begin_x);
  const Axis two = axis_of(image, plans, !vertical, vertical ? begin_x : begin_y);
  const uint8_t* pixels = in.pixels + image.offset;

  // The sums of values own, own + THREADS, ... of the block, in the order in which they are written.
  int32_t sums[EACH];
  for (int i = 0; i < EACH; ++i) sums[i] = 1 << (OV_PLACES - 1);
  const int32_t* last = two.plans + (SIDE - 1) * two.stride;
  const int end = last[0] + last[1];
  for (int first = two.plans[0]; first < end; first += LINES) {
    const int count = min(LINES, end - first);
    for (int n = own; n < count * 3 * SIDE; n += THREADS) {
      const int line = n / (3 * SIDE), rest = n % (3 * SIDE), channel = rest % 3;
      const int32_t* plan = one.plans + rest / 3 * one.stride;
      const uint8_t* from = pixels + (first + line) * two.step + plan[0] * one.step + channel;
      int32_t sum = 1 << (OV_PLACES - 1);
      for (int k = 0; k < plan[1]; ++k) sum += plan[2 + k] * from[k * one.step];
      lines[line][rest] = static_cast<uint8_t>(nearest_byte(sum));
    }
    __syncthreads();
    for (int i = 0; i < EACH; ++i) {
      const int value = own + i * THREADS;
      if (value >= VALUES) break;
      const OvPlace at = place_in_block(value);
      const int32_t* plan = two.plans + (vertical ? at.x : at.y) * two.stride;
      const int column = 3 * (vertical ? at.y : at.x) + at.channel;
      const int from = max(plan[0], first), to = min(plan[0] + plan[1], first + count);
      for (int line = from; line < to; ++line) sums[i] += plan[2 + line - plan[0]] * lines[line - first][column];
    }
    __syncthreads();
  }
  T* target = out + static_cast<int64_t>(blockIdx.x) * VALUES;
  for (int i = 0; i < EACH; ++i) {
    const int value = own + i * THREADS;
    if (value >= VALUES) break;
    const int channel = place_in_block(value).channel;
    target[value] = from_float<T>(static_cast<float>(nearest_byte(sums[i])) * scale.scale[channel] + scale.shift[channel]);
  }
}

}  // namespace

OV_RESIZE_PATCHES(ov_resize_patches) {
  if (in.count == 0) return 0;
  LAUNCH(plan_kernel, blocks_for(in.plan_count, THREADS), THREADS, stream, in, plans);
  if (const int status = launch_status()) return status;
  const unsigned blocks = static_cast<unsigned>(in.tile_count);
  if (dtype == OV_BFLOAT16) {
    LAUNCH((patches_kernel<bf16>), blocks, THREADS, stream, in, plans, scale, static_cast<bf16*>(out));
  } else {
    LAUNCH((patches_kernel<float>), blocks, THREADS, stream, in, plans, scale, static_cast<float*>(out));
  }
  return launch_status();
}
