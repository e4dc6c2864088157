// The learned step for Python: checks shapes, releases the interpreter lock, calls the passes.

#include <nanobind/stl/array.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "bindings.h"
#include "learned_passes.h"
#include "neighbours.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace splatopt {

namespace {

// What one step reads and writes besides the moments' weights; the caller keeps it alive.
struct LearnedMemory {
    HeldTensors exp_avg, exp_avg_sq, slow;
    float *latent, *age;
    int width;
};

// How age tells on a row's step: patience, fall, handover, smallest share.
using Ageing = std::array<double, 4>;

LearnedRule make_rule(const std::array<double, kTensors>& rates, const Ageing& ageing, double beta1, double beta2,
                      double beta_slow, double epsilon) {
    const auto& [patience, fall, handover, min_share] = ageing;
    require(patience > 0, "patience must be positive");
    LearnedRule rule{.decay1 = static_cast<float>(1 - beta1), .beta2 = static_cast<float>(beta2),
                     .decay2 = static_cast<float>(1 - beta2),
                     .decay_slow = static_cast<float>(1 - beta_slow), .epsilon = static_cast<float>(epsilon),
                     .log_beta1 = static_cast<float>(std::log(beta1)),
                     .log_beta2 = static_cast<float>(std::log(beta2)),
                     .log_beta_slow = static_cast<float>(std::log(beta_slow)), .rates = {},
                     .patience = patience, .fall = fall, .handover = static_cast<float>(handover),
                     .min_share = static_cast<float>(min_share)};
    for (size_t i = 0; i < rates.size(); ++i) rule.rates[i] = static_cast<float>(rates[i]);
    return rule;
}

void learned_step(Workers& self, LearnedPasses& passes, const HeldTensors& values, const HeldTensors& gradient,
                  const LearnedMemory& memory, const Bools1& seen, const Integers2& near,
                  const std::vector<float>& scene, const std::array<double, kTensors>& rates, const Ageing& ageing,
                  double beta1, double beta2, double beta_slow, double epsilon) {
    const int64_t count = values.count;
    for (const HeldTensors* other : {&gradient, &memory.exp_avg, &memory.exp_avg_sq})
        require(other->count == count && other->rest == values.rest,
                "values, gradient and moments must have one number of rows and of coefficients");
    require(memory.slow.count == count && static_cast<int64_t>(seen.shape(0)) == count &&
                static_cast<int64_t>(near.shape(0)) == count && near.shape(1) <= 64 &&
                count < (int64_t{1} << 31) - kGroup,
            "the slow moments, seen and near must have the values' rows");
    require(memory.width == passes.shape().latent, "the latent state must have the network's width");
    require(static_cast<int>(scene.size()) == passes.shape().scene - kPowers,
            "the scene's inputs must be those of the network but for the mean squares");
    nb::gil_scoped_release release;
    const int neighbours = static_cast<int>(near.shape(1));
    uint64_t max_row = 0;
    for (int64_t i = 0; i < count * neighbours; ++i) max_row = std::max(max_row, static_cast<uint64_t>(near.data()[i]));
    require(count * neighbours == 0 || max_row < static_cast<uint64_t>(count), "near must name rows");
    LearnedRun run{};
    run.rule = make_rule(rates, ageing, beta1, beta2, beta_slow, epsilon);
    run.values = values.tensors;
    run.gradient = gradient.tensors;
    run.exp_avg = memory.exp_avg.tensors;
    run.exp_avg_sq = memory.exp_avg_sq.tensors;
    run.slow = memory.slow.tensors;
    run.latent = memory.latent;
    run.age = memory.age;
    run.near = near.data();
    run.neighbours = neighbours;
    run.rest = values.rest;
    passes.step(self, run, count, reinterpret_cast<const uint8_t*>(seen.data()), scene.data());
}

void find_nearest_others(Workers& self, const Floats2& points, const OutIntegers2& rows) {
    const int64_t count = static_cast<int64_t>(points.shape(0)), nearest = static_cast<int64_t>(rows.shape(1));
    require(points.shape(1) == 3 && static_cast<int64_t>(rows.shape(0)) == count && nearest >= 1 && nearest < count &&
                count < (int64_t{1} << 31),
            "points must be (N, 3) and rows (N, k) with 1 <= k < N < 2^31");
    nb::gil_scoped_release release;
    nearest_others(self.pool, self.kernels, points.data(), count, static_cast<int>(nearest), rows.data());
}

}  // namespace

void bind_learned(nb::module_& m, nb::class_<Workers>& workers) {
    nb::class_<LearnedPasses>(m, "LearnedPasses", "A learned step's network, packed, and the buffers of its passes.")
        .def("__init__",
             [](LearnedPasses* self, const Floats1& packed, int width, int blocks, int latent, int attention, int scene,
                bool attends, bool scales) {
                 require(width >= 1 && width <= 1024 && blocks >= 1 && blocks <= 16 && latent >= 1 && latent <= 1024 &&
                             attention >= 1 && attention <= 256 && scene >= kPowers && scene <= 1024,
                         "the network's shape must lie within the bounds of NetworkOptions");
                 new (self) LearnedPasses({width, blocks, latent, attention, scene, attends, scales}, packed.data(),
                                          static_cast<int64_t>(packed.shape(0)));
             },
             "packed"_a, nb::kw_only(), "width"_a, "blocks"_a, "latent"_a, "attention"_a, "scene"_a, "attends"_a,
             "scales"_a);

    nb::class_<LearnedMemory>(m, "LearnedMemory", "Pointers to what a learned run keeps, which the caller keeps alive.")
        .def("__init__",
             [](LearnedMemory* self, const HeldTensors& exp_avg, const HeldTensors& exp_avg_sq, const HeldTensors& slow,
                const OutFloats2& latent, const OutFloats1& age) {
                 require(static_cast<int64_t>(latent.shape(0)) == exp_avg.count &&
                             static_cast<int64_t>(age.shape(0)) == exp_avg.count,
                         "the latent state and ages must have the moments' rows");
                 new (self) LearnedMemory{exp_avg, exp_avg_sq, slow, latent.data(), age.data(),
                                          static_cast<int>(latent.shape(1))};
             },
             "exp_avg"_a, "exp_avg_sq"_a, "slow"_a, "latent"_a, "age"_a);

    workers.def("learned_step", &learned_step, "passes"_a, "values"_a, "gradient"_a, "memory"_a, "seen"_a, "near"_a,
                "scene"_a, nb::kw_only(), "rates"_a, "ageing"_a, "beta1"_a, "beta2"_a, "beta_slow"_a, "epsilon"_a,
                "One learned step in place: moments, latent state and values of the rows that were seen.");
    workers.def("nearest_others", &find_nearest_others, "points"_a, "rows"_a,
                "Fill rows (N, k) with those of the k nearest other points of each of (N, 3), nearest first, k < N.");
}

}  // namespace splatopt
