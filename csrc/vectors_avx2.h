// Vectors of floats with the functions on them, for AVX2: private to the file that includes it, behind the pragma.

#include <immintrin.h>

#include <cstdint>

namespace inrfast {
namespace {

using Number = float;
using Vec = __m256;
constexpr int kWidth = 8, kVectors = 2;
constexpr int kRows[] = {0, 12, 6};  // 12 of the 16 registers hold the tile

#define INRFAST_VEC inline __attribute__((always_inline))
INRFAST_VEC Vec zero() { return _mm256_setzero_ps(); }
INRFAST_VEC Vec broadcast(float x) { return _mm256_set1_ps(x); }
INRFAST_VEC Vec load(const float* from) { return _mm256_loadu_ps(from); }
INRFAST_VEC void store(float* to, Vec x) { _mm256_storeu_ps(to, x); }
INRFAST_VEC Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
INRFAST_VEC Vec multiply(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
INRFAST_VEC Vec divide(Vec a, Vec b) { return _mm256_div_ps(a, b); }
INRFAST_VEC Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
INRFAST_VEC Vec maximum(Vec a, Vec b) { return _mm256_max_ps(a, b); }  // b where either is NaN
INRFAST_VEC Vec magnitude(Vec x) { return _mm256_andnot_ps(broadcast(-0.0f), x); }
INRFAST_VEC float total(Vec x) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
INRFAST_VEC Vec nearest(Vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INRFAST_VEC Vec where_positive(Vec value, Vec x) { return _mm256_and_ps(_mm256_cmp_ps(value, zero(), _CMP_NLE_UQ), x); }
// What is not below its bound; NaN is not.
INRFAST_VEC Vec where_not_below(Vec value, Vec bound, Vec x) {
  return _mm256_and_ps(_mm256_cmp_ps(value, bound, _CMP_NLT_UQ), x);
}
INRFAST_VEC int count_not_below(Vec value, Vec bound) {
  return __builtin_popcount(static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(value, bound, _CMP_NLT_UQ))));
}
INRFAST_VEC bool all_below(Vec x, float bound) {
  return _mm256_movemask_ps(_mm256_cmp_ps(magnitude(x), broadcast(bound), _CMP_LT_OQ)) == 0xff;
}
// From the sine and cosine of x - q pi/2 those of x: swapped for odd q, negative in two of four quadrants each.
INRFAST_VEC void turn(Vec q, Vec& sine, Vec& cosine) {
  const __m256i n = _mm256_cvtps_epi32(q), one = _mm256_set1_epi32(1), two = _mm256_set1_epi32(2);
  const Vec odd = _mm256_castsi256_ps(_mm256_slli_epi32(n, 31));
  const Vec s = _mm256_blendv_ps(sine, cosine, odd), c = _mm256_blendv_ps(cosine, sine, odd);
  const __m256i s_sign = _mm256_slli_epi32(_mm256_and_si256(n, two), 30);
  const __m256i c_sign = _mm256_slli_epi32(_mm256_and_si256(_mm256_add_epi32(n, one), two), 30);
  sine = _mm256_xor_ps(s, _mm256_castsi256_ps(s_sign));
  cosine = _mm256_xor_ps(c, _mm256_castsi256_ps(c_sign));
}
INRFAST_VEC Vec power_of_two(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
INRFAST_VEC Vec times_power_of_two(Vec x, Vec n) {  // by halves: the power itself may be too small for a float
  const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
  return multiply(multiply(x, power_of_two(half)), power_of_two(_mm256_sub_epi32(whole, half)));
}

}  // namespace
}  // namespace inrfast
