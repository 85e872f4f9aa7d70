// The geometry of rank-expanding initialisation: which hyperplane each unit gets, and its weights and bias.
//
// One header for C++ and CUDA. All arithmetic is integer or fp64 with one rounding an operation (compile without
// FMA contraction), so both halves agree bit for bit; fp32 results are the fp64 ones rounded once.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#ifdef __CUDACC__
#define INRFAST_HD __host__ __device__
#else
#define INRFAST_HD
#endif

namespace inrfast {

// Where the units sit: sorted points on a line (d = 1), a p^d grid, or a low-discrepancy sequence (2^d > width).
enum class Layout { kLine, kGrid, kSequence };

// One input axis. Units act on x_hat = scale * x - shift, which maps the caller's bounds to [-1, 1].
struct Axis {
  double scale;
  double shift;
  std::uint64_t step;  // of the sequence: frac(sqrt(prime)) in units of 2^-64
};

struct Geometry {
  Layout layout;
  std::int64_t width;            // units, D
  std::int64_t in_features;      // axes, d
  std::int64_t points_per_axis;  // p = ceil(D^(1/d))
  std::int64_t grid_points;      // p^d, of the grid only
  double eps;
  double gain;
};

// The smallest p with p^d >= width; the product stops as soon as it gets there, so it fits for width < 2^31.
inline std::int64_t points_per_axis(std::int64_t width, std::int64_t in_features) {
  if (in_features == 1 || width == 1) return width;
  for (std::int64_t p = 2;; ++p) {
    std::int64_t points = 1;
    for (std::int64_t axis = 0; axis < in_features && points < width; ++axis) points *= p;
    if (points >= width) return p;
  }
}

inline Geometry make_geometry(std::int64_t width, std::int64_t in_features, double eps, double gain) {
  Geometry g{Layout::kLine, width, in_features, points_per_axis(width, in_features), 0, eps, gain};
  if (in_features == 1) return g;
  // A grid of p = 2 has 2^d corners: thinned to fewer units than that, it would hold whole axes constant.
  const bool grid = width == 1 || (in_features < 62 && (std::int64_t{1} << in_features) <= width);
  g.layout = grid ? Layout::kGrid : Layout::kSequence;
  g.grid_points = 1;
  for (std::int64_t axis = 0; grid && width > 1 && axis < in_features; ++axis) g.grid_points *= g.points_per_axis;
  return g;
}

// The axes for bounds [low_j, high_j], with the steps of the Richtmyer sequence: square roots of successive primes.
inline std::vector<Axis> make_axes(const std::vector<double>& lows, const std::vector<double>& highs) {
  std::vector<Axis> axes;
  std::vector<std::int64_t> primes;
  for (std::int64_t candidate = 2; axes.size() < lows.size(); ++candidate) {
    bool is_prime = true;
    for (std::int64_t prime : primes) {
      if (prime * prime > candidate) break;
      if (candidate % prime == 0) {
        is_prime = false;
        break;
      }
    }
    if (!is_prime) continue;
    primes.push_back(candidate);
    const double root = std::sqrt(static_cast<double>(candidate));
    const auto step = static_cast<std::uint64_t>((root - std::floor(root)) * 0x1p64);
    const double low = lows[axes.size()], high = highs[axes.size()];
    axes.push_back({2.0 / (high - low), (low + high) / (high - low), step});
  }
  return axes;
}

// Flat grid index of unit k, floor(k * p^d / D), without forming k * p^d.
INRFAST_HD inline std::int64_t grid_index(const Geometry& g, std::int64_t k) {
  return k * (g.grid_points / g.width) + k * (g.grid_points % g.width) / g.width;
}

// Component of the point v_k along one axis: on the grid the integer 2 i - p - 1 (i = 1..p), so v = a / (p + 1).
// `index` holds the digits still to be read, the last axis being the fastest.
INRFAST_HD inline double component(const Geometry& g, const Axis& axis, std::int64_t k, std::int64_t* index) {
  if (g.layout == Layout::kSequence) {
    // Unsigned fixed point wraps modulo 1; read as signed it is centred, so v is in [-1, 1).
    const auto turn = static_cast<std::int64_t>(static_cast<std::uint64_t>(k + 1) * axis.step);
    return static_cast<double>(turn) * 0x1p-63;
  }
  const std::int64_t digit = *index % g.points_per_axis;
  *index /= g.points_per_axis;
  return static_cast<double>(2 * digit + 1 - g.points_per_axis);
}

// Weights (d numbers) and bias of unit k. `coords` are the d = 1 points, or null for a uniform grid on [-1, 1].
template <typename T>
INRFAST_HD inline void make_unit(const Geometry& g, const Axis* axes, const double* coords, std::int64_t k, T* weight,
                                 T* bias) {
  if (g.layout == Layout::kLine) {
    const double last = static_cast<double>(g.width - 1);
    const double uniform = g.width == 1 ? 0.0 : static_cast<double>(2 * k - (g.width - 1)) / last;
    const double point = coords == nullptr ? uniform : coords[k];
    weight[0] = static_cast<T>(axes[0].scale * g.gain);
    *bias = static_cast<T>(((g.eps - point) - axes[0].shift) * g.gain);
    return;
  }
  const bool grid = g.layout == Layout::kGrid;
  const std::int64_t first = grid ? grid_index(g, k) : 0;
  double squares = 0.0;
  std::int64_t index = first;
  for (std::int64_t j = g.in_features - 1; j >= 0; --j) {
    const double v = component(g, axes[j], k, &index);
    squares += v * v;
  }
  const double norm = std::sqrt(squares);
  double offset = 0.0;
  index = first;
  for (std::int64_t j = g.in_features - 1; j >= 0; --j) {
    const double v = component(g, axes[j], k, &index);
    const double direction = squares > 0.0 ? v / norm : (j == 0 ? 1.0 : 0.0);
    offset += direction * axes[j].shift;
    weight[j] = static_cast<T>(direction * axes[j].scale * g.gain);
  }
  const double distance = grid ? norm / static_cast<double>(g.points_per_axis + 1) : norm;
  *bias = static_cast<T>(((g.eps - distance) - offset) * g.gain);
}

}  // namespace inrfast
