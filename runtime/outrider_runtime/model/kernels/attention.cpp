// Attention of the new rows of a ragged batch over the paged keys and values of their sequences.
//
// Reads every key where it lies: nothing is gathered, padded or masked. A few queries that share
// their keys are computed together, so that each key is read once for all of them. What is computed
// for a query does not depend on its company: its result is the same to the bit.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "lanes.h"

namespace {

constexpr int QUERIES = 6;  // computed together: as many as leave registers for their sums
#if defined(__AVX512F__)
constexpr int VECTORS = 4;
#else
constexpr int VECTORS = 2;
#endif
constexpr int64_t MIN_PRODUCTS = 1 << 15;  // less is not worth waking a thread for
constexpr int64_t AHEAD = 32;         // slots, too many for the first cache
constexpr int64_t RUN = 16;           // slots whose heads are read together
constexpr int64_t FEW_TILES = 2;      // so often a sequence's keys are read with all heads together
constexpr int64_t MAX_HEADS = 64;     // of a tile
constexpr int64_t MAX_SCORES = 1 << 16;  // of a tile: they stay in the second cache
constexpr float HIDDEN = -std::numeric_limits<float>::infinity();

// The slots of a layer: a row holds the keys of all its heads, then the values.
struct Layer {
  float* rows;
  int64_t width, heads, key_dim, value_dim;

  float* key(int64_t slot, int64_t head) const { return rows + slot * width + head * key_dim; }
  float* value(int64_t slot, int64_t head) const {
    return rows + slot * width + heads * key_dim + head * value_dim;
  }
};

struct Query {
  const float* from;    // [key_dim]
  float* to;            // [value_dim]
  int64_t first, last;  // positions it sees
};

// Slots that follow one another.
struct Run {
  int64_t position;  // of the first, counted from the first of its tile
  int64_t slot, size;
};

// The same queries of one sequence for each of some key heads.
//
// The keys of all heads of a slot lie side by side. Where they are read once or twice, this happens
// together, some slots at a time: those of one head alone lie so far apart that memory takes twice
// as long. Where many tiles read the same keys, those of one head are few enough for the caches.
struct Tile {
  Query queries[QUERIES];  // of the first head
  int count = 0;
  int64_t head, heads;          // the first of the key heads, and how many
  int64_t from_step, to_step;   // from a query of one head to that of the next
  const int64_t* table;         // of the sequence's blocks
  int64_t block_size;
  int64_t first, last;  // positions that any of them sees; `first` rounded down to whole registers

  void span() {
    first = queries[0].first, last = queries[0].last;
    for (int q = 1; q < count; q++) {
      first = std::min(first, queries[q].first);
      last = std::max(last, queries[q].last);
    }
    // Where a position lies in a register decides the order of sums: it is the same in all tiles.
    first = first / LANES * LANES;
  }

  int64_t num_positions() const { return (last - first) / LANES * LANES + LANES; }

  const float* from(int q, int64_t h) const { return queries[q].from + h * from_step; }
  float* to(int q, int64_t h) const { return queries[q].to + h * to_step; }

  // Calls `use(head, slots)` for each of the heads, then again for the next few slots.
  template <typename Use>
  void for_each_run(Use use) const {
    for (int64_t at = first; at <= last;) {
      const int64_t block = at / block_size, behind = at % block_size;
      const int64_t size = std::min({last + 1 - at, block_size - behind, RUN});
      const int64_t slot = table[block] * block_size + behind;
      for (int64_t h = 0; h < heads; h++) use(h, Run{at - first, slot, size});
      at += size;
    }
  }
};

// Has the next keys or values of a head fetched while these are worked on. They lie apart from one
// another, which the processor does not foresee by itself.
void fetch_ahead(const Layer& layer, const float* present, int64_t size) {
  const auto* next = reinterpret_cast<const char*>(present + AHEAD * layer.width);
  for (int64_t byte = 0; byte < size * 4; byte += CACHE_LINE)
    __builtin_prefetch(next + byte, 0, SECOND_CACHE);
}

// The products of a query and a key, added up to one register, but for what fills none.
Floats products(const float* query, const float* key, int64_t size) {
  Floats sums[2] = {};  // two, because a sum waits for its last addition
  int64_t d = 0;
  for (; d + 2 * LANES <= size; d += 2 * LANES)
    for (int v = 0; v < 2; v++) sums[v] += load(query + d + v * LANES) * load(key + d + v * LANES);
  if (d + LANES <= size) sums[0] += load(query + d) * load(key + d);
  return sums[0] + sums[1];
}

// The scores of as many keys as a register has lanes: added up together, lane by lane as one alone.
void score_keys(const float* query, const float* const* keys, int64_t size, float scaling,
                float* scores) {
  Floats values[LANES];
  for (int lane = 0; lane < LANES; lane++) values[lane] = products(query, keys[lane], size);
  Floats results = sums_of(values);
  for (int64_t d = size / LANES * LANES; d < size; d++)
    for (int lane = 0; lane < LANES; lane++) results[lane] += query[d] * keys[lane][d];
  store(scores, results * scaling);
}

// scores: [heads, COUNT, positions]
template <int COUNT>
void score(const Tile& tile, const Layer& layer, float scaling, float* scores) {
  const int64_t size = layer.key_dim, stride = tile.num_positions();
  tile.for_each_run([&](int64_t h, const Run& run) {
    const float* queries[COUNT];
    for (int q = 0; q < COUNT; q++) queries[q] = tile.from(q, h);
    float* const results = scores + h * COUNT * stride + run.position;
    int64_t i = 0;
    for (; i + LANES <= run.size; i += LANES) {
      const float* keys[LANES];
      for (int lane = 0; lane < LANES; lane++) {
        keys[lane] = layer.key(run.slot + i + lane, tile.head + h);
        fetch_ahead(layer, keys[lane], size);
      }
      for (int q = 0; q < COUNT; q++)
        score_keys(queries[q], keys, size, scaling, results + q * stride + i);
    }
    for (; i < run.size; i++) {
      const float* key = layer.key(run.slot + i, tile.head + h);
      fetch_ahead(layer, key, size);
      for (int q = 0; q < COUNT; q++) {
        float result = sum(products(queries[q], key, size));
        for (int64_t d = size / LANES * LANES; d < size; d++) result += queries[q][d] * key[d];
        results[q * stride + i] = result * scaling;
      }
    }
  });
}

// Scores -> weights, in place: exp(score - highest) where the query sees, 0 elsewhere. Their sum.
float exponentiate(const Tile& tile, const Query& query, float* scores) {
  float* const begin = scores + (query.first - tile.first);
  float* const end = scores + (query.last + 1 - tile.first);
  const int64_t size = tile.num_positions();
  std::fill(scores, begin, HIDDEN);
  std::fill(end, scores + size, HIDDEN);
  const float highest = *std::max_element(begin, end);
  Floats total = {};
  for (int64_t i = 0; i < size; i += LANES) {
    const Floats weight = exp_of_negative(load(scores + i) - highest);
    store(scores + i, weight);
    total += weight;
  }
  return sum(total);
}

// Adds a run to dimensions [from, from + SIZE * LANES) of the weighted sums of values: as many as
// registers hold. The sums wait where the results will be.
template <int COUNT, int SIZE>
void add_up(const Tile& tile, const Layer& layer, const float* weights, int64_t h, const Run& run,
            int64_t from) {
  const int64_t stride = tile.num_positions();
  Floats sums[COUNT][SIZE];
  for (int q = 0; q < COUNT; q++)
    for (int v = 0; v < SIZE; v++) sums[q][v] = load(tile.to(q, h) + from + v * LANES);
  for (int64_t i = 0; i < run.size; i++) {
    const float* value = layer.value(run.slot + i, tile.head + h) + from;
    fetch_ahead(layer, value, SIZE * LANES);
    Floats parts[SIZE];
    for (int v = 0; v < SIZE; v++) parts[v] = load(value + v * LANES);
    for (int q = 0; q < COUNT; q++)
      for (int v = 0; v < SIZE; v++) sums[q][v] += parts[v] * weights[q * stride + i];
  }
  for (int q = 0; q < COUNT; q++)
    for (int v = 0; v < SIZE; v++) store(tile.to(q, h) + from + v * LANES, sums[q][v]);
}

// The rest of the dimensions, fewer than a register holds.
template <int COUNT>
void add_up_rest(const Tile& tile, const Layer& layer, const float* weights, int64_t h,
                 const Run& run, int64_t from) {
  const int64_t stride = tile.num_positions();
  for (int64_t i = 0; i < run.size; i++) {
    const float* value = layer.value(run.slot + i, tile.head + h);
    for (int q = 0; q < COUNT; q++)
      for (int64_t d = from; d < layer.value_dim; d++)
        tile.to(q, h)[d] += value[d] * weights[q * stride + i];
  }
}

template <int COUNT>
void attend_tile(const Tile& tile, const Layer& layer, float scaling, std::vector<float>& scratch) {
  const int64_t stride = tile.num_positions(), size = layer.value_dim;
  scratch.resize(tile.heads * COUNT * stride);
  float* const scores = scratch.data();
  score<COUNT>(tile, layer, scaling, scores);
  float totals[MAX_HEADS][COUNT];
  for (int64_t h = 0; h < tile.heads; h++)
    for (int q = 0; q < COUNT; q++) {
      totals[h][q] = exponentiate(tile, tile.queries[q], scores + (h * COUNT + q) * stride);
      std::fill_n(tile.to(q, h), size, 0.0f);
    }
  tile.for_each_run([&](int64_t h, const Run& run) {
    const float* weights = scores + h * COUNT * stride + run.position;
    int64_t from = 0;
    for (; from + VECTORS * LANES <= size; from += VECTORS * LANES)
      add_up<COUNT, VECTORS>(tile, layer, weights, h, run, from);
    for (; from + LANES <= size; from += LANES)
      add_up<COUNT, 1>(tile, layer, weights, h, run, from);
    if (from < size) add_up_rest<COUNT>(tile, layer, weights, h, run, from);
  });
  for (int64_t h = 0; h < tile.heads; h++)
    for (int q = 0; q < COUNT; q++)
      for (int64_t d = 0; d < size; d++) tile.to(q, h)[d] /= totals[h][q];
}

using Attend = void (*)(const Tile&, const Layer&, float, std::vector<float>&);
constexpr Attend ATTEND[QUERIES + 1] = {nullptr,        attend_tile<1>, attend_tile<2>,
                                        attend_tile<3>, attend_tile<4>, attend_tile<5>,
                                        attend_tile<6>};

// New keys and values [1, heads, rows, dim] go to their slots.
void write(const Layer& layer, const at::Tensor& key, const at::Tensor& value,
           const int64_t* slots) {
  const float *keys = key.const_data_ptr<float>(), *values = value.const_data_ptr<float>();
  for (int64_t row = 0; row < key.size(2); row++)
    for (int64_t head = 0; head < layer.heads; head++) {
      std::copy_n(keys + head * key.stride(1) + row * key.stride(2), layer.key_dim,
                  layer.key(slots[row], head));
      std::copy_n(values + head * value.stride(1) + row * value.stride(2), layer.value_dim,
                  layer.value(slots[row], head));
    }
}

// Of how many key heads to make a tile: all, unless threads would be left without one.
int64_t heads_together(int64_t heads, int64_t sequences, int64_t queries, int64_t positions) {
  const int64_t threads = at::get_num_threads();
  int64_t parts = 1;
  while (parts < heads && sequences * parts < 4 * threads && sequences * parts % threads) parts++;
  const int64_t most = MAX_SCORES / (queries * (positions + LANES));
  return std::clamp<int64_t>(std::min((heads + parts - 1) / parts, most), 1, MAX_HEADS);
}

at::Tensor with_dense_heads(const at::Tensor& x) { return x.stride(3) == 1 ? x : x.contiguous(); }

// Args:
//   query, key, value: [1, heads or key heads, rows, dim], of the new rows only.
//   storage: [slots, key heads * (key dim + value dim)]; takes the new keys and values.
//   write_slots: int64 [rows], where they go.
//   rows_of: int64 [2, rows], of each row its sequence and its position there. Rows of a sequence
//     follow one another.
//   tables: int64 [sequences, blocks], the blocks that hold a sequence's positions in order.
//   window: positions a row sees, itself included; 0: all before it.
// Returns: [1, rows, heads, value dim].
at::Tensor attend(const at::Tensor& query_, const at::Tensor& key_, const at::Tensor& value_,
                  at::Tensor& storage, const at::Tensor& write_slots, const at::Tensor& rows_of,
                  const at::Tensor& tables, int64_t block_size, double scaling, int64_t window) {
  const auto query = with_dense_heads(query_), key = with_dense_heads(key_),
             value = with_dense_heads(value_);
  const Layer layer{storage.mutable_data_ptr<float>(), storage.size(1), key.size(1), key.size(3),
                    value.size(3)};
  TORCH_CHECK(layer.width == layer.heads * (layer.key_dim + layer.value_dim),
              "attend: keys and values do not have the shapes that the storage was made for");
  write(layer, key, value, write_slots.const_data_ptr<int64_t>());
  const int64_t heads = query.size(1), rows = query.size(2), repeats = heads / layer.heads;
  auto output = at::empty({1, rows, heads, layer.value_dim}, query.options());
  const int64_t* sequence_of = rows_of.const_data_ptr<int64_t>();
  const int64_t* position_of = sequence_of + rows;
  std::vector<Tile> tiles;
  int64_t products = 0;
  for (int64_t begin = 0, end; begin < rows; begin = end) {
    for (end = begin + 1; end < rows && sequence_of[end] == sequence_of[begin];) end++;
    const int64_t num_queries = (end - begin) * repeats;
    const int64_t per_head = (num_queries + QUERIES - 1) / QUERIES;
    int64_t together = 1;
    if (per_head <= FEW_TILES)
      together = heads_together(layer.heads, tables.size(0),
                                std::min<int64_t>(num_queries, QUERIES), position_of[end - 1] + 1);
    for (int64_t head = 0; head < layer.heads; head += together)
      for (int64_t at = 0; at < num_queries; at++) {
        if (at % QUERIES == 0) {
          Tile& tile = tiles.emplace_back();
          tile.head = head, tile.heads = std::min(together, layer.heads - head);
          tile.from_step = repeats * query.stride(1), tile.to_step = repeats * layer.value_dim;
          tile.table = tables.const_data_ptr<int64_t>() + sequence_of[begin] * tables.size(1);
          tile.block_size = block_size;
        }
        Tile& tile = tiles.back();
        const int64_t row = begin + at / repeats, own = head * repeats + at % repeats;
        const int64_t last = position_of[row];
        tile.queries[tile.count++] = {
            query.const_data_ptr<float>() + own * query.stride(1) + row * query.stride(2),
            output.mutable_data_ptr<float>() + (row * heads + own) * layer.value_dim,
            window ? std::max<int64_t>(0, last + 1 - window) : 0, last};
      }
  }
  for (Tile& tile : tiles) {
    tile.span();
    products += tile.heads * tile.count * tile.num_positions() * layer.key_dim;
  }
  const int64_t count = tiles.size(), grain = count * MIN_PRODUCTS / (products + 1) + 1;
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch;
    for (int64_t i = begin; i < end; i++)
      ATTEND[tiles[i].count](tiles[i], layer, static_cast<float>(scaling), scratch);
  });
  return output;
}

at::Tensor attend_shape(const at::Tensor& query, const at::Tensor&, const at::Tensor& value,
                        at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                        int64_t, double, int64_t) {
  return at::empty_symint({1, query.sym_size(2), query.sym_size(1), value.sym_size(3)},
                          query.options());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(outrider, library) {
  library.def(
      "attend(Tensor query, Tensor key, Tensor value, Tensor(a!) storage, Tensor write_slots, "
      "Tensor rows_of, Tensor tables, int block_size, float scaling, int window) -> Tensor");
}

TORCH_LIBRARY_IMPL(outrider, CPU, library) { library.impl("attend", attend); }

TORCH_LIBRARY_IMPL(outrider, Meta, library) { library.impl("attend", attend_shape); }
