// y = x W^T + b for few rows, reading the weights once for all of them.
//
// A decoder that verifies a draft multiplies its weights with a handful of rows. Reading the weights
// from memory is then the whole cost, so a good kernel takes as long for six rows as for one; the
// library routines take that long for each row.
//
// The lanes of a register run over outputs, never over the sum: each output is one sequential sum
// over k, whatever the number of rows. A row's result is the same to the bit in any company.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>

#include "lanes.h"

namespace {

// Chosen so that the sums of a tile, one row of weights and one input fit the machine's registers.
#if defined(__AVX512F__)
constexpr int VECTORS = 4;  // of 32 registers: 6 * 4 + 4 + 1
#else
constexpr int VECTORS = 2;  // of 16 registers: 6 * 2 + 2 + 1
#endif
constexpr int ROWS = 6;
constexpr int WIDTH = LANES * VECTORS;
constexpr int64_t MIN_MULTIPLICATIONS = 1 << 18;  // less is not worth waking a thread for

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

struct Tile {
  const float* x;      // [R, k]
  const float* panel;  // [k, WIDTH]
  const float* bias;   // [count], or null
  float* y;            // [R, ld]
  int64_t k, ld, count;
};

template <int R>
void multiply(const Tile& tile) {
  Floats sums[R][VECTORS] = {};
  const float* weights = tile.panel;
  for (int64_t i = 0; i < tile.k; i++, weights += WIDTH) {
    Floats row[VECTORS];
    for (int v = 0; v < VECTORS; v++) row[v] = load(weights + v * LANES);
    for (int r = 0; r < R; r++)
      for (int v = 0; v < VECTORS; v++) sums[r][v] += row[v] * tile.x[r * tile.k + i];
  }
  for (int r = 0; r < R; r++) {
    float result[WIDTH];
    for (int v = 0; v < VECTORS; v++) store(result + v * LANES, sums[r][v]);
    for (int64_t j = 0; j < tile.count; j++)
      tile.y[r * tile.ld + j] = tile.bias ? result[j] + tile.bias[j] : result[j];
  }
}

using Multiply = void (*)(const Tile&);
constexpr Multiply MULTIPLY[ROWS + 1] = {nullptr,     multiply<1>, multiply<2>, multiply<3>,
                                         multiply<4>, multiply<5>, multiply<6>};

at::Tensor linear(const at::Tensor& x, const at::Tensor& packed,
                  const std::optional<at::Tensor>& bias, int64_t n) {
  const auto input = x.contiguous();
  const int64_t k = packed.size(1), rows = input.numel() / std::max<int64_t>(k, 1);
  TORCH_CHECK(input.size(-1) == k, "linear: ", input.size(-1), " inputs for weights of ", k);
  auto sizes = input.sizes().vec();
  sizes.back() = n;
  auto output = at::empty(sizes, input.options());
  const float* from = input.const_data_ptr<float>();
  const float* weights = packed.const_data_ptr<float>();
  const float* biases = bias ? bias->const_data_ptr<float>() : nullptr;
  float* to = output.mutable_data_ptr<float>();
  const int64_t grain = std::max<int64_t>(1, MIN_MULTIPLICATIONS / (k * WIDTH * rows + 1));
  at::parallel_for(0, packed.size(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++)
      for (int64_t row = 0; row < rows; row += ROWS)
        MULTIPLY[std::min<int64_t>(ROWS, rows - row)](
            {from + row * k, weights + p * k * WIDTH, biases ? biases + p * WIDTH : nullptr,
             to + row * n + p * WIDTH, k, n, std::min<int64_t>(WIDTH, n - p * WIDTH)});
  });
  return output;
}

at::Tensor pack_shape(const at::Tensor& weight) {
  const auto n = weight.sym_size(0), k = weight.sym_size(1);
  return at::empty_symint({(n + (WIDTH - 1)) / WIDTH, k, WIDTH}, weight.options());
}

at::Tensor linear_shape(const at::Tensor& x, const at::Tensor&, const std::optional<at::Tensor>&,
                        c10::SymInt n) {
  auto sizes = x.sym_sizes().vec();
  sizes.back() = n;
  return at::empty_symint(sizes, x.options());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(outrider, library) {
  library.def("pack_linear(Tensor weight) -> Tensor");
  library.def("packed_linear(Tensor x, Tensor packed, Tensor? bias, SymInt n) -> Tensor");
}

TORCH_LIBRARY_IMPL(outrider, CPU, library) {
  library.impl("pack_linear", pack);
  library.impl("packed_linear", linear);
}

TORCH_LIBRARY_IMPL(outrider, Meta, library) {
  library.impl("pack_linear", pack_shape);
  library.impl("packed_linear", linear_shape);
}
