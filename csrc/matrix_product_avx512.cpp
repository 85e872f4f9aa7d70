#include "matrix_product.h"

#ifdef INRFAST_HAS_MLP_STEP
#pragma GCC target("avx512f,avx512dq,avx2,fma,popcnt")
#include <cmath>
#include <cstring>

#include "mlp_step_layout.h"
#include "vectors_double_avx512.h"

#include "matrix_product_kernels.h"

void inrfast::matrix_product_avx512(const MatrixProduct& product) { run(product); }
#endif
