// The filters of a step by name, which hidden layers are multiplied by, and, where the including file has defined vectors
// (INRFAST_VEC), their value and slope. Each is a linear layer of the coordinates and what becomes of it. One more is a
// name, a number in the enumeration and a branch of filter_of; what it trains beside the linear layer, one of
// FilterParameter and its part of filter_back.
#ifndef INRFAST_MLP_STEP_FILTERS
#define INRFAST_MLP_STEP_FILTERS

namespace inrfast {

enum class Filter : int { kNone, kFourier, kGabor };

constexpr const char* kFilterNames[] = {"", "fourier", "gabor"};  // in the order of Filter

// weight (m, d) and bias (m) of the linear layer; of Gabor's filter mu (m, d) and gamma (m)
enum FilterParameter : int { kFilterWeight, kFilterBias, kCentre, kDecay, kFilterParameters };

}  // namespace inrfast

#endif

#ifdef INRFAST_VEC

namespace inrfast {
namespace {

// |x - mu|^2 of one point (d) and a vector of units; centres are (d, units) in rows of `step`.
INRFAST_VEC Vec distance(const float* x, std::int64_t inputs, const float* centres, std::int64_t step) {
  Vec sum = zero();
  for (std::int64_t c = 0; c < inputs; ++c) {
    const Vec apart = fma(load(centres + c * step), broadcast(-1.0f), broadcast(x[c]));
    sum = fma(apart, apart, sum);
  }
  return sum;
}

// Replace v by h(v) and return h'(v).
INRFAST_VEC Vec filter_of(Filter filter, const float* x, std::int64_t inputs, const float* centres, std::int64_t step,
                          const float* decays, Vec& v) {
  Vec sine, cosine;
  sine_and_cosine(v, sine, cosine);
  v = sine;
  if (filter == Filter::kFourier) return cosine;
  const Vec minus = broadcast(-1.0f);  // gamma may have become negative: e^150 is infinite, as e^-150 is 0
  const Vec half = multiply(multiply(load(decays), broadcast(0.5f)), distance(x, inputs, centres, step));
  const Vec bell = exponential(multiply(maximum(broadcast(-150.0f), half), minus));
  v = multiply(sine, bell);
  return multiply(cosine, bell);
}

}  // namespace
}  // namespace inrfast

#endif
