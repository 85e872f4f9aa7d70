// The Python module inrfast._C: takes addresses, sizes and a stream; checking and allocating is Python's part.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "grid_init.h"

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
  module.doc() = "The native part of inrfast: rank-expanding initialisation on CPU and CUDA memory.";
  module.def("rank_expanding", &rank_expanding, py::arg("weight"), py::arg("bias"), py::arg("width"), py::arg("eps"),
             py::arg("gain"), py::arg("lows"), py::arg("highs"), py::arg("coords") = 0, py::arg("itemsize") = 4,
             py::arg("device") = kHost, py::arg("stream") = 0, py::call_guard<py::gil_scoped_release>(),
             "Fill weight (width x d) and bias (width) at the given addresses; device -1 is host memory.");
  module.def("build_info", &build_info, "What this module was compiled with; cuda is None without the CUDA half.");
}
