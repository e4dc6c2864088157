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
#include "projection_backward.inl"
#include "blend.inl"
#include "statistics.inl"
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
#include "rows.inl"

constexpr Kernels kKernels = {
    .name = SPLATOPT_ISA_NAME, .project = project, .project_backward = project_backward, .block_spans = block_spans,
    .blend = blend, .blend_backward = blend_backward, .project_rows = project_rows,
    .project_rows_backward = project_rows_backward, .splats_of_rows = splats_of_rows, .row_gradients = row_gradients,
    .harmonics = harmonics, .harmonics_backward = harmonics_backward,
    .blend_statistics = blend_statistics, .project_statistics = project_statistics, .photometric_loss = photometric_loss,
    .loss_scratch_floats = loss_scratch_floats, .residuals = residuals, .residual_jvp = residual_jvp,
    .residual_vjp = residual_vjp, .pixel_curvature = pixel_curvature, .project_jvp = project_jvp,
    .blend_jvp = blend_jvp, .blend_moments = blend_moments, .project_diagonal = project_diagonal,
    .project_blocks = project_blocks, .adam = adam, .clipped_step = clipped_step, .block_step = block_step,
    .fold_blocks = fold_blocks, .block_form = block_form, .learned_aged = learned_aged,
    .learned_observe = learned_observe, .learned_enter = learned_enter, .learned_queries = learned_queries,
    .learned_block = learned_block, .leaf_distances = leaf_distances, .blend_ceiling = blend_ceiling,
};

}  // namespace SPLATOPT_ISA
}  // namespace splatopt
