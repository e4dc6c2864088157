// Products with the Jacobian of the residuals, Gauss-Newton curvature, and statistics of rows, for the view that was
// drawn last.

#include <cstring>

#include "passes.h"
#include "rasterizer.h"

namespace splatopt {

namespace {

void clear_range(float* p, int64_t begin, int64_t end, int64_t width) {
    if (width == 0) return;  // p is null then, which memset must not be given
    std::memset(p + begin * width, 0, sizeof(float) * static_cast<size_t>((end - begin) * width));
}

}  // namespace

void Rasterizer::residuals(const TargetImage& target, const LossRule& rule, float* out) {
    sweep_bands([&](int channel, int begin, int end, float* scratch) {
        kernels_.residuals(constants_, view_, rule, plane(channel), target, channel, begin, end, scratch, out);
    });
}

void Rasterizer::draw_tangent(const Cloud& cloud, const Cloud& tangent) {
    require_drawn(cloud);
    ensure(splat_tangent_, count_);
    pool_.run(tasks_of(count_, kProjectionTask), [&](int64_t task, int) {
        const int64_t begin = task * kProjectionTask, end = std::min(count_, begin + kProjectionTask);
        kernels_.project_jvp(constants_, view_, cloud, tangent, begin, end, splats_.data(), visible_.data(),
                             splat_tangent_.data());
    });
    ensure(tangent_planes_, plane_size() * 3 + 64);
    float* planes[3];
    for (int c = 0; c < 3; ++c) planes[c] = tangent_planes_.data() + plane_size() * c;
    for_each_tile([&](int64_t tile, int thread) {
        kernels_.blend_jvp(constants_, view_, splats_.data(), entries_.data() + tile_begin_[tile],
                           tile_begin_[tile + 1] - tile_begin_[tile], static_cast<int>(tile), *scratch_[thread],
                           tiles_[tile], splat_tangent_.data(), planes);
    });
}

void Rasterizer::image_jvp(const Cloud& cloud, const Cloud& tangent, float* out) {
    draw_tangent(cloud, tangent);
    copy_planes(tangent_planes_.data(), out);
}

void Rasterizer::jvp(const Cloud& cloud, const Cloud& tangent, const TargetImage& target, const LossRule& rule,
                     float* out) {
    const Stopwatch watch(timings_.jvp);
    draw_tangent(cloud, tangent);
    sweep_bands([&](int channel, int begin, int end, float* scratch) {
        const float* along = tangent_planes_.data() + plane_size() * channel;
        kernels_.residual_jvp(constants_, view_, rule, plane(channel), along, target, channel, begin, end, scratch,
                              out);
    });
}

void Rasterizer::set_cotangent(const TargetImage& target, const LossRule& rule, const float* cotangent) {
    sweep_bands([&](int channel, int begin, int end, float* scratch) {
        kernels_.residual_vjp(constants_, view_, rule, plane(channel), target, channel, begin, end, scratch,
                              cotangent, plane(kGradient + channel));
    });
}

void Rasterizer::set_pixel_curvature(const TargetImage& target, const LossRule& rule) {
    const Stopwatch watch(timings_.pixel_curvature);
    sweep_bands([&](int channel, int begin, int end, float* scratch) {
        kernels_.pixel_curvature(constants_, view_, rule, plane(channel), target, channel, begin, end, scratch,
                                 plane(kGradient + channel));
    });
}

void Rasterizer::moments(bool cross) {
    const size_t floats = moment_sums(cross);
    clear_padding();
    ensure(pair_sums_, entries_.size() * floats);
    ensure(splat_moments_, count_ * floats);
    const float* planes[3] = {plane(kGradient), plane(kGradient + 1), plane(kGradient + 2)};
    for_each_tile([&](int64_t tile, int thread) {
        kernels_.blend_moments(constants_, view_, splats_.data(), entries_.data() + tile_begin_[tile],
                               tile_begin_[tile + 1] - tile_begin_[tile], static_cast<int>(tile), *scratch_[thread],
                               tiles_[tile], planes, cross, pair_sums_.data());
    });
}

void Rasterizer::diagonal(const Cloud& cloud, float weight, bool overwrite, const CloudTensors& out) {
    const Stopwatch watch(timings_.curvature);
    require_drawn(cloud);
    // Above degree 0 a mean moves its colour too, and then the cross sums count.
    const bool cross = cloud.degree > 0;
    moments(cross);
    pool_.run(tasks_of(count_, kProjectionTask), [&](int64_t task, int) {
        const int64_t begin = task * kProjectionTask, end = std::min(count_, begin + kProjectionTask);
        reduce_pairs(begin, end, moment_sums(cross), pair_sums_.data(), splat_moments_.data());
        if (overwrite) {
            clear_range(out.means, begin, end, 3);
            clear_range(out.log_scales, begin, end, 3);
            clear_range(out.quats, begin, end, 4);
            clear_range(out.logit_opacities, begin, end, 1);
            clear_range(out.sh_dc, begin, end, 3);
            clear_range(out.sh_rest, begin, end, 3 * static_cast<int64_t>(cloud.rest));
        }
        kernels_.project_diagonal(constants_, view_, cloud, begin, end, splats_.data(), visible_.data(),
                                  splat_moments_.data(), cross, weight, out);
    });
}

void Rasterizer::blocks(const Cloud& cloud, float weight, bool overwrite, float* blocks, float* rest) {
    const Stopwatch watch(timings_.curvature);
    require_drawn(cloud);
    moments(true);
    pool_.run(tasks_of(count_, kProjectionTask), [&](int64_t task, int) {
        const int64_t begin = task * kProjectionTask, end = std::min(count_, begin + kProjectionTask);
        reduce_pairs(begin, end, kMomentSumsWithCross, pair_sums_.data(), splat_moments_.data());
        if (overwrite) {
            clear_range(blocks, begin, end, kBlockFloats);
            clear_range(rest, begin, end, 3 * static_cast<int64_t>(cloud.rest));
        }
        kernels_.project_blocks(constants_, view_, cloud, begin, end, splats_.data(), visible_.data(),
                                splat_moments_.data(), weight, blocks, rest);
    });
}

void Rasterizer::set_errors(const float* error, const float* weights) {
    has_depth_ = false;  // it goes over alpha and depth
    const int64_t rows = static_cast<int64_t>(view_.tiles_y) * kTile;
    pool_.run(tasks_of(rows, kLossRows), [&](int64_t task, int) {
        for (int64_t y = task * kLossRows; y < std::min(rows, (task + 1) * kLossRows); ++y) {
            float *errors = plane(kError) + y * view_.stride, *counted = plane(kCounted) + y * view_.stride;
            const int64_t inside = y < view_.height ? view_.width : 0;
            for (int64_t x = 0, at = y * view_.width; x < inside; ++x, ++at) {
                errors[x] = error[at];
                counted[x] = weights && weights[at] <= 0.0f ? 0.0f : 1.0f;
            }
            for (int64_t x = inside; x < view_.stride; ++x) errors[x] = counted[x] = 0.0f;
        }
    });
}

void Rasterizer::statistics(const Cloud& cloud, const float* error, const float* weights, float weight, bool overwrite,
                            const StatisticsTensors& out) {
    const Stopwatch watch(timings_.statistics);
    require_drawn(cloud);
    clear_padding();
    set_errors(error, weights);
    if (pair_sums_.size() < entries_.size() * kStatisticFloats) ensure(pair_sums_, entries_.size() * kStatisticFloats);
    static_assert(sizeof(RowSums) == sizeof(SplatDerivative));
    ensure(splat_gradient_, count_);
    auto* pair_sums = reinterpret_cast<RowSums*>(pair_sums_.data());
    auto* sums = reinterpret_cast<RowSums*>(splat_gradient_.data());
    const StatisticsPlanes planes{
        {plane(kGradient), plane(kGradient + 1), plane(kGradient + 2)}, plane(kError), plane(kCounted)};
    for_each_tile([&](int64_t tile, int thread) {
        kernels_.blend_statistics(constants_, view_, splats_.data(), entries_.data() + tile_begin_[tile],
                                  tile_begin_[tile + 1] - tile_begin_[tile], static_cast<int>(tile), *scratch_[thread],
                                  tiles_[tile], planes, out.color_cross != nullptr, pair_sums);
    });
    pool_.run(tasks_of(count_, kProjectionTask), [&](int64_t task, int) {
        const int64_t begin = task * kProjectionTask, end = std::min(count_, begin + kProjectionTask);
        reduce_pairs(begin, end, kStatisticFloats, pair_sums_.data(), reinterpret_cast<float*>(sums));
        for (int64_t i = begin; i < end; ++i) {
            if (!visible_[i]) continue;
            sums[i].max_weight = 0.0f;  // of which the sum means nothing
            for (uint32_t p = 0; p < pair_count_[i]; ++p)
                sums[i].max_weight = std::max(sums[i].max_weight, pair_sums[pair_begin_[i] + p].max_weight);
        }
        if (overwrite) {
            for (float* each : {out.weight, out.max_weight, out.pixels, out.error, out.weighted_error,
                                out.weighted_squared_error})
                clear_range(each, begin, end, 1);
            if (out.color_cross) clear_range(out.color_cross, begin, end, 9);
        }
        kernels_.project_statistics(constants_, view_, cloud, begin, end, splats_.data(), visible_.data(), sums, weight,
                                    out);
    });
}

}  // namespace splatopt
