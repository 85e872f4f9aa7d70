// Where the parts of a block lie in its workspace.
#pragma once

#include <cstdint>

#include "gram_tile.h"

namespace inrfast {
namespace {

constexpr std::int64_t kTileRows = 84;                     // a whole number of tiles of 6, 12 or 14 rows
constexpr std::int64_t kTileStep = kGramColumns + 16;      // off powers of two

// Columns of a factor that is there.
inline std::int64_t depth_of(const GramFactor& factor) { return factor.numbers == nullptr ? 0 : factor.columns; }

}  // namespace
}  // namespace inrfast
