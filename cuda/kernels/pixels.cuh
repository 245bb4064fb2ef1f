// Pixels of an image into shared memory, turned so that a word has four neighbours along the axis that is summed first:
// for each line and channel SOURCE words from one to the next.
#pragma once

#include "device.cuh"

namespace {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;
constexpr int SPAN = 48;    // samples along the first axis, at most, that lie in shared memory
constexpr int LINES = 40;   // and along the second
constexpr int SOURCE = 13;  // words from one line and channel to the next: 52 samples

// The image of a tile.
struct Source {
  const unsigned char* pixels;
  const unsigned* last;  // word of the image
  int64_t row;           // bytes from one row to the next
  int bottom;            // the last row
};

__device__ Source source_of(const OvImages& in, int number) {
  const OvImage& image = in.images[number];
  const unsigned char* pixels = in.pixels + image.offset;
  const auto end = reinterpret_cast<uintptr_t>(pixels + 3 * image.height * image.width - 1);
  return {pixels, reinterpret_cast<const unsigned*>(end / 4 * 4), 3 * image.width, static_cast<int>(image.height) - 1};
}

// Four bytes from `address` on, and so on; if GUARDED, words behind `last` are not read.
template <bool GUARDED, int COUNT>
__device__ void load_words(const unsigned char* address, const unsigned* last, unsigned (&words)[COUNT + 1]) {
  const auto* from = reinterpret_cast<const unsigned*>(reinterpret_cast<uintptr_t>(address) / 4 * 4);
  UNROLL
  for (int i = 0; i <= COUNT; ++i) words[i] = *(!GUARDED || from + i < last ? from + i : last);
}

// What begins within the words that were loaded from `address` on, at their beginning.
template <int COUNT>
__device__ void shift_words(const unsigned char* address, unsigned (&words)[COUNT + 1]) {
  const unsigned shift = static_cast<unsigned>(reinterpret_cast<uintptr_t>(address) % 4) * 8;
  UNROLL
  for (int i = 0; i < COUNT; ++i) words[i] = __funnelshift_r(words[i], words[i + 1], shift);
}

// Samples from `part` on along the width, 4 * GROUPS of them, of lines [first, first + lines), into words of one channel.
// A thread has all its loads under way before the first of them is used.
template <bool GUARDED, int GROUPS>
__device__ void load_rows(const Source& from, int first, int lines, int part, unsigned* source) {
  constexpr int AT_ONCE = THREADS / GROUPS, TIMES = (LINES + AT_ONCE - 1) / AT_ONCE;
  const int group = thread_number() % GROUPS, begin = thread_number() / GROUPS;
  if (begin >= AT_ONCE) return;
  const unsigned char* address = from.pixels + (first + begin) * from.row + 3 * (part + 4 * group);
  unsigned words[TIMES][4];
  UNROLL
  for (int i = 0; i < TIMES; ++i) {
    if (begin + i * AT_ONCE < lines) load_words<GUARDED, 3>(address + i * AT_ONCE * from.row, from.last, words[i]);
  }
  unsigned* to = source + 3 * begin * SOURCE + group;
  UNROLL
  for (int i = 0; i < TIMES; ++i) {
    if (begin + i * AT_ONCE >= lines) break;
    shift_words<3>(address + i * AT_ONCE * from.row, words[i]);
    const unsigned red = __byte_perm(words[i][0], words[i][1], 0x0630);
    const unsigned green = __byte_perm(words[i][0], words[i][1], 0x0741);
    const unsigned blue = __byte_perm(words[i][0], words[i][1], 0x0052);
    unsigned* at = to + 3 * i * AT_ONCE * SOURCE;
    at[0] = __byte_perm(red, words[i][2], 0x5210);
    at[SOURCE] = __byte_perm(green, words[i][2], 0x6210);
    at[2 * SOURCE] = __byte_perm(blue, words[i][2], 0x7410);
  }
}

// Whether a load of rows reads words behind the image's last.
__device__ bool guarded(const Source& from, int first, int lines, int part, int groups) {
  const unsigned char* end = from.pixels + (first + lines - 1) * from.row + 3 * (part + 4 * groups);
  return reinterpret_cast<const unsigned*>(reinterpret_cast<uintptr_t>(end) / 4 * 4) > from.last;
}

// Samples [part, part + samples) along the height, of columns [first, first + columns), into words of one channel.
__device__ void load_columns(const Source& from, int first, int columns, int part, int samples, unsigned* source) {
  constexpr int TIMES = 12 / WARPS;
  const int lane = thread_number() % 32, warp = thread_number() / 32;
  unsigned words[TIMES][4][2];
  UNROLL
  for (int i = 0; i < TIMES; ++i) {
    const int item = warp + i * WARPS, word = item % 4 * 8 + lane % 8, quad = item / 4 * 4 + lane / 8;
    if (4 * word >= 3 * columns || 4 * quad >= samples) continue;
    UNROLL
    for (int n = 0; n < 4; ++n) {
      const unsigned char* address = from.pixels + min(part + 4 * quad + n, from.bottom) * from.row + 3 * first + 4 * word;
      load_words<true, 1>(address, from.last, words[i][n]);
    }
  }
  UNROLL
  for (int i = 0; i < TIMES; ++i) {
    const int item = warp + i * WARPS, word = item % 4 * 8 + lane % 8, quad = item / 4 * 4 + lane / 8;
    if (4 * word >= 3 * columns || 4 * quad >= samples) continue;
    UNROLL
    for (int n = 0; n < 4; ++n) {
      const unsigned char* address = from.pixels + min(part + 4 * quad + n, from.bottom) * from.row + 3 * first + 4 * word;
      shift_words<1>(address, words[i][n]);
    }
    const unsigned(&rows)[4][2] = words[i];
    const unsigned low = __byte_perm(rows[0][0], rows[1][0], 0x5140), low_high = __byte_perm(rows[0][0], rows[1][0], 0x7362);
    const unsigned high = __byte_perm(rows[2][0], rows[3][0], 0x5140);
    const unsigned high_high = __byte_perm(rows[2][0], rows[3][0], 0x7362);
    unsigned* to = source + 4 * word * SOURCE + quad;
    to[0] = __byte_perm(low, high, 0x5410);
    to[SOURCE] = __byte_perm(low, high, 0x7632);
    to[2 * SOURCE] = __byte_perm(low_high, high_high, 0x5410);
    to[3 * SOURCE] = __byte_perm(low_high, high_high, 0x7632);
  }
}

// A part of the source: samples from `part` on along the first axis, of lines [first, first + lines) of the second.
__device__ void load_source(const Source& from, bool vertical, int first, int lines, int part, int samples,
                            unsigned* source) {
  if (vertical) {
    load_columns(from, first, lines, part, samples, source);
  } else if (samples > 36) {
    load_rows<true, SPAN / 4>(from, first, lines, part, source);
  } else if (guarded(from, first, lines, part, 9)) {
    load_rows<true, 9>(from, first, lines, part, source);
  } else {
    load_rows<false, 9>(from, first, lines, part, source);
  }
}

}  // namespace
