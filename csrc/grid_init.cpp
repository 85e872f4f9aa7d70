// Rank-expanding initialisation on the CPU: one unit after the other.
#include "grid_init.h"

namespace inrfast {

template <typename T>
void fill_units_cpu(const Geometry& geometry, const std::vector<Axis>& axes, const double* coords, T* weight, T* bias) {
  for (std::int64_t k = 0; k < geometry.width; ++k) {
    make_unit(geometry, axes.data(), coords, k, weight + k * geometry.in_features, bias + k);
  }
}

template void fill_units_cpu(const Geometry&, const std::vector<Axis>&, const double*, float*, float*);
template void fill_units_cpu(const Geometry&, const std::vector<Axis>&, const double*, double*, double*);

}  // namespace inrfast
