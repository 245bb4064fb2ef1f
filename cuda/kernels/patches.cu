// Decoded images of any sizes -> resized, normalised, cut into patches: one pass over the pixels, nothing in between
// reaches memory. A block of threads makes one 2 x 2 block of patches, 28 x 28 pixels, whose values lie together in the
// result.
//
// The sums are Pillow's to the last bit: weights of 22 binary places, one axis after the other with a byte between the
// two. A sum over one axis is a product of a band of weights and of pixels, which the matrix units compute exactly: a
// weight is three digits of 8 bits, and so three products of bytes, in sums of 32 bits, are put together.
//
// The first axis (the width, or the height where Pillow begins with that) is resized for up to LINES of the second at a
// time; what those give is added to the sums of the second. All that a matrix product reads lies in words of four
// neighbours along the axis that is summed: pixels are turned so on their way into shared memory.
#include "device.cuh"
#include "resize.h"

namespace {

constexpr int THREADS = 256;
constexpr int LOADERS = THREADS / 2;     // of the threads; the others spread weights meanwhile
constexpr int SIDE = 2 * OV_PATCH;       // pixels along the side of a block of patches
constexpr int VALUES = 3 * SIDE * SIDE;  // of a block of patches
constexpr int STEP = 32;                 // samples that a matrix product sums
constexpr int SPAN = 48;                 // samples along the first axis, at most, that lie in shared memory
constexpr int LINES = 40;                // and along the second
constexpr int SOURCE = 13;               // words from one line and channel to the next: 52 samples
constexpr int MIDDLE = 12;               // words from one column to the next: 48 lines
constexpr int WEIGHTS = 12;              // words from the weights of one pixel to those of the next
constexpr int COLUMNS = 88;              // 3 * 28, filled up to a multiple of 8
constexpr int PAIRS = 2;                 // of 4 words of lines, that a warp resizes along the first axis
constexpr int TILES = 3;                 // of 8 columns, that a warp resizes along the second

struct Weights {
  unsigned words[3][2][16][WEIGHTS];  // by digit, patch along the axis, pixel of the patch
};

// First source pixel and weights, in digits, of every pixel along both sides of all images.
__global__ void __launch_bounds__(THREADS) plan_kernel(OvImages in, int32_t* plans) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t n = static_cast<int64_t>(blockIdx.x) * THREADS + thread_number(); n < in.plan_count; n += stride) {
    const int64_t axis = upper_bound(in.plan_offsets, 0, 2 * in.count, n) - 1;
    const OvImage& image = in.images[axis / 2];
    const int64_t source = axis % 2 ? image.height : image.width;
    const int64_t target = OV_PATCH * (axis % 2 ? image.rows : image.columns);
    const int64_t place = n - in.plan_offsets[axis];
    int32_t* plan = plans + (axis % 2 ? image.plan_y : image.plan_x) +
                    place * (axis % 2 ? image.stride_y : image.stride_x);
    plan_sample(source, target, place, plan);
    for (int k = 0; k < plan[1]; ++k) plan[2 + k] = weight_digits(plan[2 + k]);
  }
}

// One axis of a block: the plans of its 28 pixels, and the part of the source that is in shared memory.
struct Axis {
  const int32_t* plans;
  int stride;      // from one plan to the next
  int begin, end;  // of the samples that they reach
  int span;        // samples of a part
  int second;      // words from the start of a part to the samples that the second patch of the axis reaches

  __device__ int word(int patch) const { return patch ? second : 0; }
};

__device__ Axis axis_of(const OvImage& image, const int32_t* all, bool vertical, int64_t first, int most) {
  Axis axis;
  axis.stride = static_cast<int>(vertical ? image.stride_y : image.stride_x);
  axis.plans = all + (vertical ? image.plan_y : image.plan_x) + first * axis.stride;
  const int32_t* last = axis.plans + (OV_PATCH - 1) * axis.stride;
  const int32_t* behind = axis.plans + OV_PATCH * axis.stride;
  axis.begin = axis.plans[0];
  axis.end = last[OV_PATCH * axis.stride] + last[OV_PATCH * axis.stride + 1];
  axis.second = (behind[0] - axis.begin) / 4;
  // Either all samples are in one part, and those of a patch in one product, or parts are what a product sums.
  const bool whole = axis.end - axis.begin <= most && last[0] + last[1] - axis.begin <= STEP &&
                     axis.end - axis.begin - 4 * axis.second <= STEP;
  axis.span = whole ? most : STEP;
  if (!whole) axis.second = 0;
  return axis;
}

// What the threads of a block share.
struct Block {
  Axis axes[2];  // in the order in which they are resized
  const unsigned char* pixels;
  const unsigned* last;  // word of the image
  int width, bottom;     // bottom: the last row
  bool vertical;         // the first axis is the height
};

// Four weights of a pixel.
__device__ void spread_word(const Axis& axis, int part, int pixel, int word, Weights& weights) {
  const int patch = pixel / OV_PATCH;
  const int32_t* plan = axis.plans + pixel * axis.stride;
  const int first = part + 4 * (axis.word(patch) + word) - plan[0], count = plan[1];
  unsigned taps[4];
  UNROLL
  for (int i = 0; i < 4; ++i) {
    taps[i] = first + i >= 0 && first + i < count ? static_cast<unsigned>(plan[2 + first + i]) : 0u;
  }
  const unsigned low = __byte_perm(taps[0], taps[1], 0x5140), high = __byte_perm(taps[2], taps[3], 0x5140);
  const unsigned top = __byte_perm(taps[0], taps[1], 0x0062), top_high = __byte_perm(taps[2], taps[3], 0x0062);
  unsigned* at = &weights.words[0][patch][pixel % OV_PATCH][word];
  constexpr int DIGIT = 2 * 16 * WEIGHTS;
  at[0] = __byte_perm(low, high, 0x5410);
  at[DIGIT] = __byte_perm(low, high, 0x7632);
  at[2 * DIGIT] = __byte_perm(top, top_high, 0x5410);
}

// The weights of the samples from `part` on, as the matrix products want them; by threads behind the loaders.
__device__ void spread_weights(const Axis& axis, int part, Weights& weights) {
  constexpr int WORDS = STEP / 4;
  ROLLED
  for (int item = thread_number() - LOADERS; item < SIDE * WORDS; item += THREADS - LOADERS) {
    spread_word(axis, part, item / WORDS, item % WORDS, weights);
  }
}

// Four bytes from `address` on; words behind `last` are not read.
template <int COUNT>
__device__ void load_words(const unsigned char* address, const unsigned* last, unsigned* words) {
  const auto bits = reinterpret_cast<uintptr_t>(address);
  const auto* from = reinterpret_cast<const unsigned*>(bits / 4 * 4);
  const unsigned shift = static_cast<unsigned>(bits % 4) * 8;
  unsigned next = *(from < last ? from : last);
  UNROLL
  for (int i = 0; i < COUNT; ++i) {
    const unsigned word = next;
    next = *(from + i + 1 < last ? from + i + 1 : last);
    words[i] = __funnelshift_r(word, next, shift);
  }
}

// Samples [part, part + samples) along the width, of lines [first, first + lines), into words of one channel.
__device__ void load_rows(const Block& block, int first, int lines, int part, int samples, unsigned* source) {
  constexpr int GROUPS = SPAN / 4, AT_ONCE = LOADERS / GROUPS;
  const int group = thread_number() % GROUPS;
  if (4 * group >= samples || thread_number() >= AT_ONCE * GROUPS) return;
  const int64_t width = block.width;
  for (int line = thread_number() / GROUPS; line < lines; line += AT_ONCE) {
    unsigned words[3];
    load_words<3>(block.pixels + 3 * (min(first + line, block.bottom) * width + part + 4 * group), block.last, words);
    const unsigned red = __byte_perm(words[0], words[1], 0x0630), green = __byte_perm(words[0], words[1], 0x0741);
    const unsigned blue = __byte_perm(words[0], words[1], 0x0052);
    unsigned* to = source + 3 * line * SOURCE + group;
    to[0] = __byte_perm(red, words[2], 0x5210);
    to[SOURCE] = __byte_perm(green, words[2], 0x6210);
    to[2 * SOURCE] = __byte_perm(blue, words[2], 0x7410);
  }
}

// Samples [part, part + samples) along the height, of columns [first, first + columns), into words of one channel.
__device__ void load_columns(const Block& block, int first, int columns, int part, int samples, unsigned* source) {
  const int lane = thread_number() % 32;
  ROLLED
  for (int item = thread_number() / 32; item < 12; item += LOADERS / 32) {
    const int word = item % 4 * 8 + lane % 8, quad = item / 4 * 4 + lane / 8;
    if (4 * word >= 3 * columns || 4 * quad >= samples) continue;
    unsigned rows[4];
    UNROLL
    for (int i = 0; i < 4; ++i) {
      const int64_t row = min(part + 4 * quad + i, block.bottom);
      load_words<1>(block.pixels + 3 * (row * block.width + first) + 4 * word, block.last, rows + i);
    }
    const unsigned low = __byte_perm(rows[0], rows[1], 0x5140), low_high = __byte_perm(rows[0], rows[1], 0x7362);
    const unsigned high = __byte_perm(rows[2], rows[3], 0x5140), high_high = __byte_perm(rows[2], rows[3], 0x7362);
    unsigned* to = source + 4 * word * SOURCE + quad;
    to[0] = __byte_perm(low, high, 0x5410);
    to[SOURCE] = __byte_perm(low, high, 0x7632);
    to[2 * SOURCE] = __byte_perm(low_high, high_high, 0x5410);
    to[3 * SOURCE] = __byte_perm(low_high, high_high, 0x7632);
  }
}

// The part of the weights of a patch that a thread holds for matrix products.
struct Band {
  unsigned words[3][4];

  __device__ Band(const Weights& weights, int patch) {
    const int row = thread_number() % 32 / 4, word = thread_number() % 4;
    UNROLL
    for (int digit = 0; digit < 3; ++digit) {
      UNROLL
      for (int i = 0; i < 4; ++i) words[digit][i] = weights.words[digit][patch][row + i % 2 * 8][word + i / 2 * 4];
    }
  }

  // Add the sums of 16 pixels and 8 columns, of which a thread has 4, of samples that begin at samples[0].
  __device__ void add(const unsigned* samples, unsigned* sums) const {
    const unsigned column[2] = {samples[0], samples[4]};
    int products[3][4] = {};
    UNROLL
    for (int digit = 0; digit < 3; ++digit) multiply_bytes(products[digit], words[digit], column);
    UNROLL
    for (int i = 0; i < 4; ++i) {
      const unsigned upper = (static_cast<unsigned>(products[2][i]) << 8) + static_cast<unsigned>(products[1][i]);
      sums[i] += (upper << 8) + static_cast<unsigned>(products[0][i]);
    }
  }
};

__device__ int rounded(unsigned sum) { return static_cast<int>(sum) >> OV_PLACES; }

// The words of lines of 8 columns of source, of the quad of lines `quad`: channels alternate.
__device__ int source_place(int quad) { return (quad / 3 * 12 + quad % 3) * SOURCE; }

template <typename T>
__global__ void __launch_bounds__(THREADS, 3)
    patches_kernel(OvImages in, const int32_t* plans, OvScale scale, T* out) {
  alignas(16) __shared__ unsigned source[3 * LINES * SOURCE + 16];
  alignas(16) __shared__ Weights first_weights, second_weights;
  alignas(16) __shared__ unsigned middle[COLUMNS * MIDDLE + 16];
  alignas(16) __shared__ T values[VALUES];
  __shared__ unsigned carried[8 * PAIRS][THREADS];  // sums along the first axis, from part to part
  __shared__ Block block;
  if (thread_number() % 32 == 0 && thread_number() < 64) {  // a thread of a warp for each axis
    const int64_t number = upper_bound(in.tile_offsets, 0, in.count, blockIdx.x) - 1;
    const OvImage& image = in.images[number];
    const int tile = static_cast<int>(blockIdx.x - in.tile_offsets[number]);
    const int across = static_cast<int>(image.columns / 2);
    const int64_t begin_y = tile / across * SIDE, begin_x = tile % across * SIDE;
    const bool vertical = vertical_first(image.height, image.width, OV_PATCH * image.rows, OV_PATCH * image.columns);
    const int axis = thread_number() / 32;
    const bool high = vertical == (axis == 0);
    block.axes[axis] = axis_of(image, plans, high, high ? begin_y : begin_x, axis == 0 ? SPAN : LINES);
    if (axis == 0) {
      block.pixels = in.pixels + image.offset;
      const auto end = reinterpret_cast<uintptr_t>(block.pixels + 3 * image.height * image.width - 1);
      block.last = reinterpret_cast<const unsigned*>(end / 4 * 4);
      block.width = static_cast<int>(image.width);
      block.bottom = static_cast<int>(image.height) - 1;
      block.vertical = vertical;
    }
  }
  __syncthreads();
  const Axis &one = block.axes[0], &two = block.axes[1];
  const int warp = thread_number() / 32, lane = thread_number() % 32, row = lane / 4, word = lane % 4;
  const int patch = warp % 2;
  constexpr unsigned HALF = 1u << (OV_PLACES - 1);
  unsigned sums[TILES][4];  // along the second axis
  UNROLL
  for (int i = 0; i < TILES; ++i) {
    for (int n = 0; n < 4; ++n) sums[i][n] = HALF;
  }
  for (int first = two.begin; first < two.end; first += two.span) {
    const int lines = min(two.span, two.end - first), quads = (lines + 3) / 4 * 3;
    for (int part = one.begin; part < one.end; part += one.span) {
      const bool begins = part == one.begin;
      if (!begins || first != two.begin) __syncthreads();
      const int samples = min(one.span, one.end - part);
      if (thread_number() >= LOADERS) {
        spread_weights(one, part, first_weights);
        if (begins) spread_weights(two, first, second_weights);
      } else if (block.vertical) {
        load_columns(block, first, lines, part, samples, source);
      } else {
        load_rows(block, first, lines, part, samples, source);
      }
      __syncthreads();
      const bool ends = part + one.span >= one.end;
      const Band band(first_weights, patch);
      ROLLED  // for want of registers
      for (int i = 0; i < PAIRS; ++i) {
        const int pair = 4 * (warp / 2 + 4 * i);
        if (pair >= quads) break;
        unsigned sum[8];
        UNROLL
        for (int n = 0; n < 8; ++n) sum[n] = begins ? HALF : carried[8 * i + n][thread_number()];
        const unsigned* samples_at = source + one.word(patch) + word + row % 2 * 3 * SOURCE +
                                     source_place(min(pair + row / 2, LINES / 4 * 3 - 1));
        band.add(samples_at, sum);
        band.add(samples_at + 6 * SOURCE, sum + 4);
        if (!ends) {
          for (int n = 0; n < 8; ++n) carried[8 * i + n][thread_number()] = sum[n];
          continue;
        }
        const int quad = pair + word;
        if (quad >= quads) continue;
        unsigned* to = middle + (quad % 3 * SIDE + patch * OV_PATCH + row) * MIDDLE + quad / 3;
        to[0] = saturated_bytes(rounded(sum[0]), rounded(sum[1]), rounded(sum[4]), rounded(sum[5]));
        if (row + 8 < OV_PATCH) {
          to[8 * MIDDLE] = saturated_bytes(rounded(sum[2]), rounded(sum[3]), rounded(sum[6]), rounded(sum[7]));
        }
      }
    }
    __syncthreads();
    const Band band(second_weights, patch);
    UNROLL
    for (int i = 0; i < TILES; ++i) {
      const int column = 8 * (warp / 2 + 4 * i);
      if (column >= COLUMNS) break;
      band.add(middle + (column + row) * MIDDLE + two.word(patch) + word, sums[i]);
    }
  }
  UNROLL
  for (int i = 0; i < TILES; ++i) {
    const int column = 8 * (warp / 2 + 4 * i) + 2 * word;  // and the next: two neighbours along the first axis
    if (column >= 3 * SIDE) break;
    const int channel = column / SIDE, place = column % SIDE;
    const float factor = channel == 0 ? scale.scale[0] : channel == 1 ? scale.scale[1] : scale.scale[2];
    const float shift = channel == 0 ? scale.shift[0] : channel == 1 ? scale.shift[1] : scale.shift[2];
    const unsigned bytes =
        saturated_bytes(rounded(sums[i][0]), rounded(sums[i][1]), rounded(sums[i][2]), rounded(sums[i][3]));
    const int which = block.vertical ? place / OV_PATCH * 2 + patch : patch * 2 + place / OV_PATCH;
    T* to = values + which * OV_VALUES + channel * OV_PATCH * OV_PATCH;
    const int along = place % OV_PATCH;
    UNROLL
    for (int n = 0; n < 2; ++n) {
      const int other = row + 8 * n;  // along the second axis
      if (other >= OV_PATCH) break;
      const float low = byte_value(bytes, 2 * n) * factor + shift, high = byte_value(bytes, 2 * n + 1) * factor + shift;
      if (block.vertical) {
        to[along * OV_PATCH + other] = from_float<T>(low);
        to[(along + 1) * OV_PATCH + other] = from_float<T>(high);
      } else {
        store_pair(to + other * OV_PATCH + along, low, high);
      }
    }
  }
  __syncthreads();
  struct alignas(16) Quad {
    unsigned words[4];
  };
  constexpr int QUADS = VALUES * static_cast<int>(sizeof(T)) / 16;
  auto* target = reinterpret_cast<Quad*>(out + static_cast<int64_t>(blockIdx.x) * VALUES);
  for (int i = thread_number(); i < QUADS; i += THREADS) target[i] = reinterpret_cast<const Quad*>(values)[i];
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
