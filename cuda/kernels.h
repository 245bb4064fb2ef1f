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

// Samples that lie end to end: sample s has ids[offsets[s] .. offsets[s + 1]), and pack p has the samples
// packs[p] .. packs[p + 1], one or more, which together are not longer than sequence_length.
struct OvSamples {
  const int64_t* ids;
  const uint8_t* target;   // 1 on the tokens that are learned
  const int64_t* offsets;  // [sample_count + 1]
  const int64_t* packs;    // [pack_count + 1]
  int64_t sample_count, pack_count, sequence_length;
  int64_t filling;       // the token behind the last sample of a pack
  int64_t image_pad;     // the token whose places are image_slots
  int64_t image_tokens;  // how many of them there should be
};

// pack_count * sequence_length places.
struct OvBatch {
  int64_t* tokens;
  int64_t* labels;
  float* loss_mask;
  int64_t* position_ids;
  int32_t* cu_seqlens;    // [sample_count + 1]
  int64_t* image_slots;   // [image_tokens]; -1 where there are fewer
  int64_t* image_count;   // [1], how many there are
  int32_t* block_images;  // scratch, [ov_assemble_blocks(places)]
  int32_t* image_bits;    // scratch, [ov_assemble_words(places)]
};

#define OV_ASSEMBLE(name) int name(OvSamples in, OvBatch out, void* stream)
OV_ASSEMBLE(ov_assemble);
OV_ASSEMBLE(ov_assemble_twin);
int64_t ov_assemble_blocks(int64_t places);
int64_t ov_assemble_blocks_twin(int64_t places);
int64_t ov_assemble_words(int64_t places);
int64_t ov_assemble_words_twin(int64_t places);

// An image of height x width pixels that becomes rows x columns patches; see resize.h for plans.
struct OvImage {
  int64_t offset;  // of its first byte; red, green and blue alternate, row by row
  int64_t height, width, rows, columns;
  int64_t plan_x, plan_y;      // where the plans of its columns and of its rows begin
  int64_t stride_x, stride_y;  // numbers of a plan
  // Parts, of at least 32 samples, in which 28 columns or rows sum theirs, at most; and those of all axes before its own.
  int64_t parts_x, parts_y, parts_before_x, parts_before_y;
};

constexpr int64_t OV_BAND_WORDS = 768;  // weights of a part

struct OvImages {
  const uint8_t* pixels;
  const OvImage* images;        // [count]
  const int64_t* block_offsets;  // [2 * count + 1], pairs of patches along the width and the height, summed up
  const int64_t* tile_offsets;   // [count + 1], 2 x 2 blocks of patches, summed up
  int64_t count, block_count, tile_count, part_count;  // part_count: of all pairs of patches, at most
  bool simple;                                         // ov_patches_simple of all of them
};

// A value is byte * scale + shift.
struct OvScale {
  float scale[3], shift[3];
};

// out: [4 * tile_count, 588]; scratch: as many numbers as ov_patches_scratch says, aligned to 16 bytes.
#define OV_RESIZE_PATCHES(name) \
  int name(int dtype, OvImages in, OvScale scale, int32_t* scratch, void* out, void* stream)
OV_RESIZE_PATCHES(ov_resize_patches);
OV_RESIZE_PATCHES(ov_resize_patches_twin);
bool ov_patches_simple(int64_t height, int64_t width, int64_t tall, int64_t wide);
bool ov_patches_simple_twin(int64_t height, int64_t width, int64_t tall, int64_t wide);
int64_t ov_patches_scratch(int64_t plan_numbers, int64_t block_count, int64_t tile_count, int64_t part_count);
int64_t ov_patches_scratch_twin(int64_t plan_numbers, int64_t block_count, int64_t tile_count, int64_t part_count);

}  // extern "C"
