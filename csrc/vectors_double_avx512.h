// Vectors of doubles for AVX-512. Everything here is private to the file that includes it.
#pragma once

#include <immintrin.h>

namespace inrfast {
namespace {

using Number = double;
using Vec = __m512d;
constexpr int kWidth = 8, kVectors = 2;
constexpr int kRows[] = {0, 14, 14};  // 28 of the 32 registers hold the tile

#define INRFAST_VEC inline __attribute__((always_inline))
INRFAST_VEC Vec zero() { return _mm512_setzero_pd(); }
INRFAST_VEC Vec broadcast(double x) { return _mm512_set1_pd(x); }
INRFAST_VEC Vec load(const double* from) { return _mm512_loadu_pd(from); }
INRFAST_VEC void store(double* to, Vec x) { _mm512_storeu_pd(to, x); }
INRFAST_VEC Vec add(Vec a, Vec b) { return _mm512_add_pd(a, b); }
INRFAST_VEC Vec multiply(Vec a, Vec b) { return _mm512_mul_pd(a, b); }
INRFAST_VEC Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_pd(a, b, c); }
INRFAST_VEC Vec maximum(Vec a, Vec b) { return _mm512_max_pd(a, b); }  // b where either is NaN
INRFAST_VEC Vec magnitude(Vec x) { return _mm512_abs_pd(x); }
INRFAST_VEC Vec nearest(Vec x) { return _mm512_roundscale_pd(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INRFAST_VEC Vec where_positive(Vec value, Vec x) {
  return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(value, zero(), _CMP_NLE_UQ), x);
}

}  // namespace
}  // namespace inrfast
