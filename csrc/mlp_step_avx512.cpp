#include "mlp_step.h"

#ifdef INRFAST_HAS_MLP_STEP
#pragma GCC target("avx512f,avx512dq,avx2,fma,popcnt")
#include <cmath>
#include <cstring>

#include "mlp_step_layout.h"
#include "vectors_avx512.h"

#include "mlp_step_functions.h"
#include "mlp_step_activations.h"
#include "mlp_step_filters.h"
#include "mlp_step_norms.h"
#include "mlp_step_kernels.h"

double inrfast::mlp_step_avx512(const MlpStep& step) { return run(step); }
#endif
