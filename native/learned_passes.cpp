// The passes of one learned step in order.

#include "learned_passes.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "passes.h"

namespace splatopt {

namespace {

constexpr int64_t kGroupsATask = 4;

// Hands out the parts of a packed network in their order.
class Unpacking {
public:
    Unpacking(const float* packed, int64_t floats) : at_(packed), left_(floats) {}

    const float* take(int64_t floats) {
        left_ -= floats;
        if (left_ < 0) throw std::invalid_argument("the packed network is too short for its shape");
        const float* here = at_;
        at_ += floats;
        return here;
    }
    Layer layer(int inputs, int outputs) {
        const int padded = static_cast<int>(tiled(outputs));
        return {take(int64_t{padded} * (inputs + 1)), inputs, padded};
    }
    Norm norm(int width) {
        const float* weight = take(width);
        return {weight, take(width)};
    }
    int64_t left() const { return left_; }

private:
    const float* at_;
    int64_t left_;
};

// y = W x + b in double, W row by row, then b.
std::vector<double> linear(const float* weights, const std::vector<double>& x, int outputs) {
    const size_t inputs = x.size();
    std::vector<double> y(static_cast<size_t>(outputs));
    for (size_t o = 0; o < y.size(); ++o) {
        double sum = weights[inputs * y.size() + o];
        for (size_t i = 0; i < inputs; ++i) sum += weights[inputs * o + i] * x[i];
        y[o] = sum;
    }
    return y;
}

// Whether the network is asked about a row that is seen for the `age`th time; in float, as in Python, so that both call
// the same rows too old.
bool asks(const LearnedRule& rule, float age) {
    return rule.handover > 0 && 1.0f / (std::max(age - 1.0f, 0.0f) / rule.handover + 1.0f) >= rule.min_share;
}

// Adds the tasks' sums in their order, into the first one's.
void add_up(double* sums, int64_t tasks, int64_t each) {
    for (int64_t task = 1; task < tasks; ++task)
        for (int64_t i = 0; i < each; ++i) sums[i] += sums[task * each + i];
}

}  // namespace

LearnedPasses::LearnedPasses(const NetworkShape& shape, const float* packed, int64_t floats)
    : packed_(packed, packed + floats) {
    unpack(shape);
}

void LearnedPasses::unpack(const NetworkShape& shape) {
    const int width = shape.width;
    Unpacking from(packed_.data(), static_cast<int64_t>(packed_.size()));
    Network& net = network_;
    net.shape = shape;
    net.inputs = kRowFeatures + shape.latent;
    net.heads = shape.attends ? (shape.attention + 15) / 16 * 16 : 0;
    net.score_scale = static_cast<float>(1 / std::sqrt(static_cast<double>(shape.attention)));
    net.enter = from.layer(net.inputs, width);
    if (shape.scales) {
        net.scale = from.layer(net.inputs, std::max(1, width / 2));
        net.scale_out = from.take(net.scale.outputs + 1);
    }
    net.pool_in = from.take(int64_t{width} * (width + shape.scene + 1));
    net.pool_out = from.take(int64_t{width} * (width + 1));
    for (int i = 0; i < shape.blocks; ++i) {
        NetworkBlock block;
        if (shape.attends) {
            block.attention_norm = from.norm(width);
            block.query_key_value = from.layer(width, 3 * net.heads);
            block.mixed = from.layer(shape.attention, width);
        }
        block.norm = from.norm(width);
        block.widen = from.layer(width, 2 * width);
        block.narrow = from.layer(2 * width, width);
        blocks_.push_back(block);
    }
    net.blocks = blocks_.data();
    net.gate = from.layer(width, shape.latent);
    net.fresh = from.layer(width, shape.latent);
    net.norm = from.norm(width);
    net.head = from.layer(width, width);
    net.sizes = from.layer(width, kSizes + kDirections);
    if (from.left() != 0) throw std::invalid_argument("the packed network is too long for its shape");
}

void LearnedPasses::lay_out(LearnedRun& run, int64_t total, const uint8_t* seen, int threads) {
    ensure(place_, static_cast<size_t>(total));
    ensure(rows_, static_cast<size_t>(total + kGroup));
    ensure(aged_, static_cast<size_t>(total + kGroup));
    int64_t count = 0, aged = 0;
    for (int64_t row = 0; row < total; ++row) {
        const bool asked = seen[row] && asks(run.rule, run.age[row] + 1);
        place_[row] = asked ? static_cast<int32_t>(count) : -1;
        rows_[count] = aged_[aged] = static_cast<int32_t>(row);
        count += asked ? 1 : 0;
        aged += seen[row] && !asked ? 1 : 0;
    }
    const int64_t groups = tasks_of(count, kGroup);
    const auto room = [&](Buffer<float>& buffer, int64_t floats) {
        ensure(buffer, static_cast<size_t>(groups * floats));
        return buffer.data();
    };
    const auto pad = [](Buffer<int32_t>& rows, int64_t used) {
        if (used > 0) std::fill(rows.begin() + used, rows.begin() + tasks_of(used, kGroup) * kGroup, rows[used - 1]);
    };
    pad(rows_, count);
    pad(aged_, aged);
    const int64_t heads = int64_t{kGroup} * network_.heads;
    run.network = &network_;
    run.rows = rows_.data();
    run.place = place_.data();
    run.count = count;
    run.aged = aged_.data();
    run.aged_count = aged;
    run.inputs = room(inputs_, input_floats(network_));
    run.adam = room(adam_, kGroup * kOwn);
    run.state = room(state_, state_floats(network_));
    run.scale = room(scale_, kGroup);
    run.query = room(query_, heads);
    run.keys_values = room(keys_values_, 2 * heads);
    run.next_keys_values = room(next_keys_values_, network_.shape.blocks > 1 ? 2 * heads : 0);
    scratch_.resize(static_cast<size_t>(threads));
    for (Buffer<float>& scratch : scratch_)
        ensure(scratch, static_cast<size_t>(scratch_floats(network_, run.neighbours)));
}

void LearnedPasses::relate(LearnedRun& run, const double* sums) const {
    const double rows = static_cast<double>(run.count);
    for (int i = 0; i < kTensors; ++i) run.mean_size[i] = static_cast<float>(sums[kSizeSums + i] / rows);
    run.mean_log_scale = static_cast<float>(sums[kLogScaleSum] / (3 * rows));
    double squared = 0;
    for (int c = 0; c < 3; ++c) {
        const double middle = sums[kPositionSums + c] / rows;
        run.middle[c] = static_cast<float>(middle);
        squared += middle * middle;
    }
    // In double: the difference is of the size of a float's rounding only where the scene itself is.
    const double typical = sums[kSquareSum] / rows - squared;
    run.typical = static_cast<float>(typical < kMinSquare ? kMinSquare : typical);
}

void LearnedPasses::pool_scene(const double* states, const double* powers, const float* scene, int64_t count) {
    const int width = network_.shape.width;
    std::vector<double> inputs(static_cast<size_t>(width + network_.shape.scene));
    for (int c = 0; c < width; ++c) inputs[c] = states[c] / static_cast<double>(count);
    for (int i = 0; i < kPowers; ++i) inputs[width + i] = powers[i] / static_cast<double>(count);
    for (int i = kPowers; i < network_.shape.scene; ++i) inputs[width + i] = scene[i - kPowers];
    std::vector<double> hidden = linear(network_.pool_in, inputs, width);
    for (double& entry : hidden) entry = entry < 0 ? 0 : entry;
    const std::vector<double> pooled = linear(network_.pool_out, hidden, width);
    ensure(pooled_, static_cast<size_t>(width));
    std::transform(pooled.begin(), pooled.end(), pooled_.begin(),
                   [](double entry) { return static_cast<float>(entry); });
}

void LearnedPasses::step(Workers& workers, LearnedRun run, int64_t total, const uint8_t* seen, const float* scene) {
    lay_out(run, total, seen, workers.pool.threads());
    const Kernels& kernels = workers.kernels;
    const int64_t aged_groups = tasks_of(run.aged_count, kGroup);
    workers.pool.run(tasks_of(aged_groups, kGroupsATask), [&](int64_t task, int) {
        const int64_t begin = task * kGroupsATask;
        kernels.learned_aged(run, begin, std::min(begin + kGroupsATask, aged_groups));
    });
    if (run.count == 0) return;
    const int64_t groups = tasks_of(run.count, kGroup), tasks = tasks_of(groups, kGroupsATask);
    const int64_t width = network_.shape.width;
    const auto sweep = [&](const auto& work) {
        workers.pool.run(tasks, [&](int64_t task, int thread) {
            const int64_t begin = task * kGroupsATask;
            work(task, begin, std::min(begin + kGroupsATask, groups), scratch_[thread].data());
        });
    };
    ensure(sums_, static_cast<size_t>(tasks * (kRowSums + width)));
    double *sums = sums_.data(), *states = sums + tasks * kRowSums;
    std::fill(sums, states, 0.0);
    sweep([&](int64_t task, int64_t begin, int64_t end, float*) {
        kernels.learned_observe(run, begin, end, sums + task * kRowSums);
    });
    add_up(sums, tasks, kRowSums);
    relate(run, sums);
    sweep([&](int64_t task, int64_t begin, int64_t end, float* scratch) {
        kernels.learned_enter(run, begin, end, scratch, states + task * width);
    });
    add_up(states, tasks, width);
    pool_scene(states, sums + kPowerSums, scene, run.count);
    run.pooled = pooled_.data();
    sweep([&](int64_t, int64_t begin, int64_t end, float* scratch) {
        kernels.learned_queries(run, begin, end, scratch);
    });
    for (int block = 0; block < network_.shape.blocks; ++block) {
        sweep([&](int64_t, int64_t begin, int64_t end, float* scratch) {
            kernels.learned_block(run, block, begin, end, scratch);
        });
        std::swap(run.keys_values, run.next_keys_values);
    }
}

}  // namespace splatopt
