#include "gram_tile.h"

#ifdef INRFAST_HAS_MLP_STEP
#pragma GCC target("avx2,fma,popcnt")
#include <cmath>
#include <cstring>

#include "gram_tile_layout.h"
#include "vectors_avx2.h"

#include "gram_tile_kernels.h"

void inrfast::gram_block_avx2(const GramBlock& block) { run(block); }
#endif
