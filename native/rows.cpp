// Rows that others have projected: their lists, channel by channel their images, and their derivatives.

#include <algorithm>
#include <cstring>

#include "passes.h"
#include "rasterizer.h"

namespace splatopt {

// Runs work(first row, last row) over the image and its padding, a row of tiles a task.
template <class Work>
void Rasterizer::for_tile_rows(const Work& work) {
    pool_.run(view_.tiles_y, [&](int64_t task, int) {
        const int begin = static_cast<int>(task) * kTile;
        work(begin, begin + kTile);
    });
}

void Rasterizer::draw_rows(const View& view, const BlendRows& rows) {
    view_ = view;
    count_ = rows.count;
    has_depth_ = false;
    ensure(splats_, rows.count);
    ensure(visible_, rows.count);
    project_tasks([&](int64_t begin, int64_t end) {
        kernels_.splats_of_rows(constants_, view_, rows, begin, end, splats_.data(), visible_.data());
    });
    sort_by_depth();
    bin();
    ensure(tiles_, static_cast<size_t>(view_.tiles_x) * view_.tiles_y);
    order_tiles();
    ensure(planes_, plane_size() * kPlanes + 64);
}

// The lists are made: the place of the depth is free for a fourth channel.
void Rasterizer::set_channels(const ChannelRange& range, const float* colors) {
    pool_.run(tasks_of(count_, kProjectionTask), [&](int64_t task, int) {
        const int64_t begin = task * kProjectionTask, end = std::min(count_, begin + kProjectionTask);
        for (int64_t i = begin; i < end; ++i) {
            if (!visible_[i]) continue;
            const float* from = colors + i * range.stride + range.first;
            for (int c = 0; c < 3; ++c) splats_[i].color[c] = c < range.count ? from[c] : 0.0f;
            if (range.count > 3) splats_[i].depth = from[3];
        }
    });
}

// Three planes as pixels of three numbers: the usual image, in one go.
static void side_by_side(const float* const* planes, int count, float* pixels) {
    const float *red = planes[0], *green = planes[1], *blue = planes[2];
    for (int x = 0; x < count; ++x) {
        pixels[3 * x] = red[x];
        pixels[3 * x + 1] = green[x];
        pixels[3 * x + 2] = blue[x];
    }
}

void Rasterizer::blend_channels(const ChannelRange& range, const float* colors, float* image, float* alpha) {
    set_channels(range, colors);
    BlendPlanes planes{{plane(kRed), plane(kGreen), plane(kBlue)}, plane(kAlpha), range.count > 3 ? plane(kDepth) : nullptr};
    for_each_tile([&](int64_t tile, int thread) {
        kernels_.blend(constants_, view_, splats_.data(), entries_.data() + tile_begin_[tile],
                       tile_begin_[tile + 1] - tile_begin_[tile], static_cast<int>(tile), *scratch_[thread],
                       tiles_[tile], planes);
    });
    for_tile_rows([&](int begin, int end) {
        for (int y = begin; y < std::min(end, view_.height); ++y) {
            const int64_t at = static_cast<int64_t>(y) * view_.stride;
            const float* from[4] = {planes.color[0] + at, planes.color[1] + at, planes.color[2] + at, nullptr};
            if (planes.depth) from[3] = planes.depth + at;
            float* to = image + static_cast<int64_t>(y) * view_.width * range.stride + range.first;
            if (range.count == 3 && range.stride == 3) {
                side_by_side(from, view_.width, to);
            } else {
                for (int c = 0; c < range.count; ++c)
                    for (int x = 0; x < view_.width; ++x) to[static_cast<int64_t>(x) * range.stride + c] = from[c][x];
            }
            if (alpha) copy_alpha(y, alpha + static_cast<int64_t>(y) * view_.width);
        }
    });
}

// What the rays of a row of pixels have lost.
void Rasterizer::copy_alpha(int y, float* out) const {
    const TileState* tiles = tiles_.data() + static_cast<int64_t>(y / kTile) * view_.tiles_x;
    const int lane = (y % kTile / kBlock * kTileBlocks * kBlock + y % kBlock) * kBlock;
    const auto block = [&](int x) { return tiles[x / kTile].transmittance + lane + x % kTile / kBlock * kBlock * kBlock; };
    const int whole = view_.width / kBlock * kBlock;
    for (int x = 0; x < whole; x += kBlock) {
        const float* from = block(x);
        for (int c = 0; c < kBlock; ++c) out[x + c] = 1.0f - from[c];
    }
    for (int x = whole; x < view_.width; ++x) out[x] = 1.0f - block(whole)[x - whole];
}

// A row of a plane from numbers that lie `step` apart, zeros where there are none and beyond the image.
void Rasterizer::fill_row(int index, int y, const float* from, int64_t step) {
    float* to = plane(index) + static_cast<int64_t>(y) * view_.stride;
    const int filled = from && y < view_.height ? view_.width : 0;
    const float* in = filled ? from + static_cast<int64_t>(y) * view_.width * step : nullptr;
    for (int x = 0; x < filled; ++x) to[x] = in[x * step];
    std::memset(to + filled, 0, sizeof(float) * (view_.stride - filled));
}

void Rasterizer::channels_backward(const ChannelRange& range, const float* colors, const float* image_gradient,
                                   const float* alpha_gradient, const BlendRowGradients& out, float* color_gradient) {
    set_channels(range, colors);
    for_tile_rows([&](int begin, int end) {
        for (int y = begin; y < end; ++y) {
            for (int c = 0; c < std::max(3, range.count); ++c) {
                const bool given = image_gradient && c < range.count;
                fill_row(c < 3 ? kGradient + c : kDepth, y, given ? image_gradient + range.first + c : nullptr,
                         range.stride);
            }
            if (alpha_gradient) fill_row(kAlpha, y, alpha_gradient, 1);
        }
    });
    const GradientPlanes planes{{plane(kGradient), plane(kGradient + 1), plane(kGradient + 2)},
                                alpha_gradient ? plane(kAlpha) : nullptr,
                                range.count > 3 ? plane(kDepth) : nullptr};
    if (pair_sums_.size() < entries_.size() * kDerivativeFloats)
        pair_sums_.assign((entries_.size() + entries_.size() / 8) * kDerivativeFloats, 0.0f);
    ensure(splat_gradient_, count_);
    for_each_tile([&](int64_t tile, int thread) {
        kernels_.blend_backward(constants_, view_, splats_.data(), entries_.data() + tile_begin_[tile],
                                tile_begin_[tile + 1] - tile_begin_[tile], static_cast<int>(tile), *scratch_[thread],
                                tiles_[tile], planes, out.absolute != nullptr,
                                reinterpret_cast<SplatDerivative*>(pair_sums_.data()));
    });
    pool_.run(tasks_of(count_, kProjectionTask), [&](int64_t task, int) {
        const int64_t begin = task * kProjectionTask, end = std::min(count_, begin + kProjectionTask);
        reduce_pairs(begin, end, kDerivativeFloats, pair_sums_.data(),
                     reinterpret_cast<float*>(splat_gradient_.data()));
        kernels_.row_gradients(splats_.data(), visible_.data(), splat_gradient_.data(), begin, end, out);
        for (int64_t i = begin; i < end; ++i) {
            if (!visible_[i]) continue;
            float* to = color_gradient + i * range.stride + range.first;
            for (int c = 0; c < std::min(range.count, 3); ++c) to[c] = splat_gradient_[i].color[c];
            if (range.count > 3) to[3] = splat_gradient_[i].depth;
        }
    });
}

}  // namespace splatopt
