#include <algorithm>
#include <cstring>

#include "kernels.h"

namespace {

constexpr int UNSORTED = 1;

char* row(void* data, int64_t number, int64_t bytes) { return static_cast<char*>(data) + number * bytes; }
const char* row(const void* data, int64_t number, int64_t bytes) {
  return static_cast<const char*>(data) + number * bytes;
}

bool ascend(const int64_t* slots, int64_t count) {
  return std::adjacent_find(slots, slots + count, [](int64_t a, int64_t b) { return a >= b; }) == slots + count;
}

}  // namespace

OV_SCATTER(ov_scatter_twin) {
  static_cast<void>(stream);
  if (!ascend(slots, count)) return UNSORTED;
  if (rows * row_bytes > 0) std::memcpy(out, embedded, rows * row_bytes);
  for (int64_t n = 0; n < count; ++n) {
    const int64_t place = slots[n] - first;
    if (place >= 0 && place < rows) std::memcpy(row(out, place, row_bytes), row(features, n, row_bytes), row_bytes);
  }
  return 0;
}

OV_SCATTER_BACKWARD(ov_scatter_backward_twin) {
  static_cast<void>(stream);
  if (rows * row_bytes > 0) std::memcpy(grad_embedded, grad, rows * row_bytes);
  for (int64_t n = 0; n < count; ++n) {
    const int64_t place = slots[n] - first;
    if (place >= 0 && place < rows) {
      std::memcpy(row(grad_features, n, row_bytes), row(grad, place, row_bytes), row_bytes);
      std::memset(row(grad_embedded, place, row_bytes), 0, row_bytes);
    } else {
      std::memset(row(grad_features, n, row_bytes), 0, row_bytes);
    }
  }
  return 0;
}
