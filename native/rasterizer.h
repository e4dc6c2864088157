// One view's passes in order, and the buffers they share.
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "pool.h"
#include "types.h"

namespace splatopt {

// Picks the fastest kernels this processor has; `wanted` may name one ("avx512", "avx2", "portable").
// Throws std::invalid_argument where the processor or the build lacks it.
const Kernels& select_kernels(const std::string& wanted);

// Threads and the kernels that fit the processor; several rasterizers and optimizers may share one.
struct Workers {
    Workers(int threads, const std::string& isa) : kernels(select_kernels(isa)), pool(threads) {}
    const Kernels& kernels;
    Pool pool;
};

struct TileScratch;

// Of one view: the loss, and the mean squared error over what counts.
struct ViewLoss {
    double loss, squared_error;
};

// Memory on whole cache lines: a vector that crosses two lines costs two loads.
template <class T>
struct CacheAligned {
    using value_type = T;
    CacheAligned() = default;
    template <class U>
    CacheAligned(const CacheAligned<U>&) {}
    T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64))); }
    void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t(64)); }
    // Growing leaves new elements as they come: every pass writes what it reads.
    template <class U>
    void construct(U* p) {
        ::new (static_cast<void*>(p)) U;
    }
    template <class U, class... Arguments>
    void construct(U* p, Arguments&&... arguments) {
        ::new (static_cast<void*>(p)) U(static_cast<Arguments&&>(arguments)...);
    }
    bool operator==(const CacheAligned&) const { return true; }
};
template <class T>
using Buffer = std::vector<T, CacheAligned<T>>;

// Seconds that the passes of the last view took.
struct Timings {
    double project, sort, bin, blend, loss, blend_backward, project_backward, jvp, pixel_curvature, curvature,
        statistics;
};

class Rasterizer {
public:
    Rasterizer(const Constants& constants, std::shared_ptr<Workers> workers);
    ~Rasterizer();
    Rasterizer(const Rasterizer&) = delete;
    Rasterizer& operator=(const Rasterizer&) = delete;

    // Projects, bins and blends; with_depth also fills alpha and depth.
    void forward(const View& view, const Cloud& cloud, bool with_depth);
    // Loss of the rendered image, and dL/dimage kept for backward.
    ViewLoss loss(const TargetImage& target, const LossRule& rule);
    // dL/dimage given as (H, W, 3) instead.
    void set_image_gradient(const float* gradient);
    // Adds weight · dL/dθ, for the cloud that forward saw; with overwrite, to nothing instead of what is there.
    // Where `observed` is given, statistics of the rows that were drawn are added there, without the weight.
    void backward(const Cloud& cloud, float weight, bool overwrite, const CloudTensors& gradient, uint8_t* seen,
                  const ObservedTensors* observed);
    // Adds weight · the statistics of rows, with the dL/dimage at hand and errors (H, W); pixels of weight 0, where
    // there are weights (H, W), count nowhere.
    void statistics(const Cloud& cloud, const float* error, const float* weights, float weight, bool overwrite,
                    const StatisticsTensors& out);

    // The residual view, for the view that forward drew; residuals are (kinds, H, W, 3).
    void residuals(const TargetImage& target, const LossRule& rule, float* out);
    // ∂image/∂θ · tangent, (H, W, 3).
    void image_jvp(const Cloud& cloud, const Cloud& tangent, float* out);
    void jvp(const Cloud& cloud, const Cloud& tangent, const TargetImage& target, const LossRule& rule, float* out);
    // dL/dimage = J_imageᵀ · cotangent, kept for backward.
    void set_cotangent(const TargetImage& target, const LossRule& rule, const float* cotangent);
    // W, kept in the place of dL/dimage for diagonal and blocks.
    void set_pixel_curvature(const TargetImage& target, const LossRule& rule);
    // Adds weight · Σ W (∂image/∂θ)², with the W at hand.
    void diagonal(const Cloud& cloud, float weight, bool overwrite, const CloudTensors& out);
    // Adds weight · each Gaussian's own block of JᵀJ, 105 floats, and the diagonal of sh_rest.
    void blocks(const Cloud& cloud, float weight, bool overwrite, float* blocks, float* rest);

    // Lists of rows that are projected already; then their images, up to four channels at a time.
    void draw_rows(const View& view, const BlendRows& rows);
    // Σ w c of these channels, (H, W, stride); where alpha (H, W) is given, 1 - T_end.
    void blend_channels(const ChannelRange& range, const float* colors, float* image, float* alpha);
    // Adds to the rows' derivatives and sets those of these channels; gradients of image and alpha may be null.
    void channels_backward(const ChannelRange& range, const float* colors, const float* image_gradient,
                           const float* alpha_gradient, const BlendRowGradients& out, float* color_gradient);

    void copy_image(float* out) const;               // (H, W, 3)
    void copy_depth(float* alpha, float* depth) const;  // (H, W) each, after forward with depth
    void copy_visible(uint8_t* out) const;
    int64_t visible_count() const { return visible_count_; }
    int64_t entry_count() const { return static_cast<int64_t>(entries_.size()); }
    // 16-lane block evaluations of the last forward pass's lists, for benchmarks.
    int64_t block_pairs() const;
    // Pixel-Gaussian pairs with α at least min_alpha, whether or not the ray had ended.
    int64_t relevant_pairs();
    // Those of them that the ray reached.
    int64_t blended_pairs();
    const Timings& timings() const { return timings_; }
    int64_t memory_bytes() const;
    int height() const { return view_.height; }
    int width() const { return view_.width; }
    int64_t count() const { return count_; }

private:
    struct Emission {
        uint32_t tile, blocks;
    };
    struct Chunk {
        Buffer<Emission> emissions;  // the first `pairs` of them are meant
        size_t pairs = 0;
        Buffer<uint32_t> gaussian_pairs;  // emissions a Gaussian, in the chunk's order
        Buffer<uint32_t> tile_counts;     // then offsets
        Buffer<int> first, last;          // spans of one Gaussian
    };

    // Runs work(begin, end), which fills splats, over tasks of Gaussians, and lists those that it found visible.
    template <class Work>
    void project_tasks(const Work& work);
    // Writes the visible ones of [begin, end) and their depths from position begin on; returns how many.
    int64_t list_visible(int64_t begin, int64_t end);
    void sort_by_depth();
    void bin();
    void emit(Chunk& chunk, int64_t begin, int64_t end);
    // Sums the floats that a Gaussian's pairs left, in slot order.
    void reduce_pairs(int64_t begin, int64_t end, int floats, const float* pairs, float* sums) const;
    // Runs work(channel, first row, last row, scratch) over bands of the image, whose number nothing may depend on.
    template <class Work>
    void sweep_bands(const Work& work);
    void clear_padding();
    void set_channels(const ChannelRange& range, const float* colors);
    template <class Work>
    void for_tile_rows(const Work& work);
    void copy_alpha(int y, float* out) const;
    void fill_row(int index, int y, const float* from, int64_t step);
    // Fills the planes of errors and of what counts; the padding beyond the image does not.
    void set_errors(const float* error, const float* weights);
    void order_tiles();
    // Runs work(tile, thread) for every tile.
    template <class Work>
    void for_each_tile(const Work& work);
    // Draws ∂image/∂θ · tangent into the tangent planes.
    void draw_tangent(const Cloud& cloud, const Cloud& tangent);
    void moments(bool cross);
    void copy_planes(const float* planes, float* out) const;
    void require_drawn(const Cloud& cloud) const;

    Constants constants_;
    std::shared_ptr<Workers> workers_;
    const Kernels& kernels_;
    Pool& pool_;
    View view_{};
    Timings timings_{};
    int64_t count_ = 0, visible_count_ = 0;
    bool has_depth_ = false;
    std::vector<std::unique_ptr<TileScratch>> scratch_;
    std::vector<Buffer<float>> loss_scratch_;
    Buffer<Splat> splats_;
    Buffer<uint8_t> visible_;
    Buffer<uint32_t> order_, order_spare_, keys_, keys_spare_;
    Buffer<int64_t> task_visible_;
    std::vector<Chunk> chunks_;
    Buffer<uint32_t> pair_begin_, pair_count_;  // a Gaussian's slots
    Buffer<Entry> entries_;
    Buffer<int64_t> tile_begin_;
    Buffer<uint32_t> tile_order_;
    int ordered_tiles_x_ = 0;
    Buffer<TileState> tiles_;
    Buffer<float> planes_, tangent_planes_, splat_moments_;
    Buffer<float> pair_sums_;  // what a pair hands to its Gaussian: a SplatDerivative, or moments
    Buffer<SplatDerivative> splat_gradient_, splat_tangent_;
    Buffer<LossSums> loss_sums_;

    float* plane(int index);
    const float* plane(int index) const;
    int64_t plane_size() const { return static_cast<int64_t>(view_.tiles_y) * kTile * view_.stride; }
};

}  // namespace splatopt
