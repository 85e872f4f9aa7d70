// Matrix products on the vectors that the including file has defined (Vec and the functions on it): of Number (float or
// double), kWidth of them in a vector, kVectors vectors in a row of the widest tile, and kRows rows of a tile that stays
// in registers, by the vectors in one. Everything here is private to that file: it must not be shared with code for
// other processors.

#include "packing.h"

#define INRFAST_INLINE inline __attribute__((always_inline))

namespace inrfast {
namespace {

// ---- products ----------------------------------------------------------------------------------------------------

// acc[i][v] = sum_k a[i a_row + k a_step] b[k b_step + v], in registers.
template <int M, int N>
INRFAST_INLINE void multiply(Index depth, const Number* a, Index a_row, Index a_step, const Number* b, Index b_step,
                             Vec (&acc)[M][N]) {
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) acc[i][v] = zero();
  }
#pragma GCC unroll 2
  for (Index k = 0; k < depth; ++k) {
    Vec column[N];
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) column[v] = load(b + v * kWidth);
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      const Vec row = broadcast(a[i * a_row]);
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) acc[i][v] = fma(row, column[v], acc[i][v]);
    }
    a += a_step;
    b += b_step;
  }
}

// What becomes of a vector of a product before it is stored at out[place], in column `column`.
struct AddBias {
  const Number* bias;
  INRFAST_INLINE Vec operator()(Vec u, Index, Index column) const { return add(u, load(bias + column)); }
};

struct AddBiasAndRelu {
  const Number* bias;
  INRFAST_INLINE Vec operator()(Vec u, Index, Index column) const {
    return maximum(zero(), add(u, load(bias + column)));  // NaN stays
  }
};

struct WhereActive {  // behind ReLU: an error passes where the value is above 0, or NaN
  const Number* value;
  INRFAST_INLINE Vec operator()(Vec error, Index place, Index) const {
    return where_positive(load(value + place), error);
  }
};

struct TimesSlope {
  const Number* slope;
  INRFAST_INLINE Vec operator()(Vec error, Index place, Index) const { return multiply(load(slope + place), error); }
};

struct Store {
  INRFAST_INLINE Vec operator()(Vec own, Index, Index) const { return own; }
};

struct AddTo {
  const Number* sum;
  INRFAST_INLINE Vec operator()(Vec part, Index place, Index) const { return add(load(sum + place), part); }
};

// Where a product goes.
template <class End>
struct Target {
  Number* out;
  Index step;
  End end;
};

template <int M, int N, class End>
__attribute__((noinline)) void tile(Index i, Index j, Index depth, const Number* a, Index a_row, Index a_step,
                                    const Number* b, Index b_step, const Target<End>& to) {
  Vec acc[M][N];
  multiply<M, N>(depth, a, a_row, a_step, b, b_step, acc);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      const Index column = j + v * kWidth, place = (i + m) * to.step + column;
      store(to.out + place, to.end(acc[m][v], place, column));
    }
  }
}

// A tile of `rows` <= M rows: as many instances as there are heights.
template <int M, int N, class End>
INRFAST_INLINE void tile_of(Index rows, Index i, Index j, Index depth, const Number* a, Index a_row, Index a_step,
                            const Number* b, Index b_step, const Target<End>& to) {
  if constexpr (M > 1) {
    if (rows < M) return tile_of<M - 1, N>(rows, i, j, depth, a, a_row, a_step, b, b_step, to);
  }
  tile<M, N>(i, j, depth, a, a_row, a_step, b, b_step, to);
}

// All rows of one panel of N vectors, in heights as equal as can be.
template <int N, class End>
INRFAST_INLINE void panel(Index rows, Index j, Index depth, const Number* a, Index a_row, Index a_step, const Number* b,
                          Index b_step, const Target<End>& to) {
  constexpr Index most = kRows[N];
  const Index tiles = (rows + most - 1) / most, height = rows / tiles, higher = rows % tiles;
  for (Index t = 0, i = 0; t < tiles; ++t) {
    const Index own = height + (t < higher ? 1 : 0);
    tile_of<kRows[N], N>(own, i, j, depth, a + i * a_row, a_row, a_step, b, b_step, to);
    i += own;
  }
}

// The same for a panel of at least one vector, and at most N.
template <int N, class End>
INRFAST_INLINE void panels(Index vectors, Index rows, Index j, Index depth, const Number* a, Index a_row, Index a_step,
                           const Number* b, Index b_step, const Target<End>& to) {
  if constexpr (N > 1) {
    if (vectors < N) return panels<N - 1>(vectors, rows, j, depth, a, a_row, a_step, b, b_step, to);
  }
  panel<N>(rows, j, depth, a, a_row, a_step, b, b_step, to);
}

// Columns [0, columns) of a product, a multiple of kLanes. A packed b holds panel after panel; else b_step is its own.
template <class End>
void product(Index rows, Index columns, Index depth, const Number* a, Index a_row, Index a_step, const Number* b,
             Index b_step, const Target<End>& to) {
  static_assert(kColumns<Number> % (kVectors * kWidth) == 0 && kLanes % kWidth == 0, "panels are whole tiles");
  for (Index j = 0; j < columns; j += kColumns<Number>) {
    const Index width = columns - j < kColumns<Number> ? columns - j : kColumns<Number>;
    const Index step = b_step == 0 ? width : b_step;
    const Number* own = b_step == 0 ? b + j * depth : b + j;
    for (Index inner = 0; inner < width; inner += kVectors * kWidth) {
      panels<kVectors>((width - inner) / kWidth, rows, j + inner, depth, a, a_row, a_step, own + inner, step, to);
    }
  }
}

}  // namespace
}  // namespace inrfast
