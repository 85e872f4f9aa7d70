// Sine, cosine and exponential of the vectors that the including file has defined; private to it. Polynomials and the
// reduction are those of the Cephes library's single precision (Moshier, 1989); errors stay below 2 ulps.

namespace inrfast {
namespace {

constexpr float kLargeAngle = 1e5f;  // from which on, or where an angle is no number, the C library takes over

INRFAST_VEC void sine_and_cosine(Vec x, Vec& sine, Vec& cosine) {
  if (!all_below(x, kLargeAngle)) {
    float angles[kWidth], sines[kWidth], cosines[kWidth];
    store(angles, x);
    for (int i = 0; i < kWidth; ++i) {
      sines[i] = static_cast<float>(std::sin(static_cast<double>(angles[i])));
      cosines[i] = static_cast<float>(std::cos(static_cast<double>(angles[i])));
    }
    sine = load(sines);
    cosine = load(cosines);
    return;
  }
  // pi/2 in three floats; the first difference is exact: both terms are multiples of one unit, 2^-23 or finer.
  const Vec q = nearest(multiply(x, broadcast(0.636619772f)));
  Vec r = fma(q, broadcast(-1.57079637f), x);
  r = fma(q, broadcast(4.37113900e-8f), r);
  r = fma(q, broadcast(1.71512451e-15f), r);
  const Vec square = multiply(r, r);
  Vec s = fma(square, broadcast(-1.9515295891e-4f), broadcast(8.3321608736e-3f));
  s = fma(square, s, broadcast(-1.6666654611e-1f));
  sine = fma(multiply(square, r), s, r);
  Vec c = fma(square, broadcast(2.443315711809948e-5f), broadcast(-1.388731625493765e-3f));
  c = fma(square, c, broadcast(4.166664568298827e-2f));
  cosine = fma(multiply(square, square), c, fma(square, broadcast(-0.5f), broadcast(1.0f)));
  turn(q, sine, cosine);
}

// e^x for x <= 150.
INRFAST_VEC Vec exponential(Vec x) {
  x = maximum(broadcast(-150.0f), x);  // far below the smallest float; NaN stays
  const Vec n = nearest(multiply(x, broadcast(1.44269504f)));
  Vec r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  Vec y = fma(r, broadcast(1.9875691500e-4f), broadcast(1.3981999507e-3f));
  y = fma(y, r, broadcast(8.3334519073e-3f));
  y = fma(y, r, broadcast(4.1665795894e-2f));
  y = fma(y, r, broadcast(1.6666665459e-1f));
  y = fma(y, r, broadcast(5.0000001201e-1f));
  y = fma(multiply(r, r), y, add(r, broadcast(1.0f)));
  return times_power_of_two(y, n);
}

}  // namespace
}  // namespace inrfast
