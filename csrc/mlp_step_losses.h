// The losses of a step: each turns a prediction f, a target y and a weight w into w l(f, y) and w l'(f, y). They are
// taken entry by entry: a network has few outputs. What is no number stays so. Private to the including file.

namespace inrfast {
namespace {

struct Weighted {
  double value;
  float slope;
};

struct MeanSquare {
  INRFAST_INLINE Weighted operator()(float f, float y, float w) const {
    const float error = f - y;
    return {static_cast<double>(error * w) * error, 2.0f * error * w};
  }
};

struct AbsoluteError {
  INRFAST_INLINE Weighted operator()(float f, float y, float w) const {
    const float error = f - y, sign = error > 0.0f ? 1.0f : error < 0.0f ? -1.0f : error;
    return {static_cast<double>(std::fabs(error)) * w, sign * w};
  }
};

struct Huber {
  float delta;
  INRFAST_INLINE Weighted operator()(float f, float y, float w) const {
    const float error = f - y, size = std::fabs(error), inner = size < delta ? size : delta;
    const float slope = error > delta ? delta : error < -delta ? -delta : error;
    return {static_cast<double>(inner) * (size - 0.5f * inner) * w, slope * w};
  }
};

struct CrossEntropy {  // of a logit: log(1 + e^f) - y f
  INRFAST_INLINE Weighted operator()(float f, float y, float w) const {
    const float power = std::exp(-std::fabs(f)), whole = 1.0f + power;
    const float probability = (f >= 0.0f ? 1.0f : power) / whole;
    const float above = f > 0.0f ? f : 0.0f;
    return {static_cast<double>(above - f * y + std::log1p(power)) * w, (probability - y) * w};
  }
};

}  // namespace
}  // namespace inrfast
