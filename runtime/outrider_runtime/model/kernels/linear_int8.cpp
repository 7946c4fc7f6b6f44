// y = x W^T + b with weights of 8 bits, W[o, i] = scale[o] * integer[o, i], for few rows.
//
// Inputs, sums and outputs are floats: an integer becomes one in a register, and what is read from
// memory is a quarter. The scale of an output is multiplied with its finished sum.

#include <torch/library.h>

#include <cmath>
#include <tuple>

#include "panels.h"

namespace {

constexpr float LARGEST = 127;

// packed [panels, k, WIDTH] -> integers alike, and scales [panels, WIDTH]. Symmetric: the largest
// weight of an output becomes 127 or -127, others the nearest integer, ties to even.
std::tuple<at::Tensor, at::Tensor> pack(const at::Tensor& packed_) {
  const auto packed = packed_.contiguous();
  const int64_t panels = packed.size(0), k = packed.size(1);
  TORCH_CHECK(packed.size(2) == WIDTH, "pack_linear_int8: panels of ", packed.size(2), " outputs");
  auto integers = at::empty(packed.sizes(), packed.options().dtype(at::kChar));
  auto scales = at::empty({panels, WIDTH}, packed.options());
  const float* from = packed.const_data_ptr<float>();
  int8_t* to = integers.mutable_data_ptr<int8_t>();
  float* scale = scales.mutable_data_ptr<float>();
  at::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t output = begin * WIDTH; output < end * WIDTH; output++) {
      const int64_t first = output / WIDTH * k * WIDTH + output % WIDTH;
      float largest = 0;
      for (int64_t i = 0; i < k; i++) {
        const float size = std::abs(from[first + i * WIDTH]);
        TORCH_CHECK(std::isfinite(size), "a weight is not a finite number");
        largest = std::max(largest, size);
      }
      // Of nothing but zeros, and of what is smaller than a scale can be, there is no scale: zeros.
      const float inverse = LARGEST / largest;
      const bool zero = !std::isfinite(inverse);
      scale[output] = zero ? 0 : largest / LARGEST;
      for (int64_t i = 0; i < k; i++)
        to[first + i * WIDTH] =
            zero ? 0 : static_cast<int8_t>(std::nearbyint(from[first + i * WIDTH] * inverse));
    }
  });
  return {integers, scales};
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& packed, const at::Tensor& scales,
                  const std::optional<at::Tensor>& bias, int64_t n) {
  return products<int8_t>(x, {{packed, &scales, bias, n}})[0];
}

std::vector<at::Tensor> linears(const at::Tensor& x, const std::vector<at::Tensor>& packed,
                                const std::vector<at::Tensor>& scales,
                                const std::vector<std::optional<at::Tensor>>& biases,
                                const std::vector<int64_t>& n) {
  std::vector<LayerTensors> layers;
  for (size_t i = 0; i < packed.size(); i++)
    layers.push_back({packed[i], &scales[i], biases[i], n[i]});
  return products<int8_t>(x, layers);
}

std::tuple<at::Tensor, at::Tensor> pack_shape(const at::Tensor& packed) {
  return {at::empty_symint(packed.sym_sizes(), packed.options().dtype(at::kChar)),
          at::empty_symint({packed.sym_size(0), packed.sym_size(2)}, packed.options())};
}

at::Tensor linear_shape(const at::Tensor& x, const at::Tensor&, const at::Tensor&,
                        const std::optional<at::Tensor>&, c10::SymInt n) {
  return shape_of_product(x, n);
}

std::vector<at::Tensor> linears_shape(const at::Tensor& x, const std::vector<at::Tensor>&,
                                      const std::vector<at::Tensor>&,
                                      const std::vector<std::optional<at::Tensor>>&,
                                      const std::vector<int64_t>& n) {
  return shapes_of_products(x, n);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(outrider, library) {
  library.def("pack_linear_int8(Tensor packed) -> (Tensor, Tensor)");
  library.def(
      "packed_linear_int8(Tensor x, Tensor packed, Tensor scales, Tensor? bias, SymInt n) -> "
      "Tensor");
  library.def(
      "packed_linears_int8(Tensor x, Tensor[] packed, Tensor[] scales, Tensor?[] biases, int[] n) "
      "-> Tensor[]");
}

TORCH_LIBRARY_IMPL(outrider, CPU, library) {
  library.impl("pack_linear_int8", pack);
  library.impl("packed_linear_int8", linear);
  library.impl("packed_linears_int8", linears);
}

TORCH_LIBRARY_IMPL(outrider, Meta, library) {
  library.impl("pack_linear_int8", pack_shape);
  library.impl("packed_linear_int8", linear_shape);
  library.impl("packed_linears_int8", linears_shape);
}
