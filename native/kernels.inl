// All kernels, for the instruction set that the including file names.

#include "scratch.h"
#include "simd.h"
#include "types.h"

namespace splatopt {
namespace SPLATOPT_ISA {

#include "spherical_harmonics.inl"
#include "projection.inl"
#include "blend.inl"
#include "loss.inl"
#include "adam.inl"

constexpr Kernels kKernels = {SPLATOPT_ISA_NAME, project,          project_backward,    block_spans, blend,
                              blend_backward,    photometric_loss, loss_scratch_floats, adam,        blend_ceiling};

}  // namespace SPLATOPT_ISA
}  // namespace splatopt
