// The Python module inrfast._CUDA: rank-expanding initialisation in the memory of a GPU, beside inrfast._C and without it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "grid_init.h"

namespace py = pybind11;

namespace {

#define INRFAST_STRING_(x) #x
#define INRFAST_STRING(x) INRFAST_STRING_(x)

void rank_expanding(std::uintptr_t weight, std::uintptr_t bias, std::int64_t width, double eps, double gain,
                    const std::vector<double>& lows, const std::vector<double>& highs, std::uintptr_t coords,
                    int itemsize, int device, std::uintptr_t stream) {
  if (itemsize != sizeof(float) && itemsize != sizeof(double)) {
    throw std::invalid_argument("itemsize must be 4 (float) or 8 (double), got " + std::to_string(itemsize));
  }
  const auto geometry = inrfast::make_geometry(width, static_cast<std::int64_t>(lows.size()), eps, gain);
  const auto axes = inrfast::make_axes(lows, highs);
  const auto* points = reinterpret_cast<const double*>(coords);
  auto* queue = reinterpret_cast<void*>(stream);
  const auto fill = [&](auto* weights, auto* biases) {
    inrfast::fill_units_cuda(geometry, axes, points, weights, biases, device, queue);
  };
  if (itemsize == sizeof(float)) return fill(reinterpret_cast<float*>(weight), reinterpret_cast<float*>(bias));
  fill(reinterpret_cast<double*>(weight), reinterpret_cast<double*>(bias));
}

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["pybind11"] = INRFAST_STRING(PYBIND11_VERSION_MAJOR) "." INRFAST_STRING(PYBIND11_VERSION_MINOR);
  const int version = inrfast::cuda_toolkit_version();
  info["cuda"] = std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  info["cuda_archs"] = INRFAST_CUDA_ARCHS;
  return info;
}

}  // namespace

PYBIND11_MODULE(_CUDA, module) {
  module.doc() = "The CUDA half of inrfast's native code: rank-expanding initialisation on a GPU.";
  module.def("rank_expanding", &rank_expanding, py::arg("weight"), py::arg("bias"), py::arg("width"), py::arg("eps"),
             py::arg("gain"), py::arg("lows"), py::arg("highs"), py::arg("coords"), py::arg("itemsize"),
             py::arg("device"), py::arg("stream"), py::call_guard<py::gil_scoped_release>(),
             "Fill weight (width x d) and bias (width) in the memory of a device, enqueued on a stream of it.");
  module.def("build_info", &build_info, "What this module was compiled with.");
}
