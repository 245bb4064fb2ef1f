// Ragged samples, end to end, into packs of a fixed length: each place of the batch finds its sample by bisection.
// The places of image tokens are then gathered in their order: counted a block, summed up, written.
#include "device.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr int EACH = 4;  // places of a thread
constexpr int PLACES = THREADS * EACH;

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

// One place: what it holds, and whether that is an image token.
__device__ bool fill(const OvSamples& in, const OvBatch& out, int64_t place) {
  // Places are fewer than 2^31, and a division of 64 bits costs several of 32.
  const unsigned length32 = static_cast<unsigned>(in.sequence_length);
  const int64_t pack = static_cast<unsigned>(place) / length32, within = static_cast<unsigned>(place) % length32;
  const int64_t first = in.packs[pack], last = in.packs[pack + 1], base = in.offsets[first];
  if (first >= last || in.offsets[last] - base > in.sequence_length) __trap();
  const int64_t sample = last_not_above(in.offsets, first, last, base + within);
  const int64_t position = base + within - in.offsets[sample];
  const int64_t length = in.offsets[sample + 1] - in.offsets[sample];
  const int64_t* ids = in.ids + in.offsets[sample];
  const int64_t token = position < length ? ids[position] : in.filling;
  const bool learned = position + 1 < length && in.target[in.offsets[sample] + position + 1];
  out.tokens[place] = token;
  out.labels[place] = learned ? ids[position + 1] : 0;
  out.loss_mask[place] = learned ? 1.0f : 0.0f;
  out.position_ids[place] = position;
  return token == in.image_pad;
}

__global__ void __launch_bounds__(THREADS) fill_kernel(OvSamples in, OvBatch out, int64_t total) {
  __shared__ int sums[WARPS];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * PLACES + thread_number();
  int images = 0;
  for (int64_t place = begin; place < begin + PLACES && place < total; place += THREADS) {
    images += fill(in, out, place);
  }
  int total_images;
  running_sum(images, sums, total_images);
  if (thread_number() == 0) out.block_images[blockIdx.x] = total_images;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t s = static_cast<int64_t>(blockIdx.x) * THREADS + thread_number(); s <= in.sample_count; s += stride) {
    const int64_t pack = last_not_above(in.packs, 0, in.pack_count, s);
    out.cu_seqlens[s] = static_cast<int32_t>(s == in.sample_count ? total : place_of(in, pack, s));
  }
}

__global__ void __launch_bounds__(THREADS) gather_kernel(OvSamples in, OvBatch out, int64_t total) {
  __shared__ int sums[WARPS];
  int before = 0;  // of all blocks before this
  for (unsigned block = thread_number(); block < blockIdx.x; block += THREADS) before += out.block_images[block];
  running_sum(before, sums, before);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * PLACES + thread_number() * EACH;
  const int64_t end = min(begin + EACH, total);
  int own = 0;
  for (int64_t place = begin; place < end; ++place) own += out.tokens[place] == in.image_pad;
  int here;  // image tokens of this block
  int64_t slot = before + running_sum(own, sums, here) - own;
  for (int64_t place = begin; place < end; ++place) {
    if (out.tokens[place] != in.image_pad) continue;
    if (slot < in.image_tokens) out.image_slots[slot] = place;
    ++slot;
  }
  if (blockIdx.x + 1 < gridDim.x) return;
  const int64_t found = before + here;
  if (thread_number() == 0) *out.image_count = found;
  for (int64_t n = found + thread_number(); n < in.image_tokens; n += THREADS) out.image_slots[n] = -1;
}

}  // namespace

int64_t ov_assemble_blocks(int64_t total) { return total < PLACES ? 1 : (total + PLACES - 1) / PLACES; }

OV_ASSEMBLE(ov_assemble) {
  const int64_t total = in.pack_count * in.sequence_length;
  const unsigned blocks = static_cast<unsigned>(ov_assemble_blocks(total));
  LAUNCH(fill_kernel, blocks, THREADS, stream, in, out, total);
  if (const int status = launch_status()) return status;
  LAUNCH(gather_kernel, blocks, THREADS, stream, in, out, total);
  return launch_status();
}
