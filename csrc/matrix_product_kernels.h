// The products themselves, for one set of instructions: included once by each matrix_product_<instructions>.cpp, after it
// has defined the vectors that products.h needs. Everything here is private to that file.

#include "products.h"

namespace inrfast {
namespace {

// Panels of b, as packed() has them, times a scale.
inline void pack_scaled(const MatrixProduct& p) {
  pack(p.b, p.depth, p.columns, p.b_step, p.b_column, p.workspace);
  if (p.scale == 1.0) return;
  for (Index i = 0, numbers = padded(p.columns) * p.depth; i < numbers; ++i) p.workspace[i] *= p.scale;
}

template <class End>
void whole(const MatrixProduct& p, Index columns, End end) {
  if (columns > 0) product(p.rows, columns, p.depth, p.a, p.a_row, p.a_step, p.workspace, 0, Target<End>{p.out, p.out_row, end});
}

void run(const MatrixProduct& p) {
  pack_scaled(p);
  const Index columns = p.columns / kLanes * kLanes, left = p.columns - columns;
  if (p.add) {
    whole(p, columns, AddTo{p.out});
  } else {
    whole(p, columns, Store{});
  }
  if (left == 0) return;
  // The last columns do not fill a vector: they are computed beside, and what there is of them is taken.
  double* beside = p.workspace + padded(p.columns) * p.depth;
  product(p.rows, kLanes, p.depth, p.a, p.a_row, p.a_step, p.workspace + columns * p.depth, 0,
          Target<Store>{beside, kLanes, Store{}});
  for (Index i = 0; i < p.rows; ++i) {
    double* to = p.out + i * p.out_row + columns;
    for (Index j = 0; j < left; ++j) to[j] = (p.add ? to[j] : 0.0) + beside[i * kLanes + j];
  }
}

}  // namespace
}  // namespace inrfast
