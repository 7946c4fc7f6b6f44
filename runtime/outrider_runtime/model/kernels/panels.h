// Weights [n, k] as panels of neighbouring outputs, and their product with a few rows.
//
// A decoder that verifies a draft multiplies its weights with a handful of rows. Reading the weights
// from memory is then the whole cost, so a good kernel takes as long for six rows as for one; the
// library routines take that long for each row.
//
// The first rows of a panel wait for memory, further ones find it in the caches. So while rows are
// multiplied with a panel, the next one is fetched: six rows then take as long as the memory, not as
// the memory and the multiplications one after the other. One or two rows leave nothing to overlap,
// and many hardly wait. It is fetched into the second cache, since the first one holds the rows.
//
// The lanes of a register run over outputs, never over the sum: each output is one sequential sum
// over k, whatever the number of rows. A row's result is the same to the bit in any company.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "lanes.h"

// Chosen so that the sums of a tile, one row of weights and one input fit the machine's registers.
#if defined(__AVX512F__)
constexpr int VECTORS = 4;  // of 32 registers: 6 * 4 + 4 + 1
#else
constexpr int VECTORS = 2;  // of 16 registers: 6 * 2 + 2 + 1
#endif
constexpr int ROWS = 6;
constexpr int WIDTH = LANES * VECTORS;
constexpr int64_t MIN_ROWS_TO_FETCH = 3, MAX_ROWS_TO_FETCH = 4 * ROWS;
constexpr int64_t MIN_MULTIPLICATIONS = 1 << 18;  // less is not worth waking a thread for

// Some rows and a panel. Weights are floats, or integers with a scale for each output.
template <typename Weight>
struct Tile {
  const float* x;       // [R, k]
  const Weight* panel;  // [k, WIDTH]
  const float* scales;  // [WIDTH], or null
  const float* bias;    // [count], or null
  float* y;             // [R, ld]
  int64_t k, ld, count;
  const char* ahead;  // what to fetch for the next panel: so many bytes for each input
  int64_t stride;
};

// R rows; fetches L cache lines ahead for each input.
template <int R, int L, typename Weight>
void multiply(const Tile<Weight>& tile) {
  Floats sums[R][VECTORS] = {};
  const Weight* weights = tile.panel;
  for (int64_t i = 0; i < tile.k; i++, weights += WIDTH) {
    for (int line = 0; line < L; line++)
      __builtin_prefetch(tile.ahead + i * tile.stride + line * CACHE_LINE, 0, SECOND_CACHE);
    Floats row[VECTORS];
    for (int v = 0; v < VECTORS; v++) row[v] = load(weights + v * LANES);
    for (int r = 0; r < R; r++)
      for (int v = 0; v < VECTORS; v++) sums[r][v] += row[v] * tile.x[r * tile.k + i];
  }
  // Added without bias, too: one expression for all, which is rounded in one way.
  float bias[WIDTH] = {};
  if (tile.bias) std::copy_n(tile.bias, tile.count, bias);
  for (int r = 0; r < R; r++) {
    float result[WIDTH];
    for (int v = 0; v < VECTORS; v++) {
      const Floats shift = load(bias + v * LANES);
      store(result + v * LANES, tile.scales
                                    ? sums[r][v] * load(tile.scales + v * LANES) + shift
                                    : sums[r][v] + shift);
    }
    std::copy_n(result, tile.count, tile.y + r * tile.ld);
  }
}

template <typename Weight>
using Multiply = void (*)(const Tile<Weight>&);

template <int L, typename Weight>
constexpr Multiply<Weight> BY_ROWS[ROWS + 1] = {
    nullptr,
    multiply<1, L, Weight>,
    multiply<2, L, Weight>,
    multiply<3, L, Weight>,
    multiply<4, L, Weight>,
    multiply<5, L, Weight>,
    multiply<6, L, Weight>,
};

// The function for each number of rows, where a tile fetches so many bytes for each input.
template <typename Weight>
const Multiply<Weight>* multiply_fetching(int64_t stride) {
  if (stride == 0) return BY_ROWS<0, Weight>;
  if (stride <= CACHE_LINE) return BY_ROWS<1, Weight>;
  return stride <= 2 * CACHE_LINE ? BY_ROWS<2, Weight> : BY_ROWS<4, Weight>;
}

// A linear layer of n outputs: what it is multiplied with, and where the results go.
template <typename Weight>
struct Layer {
  const Weight* packed;  // [panels, k, WIDTH]
  const float* scales;   // [panels, WIDTH], or null
  const float* bias;     // [n], or null
  int64_t n;
  float* y;  // [rows, n]

  int64_t panels() const { return (n + WIDTH - 1) / WIDTH; }
};

// x [rows, k] with all layers: threads share the panels of all of them as if they were one layer's.
template <typename Weight>
void multiply_panels(const float* x, int64_t rows, int64_t k,
                     const std::vector<Layer<Weight>>& layers) {
  const int64_t grain = std::max<int64_t>(1, MIN_MULTIPLICATIONS / (k * WIDTH * rows + 1));
  // The tiles of a panel share in fetching the next one.
  const int64_t tiles = (rows + ROWS - 1) / ROWS, bytes = WIDTH * sizeof(Weight);
  const bool fetches = MIN_ROWS_TO_FETCH <= rows && rows <= MAX_ROWS_TO_FETCH;
  const int64_t stride = fetches ? std::max<int64_t>(1, bytes / tiles) : 0;
  const auto* multiply_rows = multiply_fetching<Weight>(stride);
  int64_t panels = 0;
  for (const auto& layer : layers) panels += layer.panels();
  at::parallel_for(0, panels, grain, [&](int64_t begin, int64_t end) {
    auto layer = layers.begin();
    int64_t p = begin;  // of the layer
    for (int64_t todo = end - begin; todo > 0; todo--, p++) {
      for (; p >= layer->panels(); layer++) p -= layer->panels();
      const Weight* panel = layer->packed + p * k * WIDTH;
      const bool last = p + 1 == layer->panels() && layer + 1 != layers.end();
      const Weight* next = last ? (layer + 1)->packed : panel + k * WIDTH;
      const auto* ahead = reinterpret_cast<const char*>(next);
      for (int64_t row = 0; row < rows; row += ROWS, ahead += k * stride)
        multiply_rows[std::min<int64_t>(ROWS, rows - row)](
            {x + row * k, panel, layer->scales ? layer->scales + p * WIDTH : nullptr,
             layer->bias ? layer->bias + p * WIDTH : nullptr, layer->y + row * layer->n + p * WIDTH,
             k, layer->n, std::min<int64_t>(WIDTH, layer->n - p * WIDTH), ahead, stride});
    }
  });
}

// A linear layer as an operator is given it.
struct LayerTensors {
  const at::Tensor& packed;                // [panels, k, WIDTH]
  const at::Tensor* scales;                // [panels, WIDTH], or null
  const std::optional<at::Tensor>& bias;  // [n]
  int64_t n;
};

// x [..., k] -> of each layer [..., n]
template <typename Weight>
std::vector<at::Tensor> products(const at::Tensor& x, const std::vector<LayerTensors>& layers) {
  const auto input = x.contiguous();
  const int64_t k = input.size(-1), rows = input.numel() / std::max<int64_t>(k, 1);
  auto sizes = input.sizes().vec();
  std::vector<at::Tensor> outputs;
  std::vector<Layer<Weight>> pointers;
  for (const auto& layer : layers) {
    TORCH_CHECK(layer.packed.size(1) == k, "linear: ", k, " inputs for weights of ",
                layer.packed.size(1));
    sizes.back() = layer.n;
    outputs.push_back(at::empty(sizes, input.options()));
    pointers.push_back({layer.packed.const_data_ptr<Weight>(),
                        layer.scales ? layer.scales->const_data_ptr<float>() : nullptr,
                        layer.bias ? layer.bias->const_data_ptr<float>() : nullptr, layer.n,
                        outputs.back().mutable_data_ptr<float>()});
  }
  multiply_panels(input.const_data_ptr<float>(), rows, k, pointers);
  return outputs;
}

static inline at::Tensor shape_of_product(const at::Tensor& x, c10::SymInt n) {
  auto sizes = x.sym_sizes().vec();
  sizes.back() = n;
  return at::empty_symint(sizes, x.options());
}

static inline std::vector<at::Tensor> shapes_of_products(const at::Tensor& x,
                                                         const std::vector<int64_t>& n) {
  std::vector<at::Tensor> shapes;
  for (const int64_t outputs : n) shapes.push_back(shape_of_product(x, outputs));
  return shapes;
}
