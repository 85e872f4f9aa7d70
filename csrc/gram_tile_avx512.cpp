#include "gram_tile.h"

#ifdef INRFAST_HAS_MLP_STEP
#pragma GCC target("avx512f,avx512dq,avx2,fma,popcnt")
#include <cmath>
#include <cstring>

#include "gram_tile_layout.h"
#include "vectors_avx512.h"

#include "gram_tile_kernels.h"

void inrfast::gram_block_avx512(const GramBlock& block) { run(block); }
#endif
