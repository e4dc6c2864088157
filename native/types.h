// Plain structures that the kernels and the code around them share. No Python here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "shared_constants.h"

namespace splatopt {

constexpr int kBlock = 4;           // a block is 4x4 pixels, one pixel a lane
constexpr int kTileBlocks = 4;      // a tile is 4x4 blocks
constexpr int kTile = kBlock * kTileBlocks;
constexpr int kBlocksPerTile = kTileBlocks * kTileBlocks;
constexpr int kTilePixels = kTile * kTile;

constexpr float kLog2e = 1.44269504f, kLn2 = 0.69314718f;
// With w = A d and |w|² = kHalfLog2e · dᵀ Σ⁻¹ d, α = 2^(log2 o - |w|²).
constexpr float kHalfLog2e = 0.5f * kLog2e;
constexpr float kMinNormal = 1.17549435e-38f;  // smallest normal float32

// The rendering rule's numbers, handed over from Python.
struct Constants {
    float near_plane, low_pass, max_alpha, min_alpha, min_transmittance, frustum_margin;
    float ssim_c1, ssim_c2;
    float window[kWindow];
};

struct View {
    double rotation[9];  // world to camera, row-major
    double center[3];    // camera centre in the world
    double fx, fy, cx, cy;
    int width, height;
    int tiles_x, tiles_y;
    int stride;  // floats a row of a padded plane
    bool antialiased;
    float background[3];
};

struct Cloud {
    int64_t count;
    const float *means, *log_scales, *quats, *logit_opacities, *sh_dc, *sh_rest;
    int rest;    // coefficients per channel in sh_rest
    int degree;  // highest degree evaluated
};

// Which penalty ρ of a pixel's difference a loss has: see penalties.inl.
enum class Penalty { absolute, squared, charbonnier };
inline constexpr const char* kPenaltyNames[] = {"absolute", "squared", "charbonnier"};

// Weighted sums over pixels that a loss is made of: SSIM, ρ(x - y) and (x - y)².
struct LossSums {
    double ssim, penalty, squared;
};

// A loss (1-λ)·Σwρ(x-y)/n + λ·(1 - ΣwSSIM/n), n = 3Σw, and its residuals: see loss.inl and residuals.inl.
struct LossRule {
    Penalty penalty;
    float penalty_parameter;  // the penalty's own number
    float ssim_weight;        // λ
    double count;             // n, 0 where nothing counts
    float pixel_scale;        // √((1-λ)/n)
    float pixel_half_scale;   // √((1-λ)/2n)
    float ssim_half_scale;    // √(λ/2n)
    float floor_dissimilarity;

    bool has_ssim() const { return ssim_weight != 0; }
    double divisor() const { return count > 0 ? count : 1.0; }
    double penalty_scale() const { return (1.0 - ssim_weight) / divisor(); }
    double ssim_scale() const { return ssim_weight / divisor(); }
    double value(const LossSums& sums) const {
        const double n = divisor();
        return (1.0 - ssim_weight) * sums.penalty / n + ssim_weight * (count / n - sums.ssim / n);
    }
};

// What a rendered image is compared with.
struct TargetImage {
    const uint8_t* bytes;  // (H, W, 3)
    const float* weights;  // (H, W), null where all pixels count alike
};

// The six tensors in their order, where numbers of each are listed.
enum TensorIndex { kMeans, kLogScales, kQuats, kLogitOpacities, kShDc, kShRest, kTensors };

// Six tensors in the shapes of a cloud's: gradients, curvature, states, or the parameters where they are written.
struct CloudTensors {
    float *means, *log_scales, *quats, *logit_opacities, *sh_dc, *sh_rest;
};

// The trust region of one step: see hellinger.inl.
struct TrustBounds {
    float epsilon, opacity_floor, max_relative_distance, max_mean, max_log_scale, max_quat, max_logit, max_color,
        color_floor, higher_bands;
    float place, shape, look;  // factors on the radii of means; of log-scales and quaternions; of opacities and colours
    bool conditional_variance;
};

constexpr int64_t kStepTask = 512;       // rows that one task of a step over a cloud moves
constexpr int64_t kCoefficientRows = 64; // rows whose coefficients' radii are laid out at a time

// Floats of the coefficients of so many rows, and of a vector that may reach past them.
constexpr int64_t coefficient_floats(int rest) { return kCoefficientRows * 3 * rest + 16; }

// Floats of scratch that such a task needs: 15 a row, the coefficients' radii and their curvature.
constexpr size_t step_scratch_floats(int rest) {
    return static_cast<size_t>(15 * kStepTask + 2 * coefficient_floats(rest));
}

// Which step is clipped to the trust region, and its numbers. decay = 1 - β is taken in double by the caller.
enum class StepKind { sign, adam, curvature };
struct ClippedRule {
    StepKind kind;
    float decay1;
    float factor;                                // curvature: multiplies D
    float damping[kTensors];                            // curvature: δ of each tensor
    float beta2, decay2, epsilon, root;          // adam
    float step_size[kTensors];                          // adam: of each tensor
};

// Σ|mη| of a tensor's entries, and how many of them are not 0.
struct PredictedReduction {
    double sum = 0, count = 0;
};

// A step of block Gauss-Newton: see block_step.inl. correction = 1/(1-θ₁ᵗ) of the momentum.
struct BlockRule {
    float decay1, correction, scale, damping;
    int factorisations;
    bool measure_only;
};

// What blending reads of a projected Gaussian, one float or one lane each. A = [[whitening_xx, whitening_xy],
// [0, whitening_yy]] whitens: w = (u, v) = A (pixel - mean).
template <class Real>
struct BlendFields {
    Real mean_x, mean_y;  // pixels
    Real whitening_xx, whitening_xy, whitening_yy;
    Real log2_opacity;
    Real color[3];
    Real depth;
};

// A projected Gaussian.
template <class Real>
struct SplatFields : BlendFields<Real> {
    Real reach;            // largest |w|² at which α still reaches min_alpha
    Real half_x, half_y;   // half extents of that ellipse, pixels
    Real color_passes[3];  // 1 where the clamp of the colour at 0 passes its gradient, else 0
};
using Splat = SplatFields<float>;
constexpr int kSplatFloats = sizeof(Splat) / sizeof(float);

// A gathered splat, its mean relative to the tile's corner.
struct LocalSplat : BlendFields<float> {
    float unused[2];
};

// The exponent log2 α = l - |w|² as a polynomial of w = (u, v), and the colour. Backward, ∂L/∂log2 α summed over pixels
// times 1, u, v, u², uv, v², and ∂L/∂colour; forward, the change l' + t·w + wᵀ N w, and that of the colour.
template <class Real>
struct DerivativeFields {
    Real log2_opacity, u, v, uu, uv, vv;
    Real color[3];
};
constexpr int kDerivativeFields = 9;
// With the sums over pixels of |∂L/∂log2 α · u| and |∂L/∂log2 α · (A_xy u + A_yy v)|, which are |∂L/∂mean| / 2 but for
// A_xx; they are there where they are asked for.
template <class Real>
struct ObservedFields : DerivativeFields<Real> {
    Real absolute_x, absolute_y;
};
struct SplatDerivative : ObservedFields<float> {
    float depth;  // of a fourth channel in the depth's place, where there is one
};
constexpr int kDerivativeFloats = sizeof(SplatDerivative) / sizeof(float);

// Where a gradient pass adds what it has of each row: see core/row_statistics.py.
struct ObservedTensors {
    float *views, *gradient, *max_radius;  // (N,)
    float *absolute;                       // (N,), null where it is not asked for
    float *splitting;                      // (N, 6), likewise
};

// Statistics of a row, or its part in one tile, with e the error and r_c = ∂L/∂C_c at a pixel: Σw, Σe, Σwe, Σwe²; where
// they are asked for Σ r_c w u and Σ r_c w v where α is not clamped; how many pixels; the greatest w.
template <class Real>
struct StatisticFields {
    Real weight, error, weighted_error, weighted_squared_error;
    Real cross_u[3], cross_v[3];
    Real pixels, max_weight;
};
using RowSums = StatisticFields<float>;
constexpr int kStatisticFloats = sizeof(RowSums) / sizeof(float);

// Where they are added, (N,) and (N, 3, 3), which is null where it is not asked for.
struct StatisticsTensors {
    float *weight, *max_weight, *pixels, *error, *weighted_error, *weighted_squared_error, *color_cross;
};

// What they are made of beside the splats: e, ∂L/∂C, and whether a pixel counts (above 0).
struct StatisticsPlanes {
    const float* gradient[3];
    const float* error;
    const float* counted;
};

// Sums over a pair's pixels that its curvature is made of: see curvature.inl.
enum MomentSum {
    kOne, kU, kV, kUU, kUV, kVV, kUUU, kUUV, kUVV, kVVV, kUUUU, kUUUV, kUUVV, kUVVV, kVVVV,
    kMoments,
    kColorMoments = kMoments,             // three
    kCrossMoments = kColorMoments + 3,    // three times kPhi
    kPhi = kVV + 1,                       // entries of φ = (1, u, v, u², uv, v²)
    kMomentSums = kCrossMoments,
    kMomentSumsWithCross = kCrossMoments + 3 * kPhi,
};
static constexpr int moment_sums(bool cross) { return cross ? kMomentSumsWithCross : kMomentSums; }

// A Gaussian's own block of curvature: centre, scales, quaternion, opacity and base colour; its lower triangle is kept.
constexpr int kGeometryRows = 3 + 3 + 4 + 1, kBlockRows = kGeometryRows + 3;
constexpr int kBlockFloats = kBlockRows * (kBlockRows + 1) / 2;

// Which part of a tile a Gaussian touches: bit 4·row + column of its 4x4 blocks.
struct Entry {
    uint32_t gaussian;
    uint32_t slot;  // where this pair's gradient goes; a Gaussian's slots are consecutive
    uint32_t blocks;
};

// What a tile's backward pass needs from its forward pass.
struct TileState {
    float transmittance[kTilePixels];  // in block order
    int32_t last[kTilePixels];         // last list position that was added to the pixel, -1 for none
};

struct BlendPlanes {
    float* color[3];
    float* alpha;
    float* depth;  // null when not wanted
};

// ∂L/∂image by planes; alpha and depth are null where there are none.
struct GradientPlanes {
    const float* color[3];
    const float* alpha;
    const float* depth;
};

// Gaussians as others hold them: scales and opacities as they are.
struct PlainRows {
    int64_t count;
    const float *means, *quats, *scales, *opacities;
};

// What projecting them gives, zeros where a row is not drawn: centres (N, 2) in pixels, the upper triangle of U (N, 3)
// with UᵀU = Σ⁻¹, Σ⁻¹ itself (N, 3), camera z, √(det Σ before / after the low-pass), the half sides of the box around
// what is drawn (N, 2), and how many tiles it meets.
struct PlainSplats {
    float *centers, *factors, *conics, *depths, *compensations;
    int32_t *radii, *tiles;
};
struct RowLimits {
    float far_plane, radius_clip;
};

// Derivatives with respect to those (null where there are none), and where they go: (N, 3), (N, 4), (N, 3).
struct PlainSplatGradients {
    const float *centers, *factors, *depths, *compensations;
    const int32_t* radii;
};
struct PlainGradients {
    float *means, *quats, *scales;
};
constexpr int kPoseNumbers = 12;  // ∂L/∂ world to camera: the rotation row-major, then the translation

// Projected rows as blending takes them, and where their derivatives are added; absolute is null where not asked for.
struct BlendRows {
    int64_t count;
    const float *centers, *factors, *opacities, *depths;
    const int32_t* radii;
};
// Channels first … first + count - 1, at most four, of rows or pixels of `stride` channels.
struct ChannelRange {
    int64_t stride;
    int first, count;
};
struct BlendRowGradients {
    float *centers, *factors, *opacities, *absolute;
};

// Spherical harmonics of rows: coefficients (N, K, 3), rows that count (N,) or null, and directions (N, 3) of any
// length. With `seen_from`, three numbers, those are positions that are looked at from there, and what comes out is the
// colour of Gaussians, max(sum + 0.5, 0).
struct HarmonicRows {
    int64_t count;
    int degree, stored;
    const float *directions, *coefficients;
    const uint8_t* counted;
    const float* seen_from;
};
// Where their derivatives go: added to those of the directions or positions, (N, 3), and to those of the coefficients,
// (N, K, 3), unless these are to be overwritten.
struct HarmonicGradients {
    float *directions, *coefficients;
    bool overwrite;
};

// Room for one thread: the entries of a tile, gathered.
struct TileScratch;

// One step of the learned optimizer: see learned.h.
struct LearnedRun;

struct Kernels {
    const char* name;
    void (*project)(const Constants&, const View&, const Cloud&, int64_t begin, int64_t end, Splat*, uint8_t* visible);
    void (*project_backward)(const Constants&, const View&, const Cloud&, int64_t begin, int64_t end,
                             const Splat*, const uint8_t* visible, const SplatDerivative* splat_gradient, float weight,
                             bool overwrite, const CloudTensors&, uint8_t* seen, const ObservedTensors* observed);
    // Columns [first, last] of 4-pixel blocks that the splat touches, per block row from row_begin on;
    // first > last where it touches none. Both have room for whole vectors.
    void (*block_spans)(const View&, const Splat&, int row_begin, int row_end, int* first, int* last);
    void (*blend)(const Constants&, const View&, const Splat*, Entry*, int64_t count, int tile, TileScratch&,
                  TileState&, const BlendPlanes&);
    void (*blend_backward)(const Constants&, const View&, const Splat*, const Entry*, int64_t count, int tile,
                           TileScratch&, const TileState&, const GradientPlanes&, bool absolute,
                           SplatDerivative* pair_gradient);
    // Rows of others' tensors, [begin, end): see rows.inl. Gradients are added; pose takes kPoseNumbers.
    void (*project_rows)(const Constants&, const View&, const RowLimits&, const PlainRows&, int64_t begin, int64_t end,
                         const PlainSplats&);
    void (*project_rows_backward)(const Constants&, const View&, const PlainRows&, int64_t begin, int64_t end,
                                  const PlainSplatGradients&, const PlainGradients&, double* pose);
    void (*splats_of_rows)(const Constants&, const View&, const BlendRows&, int64_t begin, int64_t end, Splat*,
                           uint8_t* visible);
    void (*row_gradients)(const Splat*, const uint8_t* visible, const SplatDerivative*, int64_t begin, int64_t end,
                          const BlendRowGradients&);
    void (*harmonics)(const HarmonicRows&, int64_t begin, int64_t end, float* colors);
    void (*harmonics_backward)(const HarmonicRows&, int64_t begin, int64_t end, const float* colors,
                               const float* gradient, const HarmonicGradients&, double* sums);
    void (*blend_statistics)(const Constants&, const View&, const Splat*, const Entry*, int64_t count, int tile,
                             TileScratch&, const TileState&, const StatisticsPlanes&, bool cross, RowSums* pair_sums);
    void (*project_statistics)(const Constants&, const View&, const Cloud&, int64_t begin, int64_t end, const Splat*,
                               const uint8_t* visible, const RowSums* sums, float weight, const StatisticsTensors&);
    // Rows [begin, end) of one channel: the sums of each row, sums[row], and the loss's gradient. Scratch holds
    // loss_scratch_floats.
    void (*photometric_loss)(const Constants&, const View&, const LossRule&, const float* image, const TargetImage&,
                             int channel, int begin, int end, float* scratch, float* gradient, LossSums* sums);
    int64_t (*loss_scratch_floats)(const View&);
    // The residual view of the loss: rows [begin, end) of one channel, residuals (kinds, H, W, 3) in memory.
    void (*residuals)(const Constants&, const View&, const LossRule&, const float* image, const TargetImage&,
                      int channel, int begin, int end, float* scratch, float* out);
    void (*residual_jvp)(const Constants&, const View&, const LossRule&, const float* image, const float* tangent,
                         const TargetImage&, int channel, int begin, int end, float* scratch, float* out);
    void (*residual_vjp)(const Constants&, const View&, const LossRule&, const float* image, const TargetImage&,
                         int channel, int begin, int end, float* scratch, const float* cotangent, float* gradient);
    void (*pixel_curvature)(const Constants&, const View&, const LossRule&, const float* image, const TargetImage&,
                            int channel, int begin, int end, float* scratch, float* out);
    void (*project_jvp)(const Constants&, const View&, const Cloud&, const Cloud& tangent, int64_t begin, int64_t end,
                        const Splat*, const uint8_t* visible, SplatDerivative* splat_tangent);
    void (*blend_jvp)(const Constants&, const View&, const Splat*, const Entry*, int64_t count, int tile,
                      TileScratch&, const TileState&, const SplatDerivative* splat_tangent,
                      float* const* image_tangent);
    // Sums of a pair's curvature over the tile's pixels: moment_sums(cross) floats.
    void (*blend_moments)(const Constants&, const View&, const Splat*, const Entry*, int64_t count, int tile,
                          TileScratch&, const TileState&, const float* const* weights, bool cross,
                          float* pair_moments);
    void (*project_diagonal)(const Constants&, const View&, const Cloud&, int64_t begin, int64_t end, const Splat*,
                             const uint8_t* visible, const float* moments, bool cross, float weight,
                             const CloudTensors&);
    void (*project_blocks)(const Constants&, const View&, const Cloud&, int64_t begin, int64_t end, const Splat*,
                           const uint8_t* visible, const float* moments, float weight, float* blocks, float* rest);
    void (*adam)(float* parameter, const float* gradient, float* exp_avg, float* exp_avg_sq, int64_t count,
                 float step_size, float decay1, float beta2, float decay2, float epsilon, float correction2_sqrt);
    // Rows [begin, end) of a cloud; scratch holds step_scratch_floats(rest), predicted takes kTensors.
    void (*clipped_step)(const TrustBounds&, const ClippedRule&, const CloudTensors& values,
                         const CloudTensors& gradient, const CloudTensors& first, const CloudTensors& second, int rest,
                         int64_t begin, int64_t end, float* scratch, PredictedReduction* predicted);
    double (*block_step)(const TrustBounds&, const BlockRule&, const CloudTensors& values, const CloudTensors& gradient,
                         const CloudTensors& momentum, const float* blocks, const uint8_t* seen,
                         float* multipliers, int rest, int64_t begin, int64_t end, float* scratch);
    void (*fold_blocks)(float* blocks, const float* fresh, const float* weights, int64_t begin, int64_t end);
    double (*block_form)(const float* blocks, const CloudTensors& step, int rest, int64_t begin, int64_t end);
    // Groups [begin, end) of a learned step, pass by pass; sums are a task's own.
    void (*learned_aged)(const LearnedRun&, int64_t begin, int64_t end);
    void (*learned_observe)(const LearnedRun&, int64_t begin, int64_t end, double* sums);
    void (*learned_enter)(const LearnedRun&, int64_t begin, int64_t end, float* scratch, double* sums);
    void (*learned_queries)(const LearnedRun&, int64_t begin, int64_t end, float* scratch);
    void (*learned_block)(const LearnedRun&, int block, int64_t begin, int64_t end, float* scratch);
    uint32_t (*leaf_distances)(const float* leaf, const float* from, float max_squared, float* squared);
    float (*blend_ceiling)(const Constants&, const LocalSplat* splats, int count, int64_t rounds);
};

const Kernels& kernels_portable();
#if defined(SPLATOPT_X86)
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
#endif

}  // namespace splatopt
