// The Python module inrfast._C: takes addresses, sizes and a stream; checking and allocating is Python's part.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "grid_init.h"
#include "mlp_step.h"

namespace py = pybind11;

namespace {

constexpr int kHost = -1;  // the `device` that means host memory

#define INRFAST_STRING_(x) #x
#define INRFAST_STRING(x) INRFAST_STRING_(x)

template <typename T>
void fill_units(const inrfast::Geometry& geometry, const std::vector<inrfast::Axis>& axes, std::uintptr_t coords,
                std::uintptr_t weight, std::uintptr_t bias, int device, std::uintptr_t stream) {
  const auto* points = reinterpret_cast<const double*>(coords);
  auto* weights = reinterpret_cast<T*>(weight);
  auto* biases = reinterpret_cast<T*>(bias);
  if (device == kHost) return inrfast::fill_units_cpu(geometry, axes, points, weights, biases);
#ifdef INRFAST_CUDA_ARCHS
  inrfast::fill_units_cuda(geometry, axes, points, weights, biases, device, reinterpret_cast<void*>(stream));
#else
  (void)stream;
  throw std::runtime_error("this build of inrfast._C has no CUDA half");
#endif
}

void rank_expanding(std::uintptr_t weight, std::uintptr_t bias, std::int64_t width, double eps, double gain,
                    const std::vector<double>& lows, const std::vector<double>& highs, std::uintptr_t coords,
                    int itemsize, int device, std::uintptr_t stream) {
  if (itemsize != sizeof(float) && itemsize != sizeof(double)) {
    throw std::invalid_argument("itemsize must be 4 (float) or 8 (double), got " + std::to_string(itemsize));
  }
  const auto geometry = inrfast::make_geometry(width, static_cast<std::int64_t>(lows.size()), eps, gain);
  const auto axes = inrfast::make_axes(lows, highs);
  const auto fill = itemsize == sizeof(float) ? fill_units<float> : fill_units<double>;
  fill(geometry, axes, coords, weight, bias, device, stream);
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

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["pybind11"] = INRFAST_STRING(PYBIND11_VERSION_MAJOR) "." INRFAST_STRING(PYBIND11_VERSION_MINOR);
#ifdef INRFAST_CUDA_ARCHS
  const int version = inrfast::cuda_toolkit_version();
  info["cuda"] = std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  info["cuda_archs"] = INRFAST_CUDA_ARCHS;
#else
  info["cuda"] = py::none();
  info["cuda_archs"] = py::none();
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "The native part of inrfast: rank-expanding initialisation, and training steps on the CPU.";
  module.def("rank_expanding", &rank_expanding, py::arg("weight"), py::arg("bias"), py::arg("width"), py::arg("eps"),
             py::arg("gain"), py::arg("lows"), py::arg("highs"), py::arg("coords") = 0, py::arg("itemsize") = 4,
             py::arg("device") = kHost, py::arg("stream") = 0, py::call_guard<py::gil_scoped_release>(),
             "Fill weight (width x d) and bias (width) at the given addresses; device -1 is host memory.");
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
  module.def("build_info", &build_info, "What this module was compiled with; cuda is None without the CUDA half.");
}
