#include <algorithm>

#include "kernels.h"

namespace {

constexpr int NO_SAMPLE = 1;
constexpr int TOO_LONG = 2;

}  // namespace

int64_t ov_assemble_blocks_twin(int64_t) { return 0; }
int64_t ov_assemble_words_twin(int64_t) { return 0; }

OV_ASSEMBLE(ov_assemble_twin) {
  static_cast<void>(stream);
  const int64_t length = in.sequence_length, total = in.pack_count * length;
  int64_t images = 0;
  for (int64_t pack = 0; pack < in.pack_count; ++pack) {
    const int64_t first = in.packs[pack], last = in.packs[pack + 1];
    if (first >= last) return NO_SAMPLE;
    if (in.offsets[last] - in.offsets[first] > length) return TOO_LONG;
    int64_t start = pack * length;
    for (int64_t sample = first; sample < last; ++sample) {
      const int64_t own = in.offsets[sample + 1] - in.offsets[sample];
      const int64_t end = sample + 1 < last ? start + own : (pack + 1) * length;
      const int64_t* ids = in.ids + in.offsets[sample];
      const uint8_t* target = in.target + in.offsets[sample];
      out.cu_seqlens[sample] = static_cast<int32_t>(start);
      for (int64_t place = start; place < end; ++place) {
        const int64_t position = place - start;
        const bool learned = position + 1 < own && target[position + 1];
        out.tokens[place] = position < own ? ids[position] : in.filling;
        out.labels[place] = learned ? ids[position + 1] : 0;
        out.loss_mask[place] = learned;
        out.position_ids[place] = position;
        if (out.tokens[place] == in.image_pad) {
          if (images < in.image_tokens) out.image_slots[images] = place;
          ++images;
        }
      }
      start = end;
    }
  }
  out.cu_seqlens[in.sample_count] = static_cast<int32_t>(total);
  if (images < in.image_tokens) std::fill(out.image_slots + images, out.image_slots + in.image_tokens, -1);
  *out.image_count = images;
  return 0;
}
