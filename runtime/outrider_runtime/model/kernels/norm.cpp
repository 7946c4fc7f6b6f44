// Norms over the last dimension: each row by itself, its sum always in the same order.
//
// In torch a norm is half a dozen operators, each with a start that takes longer than the work on
// the few rows of a step.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <cmath>

#include "lanes.h"

namespace {

constexpr int64_t MIN_ELEMENTS = 1 << 15;  // less is not worth waking a thread for

float sum_of_squares(const float* x, int64_t size, float shift) {
  Floats sums[2] = {};
  int64_t i = 0;
  for (; i + 2 * LANES <= size; i += 2 * LANES)
    for (int v = 0; v < 2; v++) {
      const Floats part = load(x + i + v * LANES) - shift;
      sums[v] += part * part;
    }
  float result = sum(sums[0] + sums[1]);
  for (; i < size; i++) result += (x[i] - shift) * (x[i] - shift);
  return result;
}

float mean(const float* x, int64_t size) {
  Floats sums = {};
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) sums += load(x + i);
  float result = sum(sums);
  for (; i < size; i++) result += x[i];
  return result / size;
}

template <typename Norm>
at::Tensor of_rows(const at::Tensor& x_, Norm norm) {
  const auto x = x_.contiguous();
  auto output = at::empty_like(x);
  const int64_t size = x.size(-1), rows = size ? x.numel() / size : 0;
  const float* from = x.const_data_ptr<float>();
  float* to = output.mutable_data_ptr<float>();
  at::parallel_for(0, rows, MIN_ELEMENTS / (size + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) norm(from + row * size, to + row * size, size);
  });
  return output;
}

// y = weight * (x / sqrt(mean(x^2) + eps))
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  TORCH_CHECK(x.size(-1) == weight.numel(), "rms_norm: ", x.size(-1), " inputs for weights of ",
              weight.numel());
  const float* weights = weight.const_data_ptr<float>();
  return of_rows(x, [&](const float* from, float* to, int64_t size) {
    const float variance = sum_of_squares(from, size, 0) / size;
    const float scale = 1 / std::sqrt(variance + static_cast<float>(eps));
    for (int64_t i = 0; i < size; i++) to[i] = weights[i] * (from[i] * scale);
  });
}

// y = weight * ((x - mean) / sqrt(variance + eps)) + bias
at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight,
                      const std::optional<at::Tensor>& bias, double eps) {
  TORCH_CHECK(x.size(-1) == weight.numel(), "layer_norm: ", x.size(-1), " inputs for weights of ",
              weight.numel());
  const float* weights = weight.const_data_ptr<float>();
  const float* biases = bias ? bias->const_data_ptr<float>() : nullptr;
  return of_rows(x, [&](const float* from, float* to, int64_t size) {
    const float middle = mean(from, size);
    const float variance = sum_of_squares(from, size, middle) / size;
    const float scale = 1 / std::sqrt(variance + static_cast<float>(eps));
    for (int64_t i = 0; i < size; i++) {
      const float normed = weights[i] * ((from[i] - middle) * scale);
      to[i] = biases ? normed + biases[i] : normed;
    }
  });
}

at::Tensor rms_norm_shape(const at::Tensor& x, const at::Tensor&, double) {
  return at::empty_like(x, x.options(), at::MemoryFormat::Contiguous);
}

at::Tensor layer_norm_shape(const at::Tensor& x, const at::Tensor&,
                            const std::optional<at::Tensor>&, double) {
  return at::empty_like(x, x.options(), at::MemoryFormat::Contiguous);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(outrider, library) {
  library.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  library.def("layer_norm(Tensor x, Tensor weight, Tensor? bias, float eps) -> Tensor");
}

TORCH_LIBRARY_IMPL(outrider, CPU, library) {
  library.impl("rms_norm", rms_norm);
  library.impl("layer_norm", layer_norm);
}

TORCH_LIBRARY_IMPL(outrider, Meta, library) {
  library.impl("rms_norm", rms_norm_shape);
  library.impl("layer_norm", layer_norm_shape);
}
