// One pass of one network over its points: predictions, losses and, if wanted, the gradient, in fp32.
//
// A chunk of points runs through all layers and back while it is in cache; bias, ReLU and its derivative are applied
// to tiles of the product before they leave the registers. With u_l = Z_{l-1} W_l^T + b_l, Z_l = act(u_l) and the
// error E_L = scale w l'(f, y): dW_l = E_l^T Z_{l-1}, db_l = sum_n E_l, E_{l-1} = (E_l W_l) * act'(u_{l-1}). A norm takes
// the rows of its chunk behind the activation or before it, and their errors on the way back. A filter of the chunk's
// coordinates multiplies what goes to the next layer.
#pragma once

#include <cstdint>
#include <string>

#include "mlp_step_activations.h"
#include "mlp_step_filters.h"
#include "mlp_step_norms.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define INRFAST_HAS_MLP_STEP  // elsewhere the code for single processors, by GCC's pragmas, is left out
#endif

namespace inrfast {

constexpr int kMostLayers = 64;

enum class Loss : int { kMse, kL1, kHuber, kBce };

// The loss of a name: "mse", "l1", "huber" or "bce"; std::invalid_argument for another.
Loss loss_named(const std::string& name);

// The activation of a name out of kActivationNames; std::invalid_argument for another.
Activation activation_named(const std::string& name);

// The norm of a name out of kNormNames; std::invalid_argument for another.
Norm norm_named(const std::string& name);

// The filter of a name out of kFilterNames; std::invalid_argument for another.
Filter filter_named(const std::string& name);

struct MlpFilter {
  Filter kind;
  const float* parameters[kFilterParameters];  // in the order of FilterParameter; null: it has none
  float* grads[kFilterParameters];             // gradients are added here; null: not wanted
};

struct MlpLayer {
  std::int64_t in, out;
  const float* weight;  // (out, in), row-major
  const float* bias;    // (out), or null
  float* weight_grad;   // the gradient is added here; null: not wanted
  float* bias_grad;
  Activation activation;  // behind this layer; not used of the last one, the head
  float numbers[kMostNumbers];  // of the activation
  Norm norm;                    // of the hidden layer
  bool norm_first;              // before its activation
  std::int64_t kept;            // units that a norm keeps which selects some
  MlpFilter filter;             // of the hidden layer: of the first layer's inputs
};

struct MlpPoints {
  const float* coords;  // (N, in of the first layer)
  const float* target;  // (N, out of the head)
  const float* weight;  // (N, weight_columns), or null: all 1
  std::int64_t weight_columns;  // 1, or the outputs
  const std::int64_t* index;    // the points' rows; null: first, first + 1, ...
  std::int64_t first, count;
  float* coords_grad;           // (N, in): the gradient of these rows is written here; null: not wanted. Without filters
};

struct MlpStep {
  const MlpLayer* layers;
  int depth;
  MlpPoints points;
  float scale;          // of the errors, as above
  bool gradient;        // false: losses alone
  std::int64_t chunk;   // points at a time
  float* workspace;     // mlp_step_workspace floats, at an address that is a multiple of 64
  Loss loss;
  float number;         // of the loss: delta of kHuber
};

// Which instructions this processor has: "avx512", "avx2", or "" for neither: then there is no mlp_step.
const char* mlp_step_instructions();

// Floats that a step needs beside its arguments.
std::int64_t mlp_step_workspace(const MlpLayer* layers, int depth, std::int64_t chunk);

// Return the sum of w l(f, y). `instructions` is one of those above that this processor has.
double mlp_step(const MlpStep& step, const char* instructions);

// The two of them; only for processors that have the instructions.
double mlp_step_avx512(const MlpStep& step);
double mlp_step_avx2(const MlpStep& step);

}  // namespace inrfast
