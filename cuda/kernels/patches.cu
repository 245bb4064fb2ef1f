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
// neighbours along the axis that is summed: pixels are turned so on their way into shared memory. The weights of the 28
// pixels along one side of a block are those of all blocks of that row or column of the image: a kernel before this one
// lays them out once, as the threads of a warp hold them.
//
// A block of patches that is not shrunk much: 2,352 bytes read and 4,704 written (BF16), 540 cycles of a multiprocessor's
// share of the 3.0 TB/s of an H100's copy. By the disassembly about 670 instructions for each of its four warps, of which
// the schedulers begin at most four a cycle: 670 cycles. 36 products of 16 x 8 x 32 a warp are less than half of that. So
// instructions bind, not bytes: where the schedulers are busy for 65 to 75 % of the time, 53 to 61 % of the copy's rate
// are to be expected, less 5 % for the plans. Seven blocks a multiprocessor leave each some 6,000 cycles, for three loads
// that wait for one another (tile, axes, pixels) and three barriers. An image that is shrunk to half or less takes some 450
// instructions a warp for 32 x 32 pixels, whose bytes are 180 to 240 cycles: 25 to 35 % are to be expected there.
#include "kernels/pixels.cuh"
#include "resize.h"

namespace {

// Blocks of threads on a multiprocessor, as many as leave each thread the registers that it needs.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int RESIDENT = 6, RESIDENT_IN_PARTS = 3;
#else
constexpr int RESIDENT = 7, RESIDENT_IN_PARTS = 4;
#endif
constexpr int SIDE = 2 * OV_PATCH;       // pixels along the side of a block of patches
constexpr int VALUES = 3 * SIDE * SIDE;  // of a block of patches
constexpr int STEP = 32;                 // samples that a matrix product sums
constexpr int MIDDLE = 12;               // words from one column to the next: 48 lines
constexpr int CHANNEL = 32 * MIDDLE + 1;  // words from one channel to the next: its 28 columns, filled up to 32
constexpr int PAIRS = 5;                 // of matrix products, 16 lines of a channel, of a warp along the first axis
constexpr int TILES = 6;                 // of 8 columns, that a warp resizes along the second
constexpr int DIGIT = 32 * 4;            // words of one digit of the weights of a patch
constexpr int BAND = 3 * DIGIT;          // and of all three
static_assert(2 * BAND == OV_BAND_WORDS, "kernels.h and this file must agree");

struct alignas(16) Quad {
  unsigned words[4];
};

// One axis of a block of patches: 28 pixels, and the samples that they reach.
struct alignas(16) AxisBlock {
  int32_t begin, end;  // of the samples
  int32_t span;        // samples of a part: all, or what a product sums
  int32_t second;      // words from the start of a part to the samples that the second patch of the axis reaches
  int64_t bands;       // where its weights begin; for every part those of two patches
  int64_t unused;      // so that it is moved 16 bytes at once
};

// A block of patches.
struct alignas(16) Tile {
  int32_t image, one, two;  // one, two: its AxisBlocks in the order in which they are resized
  int32_t vertical;         // whether the first is the height
};

// What the plans leave for the patches. A band is the weights of a patch as the threads of a warp hold them for products.
struct Prepared {
  unsigned* bands;
  Tile* tiles;
  AxisBlock* axes;
  int32_t* plans;
};

__device__ AxisBlock axis_block(const int32_t* plans, int stride, bool first) {
  const int most = first ? SPAN : LINES;
  const int32_t* last = plans + (OV_PATCH - 1) * stride;
  const int32_t* behind = plans + OV_PATCH * stride;
  AxisBlock axis{};
  axis.begin = plans[0];
  axis.end = last[OV_PATCH * stride] + last[OV_PATCH * stride + 1];
  axis.second = (behind[0] - axis.begin) / 4;
  // Either all samples are in one part, and those of a patch in one product, or parts are what a product sums.
  const bool whole = axis.end - axis.begin <= most && last[0] + last[1] - axis.begin <= STEP &&
                     axis.end - axis.begin - 4 * axis.second <= STEP;
  axis.span = whole ? most : STEP;
  if (!whole) axis.second = 0;
  return axis;
}

// Four weights of a pixel, of the samples from `first` of its own on, by digit.
__device__ void spread_word(const int32_t* plan, int first, unsigned (&digits)[3]) {
  const int count = plan[1];
  unsigned taps[4];
  UNROLL
  for (int i = 0; i < 4; ++i) {
    taps[i] = first + i >= 0 && first + i < count ? static_cast<unsigned>(plan[2 + first + i]) : 0u;
  }
  const unsigned low = __byte_perm(taps[0], taps[1], 0x5140), high = __byte_perm(taps[2], taps[3], 0x5140);
  const unsigned top = __byte_perm(taps[0], taps[1], 0x0062), top_high = __byte_perm(taps[2], taps[3], 0x0062);
  digits[0] = __byte_perm(low, high, 0x5410);
  digits[1] = __byte_perm(low, high, 0x7632);
  digits[2] = __byte_perm(top, top_high, 0x5410);
}

// A block of threads for each AxisBlock of all images: the plans of its pixels, its bands, and, along the height, a row
// of tiles.
__global__ void __launch_bounds__(64) plan_kernel(OvImages in, Prepared to) {
  const int64_t axis = upper_bound(in.block_offsets, 0, 2 * in.count, blockIdx.x) - 1;
  const OvImage& image = in.images[axis / 2];
  const bool vertical = axis % 2 != 0;
  const int64_t number = blockIdx.x - in.block_offsets[axis];
  const int64_t wide = OV_PATCH * image.columns, tall = OV_PATCH * image.rows;
  const int stride = static_cast<int>(vertical ? image.stride_y : image.stride_x);
  int32_t* plans = to.plans + (vertical ? image.plan_y : image.plan_x) + number * SIDE * stride;
  if (thread_number() < SIDE) {
    int32_t* plan = plans + thread_number() * stride;
    plan_sample(vertical ? image.height : image.width, vertical ? tall : wide, number * SIDE + thread_number(), plan);
    for (int k = 0; k < plan[1]; ++k) plan[2 + k] = weight_digits(plan[2 + k]);
  }
  __syncthreads();
  const bool height_first = vertical_first(image.height, image.width, tall, wide);
  AxisBlock made = axis_block(plans, stride, vertical == height_first);
  const int64_t parts = vertical ? image.parts_y : image.parts_x;
  made.bands = ((vertical ? image.parts_before_y : image.parts_before_x) + number * parts) * 2 * BAND;
  if (made.begin + parts * made.span < made.end) __trap();  // the host's bound is wrong
  if (thread_number() == 0) to.axes[blockIdx.x] = made;
  const int patch = thread_number() / 32, lane = thread_number() % 32, row = lane / 4, word = lane % 4;
  unsigned* bands = to.bands + made.bands + patch * BAND + 4 * lane;
  for (int part = made.begin; part < made.end; part += made.span, bands += 2 * BAND) {
    Quad digits[3] = {};
    UNROLL
    for (int i = 0; i < 4; ++i) {
      const int own = row + i % 2 * 8;
      if (own >= OV_PATCH) continue;
      const int32_t* plan = plans + (patch * OV_PATCH + own) * stride;
      unsigned spread[3];
      spread_word(plan, part + 4 * ((patch ? made.second : 0) + word + i / 2 * 4) - plan[0], spread);
      UNROLL
      for (int digit = 0; digit < 3; ++digit) digits[digit].words[i] = spread[digit];
    }
    UNROLL
    for (int digit = 0; digit < 3; ++digit) *reinterpret_cast<Quad*>(bands + digit * DIGIT) = digits[digit];
  }
  if (!vertical) return;
  const int32_t across = static_cast<int32_t>(image.columns / 2), own = static_cast<int32_t>(blockIdx.x);
  const int32_t first = static_cast<int32_t>(in.block_offsets[axis - 1]);
  Tile* tiles = to.tiles + in.tile_offsets[axis / 2] + number * across;
  for (int32_t n = thread_number(); n < across; n += 64) {
    const int32_t other = first + n;
    tiles[n] = {static_cast<int32_t>(axis / 2), height_first ? own : other, height_first ? other : own, height_first};
  }
}

constexpr unsigned HALF = 1u << (OV_PLACES - 1);

// The weights of a patch that a thread holds for matrix products.
struct Band {
  unsigned words[3][4];

  __device__ explicit Band(const unsigned* band) {
    UNROLL
    for (int digit = 0; digit < 3; ++digit) {
      const Quad own = *reinterpret_cast<const Quad*>(band + digit * DIGIT + thread_number() % 32 * 4);
      UNROLL
      for (int i = 0; i < 4; ++i) words[digit][i] = own.words[i];
    }
  }

  // Add the sums of 16 pixels and 8 columns, of which a thread has 4, of samples that begin at samples[0].
  __device__ void add(const unsigned* samples, unsigned* sums) const {
    const unsigned column[2] = {samples[0], samples[4]};
    int products[3][4] = {};
    UNROLL
    for (int i = 0; i < 4; ++i) products[0][i] = static_cast<int>(sums[i]);
    UNROLL
    for (int digit = 0; digit < 3; ++digit) multiply_bytes(products[digit], words[digit], column);
    UNROLL
    for (int i = 0; i < 4; ++i) {
      const unsigned upper = (static_cast<unsigned>(products[2][i]) << 8) + static_cast<unsigned>(products[1][i]);
      sums[i] = (upper << 8) + static_cast<unsigned>(products[0][i]);
    }
  }
};

__device__ int rounded(unsigned sum) { return static_cast<int>(sum) >> OV_PLACES; }

// The sums of 14 pixels along the first axis, of four times four lines of one channel, that a warp makes at once.
struct Sums {
  unsigned of[8];

  __device__ void start() {
    UNROLL
    for (unsigned& sum : of) sum = HALF;
  }

  // `samples`: of the thread's line, in the first two of the four.
  __device__ void add(const Band& band, const unsigned* samples) {
    band.add(samples, of);
    band.add(samples + 6 * SOURCE, of + 4);
  }

  __device__ void put(unsigned* to) const {
    to[0] = saturated_bytes(rounded(of[0]), rounded(of[1]), rounded(of[4]), rounded(of[5]));
    if (thread_number() % 32 / 4 + 8 < OV_PATCH) {
      to[8 * MIDDLE] = saturated_bytes(rounded(of[2]), rounded(of[3]), rounded(of[6]), rounded(of[7]));
    }
  }
};

// One part of the first axis, of all its lines; at the last part the bytes go to `middle`. If WHOLE, there is no other
// part: else sums are carried from one to the next.
//
// Two warps of a patch share the lines: 16 each of every channel, and of those behind the 32nd a channel at a time.
// Lines that are not there leave what weights of zero meet.
template <bool WHOLE>
__device__ void resize_first(const Band& band, const unsigned* samples, int lines, bool begins, bool ends,
                             unsigned (*carried)[THREADS], unsigned* middle) {
  const int warp = thread_number() / 32, lane = thread_number() % 32, row = lane / 4, word = lane % 4, half = warp / 2;
  const unsigned* from = samples + (4 * half + row / 2) * 12 * SOURCE;
  unsigned* to = middle + (warp % 2 * OV_PATCH + row) * MIDDLE + 4 * half + word;
  UNROLL
  for (int i = 0; i < PAIRS; ++i) {
    const int channel = i < 3 ? i : half + 2 * (i - 3);
    if (i >= 3) {
      if (lines <= 32 || channel >= 3) break;
      from = samples + min(8 + row / 2, LINES / 4 - 1) * 12 * SOURCE;
    }
    Sums sums;
    if (WHOLE || begins) {
      sums.start();
    } else {
      UNROLL
      for (int n = 0; n < 8; ++n) sums.of[n] = carried[8 * i + n][thread_number()];
    }
    sums.add(band, from + channel * SOURCE);
    if (WHOLE || ends) {
      sums.put(to + channel * CHANNEL + (i < 3 ? 0 : 8 - 4 * half));
    } else {
      UNROLL
      for (int n = 0; n < 8; ++n) carried[8 * i + n][thread_number()] = sums.of[n];
    }
  }
}

// Normalise what a warp has resized along the second axis, and put it where the patches of the block have it: a tile is
// 16 pixels of that axis by 8 of the first.
template <bool VERTICAL, typename T>
struct Finish {
  T* places[2];  // of the thread's values in even and in odd tiles, of channel 0
  bool there[2], upper;

  __device__ explicit Finish(T* values) {
    const int warp = thread_number() / 32, row = thread_number() % 32 / 4;
    const int patch = warp % 2;
    upper = row + 8 < OV_PATCH;
    UNROLL
    for (int i = 0; i < 2; ++i) {
      const int place = 8 * (warp / 2) + 16 * i + thread_number() % 4 * 2;  // and the next: two neighbours
      const int side = place >= OV_PATCH, along = place - side * OV_PATCH;
      there[i] = place < SIDE;
      places[i] = values + (VERTICAL ? (side * 2 + patch) * OV_VALUES + along * OV_PATCH + row
                                     : (patch * 2 + side) * OV_VALUES + row * OV_PATCH + along);
    }
  }

  __device__ void put(const unsigned (&sums)[4], int i, const OvScale& scale) const {
    const int channel = i / 2;
    const float factor = scale.scale[channel], shift = scale.shift[channel];
    const unsigned bytes = saturated_bytes(rounded(sums[0]), rounded(sums[1]), rounded(sums[2]), rounded(sums[3]));
    float of[4];
    UNROLL
    for (int n = 0; n < 4; ++n) of[n] = byte_times(bytes, n, factor) + shift;
    T* to = places[i % 2] + channel * OV_PATCH * OV_PATCH;
    UNROLL
    for (int n = 0; n < 2; ++n) {
      if (!there[i % 2] || (n == 1 && !upper)) continue;
      if (VERTICAL) {
        to[8 * n] = from_float<T>(of[2 * n]);
        to[8 * n + OV_PATCH] = from_float<T>(of[2 * n + 1]);
      } else {
        store_pair(to + 8 * n * OV_PATCH, of[2 * n], of[2 * n + 1]);
      }
    }
  }
};

// The second axis where its samples are one part: no sums have to be kept.
template <bool VERTICAL, typename T>
__device__ void finish_at_once(const Band& band, const unsigned* samples, const OvScale& scale, T* values) {
  const Finish<VERTICAL, T> finish(values);
  UNROLL
  for (int i = 0; i < TILES; ++i) {
    unsigned sums[4] = {HALF, HALF, HALF, HALF};
    band.add(samples + i / 2 * CHANNEL + i % 2 * 16 * MIDDLE, sums);
    finish.put(sums, i, scale);
  }
}

template <bool VERTICAL, typename T>
__device__ void finish_all(const unsigned (&sums)[TILES][4], const OvScale& scale, T* values) {
  const Finish<VERTICAL, T> finish(values);
  UNROLL
  for (int i = 0; i < TILES; ++i) finish.put(sums[i], i, scale);
}

// If SIMPLE, the samples of all blocks of patches are one part along both axes.
template <typename T, bool SIMPLE>
__global__ void __launch_bounds__(THREADS, SIMPLE ? RESIDENT : RESIDENT_IN_PARTS)
    patches_kernel(OvImages in, Prepared prepared, OvScale scale, T* out) {
  alignas(16) __shared__ unsigned source[3 * LINES * SOURCE + 16];
  alignas(16) __shared__ unsigned middle[3 * CHANNEL + 16];
  alignas(16) __shared__ T values[VALUES];
  __shared__ unsigned carried[SIMPLE ? 1 : 8 * PAIRS][THREADS];  // sums along the first axis, from part to part
  const Tile tile = prepared.tiles[blockIdx.x];
  const AxisBlock one = prepared.axes[tile.one], two = prepared.axes[tile.two];
  const Source from = source_of(in, tile.image);
  const bool vertical = tile.vertical != 0;
  const int warp = thread_number() / 32, lane = thread_number() % 32, row = lane / 4, word = lane % 4;
  const int patch = warp % 2;
  const unsigned* bands = prepared.bands + one.bands + patch * BAND;
  const unsigned* last_bands = prepared.bands + two.bands + patch * BAND;
  const unsigned* of_first = source + (patch ? one.second : 0) + word + row % 2 * 3 * SOURCE;
  const unsigned* of_second = middle + (8 * (warp / 2) + row) * MIDDLE + (patch ? two.second : 0) + word;
  const bool at_once = one.end - one.begin <= one.span && two.end - two.begin <= two.span;
  if (SIMPLE && !at_once) __trap();  // the host's bound is wrong
  if (SIMPLE || at_once) {
    const Band band(bands);
    const int lines = two.end - two.begin;
    load_source(from, vertical, two.begin, lines, one.begin, one.end - one.begin, source);
    __syncthreads();
    resize_first<true>(band, of_first, lines, true, true, carried, middle);
    const Band last(last_bands);
    __syncthreads();
    if (vertical) {
      finish_at_once<true>(last, of_second, scale, values);
    } else {
      finish_at_once<false>(last, of_second, scale, values);
    }
  } else {
    unsigned sums[TILES][4];  // along the second axis
    UNROLL
    for (int i = 0; i < TILES; ++i) {
      UNROLL
      for (int n = 0; n < 4; ++n) sums[i][n] = HALF;
    }
    for (int first = two.begin; first < two.end; first += two.span, last_bands += 2 * BAND) {
      const int lines = min(two.span, two.end - first);
      const unsigned* own_bands = bands;
      for (int part = one.begin; part < one.end; part += one.span, own_bands += 2 * BAND) {
        const bool begins = part == one.begin, ends = part + one.span >= one.end;
        if (!begins || first != two.begin) __syncthreads();
        const Band band(own_bands);
        load_source(from, vertical, first, lines, part, min(one.span, one.end - part), source);
        __syncthreads();
        resize_first<false>(band, of_first, lines, begins, ends, carried, middle);
      }
      const Band last(last_bands);
      __syncthreads();
      UNROLL
      for (int i = 0; i < TILES; ++i) last.add(of_second + i / 2 * CHANNEL + i % 2 * 16 * MIDDLE, sums[i]);
    }
    if (vertical) {
      finish_all<true>(sums, scale, values);
    } else {
      finish_all<false>(sums, scale, values);
    }
  }
  __syncthreads();
  constexpr int MOVED = VALUES * static_cast<int>(sizeof(T)) / 16;
  auto* target = reinterpret_cast<Quad*>(out + static_cast<int64_t>(blockIdx.x) * VALUES);
  UNROLL
  for (int i = 0; i < (MOVED + THREADS - 1) / THREADS; ++i) {
    const int n = thread_number() + i * THREADS;
    if (n < MOVED) target[n] = reinterpret_cast<const Quad*>(values)[n];
  }
}

// Whether the samples of every block along an axis are one part: by bounds, so that it is false in a few cases more.
bool one_part(int64_t source, int64_t target, int64_t most) {
  const int64_t of_patch = reached_of(source, target, OV_PATCH) + 3;  // they begin at a word
  return reached_of(source, target, SIDE) <= most && of_patch <= STEP;
}

template <typename T>
int patches(const OvImages& in, const Prepared& prepared, const OvScale& scale, void* out, void* stream) {
  const unsigned blocks = static_cast<unsigned>(in.tile_count);
  if (in.simple) {
    LAUNCH((patches_kernel<T, true>), blocks, THREADS, stream, in, prepared, scale, static_cast<T*>(out));
  } else {
    LAUNCH((patches_kernel<T, false>), blocks, THREADS, stream, in, prepared, scale, static_cast<T*>(out));
  }
  return launch_status();
}

}  // namespace

OV_RESIZE_PATCHES(ov_resize_patches) {
  if (in.count == 0) return 0;
  unsigned* bands = reinterpret_cast<unsigned*>(scratch);
  Tile* tiles = reinterpret_cast<Tile*>(bands + in.part_count * OV_BAND_WORDS);
  AxisBlock* axes = reinterpret_cast<AxisBlock*>(tiles + in.tile_count);
  const Prepared prepared{bands, tiles, axes, reinterpret_cast<int32_t*>(axes + in.block_count)};
  LAUNCH(plan_kernel, static_cast<unsigned>(in.block_count), 64, stream, in, prepared);
  if (const int status = launch_status()) return status;
  return dtype == OV_BFLOAT16 ? patches<bf16>(in, prepared, scale, out, stream)
                              : patches<float>(in, prepared, scale, out, stream);
}

bool ov_patches_simple(int64_t height, int64_t width, int64_t tall, int64_t wide) {
  const bool vertical = vertical_first(height, width, tall, wide);
  return one_part(width, wide, vertical ? LINES : SPAN) && one_part(height, tall, vertical ? SPAN : LINES);
}

int64_t ov_patches_scratch(int64_t plan_numbers, int64_t block_count, int64_t tile_count, int64_t part_count) {
  constexpr int64_t NUMBER = sizeof(int32_t);
  return part_count * OV_BAND_WORDS + tile_count * static_cast<int64_t>(sizeof(Tile)) / NUMBER +
         block_count * static_cast<int64_t>(sizeof(AxisBlock)) / NUMBER + plan_numbers;
}
