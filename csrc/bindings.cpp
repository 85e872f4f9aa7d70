// The Python module inrfast._C: takes addresses, sizes and a stream; checking and allocating is Python's part.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "factor_pass.h"
#include "gram_tile.h"
#include "matrix_product.h"
#include "grid_init.h"
#include "mlp_step.h"

namespace py = pybind11;

namespace {

#define INRFAST_STRING_(x) #x
#define INRFAST_STRING(x) INRFAST_STRING_(x)

void check_itemsize(int itemsize) {
  if (itemsize != sizeof(float) && itemsize != sizeof(double)) {
    throw std::invalid_argument("itemsize must be 4 (float) or 8 (double), got " + std::to_string(itemsize));
  }
}

void rank_expanding(std::uintptr_t weight, std::uintptr_t bias, std::int64_t width, double eps, double gain,
                    const std::vector<double>& lows, const std::vector<double>& highs, std::uintptr_t coords,
                    int itemsize) {
  check_itemsize(itemsize);
  const auto geometry = inrfast::make_geometry(width, static_cast<std::int64_t>(lows.size()), eps, gain);
  const auto axes = inrfast::make_axes(lows, highs);
  const auto* points = reinterpret_cast<const double*>(coords);
  const auto fill = [&](auto* weights, auto* biases) {
    inrfast::fill_units_cpu(geometry, axes, points, weights, biases);
  };
  if (itemsize == sizeof(float)) return fill(reinterpret_cast<float*>(weight), reinterpret_cast<float*>(bias));
  fill(reinterpret_cast<double*>(weight), reinterpret_cast<double*>(bias));
}

// An address and how far on, in elements, that of the next network is; a step of 0 is shared by all, 0 is null.
using Stacked = std::pair<std::uintptr_t, std::int64_t>;

template <typename T>
T* at(const Stacked& own, std::int64_t network) {
  return own.first == 0 ? nullptr : reinterpret_cast<T*>(own.first) + network * own.second;
}

struct StackedFilter {
  inrfast::Filter kind;
  std::array<Stacked, inrfast::kFilterParameters> parameters, grads;
};

struct StackedLayer {
  std::int64_t in, out;
  inrfast::Activation activation;
  std::array<float, inrfast::kMostNumbers> numbers;
  Stacked weight, bias, weight_grad, bias_grad;
  inrfast::Norm norm;
  bool norm_first;
  std::int64_t kept;
  StackedFilter filter;
};

struct StackedPoints {
  Stacked coords, target, weight, index;
  std::int64_t weight_columns, first, count;
  Stacked coords_grad;
};

StackedFilter filter_of(const std::string& name, const std::vector<Stacked>& parameters,
                        const std::vector<Stacked>& grads) {
  StackedFilter filter{inrfast::filter_named(name), {}, {}};
  if (parameters.size() > filter.parameters.size() || grads.size() > filter.grads.size()) {
    throw std::invalid_argument("a filter of the native step has at most " +
                                std::to_string(filter.parameters.size()) + " parameters");
  }
  std::copy(parameters.begin(), parameters.end(), filter.parameters.begin());
  std::copy(grads.begin(), grads.end(), filter.grads.begin());
  return filter;
}

StackedLayer layer_of(std::int64_t in, std::int64_t out, const std::string& activation,
                      const std::vector<float>& numbers, Stacked weight, Stacked bias, Stacked weight_grad,
                      Stacked bias_grad, const std::string& norm, bool norm_first, std::int64_t kept,
                      const std::string& filter, const std::vector<Stacked>& filter_parameters,
                      const std::vector<Stacked>& filter_grads) {
  StackedLayer layer{in,   out,         inrfast::activation_named(activation), {}, weight, bias, weight_grad,
                     bias_grad, inrfast::norm_named(norm), norm_first, kept,
                     filter_of(filter, filter_parameters, filter_grads)};
  if (numbers.size() > layer.numbers.size()) {
    throw std::invalid_argument("an activation of the native step has at most " +
                                std::to_string(inrfast::kMostNumbers) + " numbers");
  }
  std::copy(numbers.begin(), numbers.end(), layer.numbers.begin());
  return layer;
}

std::vector<inrfast::MlpLayer> layers_of(const std::vector<StackedLayer>& stacked, std::int64_t network) {
  std::vector<inrfast::MlpLayer> layers;
  for (const auto& own : stacked) {
    layers.push_back({own.in, own.out, at<const float>(own.weight, network), at<const float>(own.bias, network),
                      at<float>(own.weight_grad, network), at<float>(own.bias_grad, network), own.activation, {},
                      own.norm, own.norm_first, own.kept, {own.filter.kind, {}, {}}});
    std::copy(own.numbers.begin(), own.numbers.end(), layers.back().numbers);
    for (int p = 0; p < inrfast::kFilterParameters; ++p) {
      layers.back().filter.parameters[p] = at<const float>(own.filter.parameters[p], network);
      layers.back().filter.grads[p] = at<float>(own.filter.grads[p], network);
    }
  }
  return layers;
}

std::int64_t mlp_step_workspace(const std::vector<StackedLayer>& stacked, std::int64_t chunk) {
  const auto layers = layers_of(stacked, 0);
  return inrfast::mlp_step_workspace(layers.data(), static_cast<int>(layers.size()), chunk);
}

std::vector<double> mlp_steps(const std::string& instructions, const std::vector<StackedLayer>& stacked,
                              const StackedPoints& points, const std::vector<double>& scales, bool gradient,
                              std::int64_t chunk, std::uintptr_t workspace, const std::string& loss, float number) {
  const inrfast::Loss kind = inrfast::loss_named(loss);
  std::vector<double> losses;
  for (std::size_t n = 0; n < scales.size(); ++n) {
    const auto network = static_cast<std::int64_t>(n);
    const auto layers = layers_of(stacked, network);
    const inrfast::MlpPoints own{at<const float>(points.coords, network), at<const float>(points.target, network),
                                 at<const float>(points.weight, network), points.weight_columns,
                                 at<const std::int64_t>(points.index, network), points.first, points.count,
                                 at<float>(points.coords_grad, network)};
    const inrfast::MlpStep step{layers.data(), static_cast<int>(layers.size()), own,
                                static_cast<float>(scales[n]), gradient, chunk,
                                reinterpret_cast<float*>(workspace), kind, number};
    losses.push_back(inrfast::mlp_step(step, instructions.c_str()));
  }
  return losses;
}

// Memory of doubles at a multiple of 64 bytes. What the last owner gave back serves the next one: fresh pages would cost
// as much as a pass over a few points.
class Arena {
 public:
  explicit Arena(std::size_t numbers) {
    const std::lock_guard<std::mutex> guard(lock());
    if (spare().size() >= numbers + kAlign && spare().size() <= 4 * (numbers + kAlign)) memory_.swap(spare());
    if (memory_.empty()) memory_.resize(numbers + kAlign);
    const auto place = reinterpret_cast<std::uintptr_t>(memory_.data());
    free_ = reinterpret_cast<double*>((place + 63) / 64 * 64);
  }
  ~Arena() {
    const std::lock_guard<std::mutex> guard(lock());
    if (memory_.size() <= kMostKept) memory_.swap(spare());
  }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  double* take(std::int64_t numbers) {
    double* found = free_;
    free_ += rounded(numbers);
    return found;
  }

  static std::int64_t rounded(std::int64_t numbers) { return (numbers + kAlign - 1) / kAlign * kAlign; }

 private:
  static constexpr std::int64_t kAlign = 8;
  static constexpr std::size_t kMostKept = 1 << 22;  // 32 MiB

  static std::mutex& lock() {
    static std::mutex* own = new std::mutex;  // never destroyed: kernels may outlive static objects
    return *own;
  }
  static std::vector<double>& spare() {
    static auto* own = new std::vector<double>;
    return *own;
  }

  std::vector<double> memory_;
  double* free_;
};

// The packed weights of a network, for passes from several threads at a time.
class MlpFactors {
 public:
  // Of each layer: inputs, outputs, activation, its numbers, and the addresses of weight and bias (0: none) with the
  // bytes of one of their numbers, 4 or 8.
  using Given = std::tuple<std::int64_t, std::int64_t, std::string, std::vector<double>, std::uintptr_t, std::uintptr_t, int>;
  // Of each layer: the addresses of features and sensitivities (0: not wanted), what is between two points of each, and
  // whether a one follows the features.
  using Target = std::tuple<std::uintptr_t, std::int64_t, bool, std::uintptr_t, std::int64_t>;

  explicit MlpFactors(const std::vector<Given>& given) {
    if (given.empty() || given.size() > inrfast::kMostLayers) {
      throw std::invalid_argument("a factor pass takes 1 to " + std::to_string(inrfast::kMostLayers) + " layers");
    }
    std::int64_t numbers = 0;
    for (const auto& [in, out, name, own, weight, bias, itemsize] : given) {
      inrfast::FactorLayer layer{in, out, inrfast::activation_named(name), {}, bias != 0, nullptr, nullptr, nullptr};
      check_itemsize(itemsize);
      if (!inrfast::factor_pass_takes(layer.activation) || own.size() > inrfast::kMostNumbers) {
        throw std::invalid_argument("the factor pass has no activation called " + name);
      }
      std::copy(own.begin(), own.end(), layer.numbers);
      numbers += Arena::rounded(inrfast::forward_numbers(layer)) + Arena::rounded(inrfast::backward_numbers(layer));
      numbers += Arena::rounded(inrfast::offset_numbers(layer));
      layers_.push_back(layer);
    }
    arena_ = std::make_unique<Arena>(static_cast<std::size_t>(numbers));
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      inrfast::FactorLayer& layer = layers_[l];
      double* forward = arena_->take(inrfast::forward_numbers(layer));
      double* backward = arena_->take(inrfast::backward_numbers(layer));
      double* offsets = arena_->take(inrfast::offset_numbers(layer));
      total_ += inrfast::pack_layer(layer, reinterpret_cast<const void*>(std::get<4>(given[l])),
                                    reinterpret_cast<const void*>(std::get<5>(given[l])),
                                    std::get<6>(given[l]) == sizeof(float), forward, backward, offsets);
      layer.forward = forward;
      layer.backward = backward;
      layer.offsets = offsets;
    }
  }

  double total() const { return total_; }

  void unpack(std::size_t layer, std::uintptr_t weight, std::uintptr_t bias) const {
    inrfast::unpack_layer(layers_.at(layer), reinterpret_cast<double*>(weight), reinterpret_cast<double*>(bias));
  }

  std::int64_t workspace(std::int64_t count) const {
    return inrfast::factor_pass_workspace(layers_.data(), depth(), inrfast::factor_pass_rows(layers_.data(), depth(), count));
  }

  std::int64_t probe_workspace(std::int64_t count) const {
    return inrfast::factor_pass_workspace(layers_.data(), depth(), 2 * count) + count * (depth() + 2 * layers_[0].in);
  }

  bool run(const std::string& instructions, std::uintptr_t inputs, std::int64_t count, const std::vector<Target>& targets,
           int itemsize, std::uintptr_t workspace) const {
    if (targets.size() != layers_.size()) throw std::invalid_argument("there must be one target per layer");
    check_itemsize(itemsize);
    std::vector<inrfast::FactorTarget> own;
    for (const auto& [features, step, ones, sensitivities, other] : targets) {
      own.push_back({reinterpret_cast<void*>(features), step, ones, reinterpret_cast<void*>(sensitivities), other});
    }
    const inrfast::FactorPoints points{reinterpret_cast<const double*>(inputs), count, own.data(),
                                       itemsize == sizeof(float), reinterpret_cast<double*>(workspace)};
    return inrfast::factor_pass(layers_.data(), depth(), points, instructions.c_str());
  }

  std::pair<std::vector<double>, std::vector<double>> probe(const std::string& instructions, std::uintptr_t inputs,
                                                            std::int64_t count, double size,
                                                            std::uintptr_t workspace) const {
    std::vector<double> largest(layers_.size()), changes(layers_.size());
    inrfast::factor_probe(layers_.data(), depth(),
                          {reinterpret_cast<const double*>(inputs), count, size, largest.data(), changes.data(),
                           reinterpret_cast<double*>(workspace)},
                          instructions.c_str());
    return {largest, changes};
  }

 private:
  int depth() const { return static_cast<int>(layers_.size()); }

  std::vector<inrfast::FactorLayer> layers_;
  std::unique_ptr<Arena> arena_;
  double total_ = 0.0;
};

// A factor's address (0: all ones), what is between two points, and its columns.
using GivenFactor = std::tuple<std::uintptr_t, std::int64_t, std::int64_t>;
// The features and sensitivities of rows, then of columns, and the weight of a layer with one factor.
using GivenLayer = std::tuple<GivenFactor, GivenFactor, GivenFactor, GivenFactor, float>;

std::vector<inrfast::GramLayer> gram_layers(const std::vector<GivenLayer>& given) {
  const auto factor = [](const GivenFactor& own) {
    return inrfast::GramFactor{reinterpret_cast<const float*>(std::get<0>(own)), std::get<1>(own), std::get<2>(own)};
  };
  std::vector<inrfast::GramLayer> layers;
  for (const auto& [z, s, other_z, other_s, weight] : given) {
    layers.push_back({factor(z), factor(s), factor(other_z), factor(other_s), weight});
  }
  return layers;
}

std::int64_t gram_workspace(const std::vector<GivenLayer>& given, std::int64_t columns) {
  const auto layers = gram_layers(given);
  return inrfast::gram_workspace(layers.data(), static_cast<int>(layers.size()), columns);
}

void gram_block(const std::string& instructions, const std::vector<GivenLayer>& given, std::int64_t rows,
                std::int64_t first, std::int64_t last, bool symmetric, std::uintptr_t out, std::int64_t step,
                std::int64_t across, std::uintptr_t workspace) {
  const auto layers = gram_layers(given);
  inrfast::gram_block({layers.data(), static_cast<int>(layers.size()), rows, first, last, symmetric,
                       reinterpret_cast<float*>(out), step, across, reinterpret_cast<float*>(workspace)},
                      instructions.c_str());
}

void matrix_product(const std::string& instructions, std::tuple<std::int64_t, std::int64_t, std::int64_t> sizes,
                    std::tuple<std::uintptr_t, std::int64_t, std::int64_t> a,
                    std::tuple<std::uintptr_t, std::int64_t, std::int64_t> b, double scale, std::uintptr_t out,
                    std::int64_t out_row, bool add, std::uintptr_t workspace) {
  const auto [rows, columns, depth] = sizes;
  inrfast::matrix_product({rows, columns, depth, reinterpret_cast<const double*>(std::get<0>(a)), std::get<1>(a),
                           std::get<2>(a), reinterpret_cast<const double*>(std::get<0>(b)), std::get<1>(b),
                           std::get<2>(b), scale, reinterpret_cast<double*>(out), out_row, add,
                           reinterpret_cast<double*>(workspace)},
                          instructions.c_str());
}

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["pybind11"] = INRFAST_STRING(PYBIND11_VERSION_MAJOR) "." INRFAST_STRING(PYBIND11_VERSION_MINOR);
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "The native part of inrfast: rank-expanding initialisation, and training steps on the CPU.";
  module.def("rank_expanding", &rank_expanding, py::arg("weight"), py::arg("bias"), py::arg("width"), py::arg("eps"),
             py::arg("gain"), py::arg("lows"), py::arg("highs"), py::arg("coords") = 0, py::arg("itemsize") = 4,
             py::call_guard<py::gil_scoped_release>(), "Fill weight (width x d) and bias (width) in host memory.");
  py::class_<StackedLayer>(module, "MlpLayer", "A layer of networks side by side; addresses with their steps.")
      .def(py::init(&layer_of), py::arg("inputs"), py::arg("outputs"), py::arg("activation"), py::arg("numbers"),
           py::arg("weight"), py::arg("bias"), py::arg("weight_grad"), py::arg("bias_grad"), py::arg("norm") = "",
           py::arg("norm_first") = false, py::arg("kept") = 0, py::arg("filter") = "",
           py::arg("filter_parameters") = std::vector<Stacked>{}, py::arg("filter_grads") = std::vector<Stacked>{})
      .def_readonly("kept", &StackedLayer::kept);
  py::class_<StackedPoints>(module, "MlpPoints", "The points of networks side by side; addresses with their steps.")
      .def(py::init<Stacked, Stacked, Stacked, Stacked, std::int64_t, std::int64_t, std::int64_t, Stacked>(),
           py::arg("coords"), py::arg("target"), py::arg("weight"), py::arg("index"), py::arg("weight_columns"),
           py::arg("first"), py::arg("count"), py::arg("coords_grad") = Stacked{})
      .def_readonly("coords_grad", &StackedPoints::coords_grad);
  module.def("mlp_step_instructions", &inrfast::mlp_step_instructions,
             "The best set of instructions that mlp_steps has for this processor: avx512, avx2, or '' for none.");
  module.def("mlp_step_filters", [] { return std::vector<std::string>{std::begin(inrfast::kFilterNames) + 1, std::end(inrfast::kFilterNames)}; },
             "The filters of the coordinates that hidden layers of mlp_steps may have.");
  module.def("mlp_step_workspace", &mlp_step_workspace, py::arg("layers"), py::arg("chunk"),
             "Floats that mlp_steps needs beside its arguments.");
  module.def("mlp_steps", &mlp_steps, py::arg("instructions"), py::arg("layers"), py::arg("points"), py::arg("scales"),
             py::arg("gradient"), py::arg("chunk"), py::arg("workspace"), py::arg("loss"), py::arg("number"),
             py::call_guard<py::gil_scoped_release>(),
             "Pass over the points of each network; add its gradient and return the sum of its weighted losses.");
  py::class_<MlpFactors>(module, "MlpFactors", "The packed weights of a network for passes that make its factors.")
      .def(py::init<const std::vector<MlpFactors::Given>&>(), py::arg("layers"))
      .def("total", &MlpFactors::total, "The sum of all parameters, which is not finite if one of them is not.")
      .def("unpack", &MlpFactors::unpack, py::arg("layer"), py::arg("weight"), py::arg("bias"),
           "Write the parameters of a layer in fp64; a bias at 0 is not written.")
      .def("workspace", &MlpFactors::workspace, py::arg("count"), "Doubles that run needs for so many points.")
      .def("probe_workspace", &MlpFactors::probe_workspace, py::arg("count"), "Doubles that probe needs.")
      .def("run", &MlpFactors::run, py::arg("instructions"), py::arg("inputs"), py::arg("count"), py::arg("targets"),
           py::arg("itemsize"), py::arg("workspace"), py::call_guard<py::gil_scoped_release>(),
           "Write factors; return whether features leave the range in which fp32 holds their squares.")
      .def("probe", &MlpFactors::probe, py::arg("instructions"), py::arg("inputs"), py::arg("count"), py::arg("size"),
           py::arg("workspace"), py::call_guard<py::gil_scoped_release>(),
           "Return the largest entry of each layer's diagonal, and its factors' relative change by disturbances.");
  module.def("gram_workspace", &gram_workspace, py::arg("layers"), py::arg("columns"),
             "Floats that gram_block needs for so many columns.");
  module.def("gram_block", &gram_block, py::arg("instructions"), py::arg("layers"), py::arg("rows"), py::arg("first"),
             py::arg("last"), py::arg("symmetric"), py::arg("out"), py::arg("step"), py::arg("across"),
             py::arg("workspace"),
             py::call_guard<py::gil_scoped_release>(), "Write columns [first, last) of a kernel in fp32.");
  module.def("matrix_product_workspace", &inrfast::matrix_product_workspace, py::arg("rows"), py::arg("columns"),
             py::arg("depth"), "Doubles that matrix_product needs.");
  module.def("matrix_product", &matrix_product, py::arg("instructions"), py::arg("sizes"), py::arg("a"), py::arg("b"),
             py::arg("scale"), py::arg("out"), py::arg("out_row"), py::arg("add"), py::arg("workspace"),
             py::call_guard<py::gil_scoped_release>(), "Write, or add, a product of matrices of doubles, on this thread.");
  module.def("build_info", &build_info, "What this module was compiled with.");
}
