// Products with the Jacobian of the residuals, and Gauss-Newton curvature, for the view that was drawn last.

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
    sweep_bands([&](int channel, int begin, int end, float* scratch, int64_t) {
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
    sweep_bands([&](int channel, int begin, int end, float* scratch, int64_t) {
        const float* along = tangent_planes_.data() + plane_size() * channel;
        kernels_.residual_jvp(constants_, view_, rule, plane(channel), along, target, channel, begin, end, scratch,
                              out);
    });
}

void Rasterizer::set_cotangent(const TargetImage& target, const LossRule& rule, const float* cotangent) {
    sweep_bands([&](int channel, int begin, int end, float* scratch, int64_t) {
        kernels_.residual_vjp(constants_, view_, rule, plane(channel), target, channel, begin, end, scratch,
                              cotangent, plane(kGradient + channel));
    });
}

void Rasterizer::set_pixel_curvature(const TargetImage& target, const LossRule& rule) {
    const Stopwatch watch(timings_.pixel_curvature);
    sweep_bands([&](int channel, int begin, int end, float* scratch, int64_t) {
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

}  // namespace splatopt
