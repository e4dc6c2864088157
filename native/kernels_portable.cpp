#define SPLATOPT_PORTABLE
#define SPLATOPT_ISA portable
#define SPLATOPT_ISA_NAME "portable"
#include "kernels.inl"

namespace splatopt {
const Kernels& kernels_portable() { return portable::kKernels; }
}  // namespace splatopt
