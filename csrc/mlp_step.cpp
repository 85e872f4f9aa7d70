#include "mlp_step.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "mlp_step_layout.h"

namespace inrfast {

Loss loss_named(const std::string& name) {
  if (name == "mse") return Loss::kMse;
  if (name == "l1") return Loss::kL1;
  if (name == "huber") return Loss::kHuber;
  if (name == "bce") return Loss::kBce;
  throw std::invalid_argument("loss must be mse, l1, huber or bce, got " + name);
}

Activation activation_named(const std::string& name) {
  int number = 0;
  for (const char* known : kActivationNames) {
    if (name == known) return static_cast<Activation>(number);
    ++number;
  }
  throw std::invalid_argument("the native step has no activation called " + name);
}

Norm norm_named(const std::string& name) {
  int number = 0;
  for (const char* known : kNormNames) {
    if (name == known) return static_cast<Norm>(number);
    ++number;
  }
  throw std::invalid_argument("the native step has no norm called " + name);
}

Filter filter_named(const std::string& name) {
  int number = 0;
  for (const char* known : kFilterNames) {
    if (name == known) return static_cast<Filter>(number);
    ++number;
  }
  throw std::invalid_argument("the native step has no filter called " + name);
}

#ifdef INRFAST_HAS_MLP_STEP

const char* mlp_step_instructions() {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) return "avx512";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
  return "";
}

double mlp_step(const MlpStep& step, const char* instructions) {
  if (step.depth > kMostLayers) throw std::invalid_argument("a step takes at most 64 layers");
  if (std::strcmp(instructions, "avx512") == 0) return mlp_step_avx512(step);
  if (std::strcmp(instructions, "avx2") == 0) return mlp_step_avx2(step);
  throw std::invalid_argument("instructions must be avx512 or avx2, got " + std::string(instructions));
}

#else

const char* mlp_step_instructions() { return ""; }

double mlp_step(const MlpStep&, const char*) { throw std::runtime_error("this build of inrfast._C has no mlp_step"); }

#endif

std::int64_t mlp_step_workspace(const MlpLayer* layers, int depth, std::int64_t chunk) {
  return workspace_floats(layers, depth, chunk);
}

}  // namespace inrfast
