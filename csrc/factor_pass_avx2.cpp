#include "factor_pass.h"

#ifdef INRFAST_HAS_MLP_STEP
#pragma GCC target("avx2,fma,popcnt")
#include <cmath>
#include <cstring>

#include "mlp_step_layout.h"
#include "vectors_double_avx2.h"

namespace inrfast {
namespace {

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
