// y = x W^T + b for few rows, reading the weights once for all of them: see panels.h.

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "panels.h"

namespace {

// weight [n, k] -> [ceil(n / WIDTH), k, WIDTH]: what is read one after the other lies so.
at::Tensor pack(const at::Tensor& weight) {
  const auto source = weight.contiguous();
  const int64_t n = source.size(0), k = source.size(1), panels = (n + WIDTH - 1) / WIDTH;
  auto packed = at::zeros({panels, k, WIDTH}, source.options());
  const float* from = source.const_data_ptr<float>();
  float* to = packed.mutable_data_ptr<float>();
  at::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t output = begin * WIDTH; output < std::min(end * WIDTH, n); output++)
      for (int64_t i = 0; i < k; i++)
        to[(output / WIDTH * k + i) * WIDTH + output % WIDTH] = from[output * k + i];
  });
  return packed;
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& packed,
                  const std::optional<at::Tensor>& bias, int64_t n) {
  return products<float>(x, {{packed, nullptr, bias, n}})[0];
}

std::vector<at::Tensor> linears(const at::Tensor& x, const std::vector<at::Tensor>& packed,
                                const std::vector<std::optional<at::Tensor>>& biases,
                                const std::vector<int64_t>& n) {
  std::vector<LayerTensors> layers;
  for (size_t i = 0; i < packed.size(); i++) layers.push_back({packed[i], nullptr, biases[i], n[i]});
  return products<float>(x, layers);
}

at::Tensor pack_shape(const at::Tensor& weight) {
  const auto n = weight.sym_size(0), k = weight.sym_size(1);
  return at::empty_symint({(n + (WIDTH - 1)) / WIDTH, k, WIDTH}, weight.options());
}

at::Tensor linear_shape(const at::Tensor& x, const at::Tensor&, const std::optional<at::Tensor>&,
                        c10::SymInt n) {
  return shape_of_product(x, n);
}

std::vector<at::Tensor> linears_shape(const at::Tensor& x, const std::vector<at::Tensor>&,
                                      const std::vector<std::optional<at::Tensor>>&,
                                      const std::vector<int64_t>& n) {
  return shapes_of_products(x, n);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(outrider, library) {
  library.def("pack_linear(Tensor weight) -> Tensor");
  library.def("packed_linear(Tensor x, Tensor packed, Tensor? bias, SymInt n) -> Tensor");
  library.def("packed_linears(Tensor x, Tensor[] packed, Tensor?[] biases, int[] n) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(outrider, CPU, library) {
  library.impl("pack_linear", pack);
  library.impl("packed_linear", linear);
  library.impl("packed_linears", linears);
}

TORCH_LIBRARY_IMPL(outrider, Meta, library) {
  library.impl("pack_linear", pack_shape);
  library.impl("packed_linear", linear_shape);
  library.impl("packed_linears", linears_shape);
}
