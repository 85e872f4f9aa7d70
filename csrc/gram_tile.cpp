#include "gram_tile.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "gram_tile_layout.h"

namespace inrfast {

std::int64_t gram_workspace(const GramLayer* layers, int count, std::int64_t columns) {
  std::int64_t depth = 0;
  for (int l = 0; l < count; ++l) depth += depth_of(layers[l].features) + depth_of(layers[l].sensitivities);
  const std::int64_t panels = (columns + kGramColumns - 1) / kGramColumns;
  return panels * kGramColumns * depth + 3 * kTileRows * kTileStep;
}

#ifdef INRFAST_HAS_MLP_STEP

void gram_block(const GramBlock& block, const char* instructions) {
  if (std::strcmp(instructions, "avx512") == 0) return gram_block_avx512(block);
  if (std::strcmp(instructions, "avx2") == 0) return gram_block_avx2(block);
  throw std::invalid_argument("instructions must be avx512 or avx2, got " + std::string(instructions));
}

#else

void gram_block(const GramBlock&, const char*) { throw std::runtime_error("this build of inrfast._C has no gram_block"); }

#endif

}  // namespace inrfast
