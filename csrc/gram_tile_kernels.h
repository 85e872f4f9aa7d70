// The blocks themselves, for one set of instructions: included once by each gram_tile_<instructions>.cpp, after it has
// defined the vectors and tiles that products.h needs. Everything here is private to that file.

#include "products.h"

namespace inrfast {
namespace {

static_assert(kGramColumns == kColumns<float>, "a packed panel is as wide as a block's columns");

// Columns of factors whose products are added up in registers; sums of such sums round less than one long sum, and their
// part of a panel stays in the first-level cache.
constexpr Index kDepth = 128;

struct Tiles {  // of the features' products, of the sensitivities', and of the kernel
  float *left, *right, *total;
};

struct AddProduct {  // add a product times another factor to what is there
  const float *factor, *sum;
  INRFAST_INLINE Vec operator()(Vec own, Index place, Index) const {
    return fma(load(factor + place), own, load(sum + place));
  }
};

struct AddProductOfSum {  // the same where the product is the last part of a sum
  const float *factor, *others, *sum;
  INRFAST_INLINE Vec operator()(Vec own, Index place, Index) const {
    return fma(load(factor + place), add(load(others + place), own), load(sum + place));
  }
};

struct AddTimes {
  const float* sum;
  Vec weight;
  INRFAST_INLINE Vec operator()(Vec own, Index place, Index) const { return fma(weight, own, load(sum + place)); }
};

// Write columns [first, first + kGramColumns) of a factor, given by rows, as a panel; zero beyond the last point.
float* pack_points(const GramFactor& factor, Index first, Index last, float* out) {
  const Index depth = depth_of(factor), points = last - first < kGramColumns ? last - first : kGramColumns;
  Index c = 0;
  for (; c + 4 <= points; c += 4) {  // four points at a time, by transposed blocks of 4 x 4
    const float* own = factor.numbers + (first + c) * factor.step;
    Index k = 0;
    for (; k + 4 <= depth; k += 4) {
      __m128 a = _mm_loadu_ps(own + k), b = _mm_loadu_ps(own + factor.step + k);
      __m128 d = _mm_loadu_ps(own + 2 * factor.step + k), e = _mm_loadu_ps(own + 3 * factor.step + k);
      _MM_TRANSPOSE4_PS(a, b, d, e);
      _mm_storeu_ps(out + k * kGramColumns + c, a);
      _mm_storeu_ps(out + (k + 1) * kGramColumns + c, b);
      _mm_storeu_ps(out + (k + 2) * kGramColumns + c, d);
      _mm_storeu_ps(out + (k + 3) * kGramColumns + c, e);
    }
    for (; k < depth; ++k) {
      for (Index p = 0; p < 4; ++p) out[k * kGramColumns + c + p] = own[p * factor.step + k];
    }
  }
  for (; c < kGramColumns; ++c) {
    const float* own = factor.numbers + (first + c) * factor.step;
    for (Index k = 0; k < depth; ++k) out[k * kGramColumns + c] = c < points ? own[k] : 0.0f;
  }
  return out + depth * kGramColumns;
}

// Columns of a factor that are taken together from `from` on: a few that would be left go with the last ones.
INRFAST_INLINE Index part_of(const GramFactor& factor, Index from) {
  const Index left = factor.columns - from;
  return left < kDepth + kLanes ? left : kDepth;
}

// The product of some rows of a factor and a panel, part_of(factor, from) of its columns.
template <class End>
INRFAST_INLINE void part_times_panel(const GramFactor& factor, Index first, Index rows, Index from, const float* panel,
                                     float* out, const End& end) {
  product(rows, kGramColumns, part_of(factor, from), factor.numbers + first * factor.step + from, factor.step, 1,
          panel + from * kGramColumns, kGramColumns, Target<End>{out, kTileStep, end});
}

// Write the product of some rows of a factor and a panel but for its last part; return where that begins.
INRFAST_INLINE Index all_but_last(const GramFactor& factor, Index first, Index rows, const float* panel, float* out) {
  Index from = 0;
  for (; from + part_of(factor, from) < factor.columns; from += kDepth) {
    if (from == 0) {
      part_times_panel(factor, first, rows, from, panel, out, Store{});
    } else {
      part_times_panel(factor, first, rows, from, panel, out, AddTo{out});
    }
  }
  return from;
}

// The tile of some rows and one panel of columns.
void tile_of_layers(const GramBlock& block, Index first, Index rows, const float* panel, const Tiles& tiles) {
  clear(tiles.total, kTileRows * kTileStep);
  for (int l = 0; l < block.count; ++l) {
    const GramLayer& layer = block.layers[l];
    const float* other = panel + kGramColumns * depth_of(layer.features);
    if (layer.features.numbers == nullptr || layer.sensitivities.numbers == nullptr) {
      const GramFactor& own = layer.features.numbers == nullptr ? layer.sensitivities : layer.features;
      for (Index from = 0; from < own.columns; from += part_of(own, from)) {
        part_times_panel(own, first, rows, from, panel, tiles.total, AddTimes{tiles.total, broadcast(layer.weight)});
      }
    } else {
      Index from = all_but_last(layer.features, first, rows, panel, tiles.left);
      if (from == 0) {
        part_times_panel(layer.features, first, rows, from, panel, tiles.left, Store{});
      } else {
        part_times_panel(layer.features, first, rows, from, panel, tiles.left, AddTo{tiles.left});
      }
      from = all_but_last(layer.sensitivities, first, rows, other, tiles.right);
      if (from == 0) {
        part_times_panel(layer.sensitivities, first, rows, from, other, tiles.total, AddProduct{tiles.left, tiles.total});
      } else {
        part_times_panel(layer.sensitivities, first, rows, from, other, tiles.total,
                         AddProductOfSum{tiles.left, tiles.right, tiles.total});
      }
    }
    panel = other + kGramColumns * depth_of(layer.sensitivities);
  }
}

// Copy the numbers [from, until) of one sequence into another.
INRFAST_INLINE void copy_to(float* out, Index across, const float* own, Index step, Index from, Index until) {
  if (across == 1 && step == 1) {
    for (Index i = from; i < until; ++i) out[i] = own[i];
  } else if (across == 1) {
    for (Index i = from; i < until; ++i) out[i] = own[i * step];
  } else {
    for (Index i = from; i < until; ++i) out[i * across] = own[i * step];
  }
}

// Write a tile of rows from `first` on and columns from `start` on; of a symmetric kernel what is not below the diagonal,
// and its mirror image.
void write(const GramBlock& block, Index first, Index rows, Index start, Index columns, const float* total) {
  const Index step = block.step, across = block.across;
  for (Index i = 0; i < rows; ++i) {
    const float* own = total + i * kTileStep;
    const Index from = block.symmetric && first + i > start ? first + i - start : 0;
    copy_to(block.out + (first + i) * step + start * across, across, own, 1, from, columns);
  }
  if (!block.symmetric) return;
  for (Index j = 0; j < columns; ++j) {
    const Index until = start + j - first < rows ? start + j - first : rows;  // rows above the diagonal
    copy_to(block.out + (start + j) * step + first * across, across, total + j, kTileStep, 0, until);
  }
}

void run(const GramBlock& block) {
  constexpr Index size = kTileRows * kTileStep;
  const Tiles tiles{block.workspace, block.workspace + size, block.workspace + 2 * size};
  float *const panels = block.workspace + 3 * size, *free = panels;
  Index depth = 0;
  for (Index start = block.first; start < block.last; start += kGramColumns) {
    const float* before = free;
    for (int l = 0; l < block.count; ++l) {
      free = pack_points(block.layers[l].other_features, start, block.last, free);
      free = pack_points(block.layers[l].other_sensitivities, start, block.last, free);
    }
    depth = free - before;
  }
  const Index parts = (block.rows + kTileRows - 1) / kTileRows, most = parts == 0 ? 0 : (block.rows + parts - 1) / parts;
  for (Index first = 0; first < block.rows; first += most) {
    const Index rows = block.rows - first < most ? block.rows - first : most;
    const float* panel = panels;
    for (Index start = block.first; start < block.last; start += kGramColumns, panel += depth) {
      const Index columns = block.last - start < kGramColumns ? block.last - start : kGramColumns;
      const Index above = start + columns - first;  // rows that are not below the diagonal of all these columns
      if (block.symmetric && above <= 0) continue;
      const Index own = block.symmetric && above < rows ? above : rows;
      tile_of_layers(block, first, own, panel, tiles);
      write(block, first, own, start, columns, tiles.total);
    }
  }
}

}  // namespace
}  // namespace inrfast
