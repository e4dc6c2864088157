// All kernels, for the instruction set that the including file names.

#include <type_traits>

#include "learned.h"
#include "scratch.h"
#include "simd.h"
#include "types.h"

namespace splatopt {
namespace SPLATOPT_ISA {

#include "transpose.inl"
#include "spherical_harmonics.inl"
#include "projection.inl"
#include "blend.inl"
#include "penalties.inl"
#include "loss.inl"
#include "residuals.inl"
#include "tangent.inl"
#include "curvature.inl"
#include "adam.inl"
#include "functions.inl"
#include "layers.inl"
#include "hellinger.inl"
#include "clipped_step.inl"
#include "block_step.inl"
#include "learned_features.inl"
#include "learned_step.inl"
#include "neighbours.inl"

constexpr Kernels kKernels = {
    SPLATOPT_ISA_NAME, project,      project_backward, block_spans,      blend,       blend_backward,
    photometric_loss,  loss_scratch_floats, residuals, residual_jvp,     residual_vjp, pixel_curvature,
    project_jvp,       blend_jvp,    blend_moments,    project_diagonal, project_blocks, adam,
    clipped_step,      block_step,  fold_blocks,     block_form,       learned_grown, learned_observe, learned_enter,
    learned_ask,       learned_block, leaf_distances,   blend_ceiling};

}  // namespace SPLATOPT_ISA
}  // namespace splatopt
