#include "matrix_product.h"

#ifdef INRFAST_HAS_MLP_STEP
#pragma GCC target("avx2,fma,popcnt")
#include <cmath>
#include <cstring>

#include "mlp_step_layout.h"
#include "vectors_double_avx2.h"

#include "matrix_product_kernels.h"

void inrfast::matrix_product_avx2(const MatrixProduct& product) { run(product); }
#endif
