// The factor pass itself, for one set of instructions: included once by each factor_pass_<instructions>.cpp, after it
// has defined the vectors of doubles that products.h needs. Everything here is private to that file.

#include "products.h"

namespace inrfast {
namespace {

constexpr double kLargeAngle = 1e5;         // from which on, or where an angle is no number, the C library takes over
constexpr double kSmallFeature = 0x1p-41;   // features whose squares fp32 holds beside others with all digits
constexpr double kLargeFeature = 0x1p40;

// Coefficients of Moshier's Cephes library (1989) for |r| <= pi/4; errors stay below 2 ulps.
INRFAST_INLINE void sine_and_cosine(Vec x, Vec& sine, Vec& cosine) {
  if (!all_below(x, kLargeAngle)) {
    double angles[kWidth], sines[kWidth], cosines[kWidth];
    store(angles, x);
    for (int i = 0; i < kWidth; ++i) {
      sines[i] = std::sin(angles[i]);
      cosines[i] = std::cos(angles[i]);
    }
    sine = load(sines);
    cosine = load(cosines);
    return;
  }
  // pi/2 in three doubles.
  const Vec q = nearest(multiply(x, broadcast(0.63661977236758134308)));
  Vec r = fma(q, broadcast(-1.57079632679489655800e+00), x);
  r = fma(q, broadcast(-6.12323399573676603587e-17), r);
  r = fma(q, broadcast(1.49738490485916983e-33), r);
  const Vec square = multiply(r, r);
  Vec s = fma(square, broadcast(1.58962301576546568060e-10), broadcast(-2.50507477628578072866e-8));
  s = fma(square, s, broadcast(2.75573136213857245213e-6));
  s = fma(square, s, broadcast(-1.98412698295895385996e-4));
  s = fma(square, s, broadcast(8.33333333332211858878e-3));
  s = fma(square, s, broadcast(-1.66666666666666307295e-1));
  sine = fma(multiply(square, r), s, r);
  Vec c = fma(square, broadcast(-1.13585365213876817300e-11), broadcast(2.08757008419747316778e-9));
  c = fma(square, c, broadcast(-2.75573141792967388112e-7));
  c = fma(square, c, broadcast(2.48015872888517045348e-5));
  c = fma(square, c, broadcast(-1.38888888888730564116e-3));
  c = fma(square, c, broadcast(4.16666666666665929218e-2));
  cosine = fma(multiply(square, square), c, fma(square, broadcast(-0.5), broadcast(1.0)));
  turn(q, sine, cosine);
}

// Replace u by act(u) and return act'(u).
INRFAST_INLINE Vec activation_of(const FactorLayer& layer, Vec& u) {
  if (layer.activation == Activation::kIdentity) return broadcast(1.0);
  if (layer.activation == Activation::kRelu) {
    u = maximum(zero(), u);
    return where_positive(u, broadcast(1.0));
  }
  const Vec omega = broadcast(layer.numbers[0]), x = u;
  Vec cosine;
  if (layer.activation == Activation::kSine) {
    sine_and_cosine(multiply(omega, x), u, cosine);
    return multiply(omega, cosine);
  }
  const Vec size = magnitude(x);  // FINER: sin(omega (|u| + 1) u)
  sine_and_cosine(multiply(multiply(multiply(add(size, broadcast(1.0)), x), omega), broadcast(1.0)), u, cosine);
  return multiply(multiply(fma(size, broadcast(2.0), broadcast(1.0)), cosine), omega);
}

INRFAST_INLINE Index smaller_of(Index a, Index b) { return a < b ? a : b; }
INRFAST_INLINE double larger_of(double a, double b) { return a < b ? b : a; }

// The buffers of a chunk: of every layer its input and the slope behind it, and the sensitivities of two layers.
struct Chunk {
  double *features[kMostLayers], *slopes[kMostLayers];
  double* errors[2];
  Index rows, outputs, block;  // a block of errors per output
};

void prepare(const FactorLayer* layers, int depth, Index rows, double* workspace, Chunk& chunk) {
  Index widest = 0;
  const auto take = [&](Index count) {
    double* found = workspace;
    workspace += count;
    return found;
  };
  chunk.rows = rows;
  chunk.outputs = layers[depth - 1].out;
  chunk.features[0] = take(rows * row_step(layers[0].in));
  for (int l = 0; l + 1 < depth; ++l) {
    const Index step = row_step(layers[l].out);
    chunk.features[l + 1] = take(rows * step);
    chunk.slopes[l] = take(rows * step);
    widest = widest < step ? step : widest;
  }
  chunk.block = rows * widest;
  for (auto& own : chunk.errors) own = take(chunk.outputs * chunk.block);
}

// Multiply the numbers of some rows by 1 + size or 1 - size, in a pattern without a period that a layer has.
void disturb(Index first, Index rows, Index columns, Index step, double size, unsigned seed, double* numbers) {
  unsigned state = 2654435761u * (seed + 1);
  for (Index i = first; i < rows; ++i) {
    for (Index j = 0; j < columns; ++j) {
      state = state * 1664525u + 1013904223u;
      numbers[i * step + j] *= 1.0 + (state >> 31 ? size : -size);
    }
  }
}

// Fill the features and slopes of a chunk. Rows from `disturbed` on get a disturbance of `size`.
void forward(const FactorLayer* layers, int depth, Chunk& chunk, Index rows, const double* inputs, Index disturbed,
             double size) {
  const Index d = layers[0].in, first_step = row_step(d);
  for (Index i = 0; i < rows; ++i) {
    for (Index c = 0; c < d; ++c) chunk.features[0][i * first_step + c] = inputs[i * d + c];
  }
  for (int l = 0; l + 1 < depth; ++l) {
    const FactorLayer& layer = layers[l];
    const Index step = row_step(layer.out), columns = padded(layer.out);
    double *u = chunk.features[l + 1], *slope = chunk.slopes[l];
    product(rows, columns, layer.in, chunk.features[l], row_step(layer.in), 1, layer.forward, 0,
            Target<AddBias>{u, step, {layer.offsets}});
    if (disturbed < rows) disturb(disturbed, rows, layer.out, step, size, 2 * l, u);
    for (Index i = 0; i < rows; ++i) {
      for (Index place = i * step; place < i * step + columns; place += kWidth) {
        Vec x = load(u + place);
        const Vec derivative = activation_of(layer, x);
        store(u + place, x);
        store(slope + place, derivative);
      }
    }
  }
}

// Call visit(l, errors of layer l) for every hidden layer, from the last to the first.
template <class Visit>
void backward(const FactorLayer* layers, int depth, Chunk& chunk, Index rows, Index disturbed, double size,
              const Visit& visit) {
  const FactorLayer& head = layers[depth - 1];
  for (int l = depth - 2; l >= 0; --l) {
    const Index step = row_step(layers[l].out), columns = padded(layers[l].out);
    double *own = chunk.errors[l % 2], *above = chunk.errors[(l + 1) % 2];
    for (Index m = 0; m < chunk.outputs; ++m) {
      double* errors = own + m * chunk.block;
      if (l == depth - 2) {
        // The head's weights of output m: row m of the packed panels.
        for (Index j = 0; j < columns; j += kColumns<double>) {
          const Index width = columns - j < kColumns<double> ? columns - j : kColumns<double>;
          const double* weights = head.backward + j * head.out + m * width;
          for (Index i = 0; i < rows; ++i) {
            for (Index c = 0; c < width; c += kWidth) {
              const Index place = i * step + j + c;
              store(errors + place, multiply(load(weights + c), load(chunk.slopes[l] + place)));
            }
          }
        }
      } else {
        const FactorLayer& next = layers[l + 1];
        product(rows, columns, next.out, above + m * chunk.block, row_step(next.out), 1, next.backward, 0,
                Target<TimesSlope>{errors, step, {chunk.slopes[l]}});
      }
      if (disturbed < rows) disturb(disturbed, rows, layers[l].out, step, size, 2 * l + 1 + 131 * m, errors);
    }
    visit(l, own);
  }
}

template <class Out>
void write(const double* source, Index columns, Out* out) {
  for (Index j = 0; j < columns; ++j) out[j] = static_cast<Out>(source[j]);
}

// Whether a row of features has no square in fp32 beside others.
bool out_of_range(const double* row, Index columns, bool ones) {
  double largest = ones ? 1.0 : 0.0;
  for (Index j = 0; j < columns; ++j) largest = larger_of(largest, std::fabs(row[j]));
  return largest >= kLargeFeature || (largest < kSmallFeature && largest > 0);
}

template <class Out>
bool run_into(const FactorLayer* layers, int depth, const FactorPoints& points) {
  Chunk chunk;
  prepare(layers, depth, factor_pass_rows(layers, depth, points.count), points.workspace, chunk);
  bool bad = false;
  for (Index start = 0; start < points.count; start += chunk.rows) {
    const Index rows = smaller_of(chunk.rows, points.count - start);
    forward(layers, depth, chunk, rows, points.inputs + start * layers[0].in, rows, 0.0);
    for (int l = 0; l < depth; ++l) {
      const FactorTarget& to = points.targets[l];
      if (to.features == nullptr) continue;
      const Index in = layers[l].in, step = row_step(in);
      for (Index i = 0; i < rows; ++i) {
        const double* row = chunk.features[l] + i * step;
        Out* out = static_cast<Out*>(to.features) + (start + i) * to.feature_step;
        write(row, in, out);
        if (to.ones) out[in] = 1;
        if (points.single) bad = bad || out_of_range(row, in, to.ones);
      }
    }
    backward(layers, depth, chunk, rows, rows, 0.0, [&](int l, const double* errors) {
      const FactorTarget& to = points.targets[l];
      if (to.sensitivities == nullptr) return;
      const Index width = layers[l].out, step = row_step(width);
      for (Index i = 0; i < rows; ++i) {
        Out* out = static_cast<Out*>(to.sensitivities) + (start + i) * to.sensitivity_step;
        for (Index m = 0; m < chunk.outputs; ++m) write(errors + m * chunk.block + i * step, width, out + m * width);
      }
    });
  }
  return bad;
}

bool run(const FactorLayer* layers, int depth, const FactorPoints& points) {
  return points.single ? run_into<float>(layers, depth, points) : run_into<double>(layers, depth, points);
}

// The squared length of a row, and that of its difference to another one.
void lengths(const double* one, const double* other, Index columns, double& square, double& distance) {
  square = distance = 0.0;
  for (Index j = 0; j < columns; ++j) {
    square += one[j] * one[j];
    distance += (other[j] - one[j]) * (other[j] - one[j]);
  }
}

// The larger of a relative change and those seen before; NaN stays.
double larger(double seen, double square, double distance) {
  const double change = distance == 0.0 ? 0.0 : std::sqrt(distance / square);
  return change <= seen ? seen : change;
}

void run_probe(const FactorLayer* layers, int depth, const FactorProbe& probe) {
  const Index count = probe.count, d = layers[0].in;
  Chunk chunk;
  prepare(layers, depth, 2 * count, probe.workspace, chunk);
  double* squares = probe.workspace + factor_pass_workspace(layers, depth, 2 * count);
  double* inputs = squares + depth * count;
  for (Index c = 0; c < 2 * count * d; ++c) inputs[c] = probe.inputs[c % (count * d)];
  disturb(count, 2 * count, d, d, probe.size, 977, inputs);
  forward(layers, depth, chunk, 2 * count, inputs, count, probe.size);
  for (int l = 0; l < depth; ++l) {
    const Index in = layers[l].in, step = row_step(in);
    probe.largest[l] = probe.changes[l] = 0.0;
    for (Index i = 0; i < count; ++i) {
      double square, distance;
      lengths(chunk.features[l] + i * step, chunk.features[l] + (count + i) * step, in, square, distance);
      squares[l * count + i] = square += layers[l].bias ? 1.0 : 0.0;
      probe.changes[l] = larger(probe.changes[l], square, distance);
      if (l + 1 == depth) probe.largest[l] = larger_of(probe.largest[l], square * chunk.outputs);
    }
  }
  backward(layers, depth, chunk, 2 * count, count, probe.size, [&](int l, const double* errors) {
    const Index width = layers[l].out, step = row_step(width);
    for (Index i = 0; i < count; ++i) {
      double total = 0.0;
      for (Index m = 0; m < chunk.outputs; ++m) {
        double square, distance;
        const double* own = errors + m * chunk.block;
        lengths(own + i * step, own + (count + i) * step, width, square, distance);
        probe.changes[l] = larger(probe.changes[l], square, distance);
        total += square;
      }
      probe.largest[l] = larger_of(probe.largest[l], total * squares[l * count + i]);
    }
  });
}

}  // namespace
}  // namespace inrfast
