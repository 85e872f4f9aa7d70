#include "factor_pass.h"

#ifdef INRFAST_HAS_MLP_STEP
#pragma GCC target("avx2,fma,popcnt")
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "mlp_step_layout.h"

namespace inrfast {
namespace {

using Number = double;
using Vec = __m256d;
constexpr int kWidth = 4, kVectors = 2;
constexpr int kRows[] = {0, 12, 6};  // 12 of the 16 registers hold the tile

#define INRFAST_VEC inline __attribute__((always_inline))
INRFAST_VEC Vec zero() { return _mm256_setzero_pd(); }
INRFAST_VEC Vec broadcast(double x) { return _mm256_set1_pd(x); }
INRFAST_VEC Vec load(const double* from) { return _mm256_loadu_pd(from); }
INRFAST_VEC void store(double* to, Vec x) { _mm256_storeu_pd(to, x); }
INRFAST_VEC Vec add(Vec a, Vec b) { return _mm256_add_pd(a, b); }
INRFAST_VEC Vec multiply(Vec a, Vec b) { return _mm256_mul_pd(a, b); }
INRFAST_VEC Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_pd(a, b, c); }
INRFAST_VEC Vec maximum(Vec a, Vec b) { return _mm256_max_pd(a, b); }  // b where either is NaN
INRFAST_VEC Vec magnitude(Vec x) { return _mm256_andnot_pd(broadcast(-0.0), x); }
INRFAST_VEC Vec nearest(Vec x) { return _mm256_round_pd(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INRFAST_VEC Vec where_positive(Vec value, Vec x) { return _mm256_and_pd(_mm256_cmp_pd(value, zero(), _CMP_NLE_UQ), x); }
INRFAST_VEC bool all_below(Vec x, double bound) {
  return _mm256_movemask_pd(_mm256_cmp_pd(magnitude(x), broadcast(bound), _CMP_LT_OQ)) == 0xf;
}
// From the sine and cosine of x - q pi/2 those of x: swapped for odd q, negative in two of four quadrants each.
INRFAST_VEC void turn(Vec q, Vec& sine, Vec& cosine) {
  const __m256i n = _mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(q));
  const __m256i one = _mm256_set1_epi64x(1), two = _mm256_set1_epi64x(2);
  const Vec odd = _mm256_castsi256_pd(_mm256_slli_epi64(n, 63));
  const Vec s = _mm256_blendv_pd(sine, cosine, odd), c = _mm256_blendv_pd(cosine, sine, odd);
  const __m256i s_sign = _mm256_slli_epi64(_mm256_and_si256(n, two), 62);
  const __m256i c_sign = _mm256_slli_epi64(_mm256_and_si256(_mm256_add_epi64(n, one), two), 62);
  sine = _mm256_castsi256_pd(_mm256_xor_si256(_mm256_castpd_si256(s), s_sign));
  cosine = _mm256_castsi256_pd(_mm256_xor_si256(_mm256_castpd_si256(c), c_sign));
}

}  // namespace
}  // namespace inrfast

#include "factor_pass_kernels.h"

namespace inrfast {

bool factor_pass_avx2(const FactorLayer* layers, int depth, const FactorPoints& points) { return run(layers, depth, points); }
void factor_probe_avx2(const FactorLayer* layers, int depth, const FactorProbe& probe) { run_probe(layers, depth, probe); }

}  // namespace inrfast
#endif
