// The two halves of rank-expanding initialisation: the same call on host memory and on device memory.
#pragma once

#include <cstdint>
#include <vector>

#include "grid_geometry.h"

namespace inrfast {

// Fill weight (width x d, row-major) and bias (width); T is float or double, `coords` may be null.
template <typename T>
void fill_units_cpu(const Geometry& geometry, const std::vector<Axis>& axes, const double* coords, T* weight, T* bias);

#ifdef INRFAST_CUDA_ARCHS
// The same with device pointers, enqueued on `stream` (a cudaStream_t) of CUDA device `device`.
template <typename T>
void fill_units_cuda(const Geometry& geometry, const std::vector<Axis>& axes, const double* coords, T* weight, T* bias,
                     int device, void* stream);

int cuda_toolkit_version();  // as CUDART_VERSION: 1000 * major + 10 * minor
#endif

}  // namespace inrfast
