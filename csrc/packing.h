// Packed operands of matrix products: panels whose rows a tile reads one after the other.
#pragma once

#include <cstdint>

#include "mlp_step_layout.h"

namespace inrfast {
namespace {

using Index = std::int64_t;

// Columns of a panel. One of doubles is as wide as a tile, so that the first-level cache holds it whole.
template <class Number>
constexpr Index kColumns = sizeof(Number) == sizeof(float) ? kPanel : 16;

template <class Number>
inline void clear(Number* out, Index numbers) {
  for (Index i = 0; i < numbers; ++i) out[i] = 0;
}

// Panels of (depth, columns) with entry (k, j) = source[k k_step + j j_step], zero beyond the columns.
template <class Number, class Source>
void pack(const Source* source, Index depth, Index columns, Index k_step, Index j_step, Number* out) {
  const Index whole = padded(columns);
  for (Index j = 0; j < whole; j += kColumns<Number>) {
    const Index width = whole - j < kColumns<Number> ? whole - j : kColumns<Number>, some = columns - j < width ? columns - j : width;
    for (Index k = 0; k < depth; ++k, out += width) {
      for (Index c = 0; c < some; ++c) out[c] = static_cast<Number>(source[k * k_step + (j + c) * j_step]);
      for (Index c = some; c < width; ++c) out[c] = 0;
    }
  }
}

}  // namespace
}  // namespace inrfast
