// Vectors of doubles for AVX2. Everything here is private to the file that includes it.
#pragma once

#include <immintrin.h>

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

}  // namespace
}  // namespace inrfast
