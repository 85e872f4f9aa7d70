// Blocks of columns of K = sum_l (Z_l Z_l'^T) * (S_l S_l'^T) in fp32, with its own matrix products: the two factors of a
// tile meet while it is in the first-level cache, and of a symmetric kernel only what is on and above the diagonal is
// computed.
#pragma once

#include <cstdint>

#include "mlp_step.h"

namespace inrfast {

struct GramFactor {
  const float* numbers;  // (points, columns), the columns next to each other; null: all ones
  std::int64_t step, columns;
};

struct GramLayer {
  GramFactor features, sensitivities, other_features, other_sensitivities;  // of the rows, and of the columns
  float weight;  // of a layer with one factor
};

struct GramBlock {
  const GramLayer* layers;
  int count;
  std::int64_t rows, first, last;  // of the rows all, of the columns [first, last)
  bool symmetric;                  // then rows and columns are the same points, and the mirror image is written too
  float* out;
  std::int64_t step, across;  // from one row to the next, and from one column to the next
  float* workspace;  // gram_workspace numbers, at an address that is a multiple of 64
};

// Columns that are computed together: ranges of columns begin at multiples of it.
constexpr std::int64_t kGramColumns = 64;

// Floats that a block of so many columns needs.
std::int64_t gram_workspace(const GramLayer* layers, int count, std::int64_t columns);

void gram_block(const GramBlock& block, const char* instructions);
void gram_block_avx512(const GramBlock& block);
void gram_block_avx2(const GramBlock& block);

}  // namespace inrfast
