// Products of matrices of doubles on one thread: out = s a b, or out += s a b.
#pragma once

#include <cstdint>

#include "mlp_step.h"

namespace inrfast {

struct MatrixProduct {
  std::int64_t rows, columns, depth;
  const double* a;  // entry (i, k) at a[i a_row + k a_step]
  std::int64_t a_row, a_step;
  const double* b;  // entry (k, j) at b[k b_step + j b_column]
  std::int64_t b_step, b_column;
  double scale;
  double* out;  // entry (i, j) at out[i out_row + j]
  std::int64_t out_row;
  bool add;
  double* workspace;  // matrix_product_workspace numbers, at an address that is a multiple of 64
};

// Doubles that a product of such a size needs.
std::int64_t matrix_product_workspace(std::int64_t rows, std::int64_t columns, std::int64_t depth);

void matrix_product(const MatrixProduct& product, const char* instructions);
void matrix_product_avx512(const MatrixProduct& product);
void matrix_product_avx2(const MatrixProduct& product);

}  // namespace inrfast
