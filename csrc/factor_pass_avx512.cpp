#include "factor_pass.h"

#ifdef INRFAST_HAS_MLP_STEP
#pragma GCC target("avx512f,avx512dq,avx2,fma,popcnt")
#include <cmath>
#include <cstring>

#include "mlp_step_layout.h"
#include "vectors_double_avx512.h"

namespace inrfast {
namespace {

INRFAST_VEC bool all_below(Vec x, double bound) {
  return _mm512_cmp_pd_mask(magnitude(x), broadcast(bound), _CMP_LT_OQ) == 0xff;
}
// From the sine and cosine of x - q pi/2 those of x: swapped for odd q, negative in two of four quadrants each.
INRFAST_VEC void turn(Vec q, Vec& sine, Vec& cosine) {
  const __m512i n = _mm512_cvtpd_epi64(q), one = _mm512_set1_epi64(1), two = _mm512_set1_epi64(2);
  const __mmask8 odd = _mm512_test_epi64_mask(n, one);
  const Vec s = _mm512_mask_blend_pd(odd, sine, cosine), c = _mm512_mask_blend_pd(odd, cosine, sine);
  const __m512i s_sign = _mm512_slli_epi64(_mm512_and_si512(n, two), 62);
  const __m512i c_sign = _mm512_slli_epi64(_mm512_and_si512(_mm512_add_epi64(n, one), two), 62);
  sine = _mm512_castsi512_pd(_mm512_xor_si512(_mm512_castpd_si512(s), s_sign));
  cosine = _mm512_castsi512_pd(_mm512_xor_si512(_mm512_castpd_si512(c), c_sign));
}

}  // namespace
}  // namespace inrfast

#include "factor_pass_kernels.h"

namespace inrfast {

bool factor_pass_avx512(const FactorLayer* layers, int depth, const FactorPoints& points) {
  return run(layers, depth, points);
}
void factor_probe_avx512(const FactorLayer* layers, int depth, const FactorProbe& probe) { run_probe(layers, depth, probe); }

}  // namespace inrfast
#endif
