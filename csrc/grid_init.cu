// Rank-expanding initialisation on a CUDA device: one thread a unit, the geometry shared with the CPU half.
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "grid_init.h"

namespace inrfast {
namespace {

constexpr int kThreads = 128;

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("rank_expanding on CUDA: ") + what + ": " + cudaGetErrorString(status));
  }
}

// Makes a device current, and the caller's device current again however the scope ends.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    check(cudaGetDevice(&previous_), "reading the current device");
    check(cudaSetDevice(device), "selecting the device");
  }
  ~DeviceScope() { cudaSetDevice(previous_); }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int previous_ = 0;
};

template <typename T>
__global__ void fill_units(Geometry geometry, const Axis* axes, const double* coords, T* weight, T* bias) {
  const std::int64_t k = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (k < geometry.width) make_unit(geometry, axes, coords, k, weight + k * geometry.in_features, bias + k);
}

}  // namespace

template <typename T>
void fill_units_cuda(const Geometry& geometry, const std::vector<Axis>& axes, const double* coords, T* weight, T* bias,
                     int device, void* stream) {
  const DeviceScope scope(device);
  const auto queue = static_cast<cudaStream_t>(stream);
  const std::size_t bytes = axes.size() * sizeof(Axis);
  Axis* device_axes = nullptr;
  check(cudaMallocAsync(reinterpret_cast<void**>(&device_axes), bytes, queue), "allocating the axes");
  cudaError_t status = cudaMemcpyAsync(device_axes, axes.data(), bytes, cudaMemcpyHostToDevice, queue);
  if (status == cudaSuccess) {
    const auto blocks = static_cast<unsigned>((geometry.width + kThreads - 1) / kThreads);
    fill_units<<<blocks, kThreads, 0, queue>>>(geometry, device_axes, coords, weight, bias);
    status = cudaGetLastError();
  }
  cudaFreeAsync(device_axes, queue);
  check(status, "launching the kernel");
}

template void fill_units_cuda(const Geometry&, const std::vector<Axis>&, const double*, float*, float*, int, void*);
template void fill_units_cuda(const Geometry&, const std::vector<Axis>&, const double*, double*, double*, int, void*);

int cuda_toolkit_version() { return CUDART_VERSION; }

}  // namespace inrfast
