#include "matrix_product.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "mlp_step_layout.h"

namespace inrfast {

std::int64_t matrix_product_workspace(std::int64_t rows, std::int64_t columns, std::int64_t depth) {
  return padded(columns) * depth + rows * kLanes;
}

#ifdef INRFAST_HAS_MLP_STEP

void matrix_product(const MatrixProduct& product, const char* instructions) {
  if (std::strcmp(instructions, "avx512") == 0) return matrix_product_avx512(product);
  if (std::strcmp(instructions, "avx2") == 0) return matrix_product_avx2(product);
  throw std::invalid_argument("instructions must be avx512 or avx2, got " + std::string(instructions));
}

#else

void matrix_product(const MatrixProduct&, const char*) {
  throw std::runtime_error("this build of inrfast._C has no matrix_product");
}

#endif

}  // namespace inrfast
