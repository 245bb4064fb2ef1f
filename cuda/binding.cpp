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

#include <optional>
#include <tuple>

#include "kernels.h"

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
}

LIBRARY_IMPL(ONEVISION_NAMESPACE, CPU, m) {
  m.impl("rotary", TORCH_BOX(&rotary<ON_CPU(ov_rotary)>));
  m.impl("rotary_angles", TORCH_BOX(&rotary_angles<ON_CPU(ov_rotary_angles)>));
  m.impl("scatter_features", TORCH_BOX(&scatter_features<ON_CPU(ov_scatter)>));
  m.impl("scatter_features_backward", TORCH_BOX(&scatter_features_backward<ON_CPU(ov_scatter_backward)>));
}

#ifdef ONEVISION_CUDA
LIBRARY_IMPL(ONEVISION_NAMESPACE, CUDA, m) {
  m.impl("rotary", TORCH_BOX(&rotary<ov_rotary>));
  m.impl("rotary_angles", TORCH_BOX(&rotary_angles<ov_rotary_angles>));
  m.impl("scatter_features", TORCH_BOX(&scatter_features<ov_scatter>));
  m.impl("scatter_features_backward", TORCH_BOX(&scatter_features_backward<ov_scatter_backward>));
}
#endif
