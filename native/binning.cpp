// From projected Gaussians to each tile's list, nearest first.

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "passes.h"
#include "rasterizer.h"

namespace splatopt {

namespace {

// The 4-pixel columns [first, last] as bits counted from column base; no bits where the row is empty.
uint64_t column_bits(int first, int last, int base) {
    if (first > last) return 0;
    const int count = last - first + 1;
    return (count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1) << (first - base);
}

}  // namespace

// Tiles square by square: a Gaussian touches neighbours, and its splat is still in the thread's own cache when
// the next tile asks for it.
void Rasterizer::order_tiles() {
    const size_t tiles = static_cast<size_t>(view_.tiles_x) * view_.tiles_y;
    if (tile_order_.size() == tiles && ordered_tiles_x_ == view_.tiles_x) return;
    ordered_tiles_x_ = view_.tiles_x;
    tile_order_.clear();
    for (int y = 0; y < view_.tiles_y; y += kSquare)
        for (int x = 0; x < view_.tiles_x; x += kSquare)
            for (int row = y; row < std::min(y + kSquare, view_.tiles_y); ++row)
                for (int column = x; column < std::min(x + kSquare, view_.tiles_x); ++column)
                    tile_order_.push_back(static_cast<uint32_t>(row * view_.tiles_x + column));
}

int64_t Rasterizer::list_visible(int64_t begin, int64_t end) {
    int64_t n = begin;
    for (int64_t i = begin; i < end; ++i) {
        std::memcpy(&keys_[n], &splats_[i].depth, sizeof(float));
        order_[n] = static_cast<uint32_t>(i);
        n += visible_[i] != 0;
    }
    return n - begin;
}

// Visible Gaussians by camera depth, ties by index: positive floats order as their bits do. Two digits are enough where
// the depths lie within some two octaves.
void Rasterizer::sort_by_depth() {
    const Stopwatch watch(timings_.sort);
    int64_t n = 0;
    for (size_t task = 0; task < task_visible_.size(); ++task) {
        const int64_t from = static_cast<int64_t>(task) * kProjectionTask, found = task_visible_[task];
        std::memmove(&keys_[n], &keys_[from], sizeof(uint32_t) * found);
        std::memmove(&order_[n], &order_[from], sizeof(uint32_t) * found);
        n += found;
    }
    visible_count_ = n;
    if (!n) return;
    ensure(order_spare_, count_);
    ensure(keys_spare_, count_);
    const auto [low, high] = std::minmax_element(keys_.begin(), keys_.begin() + n);
    const uint32_t nearest = *low, range = *high - nearest;
    const int digits = range >> 24 ? 3 : 2, bits = range >> 24 ? 11 : 12, buckets = 1 << bits;
    std::vector<uint32_t> histogram(digits * buckets, 0);
    const auto bucket_of = [&](uint32_t key, int digit) {
        return (key - nearest) >> (digit * bits) & static_cast<uint32_t>(buckets - 1);
    };
    for (int64_t i = 0; i < n; ++i)
        for (int digit = 0; digit < digits; ++digit) ++histogram[digit * buckets + bucket_of(keys_[i], digit)];
    for (int digit = 0; digit < digits; ++digit) {
        uint32_t* counts = histogram.data() + digit * buckets;
        uint32_t sum = 0;
        for (int b = 0; b < buckets; ++b) {
            const uint32_t here = counts[b];
            counts[b] = sum;
            sum += here;
        }
        for (int64_t i = 0; i < n; ++i) {
            const uint32_t to = counts[bucket_of(keys_[i], digit)]++;
            keys_spare_[to] = keys_[i];
            order_spare_[to] = order_[i];
        }
        keys_.swap(keys_spare_);
        order_.swap(order_spare_);
    }
}

// One (tile, blocks) pair for each tile that a Gaussian's ellipse touches, Gaussians in order [begin, end).
void Rasterizer::emit(Chunk& chunk, int64_t begin, int64_t end) {
    constexpr int kTilesAtOnce = 64 / kTileBlocks;
    const int block_columns = (view_.width + kBlock - 1) / kBlock;
    const int last_row = (view_.height + kBlock - 1) / kBlock - 1;
    chunk.gaussian_pairs.resize(end - begin);
    chunk.tile_counts.assign(static_cast<size_t>(view_.tiles_x) * view_.tiles_y, 0);
    chunk.first.resize(view_.tiles_y * kTileBlocks + 32);
    chunk.last.resize(view_.tiles_y * kTileBlocks + 32);
    size_t written = 0;
    for (int64_t i = begin; i < end; ++i) {
        __builtin_prefetch(&splats_[order_[std::min(i + kAhead, end - 1)]]);
        const Splat& s = splats_[order_[i]];
        const float low = std::max(s.mean_y - s.half_y - 1.0f, 0.0f);
        const float high = std::clamp(s.mean_y + s.half_y + 1.0f, 0.0f, static_cast<float>(view_.height));
        const int tile_row_begin = static_cast<int>(std::min(low, 1e6f)) / kTile;
        const int tile_row_end = std::min(static_cast<int>(high) / kTile + 1, view_.tiles_y);
        const int row_begin = tile_row_begin * kTileBlocks, row_end = tile_row_end * kTileBlocks;
        const size_t before = written;
        if (row_begin < row_end)
            kernels_.block_spans(view_, s, row_begin, row_end, chunk.first.data(), chunk.last.data());
        for (int tile_row = tile_row_begin; tile_row < tile_row_end; ++tile_row) {
            int from[kTileBlocks], to[kTileBlocks], low_column = block_columns, high_column = -1;
            for (int r = 0; r < kTileBlocks; ++r) {
                const int row = tile_row * kTileBlocks + r;
                from[r] = std::max(chunk.first[row - row_begin], 0);
                to[r] = row > last_row ? -1 : std::min(chunk.last[row - row_begin], block_columns - 1);
                const bool empty = from[r] > to[r];
                low_column = std::min(low_column, empty ? block_columns : from[r]);
                high_column = std::max(high_column, empty ? -1 : to[r]);
            }
            const int tile_begin = low_column / kTileBlocks;
            const int tile_end = high_column < 0 ? 0 : high_column / kTileBlocks + 1;
            for (int first_tile = tile_begin; first_tile < tile_end; first_tile += kTilesAtOnce) {
                const int tiles = std::min(kTilesAtOnce, tile_end - first_tile), base = first_tile * kTileBlocks;
                uint64_t bits[kTileBlocks];
                for (int r = 0; r < kTileBlocks; ++r)
                    bits[r] = column_bits(std::max(from[r], base), std::min(to[r], base + 63), base);
                if (chunk.emissions.size() < written + tiles) chunk.emissions.resize(2 * written + 1024);
                uint32_t tile = static_cast<uint32_t>(tile_row * view_.tiles_x + first_tile);
                for (int t = 0; t < tiles; ++t, ++tile) {
                    uint32_t blocks = 0;
                    for (int r = 0; r < kTileBlocks; ++r) {
                        blocks |= static_cast<uint32_t>(bits[r] & 15) << (r * kTileBlocks);
                        bits[r] >>= kTileBlocks;
                    }
                    // Without a branch: a slanted needle leaves gaps that no predictor sees coming.
                    const uint32_t touched = blocks != 0;
                    chunk.emissions[written] = {tile, blocks};
                    chunk.tile_counts[tile] += touched;
                    written += touched;
                }
            }
        }
        chunk.gaussian_pairs[i - begin] = static_cast<uint32_t>(written - before);
    }
    chunk.pairs = written;
}

// Tile lists in depth order. Each thread takes a run of the sorted Gaussians; a tile's list is the runs' parts
// one after the other, so the result does not depend on how many runs there are.
void Rasterizer::bin() {
    const Stopwatch watch(timings_.bin);
    const int64_t tiles = static_cast<int64_t>(view_.tiles_x) * view_.tiles_y;
    const int64_t runs = static_cast<int64_t>(chunks_.size());
    const auto run_begin = [&](int64_t run) { return visible_count_ * run / runs; };
    pool_.run(runs, [&](int64_t run, int) { emit(chunks_[run], run_begin(run), run_begin(run + 1)); });
    ensure(tile_begin_, tiles + 1);
    int64_t total = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) {
        tile_begin_[tile] = total;
        for (Chunk& chunk : chunks_) {
            const uint32_t here = chunk.tile_counts[tile];
            chunk.tile_counts[tile] = static_cast<uint32_t>(total);
            total += here;
        }
    }
    tile_begin_[tiles] = total;
    if (total >= int64_t{1} << 32) throw std::length_error("more than 2^32 tile-Gaussian pairs in one view");
    ensure(entries_, total);
    ensure(pair_begin_, count_);
    ensure(pair_count_, count_);
    std::memset(pair_begin_.data(), 0, sizeof(uint32_t) * count_);  // what is not drawn is looked up, not read
    std::vector<int64_t> first_slot(runs + 1, 0);
    for (int64_t run = 0; run < runs; ++run)
        first_slot[run + 1] = first_slot[run] + static_cast<int64_t>(chunks_[run].pairs);
    pool_.run(runs, [&](int64_t run, int) {
        Chunk& chunk = chunks_[run];
        const Emission* emission = chunk.emissions.data();
        uint32_t slot = static_cast<uint32_t>(first_slot[run]);
        for (int64_t i = run_begin(run); i < run_begin(run + 1); ++i) {
            const uint32_t gaussian = order_[i], pairs = chunk.gaussian_pairs[i - run_begin(run)];
            pair_begin_[gaussian] = slot;
            pair_count_[gaussian] = pairs;
            for (uint32_t p = 0; p < pairs; ++p, ++emission, ++slot)
                entries_[chunk.tile_counts[emission->tile]++] = {gaussian, slot, emission->blocks};
        }
    });
}

}  // namespace splatopt
