// The activations of a step by name, and, where the including file has defined vectors (INRFAST_VEC), their value and
// slope. One more is a name, a number in the enumeration and a branch of activation_of; none may need more than
// kMostNumbers numbers.
#ifndef INRFAST_MLP_STEP_ACTIVATIONS
#define INRFAST_MLP_STEP_ACTIVATIONS

namespace inrfast {

enum class Activation : int { kRelu, kSine, kGaussian, kFiner, kWire, kIdentity };

// in the order of Activation
constexpr const char* kActivationNames[] = {"relu", "sine", "gaussian", "finer", "wire", "identity"};

constexpr int kMostNumbers = 2;  // of one layer's activation

}  // namespace inrfast

#endif

#ifdef INRFAST_VEC

namespace inrfast {
namespace {

// Replace x by act(x) and return act'(x). ReLU has a path of its own.
INRFAST_VEC Vec activation_of(Activation activation, const float* numbers, Vec& x) {
  if (activation == Activation::kIdentity) return broadcast(1.0f);
  const Vec frequency = broadcast(numbers[0]), u = x;
  if (activation == Activation::kSine) {
    Vec cosine;
    sine_and_cosine(multiply(frequency, u), x, cosine);
    return multiply(frequency, cosine);
  }
  if (activation == Activation::kFiner) {  // sin(omega (|u| + 1) u)
    const Vec size = magnitude(u);
    Vec cosine;
    sine_and_cosine(multiply(multiply(add(size, broadcast(1.0f)), u), frequency), x, cosine);
    return multiply(multiply(fma(size, broadcast(2.0f), broadcast(1.0f)), cosine), frequency);
  }
  if (activation == Activation::kWire) {  // cos(omega u) exp(-(sigma u)^2)
    const Vec width = broadcast(numbers[1]), scaled = multiply(width, u);
    const Vec bell = exponential(multiply(multiply(scaled, scaled), broadcast(-1.0f)));
    Vec sine, cosine;
    sine_and_cosine(multiply(frequency, u), sine, cosine);
    x = multiply(cosine, bell);
    const Vec inside = multiply(multiply(width, scaled), cosine);
    return multiply(fma(inside, broadcast(-2.0f), multiply(multiply(frequency, sine), broadcast(-1.0f))), bell);
  }
  const Vec scaled = multiply(frequency, u);  // Gaussian, exp(-(omega u)^2)
  x = exponential(multiply(multiply(scaled, scaled), broadcast(-1.0f)));
  return multiply(multiply(u, x), broadcast(-2.0f * numbers[0] * numbers[0]));
}

}  // namespace
}  // namespace inrfast

#endif
