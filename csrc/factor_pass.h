// The factors of a coordinate MLP at some points, by one pass forward and one back in fp64: features Z of every layer and
// sensitivities S = d f / d u, rounded once where they are written in fp32.
//
// A chunk of points runs through all layers and back while it is in cache. With u_l = Z_{l-1} W_l^T + b_l and
// Z_l = act(u_l): S_L = W_{L+1} * act'(u_L), S_{l-1} = (S_l W_l) * act'(u_{l-1}), for every output on its own.
#pragma once

#include <cstdint>

#include "mlp_step.h"

namespace inrfast {

struct FactorLayer {
  std::int64_t in, out;
  Activation activation;  // behind this layer; not used of the head
  double numbers[kMostNumbers];
  bool bias;
  const double *forward, *backward, *offsets;  // packed W^T and W (panels), and the bias, padded
};

struct FactorTarget {  // where a layer's factors go; null: not wanted
  void* features;            // (n, in), then a one where `ones`
  std::int64_t feature_step;     // numbers from one point to the next
  bool ones;
  void* sensitivities;       // (n, outputs, out), contiguous from the point on
  std::int64_t sensitivity_step;
};

struct FactorPoints {
  const double* inputs;  // (count, in of the first layer)
  std::int64_t count;
  const FactorTarget* targets;  // one per layer
  bool single;                  // targets are fp32, else fp64
  double* workspace;            // factor_pass_workspace numbers, at an address that is a multiple of 64
};

// What a few points tell of a network: of every layer the largest entry of its kernel's diagonal, and the largest
// relative change of a row of Z or S when every number of the pass is disturbed by `size`.
struct FactorProbe {
  const double* inputs;
  std::int64_t count;
  double size;
  double *largest, *changes;  // (layers)
  double* workspace;          // of 2 count points, of which the last layers * count numbers are for lengths
};

// Whether the pass takes an activation.
bool factor_pass_takes(Activation activation);

// Points that go through the layers together, of `count` at most; and numbers that a pass over so many needs.
std::int64_t factor_pass_rows(const FactorLayer* layers, int depth, std::int64_t count);
std::int64_t factor_pass_workspace(const FactorLayer* layers, int depth, std::int64_t rows);

// Numbers of a layer's packed weights, forward and back, and of its padded bias.
std::int64_t forward_numbers(const FactorLayer& layer);
std::int64_t backward_numbers(const FactorLayer& layer);
std::int64_t offset_numbers(const FactorLayer& layer);

// Write packed weights and bias into a layer's memory, of weight (out, in) and bias (out) or null, in fp32 (`single`) or
// fp64. Returns the sum of all numbers: not finite if one of them is not.
double pack_layer(const FactorLayer& layer, const void* weight, const void* bias, bool single, double* forward,
                  double* backward, double* offsets);

// Write the weight and bias of a packed layer as they were given; a null bias is not wanted.
void unpack_layer(const FactorLayer& layer, double* weight, double* bias);

// Write the factors. Returns whether a number of the features is too large or too small for its square in fp32: then what
// was written is no use to fp32 products.
bool factor_pass(const FactorLayer* layers, int depth, const FactorPoints& points, const char* instructions);
void factor_probe(const FactorLayer* layers, int depth, const FactorProbe& probe, const char* instructions);

bool factor_pass_avx512(const FactorLayer* layers, int depth, const FactorPoints& points);
bool factor_pass_avx2(const FactorLayer* layers, int depth, const FactorPoints& points);
void factor_probe_avx512(const FactorLayer* layers, int depth, const FactorProbe& probe);
void factor_probe_avx2(const FactorLayer* layers, int depth, const FactorProbe& probe);

}  // namespace inrfast
