// What the files of the rasterizer share.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "rasterizer.h"

namespace splatopt {

inline constexpr int64_t kProjectionTask = 512;   // Gaussians a task
inline constexpr int64_t kAhead = 12;             // Gaussians that memory is asked for early, where access jumps about
inline constexpr int kSquare = 4;                 // tiles a side of a square that one thread takes in a row
inline constexpr int kLossRows = 48;              // image rows a task at least; twenty more are filtered as margin
// Statistics of rows take the places of alpha and depth for what they read.
enum PlaneIndex { kRed, kGreen, kBlue, kGradient, kAlpha = kGradient + 3, kDepth, kPlanes, kError = kAlpha, kCounted = kDepth };

// Writes the seconds of its own life to where it is told.
class Stopwatch {
public:
    explicit Stopwatch(double& seconds) : seconds_(seconds), begin_(Clock::now()) {}
    ~Stopwatch() { seconds_ = std::chrono::duration<double>(Clock::now() - begin_).count(); }

private:
    using Clock = std::chrono::steady_clock;
    double& seconds_;
    Clock::time_point begin_;
};

inline int64_t tasks_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Grows without copying: these buffers are rewritten by each pass.
template <class T>
void ensure(Buffer<T>& buffer, size_t size) {
    if (buffer.capacity() < size) {
        buffer.clear();
        buffer.reserve(size + size / 8);
    }
    buffer.resize(size);
}

template <class Work>
void Rasterizer::project_tasks(const Work& work) {
    ensure(order_, count_);
    ensure(keys_, count_);
    ensure(task_visible_, tasks_of(count_, kProjectionTask));
    pool_.run(tasks_of(count_, kProjectionTask), [&](int64_t task, int) {
        const int64_t begin = task * kProjectionTask, end = std::min(count_, begin + kProjectionTask);
        work(begin, end);
        task_visible_[task] = list_visible(begin, end);
    });
}

template <class Work>
void Rasterizer::sweep_bands(const Work& work) {
    for (auto& scratch : loss_scratch_) ensure(scratch, kernels_.loss_scratch_floats(view_));
    const int rows = std::max(kLossRows, static_cast<int>(tasks_of(view_.height, 2 * pool_.threads())));
    pool_.run(tasks_of(view_.height, rows) * 3, [&](int64_t task, int thread) {
        const int begin = static_cast<int>(task / 3) * rows;
        work(static_cast<int>(task % 3), begin, std::min(begin + rows, view_.height), loss_scratch_[thread].data());
    });
}

template <class Work>
void Rasterizer::for_each_tile(const Work& work) {
    const int64_t tiles = static_cast<int64_t>(tile_order_.size());
    // A whole square at a time where there are enough of them to share out, else a quarter.
    const int64_t run = tiles >= int64_t{8} * kSquare * kSquare * pool_.threads() ? kSquare * kSquare : kSquare;
    pool_.run(tasks_of(tiles, run), [&](int64_t task, int thread) {
        for (int64_t i = task * run; i < std::min((task + 1) * run, tiles); ++i) work(tile_order_[i], thread);
    });
}

}  // namespace splatopt
