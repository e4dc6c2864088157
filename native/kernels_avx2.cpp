#define SPLATOPT_AVX2
#define SPLATOPT_ISA avx2
#define SPLATOPT_ISA_NAME "avx2"
#include "kernels.inl"

namespace splatopt {
const Kernels& kernels_avx2() { return avx2::kKernels; }
}  // namespace splatopt
