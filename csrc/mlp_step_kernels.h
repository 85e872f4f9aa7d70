// The step itself, for one set of instructions: included once by each mlp_step_<instructions>.cpp, after it has defined
// the vectors and tiles that products.h needs. Everything here is private to that file: it must not be shared with code
// for other processors.

#include "products.h"

#include "mlp_step_losses.h"

namespace inrfast {
namespace {

// ---- activations -------------------------------------------------------------------------------------------------

// Replace u by act(u) and write act'(u).
void activate(const MlpLayer& layer, Index rows, Index step, float* u, float* slope) {
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < padded(layer.out); j += kWidth) {
      float* place = u + i * step + j;
      Vec x = load(place);
      const Vec derivative = activation_of(layer.activation, layer.numbers, x);
      store(place, x);
      store(slope + i * step + j, derivative);
    }
  }
}

struct Buffers {  // of one layer
  float *value, *slope;              // (chunk, out), in rows of row_step
  float *forward, *backward;         // packed weights: (in, out), or rows for dot products; (out, in)
  float* bias;                       // zero where there is none
  float *weight_grad, *bias_grad;    // sums over all chunks, padded
  float *factor, *normed;            // of a norm that projects: of every row, and its values where it stands first
};

struct FilterBuffers {  // of one layer's filter; null where there is none
  float* product;       // features times filter, (chunk, out), in rows of row_step
  Buffers linear;       // value: the filter; slope: features times its slope, and on the way back its error
  float *bell, *bell_grad;  // of Gabor: (d, out) centres and (out) decays, and sums over all chunks
};

// ---- norms -------------------------------------------------------------------------------------------------------

// Take the values of a chunk through a norm, and set slopes, if there are any, to 0 where it leaves values out.
void normalise(const MlpLayer& layer, const Buffers& buffers, Index rows, float* slopes) {
  const Index step = row_step(layer.out), columns = padded(layer.out);
  const bool some = selects(layer.norm) && layer.kept < layer.out;
  std::int32_t guess = kOne;
  for (Index i = 0; i < rows; ++i) {
    float* row = buffers.value + i * step;
    for (Index j = layer.out; j < columns; ++j) row[j] = 0.0f;  // where activations of 0 are not 0
    if (some) {
      keep_from(row, slopes == nullptr ? nullptr : slopes + i * step, columns,
                threshold(row, columns, layer.kept, guess));
    }
    if (projects(layer.norm)) buffers.factor[i] = project(row, columns, layer.out);
  }
}

// The same before the activation, and the activation: the slopes are 0 where the norm leaves values out.
void normalise_and_activate(const MlpLayer& layer, const Buffers& buffers, Index rows) {
  const Index step = row_step(layer.out), columns = padded(layer.out);
  const bool relu = layer.activation == Activation::kRelu;
  for (Index i = 0; !relu && i < rows; ++i) {
    for (Index j = 0; j < columns; j += kWidth) store(buffers.slope + i * step + j, broadcast(1.0f));
  }
  normalise(layer, buffers, rows, relu ? nullptr : buffers.slope);
  for (Index i = 0; i < rows; ++i) {
    for (Index place = i * step; place < i * step + columns; place += kWidth) {
      Vec x = load(buffers.value + place);
      if (projects(layer.norm)) store(buffers.normed + place, x);
      if (relu) {
        store(buffers.value + place, maximum(zero(), x));  // NaN stays
        continue;
      }
      const Vec derivative = activation_of(layer.activation, layer.numbers, x);
      store(buffers.value + place, x);
      store(buffers.slope + place, multiply(load(buffers.slope + place), derivative));
    }
  }
}

// Take the error of a chunk behind a norm that projects to the place before it. What a norm leaves out is 0 in its
// values and slopes, and needs nothing more.
void normalise_back(const MlpLayer& layer, const Buffers& buffers, Index rows, float* errors) {
  const Index step = row_step(layer.out), columns = padded(layer.out);
  const float* values = layer.norm_first ? buffers.normed : buffers.value;
  for (Index i = 0; i < rows; ++i) {
    project_back(errors + i * step, values + i * step, columns, layer.out, buffers.factor[i]);
  }
}

// Take the error of a chunk behind the activation to the place before it.
void activate_back(const MlpLayer& layer, const Buffers& buffers, Index rows, float* errors) {
  const Index step = row_step(layer.out), columns = padded(layer.out);
  for (Index i = 0; i < rows; ++i) {
    for (Index place = i * step; place < i * step + columns; place += kWidth) {
      const Vec error = load(errors + place);
      store(errors + place, layer.activation == Activation::kRelu
                                ? WhereActive{buffers.value}(error, place, 0)
                                : TimesSlope{buffers.slope}(error, place, 0));
    }
  }
}

// Add the gradients of one layer over the points of a chunk.
void layer_gradient(const MlpLayer& layer, const Buffers& buffers, Index rows, const float* error, const float* in,
                    Index in_step) {
  const Index step = row_step(layer.out);
  if (layer.bias_grad != nullptr) {
    for (Index j = 0; j < padded(layer.out); j += kWidth) {
      Vec sum = zero();  // of the chunk alone: added one by one to the sum of all, points would be lost in it
      for (Index i = 0; i < rows; ++i) sum = add(sum, load(error + i * step + j));
      store(buffers.bias_grad + j, add(load(buffers.bias_grad + j), sum));
    }
  }
  if (layer.weight_grad == nullptr) return;
  if (is_transposed(layer)) {
    product(layer.in, padded(layer.out), rows, in, 1, in_step, error, step,
            Target<AddTo>{buffers.weight_grad, step, {buffers.weight_grad}});
  } else {
    product(layer.out, padded(layer.in), rows, error, 1, step, in, in_step,
            Target<AddTo>{buffers.weight_grad, row_step(layer.in), {buffers.weight_grad}});
  }
}

// ---- filters -----------------------------------------------------------------------------------------------------

// What a layer gives to the next one.
INRFAST_INLINE const float* features_of(const Buffers& buffers, const FilterBuffers& filter) {
  return filter.product == nullptr ? buffers.value : filter.product;
}

// Multiply the features of a chunk, which stay as they are, by the filter of its coordinates.
void filter_forward(const MlpLayer& layer, const Buffers& buffers, const FilterBuffers& filter, Index rows,
                    const float* in, Index inputs) {
  const Index step = row_step(layer.out), columns = padded(layer.out), in_step = row_step(inputs);
  const Buffers& linear = filter.linear;
  product(rows, columns, inputs, in, in_step, 1, linear.forward, 0,
          Target<AddBias>{linear.value, step, {linear.bias}});
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < columns; j += kWidth) {
      const Index place = i * step + j;
      Vec value = load(linear.value + place);
      const Vec slope = filter_of(layer.filter.kind, in + i * in_step, inputs, filter.bell + j, columns,
                                  filter.bell + inputs * columns + j, value);
      const Vec own = load(buffers.value + place);
      store(linear.value + place, value);
      store(linear.slope + place, multiply(own, slope));
      store(filter.product + place, multiply(own, value));
    }
  }
}

// Add up the gradients of Gabor's bell: with G the error times the product, sum_n G (x - mu) and sum_n G |x - mu|^2.
// Each sum is of the chunk alone before it is added to that of all, as in layer_gradient.
void bell_gradient(const MlpLayer& layer, const FilterBuffers& filter, Index rows, const float* in, Index inputs,
                   const float* errors) {
  const Index step = row_step(layer.out), columns = padded(layer.out), in_step = row_step(inputs);
  const Vec minus = broadcast(-1.0f);
  for (Index j = 0; j < columns; j += kWidth) {
    const auto weight = [&](Index i) {
      return multiply(load(errors + i * step + j), load(filter.product + i * step + j));
    };
    Vec squares = zero();
    for (Index i = 0; i < rows; ++i) {
      squares = fma(weight(i), distance(in + i * in_step, inputs, filter.bell + j, columns), squares);
    }
    float* total = filter.bell_grad + inputs * columns + j;
    store(total, add(load(total), squares));
    for (Index c = 0; c < inputs; ++c) {
      const Vec centre = load(filter.bell + c * columns + j);
      Vec sum = zero();
      for (Index i = 0; i < rows; ++i) {
        sum = fma(weight(i), fma(centre, minus, broadcast(in[i * in_step + c])), sum);
      }
      total = filter.bell_grad + c * columns + j;
      store(total, add(load(total), sum));
    }
  }
}

// Take the error of a chunk behind the product to the place before it, and add the filter's own gradients.
void filter_back(const MlpLayer& layer, const FilterBuffers& filter, Index rows, const float* in, Index inputs,
                 float* errors) {
  const Index step = row_step(layer.out), columns = padded(layer.out);
  const MlpLayer linear = filter_layer(layer, inputs);
  if (layer.filter.grads[kCentre] != nullptr || layer.filter.grads[kDecay] != nullptr) {
    bell_gradient(layer, filter, rows, in, inputs, errors);
  }
  for (Index i = 0; i < rows; ++i) {
    for (Index place = i * step; place < i * step + columns; place += kWidth) {
      const Vec error = load(errors + place);
      store(filter.linear.slope + place, multiply(error, load(filter.linear.slope + place)));
      store(errors + place, multiply(error, load(filter.linear.value + place)));
    }
  }
  layer_gradient(linear, filter.linear, rows, filter.linear.slope, in, row_step(inputs));
}

bool has_gradient(const MlpLayer& layer) {
  bool found = layer.weight_grad != nullptr || layer.bias_grad != nullptr;
  for (const float* grad : layer.filter.grads) found = found || grad != nullptr;
  return found;
}

// ---- one chunk ---------------------------------------------------------------------------------------------------

void dot_products(const MlpLayer& layer, const Buffers& buffers, Index rows, const float* in, Index in_step, float* out,
                  Index out_step) {
  const Index columns = padded(layer.in);
  for (Index i = 0; i < rows; ++i) {
    for (Index n = 0; n < layer.out; ++n) {
      Vec sum = zero();
      for (Index k = 0; k < columns; k += kWidth) {
        sum = fma(load(in + i * in_step + k), load(buffers.forward + n * columns + k), sum);
      }
      out[i * out_step + n] = total(sum) + buffers.bias[n];
    }
  }
}

void layer_forward(const MlpLayer& layer, const Buffers& buffers, bool head, Index rows, const float* in,
                   Index in_step) {
  const Index step = row_step(layer.out);
  if (head && layer.out <= kFewOutputs) return dot_products(layer, buffers, rows, in, in_step, buffers.value, step);
  const bool relu = !head && layer.activation == Activation::kRelu;
  const bool first = !head && layer.norm != Norm::kNone && layer.norm_first;
  if (relu && !first) {
    product(rows, padded(layer.out), layer.in, in, in_step, 1, buffers.forward, 0,
            Target<AddBiasAndRelu>{buffers.value, step, {buffers.bias}});
  } else {
    product(rows, padded(layer.out), layer.in, in, in_step, 1, buffers.forward, 0,
            Target<AddBias>{buffers.value, step, {buffers.bias}});
    if (first) return normalise_and_activate(layer, buffers, rows);
    if (!head) activate(layer, rows, step, buffers.value, buffers.slope);
  }
  if (!head && layer.norm != Norm::kNone) normalise(layer, buffers, rows, relu ? nullptr : buffers.slope);
}

// Take the error of a chunk behind a layer's weights to the place before the activation and norm of the layer below,
// whose filter of the coordinates `in` gets its gradients.
void error_below(const MlpLayer& layer, const MlpLayer& below, const Buffers& buffers, const Buffers& lower,
                 const FilterBuffers& filter, Index rows, const float* in, Index inputs, const float* error,
                 float* out) {
  const Index step = row_step(layer.out), out_step = row_step(layer.in), columns = padded(layer.in);
  const bool filtered = filter.product != nullptr, projected = projects(below.norm) && !below.norm_first;
  if (filtered || projected) {
    product(rows, columns, layer.out, error, step, 1, buffers.backward, 0, Target<Store>{out, out_step, {}});
    if (filtered) filter_back(below, filter, rows, in, inputs, out);
    if (projected) normalise_back(below, lower, rows, out);
    activate_back(below, lower, rows, out);
  } else if (below.activation == Activation::kRelu) {
    product(rows, columns, layer.out, error, step, 1, buffers.backward, 0,
            Target<WhereActive>{out, out_step, {lower.value}});
  } else {
    product(rows, columns, layer.out, error, step, 1, buffers.backward, 0,
            Target<TimesSlope>{out, out_step, {lower.slope}});
  }
  if (projects(below.norm) && below.norm_first) normalise_back(below, lower, rows, out);
}

// Copy the points of a chunk into padded rows.
void gather(const MlpPoints& points, Index first, Index rows, Index columns, Index step, float* out) {
  for (Index i = 0; i < rows; ++i) {
    const Index row = points.index != nullptr ? points.index[first + i] : points.first + first + i;
    for (Index c = 0; c < columns; ++c) out[i * step + c] = points.coords[row * columns + c];
    for (Index c = columns; c < padded(columns); ++c) out[i * step + c] = 0.0f;
  }
}

// Write the gradient of a chunk's points, the error behind the first layer's weights; `out` is a buffer of padded rows.
void input_gradient(const MlpLayer& layer, const Buffers& buffers, const MlpPoints& points, Index first, Index rows,
                    const float* error, Index out_step, float* out) {
  product(rows, padded(layer.in), layer.out, error, row_step(layer.out), 1, buffers.backward, 0,
          Target<Store>{out, out_step, {}});
  for (Index i = 0; i < rows; ++i) {
    const Index row = points.index != nullptr ? points.index[first + i] : points.first + first + i;
    for (Index c = 0; c < layer.in; ++c) points.coords_grad[row * layer.in + c] = out[i * out_step + c];
  }
}

// Turn predictions into the error at the head; return the chunk's sum of losses.
template <class Kind>
double errors_by(const Kind& loss, const MlpPoints& points, Index first, Index rows, Index columns, Index step,
                 float scale, float* out) {
  double losses = 0;
  for (Index i = 0; i < rows; ++i) {
    const Index row = points.index != nullptr ? points.index[first + i] : points.first + first + i;
    for (Index c = 0; c < columns; ++c) {
      const Index own = row * points.weight_columns + (points.weight_columns > 1 ? c : 0);
      const float weight = points.weight == nullptr ? 1.0f : points.weight[own];
      const Weighted found = loss(out[i * step + c], points.target[row * columns + c], weight);
      losses += found.value;
      out[i * step + c] = found.slope * scale;
    }
    for (Index c = columns; c < padded(columns); ++c) out[i * step + c] = 0.0f;
  }
  return losses;
}

double errors_of(const MlpStep& own, Index first, Index rows, Index columns, Index step, float* out) {
  const auto by = [&](const auto& loss) {
    return errors_by(loss, own.points, first, rows, columns, step, own.scale, out);
  };
  switch (own.loss) {
    case Loss::kL1: return by(AbsoluteError{});
    case Loss::kHuber: return by(Huber{own.number});
    case Loss::kBce: return by(CrossEntropy{});
    default: return by(MeanSquare{});
  }
}

// ---- all chunks --------------------------------------------------------------------------------------------------

INRFAST_INLINE float* take(float*& free, Index floats) {
  float* taken = free;
  free += floats;
  return taken;
}

// Lay out the buffers and pack the weights; return what is left of the workspace.
float* prepare(const MlpStep& step, Buffers* buffers, float* free) {
  for (int l = 0; l < step.depth; ++l) {
    const MlpLayer& layer = step.layers[l];
    Buffers& own = buffers[l];
    const bool dots = l + 1 == step.depth && layer.out <= kFewOutputs;
    own.value = take(free, step.chunk * row_step(layer.out));
    own.slope = take(free, step.chunk * row_step(layer.out));
    own.forward = take(free, forward_floats(layer));
    own.backward = take(free, backward_floats(layer));
    own.bias = take(free, padded(layer.out));
    own.weight_grad = take(free, gradient_floats(layer));
    own.bias_grad = take(free, padded(layer.out));
    own.factor = take(free, factor_floats(layer, step.chunk));
    own.normed = take(free, normed_floats(layer, step.chunk));
    if (!dots) pack(layer.weight, layer.in, layer.out, 1, layer.in, own.forward);
    for (Index n = 0; dots && n < layer.out; ++n) {
      for (Index k = 0; k < padded(layer.in); ++k) {
        own.forward[n * padded(layer.in) + k] = k < layer.in ? layer.weight[n * layer.in + k] : 0.0f;
      }
    }
    if (step.gradient && (l > 0 || step.points.coords_grad != nullptr)) pack(layer.weight, layer.out, layer.in, layer.in, 1, own.backward);
    for (Index n = 0; n < padded(layer.out); ++n) {
      own.bias[n] = layer.bias != nullptr && n < layer.out ? layer.bias[n] : 0.0f;
    }
    clear(own.weight_grad, gradient_floats(layer));
    clear(own.bias_grad, padded(layer.out));
  }
  return free;
}

// The same of a layer's filter.
FilterBuffers prepare_filter(const MlpLayer& layer, Index inputs, Index chunk, float*& free) {
  FilterBuffers own{};
  if (layer.filter.kind == Filter::kNone) return own;
  const MlpLayer linear = filter_layer(layer, inputs);
  const Index columns = padded(layer.out), bell = bell_floats(layer, inputs);
  own.product = take(free, chunk * row_step(layer.out));
  own.linear.value = take(free, chunk * row_step(layer.out));
  own.linear.slope = take(free, chunk * row_step(layer.out));
  own.linear.forward = take(free, forward_floats(linear));
  own.linear.bias = take(free, columns);
  own.linear.weight_grad = take(free, gradient_floats(linear));
  own.linear.bias_grad = take(free, columns);
  own.bell = take(free, bell);
  own.bell_grad = take(free, bell);
  pack(linear.weight, inputs, layer.out, 1, inputs, own.linear.forward);
  clear(own.linear.bias, columns);
  for (Index n = 0; n < layer.out; ++n) own.linear.bias[n] = linear.bias[n];
  clear(own.linear.weight_grad, gradient_floats(linear));
  clear(own.linear.bias_grad, columns);
  clear(own.bell, bell);
  clear(own.bell_grad, bell);
  for (Index n = 0; bell > 0 && n < layer.out; ++n) {
    for (Index c = 0; c < inputs; ++c) own.bell[c * columns + n] = layer.filter.parameters[kCentre][n * inputs + c];
    own.bell[inputs * columns + n] = layer.filter.parameters[kDecay][n];
  }
  return own;
}

void add_gradient(const MlpLayer& layer, const Buffers& own) {
  for (Index n = 0; layer.bias_grad != nullptr && n < layer.out; ++n) layer.bias_grad[n] += own.bias_grad[n];
  if (layer.weight_grad == nullptr) return;
  const bool transposed = is_transposed(layer);
  const Index out_step = transposed ? 1 : row_step(layer.in), in_step = transposed ? row_step(layer.out) : 1;
  for (Index n = 0; n < layer.out; ++n) {
    for (Index k = 0; k < layer.in; ++k) {
      layer.weight_grad[n * layer.in + k] += own.weight_grad[n * out_step + k * in_step];
    }
  }
}

// The same of a layer's filter: d mu = gamma sum_n G (x - mu), d gamma = -1/2 sum_n G |x - mu|^2.
void add_filter_gradient(const MlpLayer& layer, const FilterBuffers& own, Index inputs) {
  if (own.product == nullptr) return;
  add_gradient(filter_layer(layer, inputs), own.linear);
  const Index columns = padded(layer.out), last = inputs * columns;
  float *centres = layer.filter.grads[kCentre], *decays = layer.filter.grads[kDecay];
  for (Index n = 0; centres != nullptr && n < layer.out; ++n) {
    for (Index c = 0; c < inputs; ++c) centres[n * inputs + c] += own.bell[last + n] * own.bell_grad[c * columns + n];
  }
  for (Index n = 0; decays != nullptr && n < layer.out; ++n) decays[n] += -0.5f * own.bell_grad[last + n];
}

double run(const MlpStep& step) {
  Buffers buffers[kMostLayers];
  FilterBuffers filters[kMostLayers];
  float* free = prepare(step, buffers, step.workspace);
  const int head = step.depth - 1;
  const MlpPoints& points = step.points;
  const Index inputs = step.layers[0].in;
  Index widest = 0;
  int lowest = step.depth;  // the first layer that is trained
  for (int l = head; l >= 0; --l) {
    if (row_step(step.layers[l].out) > widest) widest = row_step(step.layers[l].out);
    if (has_gradient(step.layers[l])) lowest = l;
    filters[l] = prepare_filter(step.layers[l], inputs, step.chunk, free);
  }
  const bool to_inputs = step.gradient && points.coords_grad != nullptr;
  if (to_inputs) lowest = 0;
  const Index in_step = row_step(inputs);
  float* in = take(free, step.chunk * in_step);
  float* errors[2] = {take(free, step.chunk * widest), take(free, step.chunk * widest)};
  double losses = 0;
  for (Index first = 0; first < points.count; first += step.chunk) {
    const Index rows = points.count - first < step.chunk ? points.count - first : step.chunk;
    gather(points, first, rows, inputs, in_step, in);
    for (int l = 0; l <= head; ++l) {
      const float* from = l == 0 ? in : features_of(buffers[l - 1], filters[l - 1]);
      layer_forward(step.layers[l], buffers[l], l == head, rows, from, l == 0 ? in_step : row_step(step.layers[l].in));
      if (filters[l].product != nullptr) filter_forward(step.layers[l], buffers[l], filters[l], rows, in, inputs);
    }
    const Index out_step = row_step(step.layers[head].out);
    losses += errors_of(step, first, rows, step.layers[head].out, out_step, buffers[head].value);
    const float* error = buffers[head].value;
    for (int l = head; step.gradient && l >= lowest; --l) {
      const float* from = l == 0 ? in : features_of(buffers[l - 1], filters[l - 1]);
      layer_gradient(step.layers[l], buffers[l], rows, error, from, l == 0 ? in_step : row_step(step.layers[l].in));
      if (l > lowest) {
        error_below(step.layers[l], step.layers[l - 1], buffers[l], buffers[l - 1], filters[l - 1], rows, in, inputs,
                    error, errors[l % 2]);
        error = errors[l % 2];
      }
    }
    if (to_inputs) input_gradient(step.layers[0], buffers[0], points, first, rows, error, in_step, in);
  }
  for (int l = lowest; step.gradient && l <= head; ++l) {
    add_gradient(step.layers[l], buffers[l]);
    add_filter_gradient(step.layers[l], filters[l], inputs);
  }
  return losses;
}

}  // namespace
}  // namespace inrfast
