// The norms of a step by name, and, where the including file has defined vectors (INRFAST_VEC), what they do to the rows
// of a chunk and to errors on their way back. They treat each point alone and have no weights. One more is a name, a
// number in the enumeration and its part of select or project.
#ifndef INRFAST_MLP_STEP_NORMS
#define INRFAST_MLP_STEP_NORMS

namespace inrfast {

enum class Norm : int { kNone, kSphere, kTopK, kTopKSphere };

constexpr const char* kNormNames[] = {"", "sphere", "topk", "topk_sphere"};  // in the order of Norm

inline bool selects(Norm norm) { return norm == Norm::kTopK || norm == Norm::kTopKSphere; }
inline bool projects(Norm norm) { return norm == Norm::kSphere || norm == Norm::kTopKSphere; }

}  // namespace inrfast

#endif

#ifdef INRFAST_VEC

namespace inrfast {
namespace {

constexpr std::int32_t kOne = 0x3f800000, kInfinity = 0x7f800000;  // as bits

INRFAST_VEC float float_of(std::int32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// How many entries of a row are at least as large in magnitude as a bound; NaN is larger than all numbers.
INRFAST_VEC std::int64_t count_from(const float* row, std::int64_t columns, float bound) {
  const Vec least = broadcast(bound);
  std::int64_t count = 0;
  for (std::int64_t j = 0; j < columns; j += kWidth) count += count_not_below(magnitude(load(row + j)), least);
  return count;
}

// The magnitude of the `kept`-th largest entry of a row, or any below it that as few entries reach; beyond `columns`, a
// multiple of kLanes, nothing is read. `guess` is a start, and is left as one for a row like this.
//
// Magnitudes are in the order of their bits, so that these are bisected: between a bound that `kept` or more entries
// reach and one that fewer do. Around the guess the two are found in steps that double.
float threshold(const float* row, std::int64_t columns, std::int64_t kept, std::int32_t& guess) {
  if (count_from(row, columns, float_of(1)) <= kept) return 0.0f;  // the others are 0 as they are
  std::int32_t low = 1, high = kInfinity + 1, stride = 1 << 17, middle = guess;
  while (high - low > 1) {
    const std::int64_t count = count_from(row, columns, float_of(middle));
    if (count == kept) {
      low = middle;
      break;
    }
    (count > kept ? low : high) = middle;
    if (low > 1 && high <= kInfinity) {
      middle = low + (high - low) / 2;
    } else if (low > 1) {
      middle = high - low > stride ? low + stride : low + (high - low) / 2;
    } else {
      middle = high - low > stride ? high - stride : low + (high - low) / 2;
    }
    stride = stride < (1 << 28) ? 4 * stride : stride;
  }
  guess = low;
  return float_of(low);
}

// Set what is below the threshold to 0, in a row and, if there is one, in another of the same places.
INRFAST_VEC void keep_from(float* row, float* beside, std::int64_t columns, float bound) {
  const Vec least = broadcast(bound);
  for (std::int64_t j = 0; j < columns; j += kWidth) {
    const Vec own = load(row + j), size = magnitude(own);
    store(row + j, where_not_below(size, least, own));
    if (beside != nullptr) store(beside + j, where_not_below(size, least, load(beside + j)));
  }
}

// Project a row of `units` entries, zero beyond, onto the sphere of radius sqrt(units); return sqrt(units) / |row|, by
// which the entries were multiplied. A row of zeros (or of numbers below the normal ones) becomes 0, and so is its factor.
float project(float* row, std::int64_t columns, std::int64_t units) {
  Vec squares = zero();
  for (std::int64_t j = 0; j < columns; j += kWidth) squares = fma(load(row + j), load(row + j), squares);
  float sum = total(squares), scale = 1.0f;
  if (!(sum > 1e-30f && sum < 1e30f)) {  // dividing by the largest entry keeps the squares in range
    float largest = 0.0f;
    for (std::int64_t j = 0; j < units; ++j) {
      const float size = std::fabs(row[j]);
      if (!(size <= largest)) largest = size;  // NaN stays
    }
    if (largest < 1.17549435e-38f) {
      for (std::int64_t j = 0; j < columns; ++j) row[j] = 0.0f;
      return 0.0f;
    }
    scale = largest;
    sum = 0.0f;
    for (std::int64_t j = 0; j < units; ++j) {
      row[j] /= scale;
      sum += row[j] * row[j];
    }
  }
  // Divided by their length first: where one entry is left, that is 1 to the last digit, and project_back gives 0.
  const float length = std::sqrt(sum), radius = std::sqrt(static_cast<float>(units));
  for (std::int64_t j = 0; j < columns; j += kWidth) {
    store(row + j, multiply(broadcast(radius), divide(load(row + j), broadcast(length))));
  }
  return radius / length / scale;
}

// Take the error of a row behind such a projection to the place before it: factor (e - v (v e)), v = y / sqrt(units).
INRFAST_VEC void project_back(float* error, const float* y, std::int64_t columns, std::int64_t units, float factor) {
  const Vec radius = broadcast(std::sqrt(static_cast<float>(units))), by = broadcast(factor);
  Vec sums = zero();
  for (std::int64_t j = 0; j < columns; j += kWidth) sums = fma(load(error + j), divide(load(y + j), radius), sums);
  const Vec along = broadcast(-total(sums));
  for (std::int64_t j = 0; j < columns; j += kWidth) {
    store(error + j, multiply(by, fma(along, divide(load(y + j), radius), load(error + j))));
  }
}

}  // namespace
}  // namespace inrfast

#endif
