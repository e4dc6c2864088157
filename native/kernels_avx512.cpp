#define SPLATOPT_AVX512
#define SPLATOPT_ISA avx512
#define SPLATOPT_ISA_NAME "avx512"
#include "kernels.inl"

namespace splatopt {
const Kernels& kernels_avx512() { return avx512::kKernels; }
}  // namespace splatopt
