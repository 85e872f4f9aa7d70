#include "factor_pass.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "packing.h"

namespace inrfast {

namespace {

constexpr std::int64_t kMostRows = 84;         // a whole number of tiles of 6, 12 or 14 rows
constexpr std::int64_t kChunkBytes = 3 << 20;  // of a chunk's buffers: few of them leave the second-level cache

std::int64_t numbers_per_row(const FactorLayer* layers, int depth) {
  std::int64_t numbers = row_step(layers[0].in), widest = 0;
  for (int l = 0; l + 1 < depth; ++l) {
    numbers += 2 * row_step(layers[l].out);
    widest = std::max(widest, row_step(layers[l].out));
  }
  return numbers + 2 * layers[depth - 1].out * widest;
}

}  // namespace

bool factor_pass_takes(Activation activation) {
  return activation == Activation::kRelu || activation == Activation::kSine || activation == Activation::kFiner ||
         activation == Activation::kIdentity;
}

std::int64_t factor_pass_rows(const FactorLayer* layers, int depth, std::int64_t count) {
  const std::int64_t bytes = static_cast<std::int64_t>(sizeof(double)) * numbers_per_row(layers, depth);
  const std::int64_t most = kMostRows * bytes <= kChunkBytes ? kMostRows : kMostRows / 2;
  const std::int64_t chunks = std::max<std::int64_t>(1, (count + most - 1) / most);  // of equal length
  return std::max<std::int64_t>(1, (count + chunks - 1) / chunks);
}

std::int64_t factor_pass_workspace(const FactorLayer* layers, int depth, std::int64_t rows) {
  return rows * numbers_per_row(layers, depth);
}

std::int64_t forward_numbers(const FactorLayer& layer) { return layer.in * padded(layer.out); }
std::int64_t backward_numbers(const FactorLayer& layer) { return layer.out * padded(layer.in); }
std::int64_t offset_numbers(const FactorLayer& layer) { return padded(layer.out); }

namespace {

template <class Source>
double pack_from(const FactorLayer& layer, const Source* weight, const Source* bias, double* forward, double* backward,
                 double* offsets) {
  pack(weight, layer.in, layer.out, 1, layer.in, forward);
  pack(weight, layer.out, layer.in, layer.in, 1, backward);
  clear(offsets, padded(layer.out));
  for (Index j = 0; bias != nullptr && j < layer.out; ++j) offsets[j] = bias[j];
  constexpr Index lanes = 16;  // sums side by side, which need not wait for each other
  double sums[lanes] = {}, total = 0.0;
  const Index count = layer.in * layer.out;
  for (Index k = 0; k + lanes <= count; k += lanes) {
    for (Index c = 0; c < lanes; ++c) sums[c] += weight[k + c];
  }
  for (Index k = count - count % lanes; k < count; ++k) total += weight[k];
  for (const double own : sums) total += own;
  for (Index j = 0; j < layer.out; ++j) total += offsets[j];
  return total;
}

}  // namespace

double pack_layer(const FactorLayer& layer, const void* weight, const void* bias, bool single, double* forward,
                  double* backward, double* offsets) {
  if (single) {
    return pack_from(layer, static_cast<const float*>(weight), static_cast<const float*>(bias), forward, backward, offsets);
  }
  return pack_from(layer, static_cast<const double*>(weight), static_cast<const double*>(bias), forward, backward, offsets);
}

void unpack_layer(const FactorLayer& layer, double* weight, double* bias) {
  const Index whole = padded(layer.in);
  const double* own = layer.backward;
  for (Index j = 0; j < whole; j += kColumns<double>) {
    const Index width = whole - j < kColumns<double> ? whole - j : kColumns<double>;
    for (Index k = 0; k < layer.out; ++k, own += width) {
      for (Index c = 0; c < width && j + c < layer.in; ++c) weight[k * layer.in + j + c] = own[c];
    }
  }
  for (Index j = 0; bias != nullptr && j < layer.out; ++j) bias[j] = layer.offsets[j];
}

#ifdef INRFAST_HAS_MLP_STEP

bool factor_pass(const FactorLayer* layers, int depth, const FactorPoints& points, const char* instructions) {
  if (std::strcmp(instructions, "avx512") == 0) return factor_pass_avx512(layers, depth, points);
  if (std::strcmp(instructions, "avx2") == 0) return factor_pass_avx2(layers, depth, points);
  throw std::invalid_argument("instructions must be avx512 or avx2, got " + std::string(instructions));
}

void factor_probe(const FactorLayer* layers, int depth, const FactorProbe& probe, const char* instructions) {
  if (std::strcmp(instructions, "avx512") == 0) return factor_probe_avx512(layers, depth, probe);
  if (std::strcmp(instructions, "avx2") == 0) return factor_probe_avx2(layers, depth, probe);
  throw std::invalid_argument("instructions must be avx512 or avx2, got " + std::string(instructions));
}

#else

bool factor_pass(const FactorLayer*, int, const FactorPoints&, const char*) {
  throw std::runtime_error("this build of inrfast._C has no factor_pass");
}

void factor_probe(const FactorLayer*, int, const FactorProbe&, const char*) {
  throw std::runtime_error("this build of inrfast._C has no factor_pass");
}

#endif

}  // namespace inrfast
