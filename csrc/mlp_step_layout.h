// Where the parts of a step lie in its workspace. Rows are padded: to whole vectors, and off powers of two, at which
// the rows of a column would share a few lines of the cache.
#pragma once

#include <cstdint>

#include "mlp_step.h"

namespace inrfast {
namespace {

constexpr std::int64_t kLanes = 16;      // of the widest vectors; narrower ones use the same layout
constexpr std::int64_t kPanel = 64;      // columns of a packed panel
constexpr std::int64_t kFewOutputs = 8;  // up to which predictions are dot products

inline std::int64_t padded(std::int64_t columns) { return (columns + kLanes - 1) / kLanes * kLanes; }
inline std::int64_t row_step(std::int64_t columns) { return padded(columns) + kLanes; }

// Whether the gradient of a layer is summed as (in, out): vectors lie along the longer side.
inline bool is_transposed(const MlpLayer& layer) { return layer.in < kLanes && layer.in < layer.out; }

// Panels for the forward product (or, of few outputs, padded rows for dot products) and for the one back.
inline std::int64_t forward_floats(const MlpLayer& layer) {
  const std::int64_t panels = layer.in * padded(layer.out), rows = layer.out * padded(layer.in);
  return panels > rows ? panels : rows;
}
inline std::int64_t backward_floats(const MlpLayer& layer) { return layer.out * padded(layer.in); }

inline std::int64_t gradient_floats(const MlpLayer& layer) {
  return is_transposed(layer) ? layer.in * row_step(layer.out) : layer.out * row_step(layer.in);
}

// What a norm keeps of a chunk for its way back: a factor for every row, and where the activation overwrites its values,
// these too.
inline std::int64_t factor_floats(const MlpLayer& layer, std::int64_t chunk) {
  return projects(layer.norm) ? padded(chunk) : 0;
}
inline std::int64_t normed_floats(const MlpLayer& layer, std::int64_t chunk) {
  return projects(layer.norm) && layer.norm_first ? chunk * row_step(layer.out) : 0;
}

// The linear layer in a layer's filter.
inline MlpLayer filter_layer(const MlpLayer& layer, std::int64_t inputs) {
  MlpLayer found{};
  found.in = inputs;
  found.out = layer.out;
  found.weight = layer.filter.parameters[kFilterWeight];
  found.bias = layer.filter.parameters[kFilterBias];
  found.weight_grad = layer.filter.grads[kFilterWeight];
  found.bias_grad = layer.filter.grads[kFilterBias];
  return found;
}

// Gabor's centres and decays, or the sums for their gradients: (d, units), and one row of decays.
inline std::int64_t bell_floats(const MlpLayer& layer, std::int64_t inputs) {
  return layer.filter.kind == Filter::kGabor ? (inputs + 1) * padded(layer.out) : 0;
}

// A filter's value and slope, the product with it, and its parameters.
inline std::int64_t filter_floats(const MlpLayer& layer, std::int64_t inputs, std::int64_t chunk) {
  if (layer.filter.kind == Filter::kNone) return 0;
  const MlpLayer linear = filter_layer(layer, inputs);
  return 3 * chunk * row_step(layer.out) + forward_floats(linear) + gradient_floats(linear) + 2 * padded(layer.out) +
         2 * bell_floats(layer, inputs);
}

inline std::int64_t workspace_floats(const MlpLayer* layers, int depth, std::int64_t chunk) {
  std::int64_t floats = chunk * row_step(layers[0].in), widest = 0;
  for (int l = 0; l < depth; ++l) {
    const std::int64_t columns = row_step(layers[l].out);
    widest = columns > widest ? columns : widest;
    floats += 2 * chunk * columns + forward_floats(layers[l]) + backward_floats(layers[l]);
    floats += gradient_floats(layers[l]) + 2 * padded(layers[l].out);
    floats += factor_floats(layers[l], chunk) + normed_floats(layers[l], chunk);
    floats += filter_floats(layers[l], layers[0].in, chunk);
  }
  return floats + 2 * chunk * widest;
}

}  // namespace
}  // namespace inrfast
