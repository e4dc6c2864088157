// Fused optimizer steps for Python: checks shapes, releases the interpreter lock, calls the kernels.

#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <vector>

#include "bindings.h"
#include "pool.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace splatopt {

namespace {

void adam_step(Workers& self, const OutFloats1& parameter, const Floats1& gradient, const OutFloats1& exp_avg,
               const OutFloats1& exp_avg_sq, double rate, double beta1, double beta2, double epsilon, int64_t step) {
    const int64_t count = static_cast<int64_t>(parameter.shape(0));
    require(gradient.shape(0) == parameter.shape(0) && exp_avg.shape(0) == parameter.shape(0) &&
                exp_avg_sq.shape(0) == parameter.shape(0),
            "Adam's four tensors must have one size");
    require(step >= 1, "Adam counts steps from 1");
    nb::gil_scoped_release release;
    const double steps = static_cast<double>(step);
    const float step_size = static_cast<float>(rate / (1.0 - std::pow(beta1, steps)));
    const float correction2 = static_cast<float>(std::sqrt(1.0 - std::pow(beta2, steps)));
    const float decay1 = static_cast<float>(1.0 - beta1), decay2 = static_cast<float>(1.0 - beta2);
    constexpr int64_t kTask = 1 << 15;
    self.pool.run((count + kTask - 1) / kTask, [&](int64_t task, int) {
        const int64_t at = task * kTask;
        self.kernels.adam(parameter.data() + at, gradient.data() + at, exp_avg.data() + at, exp_avg_sq.data() + at,
                          std::min(kTask, count - at), step_size, decay1, static_cast<float>(beta2), decay2,
                          static_cast<float>(epsilon), correction2);
    });
}

// Calls work(begin, end, scratch) for every task of rows, each once.
template <class Work>
void for_row_tasks(Workers& self, int64_t count, int rest, const Work& work) {
    std::vector<std::vector<float>> scratch(self.pool.threads());
    self.pool.run((count + kStepTask - 1) / kStepTask, [&](int64_t task, int thread) {
        scratch[thread].resize(step_scratch_floats(rest));
        work(task * kStepTask, std::min(count, (task + 1) * kStepTask), scratch[thread].data());
    });
}

// The same, for work that gives a number; they are added in the order of the tasks.
template <class Work>
double sum_of_row_tasks(Workers& self, int64_t count, int rest, const Work& work) {
    std::vector<double> sums((count + kStepTask - 1) / kStepTask);
    for_row_tasks(self, count, rest, [&](int64_t begin, int64_t end, float* scratch) {
        sums[begin / kStepTask] = work(begin, end, scratch);
    });
    double total = 0;
    for (double sum : sums) total += sum;
    return total;
}

std::array<double, kTensors> clipped_step(Workers& self, const TrustBounds& bounds, const ClippedRule& rule,
                                   const HeldTensors& values, const HeldTensors& gradient, const HeldTensors& first,
                                   const HeldTensors& second) {
    for (const HeldTensors* other : {&gradient, &first, &second})
        require(other->count == values.count && other->rest == values.rest,
                "values, gradient and states must have one number of rows and of coefficients");
    nb::gil_scoped_release release;
    std::vector<std::array<PredictedReduction, kTensors>> predicted((values.count + kStepTask - 1) / kStepTask);
    for_row_tasks(self, values.count, values.rest, [&](int64_t begin, int64_t end, float* scratch) {
        self.kernels.clipped_step(bounds, rule, values.tensors, gradient.tensors, first.tensors, second.tensors,
                                  values.rest, begin, end, scratch, predicted[begin / kStepTask].data());
    });
    std::array<double, kTensors> means{};
    for (size_t i = 0; i < means.size(); ++i) {
        PredictedReduction total;
        for (const std::array<PredictedReduction, kTensors>& task : predicted) {
            total.sum += task[i].sum;
            total.count += task[i].count;
        }
        means[i] = total.count > 0 ? total.sum / total.count : 0;
    }
    return means;
}

void sign_step(Workers& self, const TrustBounds& bounds, const HeldTensors& values, const HeldTensors& gradient,
               const HeldTensors& momentum, double decay) {
    ClippedRule rule{};
    rule.kind = StepKind::sign;
    rule.decay1 = static_cast<float>(1.0 - decay);
    clipped_step(self, bounds, rule, values, gradient, momentum, momentum);
}

void adam_clipped_step(Workers& self, const TrustBounds& bounds, const HeldTensors& values,
                       const HeldTensors& gradient, const HeldTensors& exp_avg, const HeldTensors& exp_avg_sq,
                       const std::array<double, kTensors>& rates, double beta1, double beta2, double epsilon,
                       int64_t step) {
    require(step >= 1, "Adam counts steps from 1");
    const double steps = static_cast<double>(step);
    ClippedRule rule{};
    rule.kind = StepKind::adam;
    rule.decay1 = static_cast<float>(1.0 - beta1);
    rule.beta2 = static_cast<float>(beta2);
    rule.decay2 = static_cast<float>(1.0 - beta2);
    rule.epsilon = static_cast<float>(epsilon);
    rule.root = static_cast<float>(std::sqrt(1.0 - std::pow(beta2, steps)));
    for (size_t i = 0; i < rates.size(); ++i)
        rule.step_size[i] = static_cast<float>(rates[i] / (1.0 - std::pow(beta1, steps)));
    clipped_step(self, bounds, rule, values, gradient, exp_avg, exp_avg_sq);
}

std::array<double, kTensors> curvature_step(Workers& self, const TrustBounds& bounds, const HeldTensors& values,
                                     const HeldTensors& gradient, const HeldTensors& momentum,
                                     const HeldTensors& curvature, double decay, double factor,
                                     const std::array<double, kTensors>& damping) {
    ClippedRule rule{};
    rule.kind = StepKind::curvature;
    rule.decay1 = static_cast<float>(1.0 - decay);
    rule.factor = static_cast<float>(factor);
    for (size_t i = 0; i < damping.size(); ++i) rule.damping[i] = static_cast<float>(damping[i]);
    return clipped_step(self, bounds, rule, values, gradient, momentum, curvature);
}

double block_step(Workers& self, const TrustBounds& bounds, const HeldTensors& values, const HeldTensors& gradient,
                const HeldTensors& momentum, const OutFloats2& blocks, const std::optional<Bools1>& seen,
                const OutFloats1& multipliers, double decay, double correction, double scale, double damping,
                int factorisations, bool measure_only) {
    const int64_t count = values.count;
    for (const HeldTensors* other : {&gradient, &momentum})
        require(other->count == count && other->rest == values.rest,
                "values, gradient and momentum must have one number of rows and of coefficients");
    require(static_cast<int64_t>(blocks.shape(0)) == count && blocks.shape(1) == kBlockFloats &&
                static_cast<int64_t>(multipliers.shape(0)) == count &&
                (!seen || static_cast<int64_t>(seen->shape(0)) == count),
            "blocks must be (N, 105), seen and multipliers (N,)");
    require(factorisations >= 1 && factorisations <= 64, "factorisations must be 1 to 64");
    const BlockRule rule{.decay1 = static_cast<float>(1.0 - decay),
                         .correction = static_cast<float>(correction), .scale = static_cast<float>(scale),
                         .damping = static_cast<float>(damping), .factorisations = factorisations,
                         .measure_only = measure_only};
    const uint8_t* mask = seen ? reinterpret_cast<const uint8_t*>(seen->data()) : nullptr;
    nb::gil_scoped_release release;
    return sum_of_row_tasks(self, count, values.rest, [&](int64_t begin, int64_t end, float* scratch) {
        return self.kernels.block_step(bounds, rule, values.tensors, gradient.tensors, momentum.tensors, blocks.data(),
                                       mask, multipliers.data(), values.rest, begin, end, scratch);
    });
}

void fold_blocks(Workers& self, const OutFloats2& blocks, const Floats2& fresh, const Floats1& weights) {
    const int64_t count = static_cast<int64_t>(fresh.shape(0));
    require(static_cast<int64_t>(blocks.shape(0)) == count && blocks.shape(1) == kBlockFloats &&
                fresh.shape(1) == kBlockFloats &&
                static_cast<int64_t>(weights.shape(0)) == count,
            "blocks kept and fresh must be (N, 105), weights (N,)");
    nb::gil_scoped_release release;
    for_row_tasks(self, count, 0, [&](int64_t begin, int64_t end, float*) {
        self.kernels.fold_blocks(blocks.data(), fresh.data(), weights.data(), begin, end);
    });
}

double block_form(Workers& self, const Floats2& blocks, const HeldTensors& step) {
    require(static_cast<int64_t>(blocks.shape(0)) == step.count && blocks.shape(1) == kBlockFloats,
            "blocks must be (N, 105)");
    nb::gil_scoped_release release;
    return sum_of_row_tasks(self, step.count, 0, [&](int64_t begin, int64_t end, float*) {
        return self.kernels.block_form(blocks.data(), step.tensors, step.rest, begin, end);
    });
}

}  // namespace

void bind_steps(nb::module_& m, nb::class_<Workers>& workers) {
    nb::class_<TrustBounds>(m, "TrustBounds", "The trust region of one step.")
        .def("__init__",
             [](TrustBounds* self, float epsilon, float opacity_floor, float max_relative_distance, float max_mean,
                float max_log_scale, float max_quat, float max_logit, float max_color, float color_floor,
                float higher_bands, float place, float shape, float look, bool conditional_variance) {
                 new (self) TrustBounds{.epsilon = epsilon, .opacity_floor = opacity_floor,
                                        .max_relative_distance = max_relative_distance, .max_mean = max_mean,
                                        .max_log_scale = max_log_scale, .max_quat = max_quat,
                                        .max_logit = max_logit, .max_color = max_color,
                                        .color_floor = color_floor, .higher_bands = higher_bands,
                                        .place = place, .shape = shape, .look = look,
                                        .conditional_variance = conditional_variance};
             },
             nb::kw_only(), "epsilon"_a, "opacity_floor"_a, "max_relative_distance"_a, "max_mean"_a,
             "max_log_scale"_a, "max_quat"_a, "max_logit"_a, "max_color"_a, "color_floor"_a, "higher_bands"_a,
             "place"_a, "shape"_a, "look"_a, "conditional_variance"_a);

    workers
        .def("adam_step", &adam_step, "parameter"_a, "gradient"_a, "exp_avg"_a, "exp_avg_sq"_a, nb::kw_only(),
             "rate"_a, "beta1"_a, "beta2"_a, "epsilon"_a, "step"_a,
             "One Adam step in place on flat float32 tensors; step counts from 1.")
        .def("sign_step", &sign_step, "bounds"_a, "values"_a, "gradient"_a, "momentum"_a, nb::kw_only(), "decay"_a,
             "Momentum's sign times the trust radii, in place.")
        .def("adam_clipped_step", &adam_clipped_step, "bounds"_a, "values"_a, "gradient"_a, "exp_avg"_a,
             "exp_avg_sq"_a, nb::kw_only(), "rates"_a, "beta1"_a, "beta2"_a, "epsilon"_a, "step"_a,
             "One Adam step clipped to the trust radii, in place; step counts from 1.")
        .def("curvature_step", &curvature_step, "bounds"_a, "values"_a, "gradient"_a, "momentum"_a, "curvature"_a,
             nb::kw_only(), "decay"_a, "factor"_a, "damping"_a,
             "Momentum over damped curvature clipped to the trust radii, in place; the curvature is only read. "
             "Returns the mean of |momentum * radius| over each tensor's entries that are not 0.")
        .def("block_step", &block_step, "bounds"_a, "values"_a, "gradient"_a, "momentum"_a, "blocks"_a,
             "seen"_a.none(), "multipliers"_a, nb::kw_only(), "decay"_a, "correction"_a, "scale"_a, "damping"_a,
             "factorisations"_a, "measure_only"_a = false,
             "Trust-region steps with 14x14 blocks, in place; multipliers are read and updated. Returns the sum of "
             "|h| over the rows that were seen; with measure_only that is all it does.")
        .def("fold_blocks", &fold_blocks, "blocks"_a, "fresh"_a, "weights"_a,
             "Move kept blocks (N, 105) towards fresh ones by each row's weight.")
        .def("block_form", &block_form, "blocks"_a, "step"_a,
             "The sum of d'Bd over all rows, blocks (N, 105), and of what they bound sh_rest's by.");
}

}  // namespace splatopt
