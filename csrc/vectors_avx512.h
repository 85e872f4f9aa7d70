// Vectors of floats with the functions on them, for AVX-512: private to the file that includes it, behind the pragma.

#include <immintrin.h>

#include <cstdint>

namespace inrfast {
namespace {

using Number = float;
using Vec = __m512;
constexpr int kWidth = 16, kVectors = 4;
constexpr int kRows[] = {0, 14, 14, 8, 6};  // 24 to 28 of the 32 registers hold the tile

#define INRFAST_VEC inline __attribute__((always_inline))
INRFAST_VEC Vec zero() { return _mm512_setzero_ps(); }
INRFAST_VEC Vec broadcast(float x) { return _mm512_set1_ps(x); }
INRFAST_VEC Vec load(const float* from) { return _mm512_loadu_ps(from); }
INRFAST_VEC void store(float* to, Vec x) { _mm512_storeu_ps(to, x); }
INRFAST_VEC Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
INRFAST_VEC Vec multiply(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
INRFAST_VEC Vec divide(Vec a, Vec b) { return _mm512_div_ps(a, b); }
INRFAST_VEC Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
INRFAST_VEC Vec maximum(Vec a, Vec b) { return _mm512_max_ps(a, b); }  // b where either is NaN
INRFAST_VEC Vec magnitude(Vec x) { return _mm512_abs_ps(x); }
INRFAST_VEC float total(Vec x) { return _mm512_reduce_add_ps(x); }
INRFAST_VEC Vec nearest(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INRFAST_VEC Vec where_positive(Vec value, Vec x) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(value, zero(), _CMP_NLE_UQ), x);
}
// What is not below its bound; NaN is not.
INRFAST_VEC Vec where_not_below(Vec value, Vec bound, Vec x) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(value, bound, _CMP_NLT_UQ), x);
}
INRFAST_VEC int count_not_below(Vec value, Vec bound) {
  return __builtin_popcount(static_cast<unsigned>(_mm512_cmp_ps_mask(value, bound, _CMP_NLT_UQ)));
}
INRFAST_VEC bool all_below(Vec x, float bound) {
  return _mm512_cmp_ps_mask(magnitude(x), broadcast(bound), _CMP_LT_OQ) == 0xffff;
}
// From the sine and cosine of x - q pi/2 those of x: swapped for odd q, negative in two of four quadrants each.
INRFAST_VEC void turn(Vec q, Vec& sine, Vec& cosine) {
  const __m512i n = _mm512_cvtps_epi32(q), one = _mm512_set1_epi32(1), two = _mm512_set1_epi32(2);
  const __mmask16 odd = _mm512_test_epi32_mask(n, one);
  const Vec s = _mm512_mask_blend_ps(odd, sine, cosine), c = _mm512_mask_blend_ps(odd, cosine, sine);
  const __m512i s_sign = _mm512_slli_epi32(_mm512_and_si512(n, two), 30);
  const __m512i c_sign = _mm512_slli_epi32(_mm512_and_si512(_mm512_add_epi32(n, one), two), 30);
  sine = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(s), s_sign));
  cosine = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(c), c_sign));
}
INRFAST_VEC Vec times_power_of_two(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }

}  // namespace
}  // namespace inrfast
