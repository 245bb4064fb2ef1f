// torch.ops.onevision over PyTorch's stable ABI: checks arguments, makes the outputs, calls a kernel on the current
// stream. What is left to Python are the shapes of outputs for tracing, and gradients.
//
// ONEVISION_NAMESPACE names the library. ONEVISION_EMULATED: the CPU runs the kernels' source in the emulator, else the
// twins. ONEVISION_CUDA: there are kernels for CUDA too.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "kernels.h"
#include "resize.h"

#ifdef ONEVISION_CUDA
// PyTorch's header declares it only where CUDA is at hand. Weak: a PyTorch without CUDA can load the library, and never
// calls this.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);
#endif

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The device of a tensor made current, and its stream.
struct Place {
  explicit Place(const Tensor& tensor) {
#ifdef ONEVISION_CUDA
    if (tensor.is_cuda()) {
      STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this PyTorch is without CUDA");
      guard.emplace(tensor.get_device_index());
      STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) == 0, "no CUDA stream");
    }
#else
    static_cast<void>(tensor);
#endif
  }
  std::optional<torch::stable::accelerator::DeviceGuard> guard;
  void* stream = nullptr;
};

void check_launch(const char* name, int status) {
  STD_TORCH_CHECK(status == 0, name, ": the kernel could not be run, error ", status);
}

int dtype_code(const char* name, const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16, name, " must be float32 or bfloat16");
  return type == ScalarType::BFloat16 ? OV_BFLOAT16 : OV_FLOAT32;
}

void check_dense(const char* name, const Tensor& tensor, ScalarType type, const Tensor& beside) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " has the wrong dtype");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(tensor.is_cuda() == beside.is_cuda() && tensor.get_device_index() == beside.get_device_index(), name,
                  " is on another device");
}

OvHeads heads(const char* name, const Tensor& tensor, const Tensor& beside) {
  STD_TORCH_CHECK(tensor.dim() == 3, name, " must have the shape [T, heads, head_dim]");
  STD_TORCH_CHECK(tensor.scalar_type() == beside.scalar_type(), name, " has another dtype");
  STD_TORCH_CHECK(tensor.size(0) == beside.size(0) && tensor.size(2) == beside.size(2), name, " has another shape");
  STD_TORCH_CHECK(tensor.stride(2) == 1 || tensor.numel() == 0, name, " must have a dense last dimension");
  STD_TORCH_CHECK(tensor.is_cuda() == beside.is_cuda() && tensor.get_device_index() == beside.get_device_index(), name,
                  " is on another device");
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1), static_cast<int32_t>(tensor.size(1))};
}

int32_t half_of(const Tensor& q) {
  STD_TORCH_CHECK(q.dim() == 3 && q.size(2) % 2 == 0 && q.size(2) <= 256, "head_dim must be even and at most 256");
  return static_cast<int32_t>(q.size(2) / 2);
}

template <auto kernel>
std::tuple<Tensor, Tensor> rotary(const Tensor& q, const Tensor& k, const Tensor& angles, bool inverse) {
  const int32_t half = half_of(q);
  check_dense("angles", angles, ScalarType::Float, q);
  STD_TORCH_CHECK(angles.dim() == 2 && angles.size(0) == q.size(0) && angles.size(1) == half,
                  "angles must have the shape [T, head_dim / 2]");
  const int dtype = dtype_code("q", q);
  const OvHeads from_q = heads("q", q, q), from_k = heads("k", k, q);
  Tensor out_q = torch::stable::new_empty(q, q.sizes()), out_k = torch::stable::new_empty(k, k.sizes());
  const Place place(q);
  check_launch("onevision::rotary",
               kernel(dtype, from_q, from_k, static_cast<const float*>(angles.const_data_ptr()),
                      out_q.mutable_data_ptr(), out_k.mutable_data_ptr(), q.size(0), half, inverse, place.stream));
  return {out_q, out_k};
}

template <auto kernel>
Tensor rotary_angles(const Tensor& q, const Tensor& k, const Tensor& grad_q, const Tensor& grad_k) {
  const int32_t half = half_of(q);
  const int dtype = dtype_code("q", q);
  STD_TORCH_CHECK(grad_q.dim() == 3 && grad_q.size(1) == q.size(1), "grad_q has another shape");
  STD_TORCH_CHECK(grad_k.dim() == 3 && k.dim() == 3 && grad_k.size(1) == k.size(1), "grad_k has another shape");
  const OvHeads from_q = heads("q", q, q), from_k = heads("k", k, q);
  const OvHeads back_q = heads("grad_q", grad_q, q), back_k = heads("grad_k", grad_k, q);
  Tensor out = torch::stable::new_empty(q, {q.size(0), half}, ScalarType::Float);
  const Place place(q);
  check_launch("onevision::rotary_angles", kernel(dtype, from_q, from_k, back_q, back_k,
                                                  static_cast<float*>(out.mutable_data_ptr()), q.size(0), half,
                                                  place.stream));
  return out;
}

// Bytes of a row of the sequence.
int64_t row_bytes(const char* name, const Tensor& rows) {
  dtype_code(name, rows);
  STD_TORCH_CHECK(rows.dim() == 2, name, " must have the shape [rows, width]");
  return rows.size(1) * static_cast<int64_t>(rows.element_size());
}

template <auto kernel>
Tensor scatter_features(const Tensor& embedded, const Tensor& features, const Tensor& slots, int64_t first) {
  const int64_t bytes = row_bytes("embedded", embedded);
  check_dense("embedded", embedded, embedded.scalar_type(), embedded);
  check_dense("features", features, embedded.scalar_type(), embedded);
  check_dense("slots", slots, ScalarType::Long, embedded);
  STD_TORCH_CHECK(slots.dim() == 1, "slots must have the shape [N]");
  STD_TORCH_CHECK(features.dim() == 2 && features.size(0) == slots.size(0) && features.size(1) == embedded.size(1),
                  "features must have a row for every slot, as wide as those of embedded");
  Tensor out = torch::stable::new_empty(embedded, embedded.sizes());
  const Place place(embedded);
  check_launch("onevision::scatter_features",
               kernel(embedded.const_data_ptr(), features.const_data_ptr(),
                      static_cast<const int64_t*>(slots.const_data_ptr()), out.mutable_data_ptr(), embedded.size(0),
                      slots.size(0), first, bytes, place.stream));
  return out;
}

template <auto kernel>
std::tuple<Tensor, Tensor> scatter_features_backward(const Tensor& grad, const Tensor& slots, int64_t first) {
  const int64_t bytes = row_bytes("grad", grad);
  check_dense("grad", grad, grad.scalar_type(), grad);
  check_dense("slots", slots, ScalarType::Long, grad);
  STD_TORCH_CHECK(slots.dim() == 1, "slots must have the shape [N]");
  Tensor grad_embedded = torch::stable::new_empty(grad, grad.sizes());
  Tensor grad_features = torch::stable::new_empty(grad, {slots.size(0), grad.size(1)});
  const Place place(grad);
  check_launch("onevision::scatter_features_backward",
               kernel(grad.const_data_ptr(), static_cast<const int64_t*>(slots.const_data_ptr()),
                      grad_embedded.mutable_data_ptr(), grad_features.mutable_data_ptr(), grad.size(0), slots.size(0),
                      first, bytes, place.stream));
  return {grad_embedded, grad_features};
}

template <typename T>
T* made(const Tensor& beside, int64_t count, ScalarType type, std::vector<Tensor>& outputs) {
  outputs.push_back(torch::stable::new_empty(beside, {count}, type));
  return static_cast<T*>(outputs.back().mutable_data_ptr());
}

using SevenTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <auto kernel, auto blocks, auto words>
SevenTensors assemble(const Tensor& ids, const Tensor& target, const Tensor& sample_offsets, const Tensor& pack_offsets,
                      int64_t sequence_length, int64_t filling, int64_t image_pad, int64_t image_tokens) {
  check_dense("ids", ids, ScalarType::Long, ids);
  check_dense("target", target, ScalarType::Bool, ids);
  check_dense("sample_offsets", sample_offsets, ScalarType::Long, ids);
  check_dense("pack_offsets", pack_offsets, ScalarType::Long, ids);
  STD_TORCH_CHECK(target.numel() == ids.numel(), "target must have an entry for every one of ids");
  STD_TORCH_CHECK(sample_offsets.numel() > 0 && pack_offsets.numel() > 0, "offsets begin with 0 and end with the count");
  STD_TORCH_CHECK(sequence_length > 0 && image_tokens >= 0, "sequence_length is above 0, image_tokens not below");
  const int64_t samples = sample_offsets.numel() - 1, packs = pack_offsets.numel() - 1;
  STD_TORCH_CHECK(packs <= INT32_MAX / sequence_length, "the packs have more tokens than cu_seqlens can count");
  const int64_t total = packs * sequence_length;
  const OvSamples in{static_cast<const int64_t*>(ids.const_data_ptr()),
                     static_cast<const uint8_t*>(target.const_data_ptr()),
                     static_cast<const int64_t*>(sample_offsets.const_data_ptr()),
                     static_cast<const int64_t*>(pack_offsets.const_data_ptr()),
                     samples,
                     packs,
                     sequence_length,
                     filling,
                     image_pad,
                     image_tokens};
  std::vector<Tensor> made_tensors;
  const Place place(ids);
  const OvBatch out{made<int64_t>(ids, total, ScalarType::Long, made_tensors),
                    made<int64_t>(ids, total, ScalarType::Long, made_tensors),
                    made<float>(ids, total, ScalarType::Float, made_tensors),
                    made<int64_t>(ids, total, ScalarType::Long, made_tensors),
                    made<int32_t>(ids, samples + 1, ScalarType::Int, made_tensors),
                    made<int64_t>(ids, image_tokens, ScalarType::Long, made_tensors),
                    made<int64_t>(ids, 1, ScalarType::Long, made_tensors),
                    made<int32_t>(ids, blocks(total), ScalarType::Int, made_tensors),
                    made<int32_t>(ids, words(total), ScalarType::Int, made_tensors)};
  check_launch("onevision::assemble", kernel(in, out, place.stream));
  const auto& t = made_tensors;
  return {t[0], t[1], t[2], t[3], t[4], t[5], t[6]};
}

// What the kernels must know of images: OvImage for each, then block_offsets, then tile_offsets; and their sums.
struct ImageTable {
  std::vector<int64_t> numbers;
  int64_t bytes = 0, plan_numbers = 0, parts = 0;
  bool simple = true;
};

template <auto simple>
ImageTable image_table(const int64_t* sizes, int64_t count) {
  constexpr int64_t FIELDS = sizeof(OvImage) / sizeof(int64_t), SIDE = 2 * OV_PATCH;
  ImageTable table{std::vector<int64_t>(FIELDS * count + 2 * count + 1 + count + 1)};
  int64_t *image = table.numbers.data(), *block = image + FIELDS * count, *tile = block + 2 * count + 1;
  for (int64_t n = 0; n < count; ++n, sizes += 4, image += FIELDS) {
    const int64_t height = sizes[0], width = sizes[1], rows = sizes[2], columns = sizes[3];
    STD_TORCH_CHECK(height > 0 && width > 0 && rows > 0 && columns > 0 && rows % 2 == 0 && columns % 2 == 0,
                    "sizes: an image has pixels, and an even number of rows and columns of patches");
    const int64_t wide = columns * OV_PATCH, tall = rows * OV_PATCH;
    const int64_t stride_x = plan_stride(width, wide), stride_y = plan_stride(height, tall);
    const int64_t plan_y = table.plan_numbers + wide * stride_x;
    const int64_t parts_x = (reached_of(width, wide, SIDE) + 31) / 32;
    const int64_t parts_y = (reached_of(height, tall, SIDE) + 31) / 32;
    const int64_t before_y = table.parts + columns / 2 * parts_x;
    const OvImage fields{table.bytes, height, width, rows, columns, table.plan_numbers, plan_y, stride_x,
                         stride_y, parts_x, parts_y, table.parts, before_y};
    std::memcpy(image, &fields, sizeof fields);
    table.simple = table.simple && simple(height, width, tall, wide);
    table.bytes += 3 * height * width;
    table.plan_numbers = plan_y + tall * stride_y;
    table.parts = before_y + rows / 2 * parts_y;
    block[2 * n + 1] = block[2 * n] + columns / 2;
    block[2 * n + 2] = block[2 * n + 1] + rows / 2;
    tile[n + 1] = tile[n] + rows * columns / 4;
  }
  return table;
}

template <auto kernel, auto scratch_numbers, auto simple>
Tensor resize_patches(const Tensor& pixels, const Tensor& sizes, const Tensor& scale, const Tensor& shift,
                      int64_t patches, ScalarType dtype) {
  check_dense("pixels", pixels, ScalarType::Byte, pixels);
  check_dense("sizes", sizes, ScalarType::Long, sizes);
  STD_TORCH_CHECK(sizes.is_cpu() && sizes.dim() == 2 && sizes.size(1) == 4, "sizes must be [I, 4], on the CPU");
  OvScale values;
  for (const auto& [name, tensor, into] : {std::tuple{"scale", &scale, values.scale}, {"shift", &shift, values.shift}}) {
    check_dense(name, *tensor, ScalarType::Float, sizes);
    STD_TORCH_CHECK(tensor->numel() == 3, name, " must have 3 values");
    std::memcpy(into, tensor->const_data_ptr(), 3 * sizeof(float));
  }
  const int64_t count = sizes.size(0);
  const ImageTable table = image_table<simple>(static_cast<const int64_t*>(sizes.const_data_ptr()), count);
  const int64_t tiles = table.numbers.back(), blocks = table.numbers[table.numbers.size() - count - 2];
  STD_TORCH_CHECK(table.bytes == pixels.numel(), "pixels has ", pixels.numel(), " bytes, the images of sizes have ",
                  table.bytes);
  STD_TORCH_CHECK(4 * tiles == patches, "the images of sizes have ", 4 * tiles, " patches, not ", patches);
  STD_TORCH_CHECK(tiles <= INT32_MAX, "the images of sizes have more patches than a launch can make");
  const Place place(pixels);
  Tensor host = torch::stable::new_empty(sizes, {static_cast<int64_t>(table.numbers.size())});
  std::memcpy(host.mutable_data_ptr(), table.numbers.data(), table.numbers.size() * sizeof(int64_t));
  Tensor moved = torch::stable::new_empty(pixels, host.sizes(), ScalarType::Long);
  torch::stable::copy_(moved, host, true);  // from pageable memory: it is read before this returns
  const int64_t numbers = scratch_numbers(table.plan_numbers, blocks, tiles, table.parts);
  Tensor scratch = torch::stable::new_empty(pixels, {numbers}, ScalarType::Int);
  Tensor out = torch::stable::new_empty(pixels, {patches, OV_VALUES}, dtype);
  const auto* images = static_cast<const OvImage*>(moved.const_data_ptr());
  const auto* block_offsets = reinterpret_cast<const int64_t*>(images + count);
  const int64_t* tile_offsets = block_offsets + 2 * count + 1;
  const OvImages in{static_cast<const uint8_t*>(pixels.const_data_ptr()), images, block_offsets, tile_offsets, count,
                    blocks, tiles, table.parts, table.simple};
  check_launch("onevision::resize_patches",
               kernel(dtype_code("dtype", out), in, values, static_cast<int32_t*>(scratch.mutable_data_ptr()),
                      out.mutable_data_ptr(), place.stream));
  return out;
}

}  // namespace

#ifdef ONEVISION_EMULATED
#define ON_CPU(name) name
#else
#define ON_CPU(name) name##_twin
#endif

// Macros of PyTorch paste the namespace, so it is expanded one step before.
#define LIBRARY(name, m) STABLE_TORCH_LIBRARY(name, m)
#define LIBRARY_IMPL(name, key, m) STABLE_TORCH_LIBRARY_IMPL(name, key, m)

LIBRARY(ONEVISION_NAMESPACE, m) {
  m.def("rotary(Tensor q, Tensor k, Tensor angles, bool inverse=False) -> (Tensor, Tensor)");
  m.def("rotary_angles(Tensor q, Tensor k, Tensor grad_q, Tensor grad_k) -> Tensor");
  m.def("scatter_features(Tensor embedded, Tensor features, Tensor slots, int first=0) -> Tensor");
  m.def("scatter_features_backward(Tensor grad, Tensor slots, int first) -> (Tensor, Tensor)");
  m.def(
      "assemble(Tensor ids, Tensor target, Tensor sample_offsets, Tensor pack_offsets, int sequence_length, "
      "int filling, int image_pad, int image_tokens) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "resize_patches(Tensor pixels, Tensor sizes, Tensor scale, Tensor shift, int patches, ScalarType dtype) -> Tensor");
}

LIBRARY_IMPL(ONEVISION_NAMESPACE, CPU, m) {
  m.impl("rotary", TORCH_BOX(&rotary<ON_CPU(ov_rotary)>));
  m.impl("rotary_angles", TORCH_BOX(&rotary_angles<ON_CPU(ov_rotary_angles)>));
  m.impl("scatter_features", TORCH_BOX(&scatter_features<ON_CPU(ov_scatter)>));
  m.impl("scatter_features_backward", TORCH_BOX(&scatter_features_backward<ON_CPU(ov_scatter_backward)>));
  m.impl("assemble", TORCH_BOX((&assemble<ON_CPU(ov_assemble), ON_CPU(ov_assemble_blocks), ON_CPU(ov_assemble_words)>)));
  m.impl("resize_patches", TORCH_BOX((&resize_patches<ON_CPU(ov_resize_patches), ON_CPU(ov_patches_scratch),
                                                   ON_CPU(ov_patches_simple)>)));
}

#ifdef ONEVISION_CUDA
LIBRARY_IMPL(ONEVISION_NAMESPACE, CUDA, m) {
  m.impl("rotary", TORCH_BOX(&rotary<ov_rotary>));
  m.impl("rotary_angles", TORCH_BOX(&rotary_angles<ov_rotary_angles>));
  m.impl("scatter_features", TORCH_BOX(&scatter_features<ov_scatter>));
  m.impl("scatter_features_backward", TORCH_BOX(&scatter_features_backward<ov_scatter_backward>));
  m.impl("assemble", TORCH_BOX((&assemble<ov_assemble, ov_assemble_blocks, ov_assemble_words>)));
  m.impl("resize_patches", TORCH_BOX((&resize_patches<ov_resize_patches, ov_patches_scratch, ov_patches_simple>)));
}
#endif
