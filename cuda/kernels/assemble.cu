// Ragged samples, end to end, into packs of a fixed length: a place of the batch finds its sample by bisection, unless
// it is that of the place before. Image tokens are marked by a bit a place; then their places are gathered in order.
//
// A place of 512 packs of 8,192 takes 9 bytes read and 28 written, an image token 8 more: 175 MB, 58 us at the 3.0 TB/s of
// an H100's copy; the bits add 1 MB. About 140 instructions of a warp for 32 places are 26 us of its schedulers. So memory
// binds; two launches and the last blocks should leave some 80 to 85 % of it.
#include "device.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr int EACH = 4;  // places of a thread
constexpr int PLACES = THREADS * EACH;
constexpr int GATHERED = THREADS * 32 / PLACES;  // blocks of places whose slots a block gathers

// The sum of `value` over this thread and all before it, and that over all; sums: one for each warp.
__device__ int running_sum(int value, int* sums, int& total) {
  const int lane = thread_number() % 32, warp = thread_number() / 32;
  for (int reach = 1; reach < 32; reach *= 2) {
    const int before = __shfl_up_sync(~0u, value, reach);
    if (lane >= reach) value += before;
  }
  __syncthreads();  // the sums of a call before are read
  if (lane == 31) sums[warp] = value;
  __syncthreads();
  total = 0;
  for (int n = 0; n < WARPS; ++n) {
    if (n < warp) value += sums[n];
    total += sums[n];
  }
  return value;
}

// Which of ascending[first .. last] is the last not above `wanted`, counting from 0.
__device__ int64_t last_not_above(const int64_t* ascending, int64_t first, int64_t last, int64_t wanted) {
  return upper_bound(ascending, first, last, wanted) - 1;
}

__device__ int64_t place_of(const OvSamples& in, int64_t pack, int64_t sample) {
  return pack * in.sequence_length + in.offsets[sample] - in.offsets[in.packs[pack]];
}

// The places of a pack that hold one sample, [begin, end); those behind its last sample belong to that.
struct Segment {
  int64_t begin, end, ids;  // places; ids: where the sample's tokens begin
  int64_t length;           // tokens of the sample
};

__device__ Segment segment_of(const OvSamples& in, int64_t place) {
  // Places are fewer than 2^31, and a division of 64 bits costs several of 32.
  const int64_t pack = static_cast<unsigned>(place) / static_cast<unsigned>(in.sequence_length);
  const int64_t first = in.packs[pack], last = in.packs[pack + 1], base = in.offsets[first];
  if (first >= last || in.offsets[last] - base > in.sequence_length) __trap();
  const int64_t start = pack * in.sequence_length;
  const int64_t sample = last_not_above(in.offsets, first, last, base + place - start);
  const int64_t ids = in.offsets[sample], next = in.offsets[sample + 1];
  const bool ends = sample + 1 >= last;
  return {start + ids - base, start + (ends ? in.sequence_length : next - base), ids, next - ids};
}

__global__ void __launch_bounds__(THREADS) fill_kernel(OvSamples in, OvBatch out, int64_t total) {
  __shared__ int sums[WARPS];
  const int lane = thread_number() % 32, warp = thread_number() / 32;
  const int64_t word = (static_cast<int64_t>(blockIdx.x) * WARPS + warp) * EACH;  // of bits
  Segment at{0, 0, 0, 0};
  int images = 0;
  int64_t tokens[EACH] = {}, labels[EACH] = {}, positions[EACH] = {};
  bool learned[EACH] = {};
  UNROLL
  for (int i = 0; i < EACH; ++i) {
    const int64_t place = (word + i) * 32 + lane;
    if (place >= total) continue;
    if (place >= at.end) at = segment_of(in, place);  // most often the next 32 places are the same sample's
    const int64_t position = positions[i] = place - at.begin;
    const int64_t* ids = in.ids + at.ids + position;
    learned[i] = position + 1 < at.length && in.target[at.ids + position + 1];
    tokens[i] = position < at.length ? ids[0] : in.filling;
    labels[i] = position + 1 < at.length ? ids[1] : 0;
  }
  UNROLL
  for (int i = 0; i < EACH; ++i) {
    const int64_t place = (word + i) * 32 + lane;
    const bool there = place < total;
    if (there) {
      out.tokens[place] = tokens[i];
      out.labels[place] = learned[i] ? labels[i] : 0;
      out.loss_mask[place] = learned[i] ? 1.0f : 0.0f;
      out.position_ids[place] = positions[i];
    }
    const unsigned bits = __ballot_sync(~0u, there && tokens[i] == in.image_pad);
    if (lane == 0) out.image_bits[word + i] = static_cast<int32_t>(bits);
    images += __popc(bits);
  }
  if (lane == 0) sums[warp] = images;
  __syncthreads();
  if (thread_number() == 0) {
    int all = 0;
    for (int n = 0; n < WARPS; ++n) all += sums[n];
    out.block_images[blockIdx.x] = all;
  }
  const int64_t stride = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t s = static_cast<int64_t>(blockIdx.x) * THREADS + thread_number(); s <= in.sample_count; s += stride) {
    const int64_t pack = last_not_above(in.packs, 0, in.pack_count, s);
    out.cu_seqlens[s] = static_cast<int32_t>(s == in.sample_count ? total : place_of(in, pack, s));
  }
}

// Each thread has the bits of 32 places; the threads of a warp write the slots of one thread's places together.
__global__ void __launch_bounds__(THREADS) gather_kernel(OvSamples in, OvBatch out, int64_t words) {
  __shared__ int sums[WARPS];
  int before = 0;  // of all places before this block's
  for (int64_t block = thread_number(); block < static_cast<int64_t>(blockIdx.x) * GATHERED; block += THREADS) {
    before += out.block_images[block];
  }
  running_sum(before, sums, before);
  const int lane = thread_number() % 32;
  const int64_t word = static_cast<int64_t>(blockIdx.x) * THREADS + thread_number();
  const unsigned bits = word < words ? static_cast<unsigned>(out.image_bits[word]) : 0u;
  int here;  // image tokens of this block
  const int own = before + running_sum(__popc(bits), sums, here) - __popc(bits);
  for (int from = 0; from < 32; ++from) {
    const unsigned its = static_cast<unsigned>(__shfl_sync(~0u, static_cast<int>(bits), from));
    const int slot = __shfl_sync(~0u, own, from) + __popc(its & ((1u << lane) - 1));
    if ((its >> lane & 1) && slot < in.image_tokens) out.image_slots[slot] = (word - lane + from) * 32 + lane;
  }
  if (blockIdx.x + 1 < gridDim.x) return;
  const int64_t found = before + here;
  if (thread_number() == 0) *out.image_count = found;
  for (int64_t n = found + thread_number(); n < in.image_tokens; n += THREADS) out.image_slots[n] = -1;
}

}  // namespace

int64_t ov_assemble_blocks(int64_t total) { return total < PLACES ? 1 : (total + PLACES - 1) / PLACES; }
int64_t ov_assemble_words(int64_t total) { return ov_assemble_blocks(total) * (PLACES / 32); }

OV_ASSEMBLE(ov_assemble) {
  const int64_t total = in.pack_count * in.sequence_length;
  const unsigned blocks = static_cast<unsigned>(ov_assemble_blocks(total));
  LAUNCH(fill_kernel, blocks, THREADS, stream, in, out, total);
  if (const int status = launch_status()) return status;
  LAUNCH(gather_kernel, blocks_for(blocks, GATHERED), THREADS, stream, in, out, ov_assemble_words(total));
  return launch_status();
}
