#include "rasterizer.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

#include "passes.h"
#include "scratch.h"

namespace splatopt {

TileScratch::TileScratch() {
    for (int block = 0; block < kBlocksPerTile; ++block)
        for (int lane = 0; lane < kLanes; ++lane) {
            rays[block].x[lane] = static_cast<float>(block % kTileBlocks * kBlock + lane % kBlock) + 0.5f;
            rays[block].y[lane] = static_cast<float>(block / kTileBlocks * kBlock + lane / kBlock) + 0.5f;
        }
}

TileScratch::~TileScratch() {
    ::operator delete(splats, std::align_val_t(64));
    ::operator delete(blocks, std::align_val_t(64));
    ::operator delete(list, std::align_val_t(64));
}

void TileScratch::reserve(int64_t count) {
    const size_t padded = static_cast<size_t>(count) + 32;
    if (capacity >= padded) return;
    ::operator delete(splats, std::align_val_t(64));
    ::operator delete(blocks, std::align_val_t(64));
    ::operator delete(list, std::align_val_t(64));
    splats = nullptr;
    blocks = list = nullptr;
    capacity = 0;
    const size_t room = padded + padded / 4;
    splats = static_cast<LocalSplat*>(::operator new(room * sizeof(LocalSplat), std::align_val_t(64)));
    blocks = static_cast<uint32_t*>(::operator new(room * sizeof(uint32_t), std::align_val_t(64)));
    list = static_cast<uint32_t*>(::operator new(room * sizeof(uint32_t), std::align_val_t(64)));
    capacity = room;
}

const Kernels& select_kernels(const std::string& wanted) {
    if (wanted == "portable") return kernels_portable();
#if defined(SPLATOPT_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if ((wanted == "auto" || wanted == "avx512") && avx512) return kernels_avx512();
    if ((wanted == "auto" || wanted == "avx2") && avx2) return kernels_avx2();
#endif
    if (wanted == "auto") return kernels_portable();
    throw std::invalid_argument("this processor or this build has no " + wanted + " kernels");
}

Rasterizer::Rasterizer(const Constants& constants, std::shared_ptr<Workers> workers)
    : constants_(constants), workers_(std::move(workers)), kernels_(workers_->kernels), pool_(workers_->pool) {
    for (int i = 0; i < pool_.threads(); ++i) scratch_.push_back(std::make_unique<TileScratch>());
    loss_scratch_.resize(pool_.threads());
    // More runs than threads: nearer Gaussians are larger, and their runs take longer.
    chunks_.resize(pool_.threads() == 1 ? 1 : 4 * pool_.threads());
}

Rasterizer::~Rasterizer() = default;

float* Rasterizer::plane(int index) { return planes_.data() + plane_size() * index; }
const float* Rasterizer::plane(int index) const { return planes_.data() + plane_size() * index; }

void Rasterizer::forward(const View& view, const Cloud& cloud, bool with_depth) {
    view_ = view;
    count_ = cloud.count;
    has_depth_ = with_depth;
    ensure(splats_, cloud.count);
    ensure(visible_, cloud.count);
    {
        const Stopwatch watch(timings_.project);
        project_tasks([&](int64_t begin, int64_t end) {
            kernels_.project(constants_, view_, cloud, begin, end, splats_.data(), visible_.data());
        });
    }
    sort_by_depth();
    bin();
    const Stopwatch watch(timings_.blend);
    const int64_t tiles = static_cast<int64_t>(view_.tiles_x) * view_.tiles_y;
    ensure(tiles_, tiles);
    order_tiles();
    ensure(planes_, plane_size() * kPlanes + 64);
    BlendPlanes planes{{plane(kRed), plane(kGreen), plane(kBlue)}, plane(kAlpha), with_depth ? plane(kDepth) : nullptr};
    for_each_tile([&](int64_t tile, int thread) {
        kernels_.blend(constants_, view_, splats_.data(), entries_.data() + tile_begin_[tile],
                       tile_begin_[tile + 1] - tile_begin_[tile], static_cast<int>(tile), *scratch_[thread],
                       tiles_[tile], planes);
    });
}

ViewLoss Rasterizer::loss(const TargetImage& target, const LossRule& rule) {
    const Stopwatch watch(timings_.loss);
    ensure(loss_sums_, int64_t{3} * view_.height);
    sweep_bands([&](int channel, int begin, int end, float* scratch) {
        kernels_.photometric_loss(constants_, view_, rule, plane(channel), target, channel, begin, end, scratch,
                                  plane(kGradient + channel), loss_sums_.data() + int64_t{channel} * view_.height);
    });
    LossSums total{};
    for (const LossSums& row : loss_sums_) {
        total.ssim += row.ssim;
        total.penalty += row.penalty;
        total.squared += row.squared;
    }
    return {rule.value(total), total.squared / rule.divisor()};
}

void Rasterizer::set_image_gradient(const float* gradient) {
    for (int c = 0; c < 3; ++c)
        for (int y = 0; y < view_.height; ++y) {
            float* out = plane(kGradient + c) + static_cast<int64_t>(y) * view_.stride;
            const float* in = gradient + static_cast<int64_t>(y) * view_.width * 3 + c;
            for (int x = 0; x < view_.width; ++x) out[x] = in[3 * x];
        }
}

void Rasterizer::reduce_pairs(int64_t begin, int64_t end, int floats, const float* pairs, float* sums) const {
    for (int64_t i = begin; i < end; ++i) {
        if (!visible_[i]) continue;
        __builtin_prefetch(pairs + static_cast<int64_t>(pair_begin_[std::min(i + kAhead, end - 1)]) * floats);
        float* sum = sums + i * floats;
        std::memset(sum, 0, sizeof(float) * floats);
        const float* pair = pairs + static_cast<int64_t>(pair_begin_[i]) * floats;
        for (uint32_t p = 0; p < pair_count_[i]; ++p, pair += floats)
            for (int f = 0; f < floats; ++f) sum[f] += pair[f];
    }
}

// Pixels of the padding beyond the image pass nothing on.
void Rasterizer::clear_padding() {
    for (int c = 0; c < 3; ++c)
        for (int y = 0; y < view_.tiles_y * kTile; ++y) {
            float* row = plane(kGradient + c) + static_cast<int64_t>(y) * view_.stride;
            const int from = y < view_.height ? view_.width : 0;
            std::memset(row + from, 0, sizeof(float) * (view_.stride - from));
        }
}

void Rasterizer::require_drawn(const Cloud& cloud) const {
    if (cloud.count != count_) throw std::invalid_argument("derivatives need the cloud that forward saw");
}

void Rasterizer::backward(const Cloud& cloud, float weight, bool overwrite, const CloudTensors& gradient,
                          uint8_t* seen, const ObservedTensors* observed) {
    require_drawn(cloud);
    clear_padding();
    // The spare floats of a slot are never read as numbers, but adding them must not meet NaNs.
    if (pair_sums_.size() < entries_.size() * kDerivativeFloats)
        pair_sums_.assign((entries_.size() + entries_.size() / 8) * kDerivativeFloats, 0.0f);
    auto* pair_gradient = reinterpret_cast<SplatDerivative*>(pair_sums_.data());
    ensure(splat_gradient_, count_);
    const GradientPlanes planes{{plane(kGradient), plane(kGradient + 1), plane(kGradient + 2)}, nullptr, nullptr};
    {
        const Stopwatch watch(timings_.blend_backward);
        for_each_tile([&](int64_t tile, int thread) {
            kernels_.blend_backward(constants_, view_, splats_.data(), entries_.data() + tile_begin_[tile],
                                    tile_begin_[tile + 1] - tile_begin_[tile], static_cast<int>(tile),
                                    *scratch_[thread], tiles_[tile], planes, observed && observed->absolute,
                                    pair_gradient);
        });
    }
    const Stopwatch watch(timings_.project_backward);
    pool_.run(tasks_of(count_, kProjectionTask), [&](int64_t task, int) {
        const int64_t begin = task * kProjectionTask, end = std::min(count_, begin + kProjectionTask);
        reduce_pairs(begin, end, kDerivativeFloats, pair_sums_.data(),
                     reinterpret_cast<float*>(splat_gradient_.data()));
        kernels_.project_backward(constants_, view_, cloud, begin, end, splats_.data(), visible_.data(),
                                  splat_gradient_.data(), weight, overwrite, gradient, seen, observed);
    });
}

void Rasterizer::copy_planes(const float* planes, float* out) const {
    for (int c = 0; c < 3; ++c)
        for (int y = 0; y < view_.height; ++y) {
            const float* in = planes + plane_size() * c + static_cast<int64_t>(y) * view_.stride;
            float* to = out + static_cast<int64_t>(y) * view_.width * 3 + c;
            for (int x = 0; x < view_.width; ++x) to[3 * x] = in[x];
        }
}

void Rasterizer::copy_image(float* out) const { copy_planes(plane(kRed), out); }

void Rasterizer::copy_depth(float* alpha, float* depth) const {
    if (!has_depth_) throw std::logic_error("the last forward pass made no depth");
    for (int y = 0; y < view_.height; ++y) {
        const int64_t from = static_cast<int64_t>(y) * view_.stride, to = static_cast<int64_t>(y) * view_.width;
        std::memcpy(alpha + to, plane(kAlpha) + from, sizeof(float) * view_.width);
        std::memcpy(depth + to, plane(kDepth) + from, sizeof(float) * view_.width);
    }
}

void Rasterizer::copy_visible(uint8_t* out) const { std::memcpy(out, visible_.data(), count_); }

int64_t Rasterizer::block_pairs() const {
    int64_t total = 0;
    for (const Entry& entry : entries_) total += __builtin_popcount(entry.blocks);
    return total;
}

int64_t Rasterizer::relevant_pairs() {
    std::vector<int64_t> counts(tasks_of(visible_count_, kProjectionTask), 0);
    pool_.run(static_cast<int64_t>(counts.size()), [&](int64_t task, int) {
        const int64_t begin = task * kProjectionTask, end = std::min(visible_count_, begin + kProjectionTask);
        for (int64_t i = begin; i < end; ++i) {
            const Splat& s = splats_[order_[i]];
            const int x0 = std::max(0, static_cast<int>(s.mean_x - s.half_x) - 1);
            const int x1 = std::min(view_.width - 1, static_cast<int>(s.mean_x + s.half_x) + 1);
            const int y0 = std::max(0, static_cast<int>(s.mean_y - s.half_y) - 1);
            const int y1 = std::min(view_.height - 1, static_cast<int>(s.mean_y + s.half_y) + 1);
            for (int y = y0; y <= y1; ++y)
                for (int x = x0; x <= x1; ++x) {
                    const float dx = x + 0.5f - s.mean_x, dy = y + 0.5f - s.mean_y;
                    const float u = s.whitening_xx * dx + s.whitening_xy * dy, v = s.whitening_yy * dy;
                    counts[task] += u * u + v * v <= s.reach;
                }
        }
    });
    int64_t total = 0;
    for (const int64_t count : counts) total += count;
    return total;
}

int64_t Rasterizer::blended_pairs() {
    std::vector<int64_t> counts(tile_begin_.size() - 1, 0);
    pool_.run(static_cast<int64_t>(counts.size()), [&](int64_t tile, int) {
        for (int64_t e = tile_begin_[tile]; e < tile_begin_[tile + 1]; ++e) {
            const Splat& s = splats_[entries_[e].gaussian];
            for (uint32_t blocks = entries_[e].blocks; blocks; blocks &= blocks - 1) {
                const int block = __builtin_ctz(blocks);
                const int left = static_cast<int>(tile % view_.tiles_x) * kTile + block % kTileBlocks * kBlock;
                const int top = static_cast<int>(tile / view_.tiles_x) * kTile + block / kTileBlocks * kBlock;
                for (int lane = 0; lane < kBlock * kBlock; ++lane) {
                    const int x = left + lane % kBlock, y = top + lane / kBlock;
                    if (x >= view_.width || y >= view_.height) continue;
                    const float dx = x + 0.5f - s.mean_x, dy = y + 0.5f - s.mean_y;
                    const float u = s.whitening_xx * dx + s.whitening_xy * dy, v = s.whitening_yy * dy;
                    counts[tile] += u * u + v * v <= s.reach &&
                                    e - tile_begin_[tile] <= tiles_[tile].last[block * kBlock * kBlock + lane];
                }
            }
        }
    });
    int64_t total = 0;
    for (const int64_t count : counts) total += count;
    return total;
}

int64_t Rasterizer::memory_bytes() const {
    const auto bytes = [](const auto& buffer) { return static_cast<int64_t>(buffer.capacity() * sizeof(buffer[0])); };
    int64_t total = bytes(splats_) + bytes(visible_) + bytes(order_) + bytes(order_spare_) + bytes(keys_) +
                    bytes(keys_spare_) + bytes(pair_begin_) + bytes(pair_count_) + bytes(entries_) +
                    bytes(tile_begin_) + bytes(tiles_) + bytes(planes_) + bytes(tangent_planes_) +
                    bytes(pair_sums_) + bytes(splat_gradient_) + bytes(loss_sums_) + bytes(splat_tangent_) +
                    bytes(splat_moments_);
    for (const Chunk& chunk : chunks_)
        total += bytes(chunk.emissions) + bytes(chunk.gaussian_pairs) + bytes(chunk.tile_counts);
    return total;
}

}  // namespace splatopt
