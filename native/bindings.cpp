// The only file that knows Python: checks shapes, releases the interpreter lock, calls the plain C++.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <array>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "pool.h"
#include "rasterizer.h"
#include "scratch.h"
#include "types.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using splatopt::Cloud;
using splatopt::ClippedRule;
using splatopt::CloudTensors;
using splatopt::Constants;
using splatopt::StepKind;
using splatopt::kStepTask;
using splatopt::Promise;
using splatopt::Rasterizer;
using splatopt::ResidualRule;
using splatopt::TrustBounds;
using splatopt::View;
using splatopt::Workers;

template <class T, class Shape>
using Array = nb::ndarray<T, Shape, nb::c_contig, nb::device::cpu>;
using Floats1 = Array<const float, nb::ndim<1>>;
using Floats2 = Array<const float, nb::ndim<2>>;
using Floats3 = Array<const float, nb::ndim<3>>;
using Bytes3 = Array<const uint8_t, nb::shape<-1, -1, 3>>;
using OutFloats1 = Array<float, nb::ndim<1>>;
using OutFloats2 = Array<float, nb::ndim<2>>;
using Floats4 = Array<const float, nb::ndim<4>>;
using OutFloats4 = Array<float, nb::ndim<4>>;
using OutFloats3 = Array<float, nb::ndim<3>>;
using OutBools = Array<bool, nb::ndim<1>>;

void require(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(what);
}

Constants make_constants(float near_plane, float low_pass, float max_alpha, float min_alpha, float min_transmittance,
                         float frustum_margin, float ssim_c1, float ssim_c2,
                         const std::array<float, splatopt::kWindow>& window) {
    Constants k{near_plane, low_pass, max_alpha, min_alpha, min_transmittance, frustum_margin, ssim_c1, ssim_c2, {}};
    std::copy(window.begin(), window.end(), k.window);
    return k;
}

View make_view(const std::array<double, 9>& rotation, const std::array<double, 3>& center,
               const std::array<double, 4>& intrinsics, int width, int height, const std::array<float, 3>& background,
               bool antialiased) {
    require(width >= 1 && height >= 1 && width <= 32768 && height <= 32768, "image sides must be 1 to 32768 pixels");
    View view{};
    std::copy(rotation.begin(), rotation.end(), view.rotation);
    std::copy(center.begin(), center.end(), view.center);
    view.fx = intrinsics[0];
    view.fy = intrinsics[1];
    view.cx = intrinsics[2];
    view.cy = intrinsics[3];
    view.width = width;
    view.height = height;
    view.tiles_x = (width + splatopt::kTile - 1) / splatopt::kTile;
    view.tiles_y = (height + splatopt::kTile - 1) / splatopt::kTile;
    view.stride = view.tiles_x * splatopt::kTile;
    view.antialiased = antialiased;
    std::copy(background.begin(), background.end(), view.background);
    return view;
}

Cloud make_cloud(const Floats2& means, const Floats2& log_scales, const Floats2& quats, const Floats1& logit_opacities,
                 const Floats2& sh_dc, const Floats3& sh_rest, int degree) {
    const size_t n = means.shape(0);
    require(means.shape(1) == 3 && log_scales.shape(0) == n && log_scales.shape(1) == 3 && quats.shape(0) == n &&
                quats.shape(1) == 4 && logit_opacities.shape(0) == n && sh_dc.shape(0) == n && sh_dc.shape(1) == 3 &&
                sh_rest.shape(0) == n && (sh_rest.shape(2) == 3 || sh_rest.size() == 0),
            "the Gaussians' tensors must have shapes (N, 3), (N, 3), (N, 4), (N,), (N, 3), (N, K, 3)");
    const int rest = static_cast<int>(sh_rest.shape(1));
    require(degree >= 0 && degree <= 3 && (degree + 1) * (degree + 1) - 1 <= rest,
            "the degree that is evaluated must not exceed the stored one");
    return {static_cast<int64_t>(n), means.data(), log_scales.data(), quats.data(), logit_opacities.data(),
            sh_dc.data(),            sh_rest.data(), rest,            degree};
}

std::tuple<double, double, double> rasterizer_loss(Rasterizer& self, const Bytes3& target, float ssim_weight) {
    require(static_cast<int>(target.shape(0)) == self.height() && static_cast<int>(target.shape(1)) == self.width(),
            "the photograph must have the rendered image's size");
    nb::gil_scoped_release release;
    const splatopt::LossSums sums = self.loss(target.data(), ssim_weight);
    const double n = 3.0 * self.height() * self.width();
    const double loss = (1.0 - ssim_weight) * sums.absolute / n + ssim_weight * (1.0 - sums.ssim / n);
    return {loss, sums.squared / n, sums.ssim / n};
}

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

// Six tensors of one cloud, which the caller keeps alive.
struct HeldTensors {
    CloudTensors tensors;
    int64_t count;
    int rest;
};

HeldTensors hold_tensors(const OutFloats2& means, const OutFloats2& log_scales, const OutFloats2& quats,
                         const OutFloats1& logit_opacities, const OutFloats2& sh_dc, const OutFloats3& sh_rest) {
    const Cloud shape = make_cloud(Floats2(means), Floats2(log_scales), Floats2(quats), Floats1(logit_opacities),
                                   Floats2(sh_dc), Floats3(sh_rest), 0);
    return {{means.data(), log_scales.data(), quats.data(), logit_opacities.data(), sh_dc.data(), sh_rest.data()},
            shape.count,
            shape.rest};
}

// Calls work(begin, end, scratch) for every task of rows, each once.
template <class Work>
void for_row_tasks(Workers& self, int64_t count, int rest, const Work& work) {
    std::vector<std::vector<float>> scratch(self.pool.threads());
    self.pool.run((count + kStepTask - 1) / kStepTask, [&](int64_t task, int thread) {
        scratch[thread].resize(splatopt::step_scratch_floats(rest));
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

std::array<double, 6> clipped_step(Workers& self, const TrustBounds& bounds, const ClippedRule& rule,
                                   const HeldTensors& values, const HeldTensors& gradient, const HeldTensors& first,
                                   const HeldTensors& second) {
    for (const HeldTensors* other : {&gradient, &first, &second})
        require(other->count == values.count && other->rest == values.rest,
                "values, gradient and states must have one number of rows and of coefficients");
    nb::gil_scoped_release release;
    std::vector<std::array<Promise, 6>> promised((values.count + kStepTask - 1) / kStepTask);
    for_row_tasks(self, values.count, values.rest, [&](int64_t begin, int64_t end, float* scratch) {
        self.kernels.clipped_step(bounds, rule, values.tensors, gradient.tensors, first.tensors, second.tensors,
                                  values.rest, begin, end, scratch, promised[begin / kStepTask].data());
    });
    std::array<double, 6> means{};
    for (size_t i = 0; i < means.size(); ++i) {
        Promise total;
        for (const std::array<Promise, 6>& task : promised) {
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
                       const std::array<double, 6>& rates, double beta1, double beta2, double epsilon, int64_t step) {
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

std::array<double, 6> curvature_step(Workers& self, const TrustBounds& bounds, const HeldTensors& values,
                                     const HeldTensors& gradient, const HeldTensors& momentum,
                                     const HeldTensors& curvature, double decay, double factor,
                                     const std::array<double, 6>& damping) {
    ClippedRule rule{};
    rule.kind = StepKind::curvature;
    rule.decay1 = static_cast<float>(1.0 - decay);
    rule.factor = static_cast<float>(factor);
    for (size_t i = 0; i < damping.size(); ++i) rule.damping[i] = static_cast<float>(damping[i]);
    return clipped_step(self, bounds, rule, values, gradient, momentum, curvature);
}

using Bools1 = Array<const bool, nb::ndim<1>>;

double block_step(Workers& self, const TrustBounds& bounds, const HeldTensors& values, const HeldTensors& gradient,
                const HeldTensors& momentum, const OutFloats3& blocks, const OutFloats3& rest_curvature,
                const std::optional<Bools1>& seen, const OutFloats1& multipliers, double decay, double correction,
                double scale, double damping, int factorisations, bool measure_only) {
    const int64_t count = values.count;
    for (const HeldTensors* other : {&gradient, &momentum})
        require(other->count == count && other->rest == values.rest,
                "values, gradient and momentum must have one number of rows and of coefficients");
    require(static_cast<int64_t>(blocks.shape(0)) == (count + 15) / 16 && blocks.shape(1) == 105 &&
                blocks.shape(2) == 16 && static_cast<int64_t>(multipliers.shape(0)) == count &&
                static_cast<int64_t>(rest_curvature.size()) == 3 * count * values.rest &&
                (!seen || static_cast<int64_t>(seen->shape(0)) == count),
            "blocks must be (ceil(N/16), 105, 16), the curvature of sh_rest in its shape, seen and multipliers (N,)");
    require(factorisations >= 1 && factorisations <= 64, "factorisations must be 1 to 64");
    const splatopt::BlockRule rule{static_cast<float>(1.0 - decay), static_cast<float>(correction),
                                   static_cast<float>(scale), static_cast<float>(damping), factorisations, measure_only};
    const uint8_t* mask = seen ? reinterpret_cast<const uint8_t*>(seen->data()) : nullptr;
    nb::gil_scoped_release release;
    return sum_of_row_tasks(self, count, values.rest, [&](int64_t begin, int64_t end, float* scratch) {
        return self.kernels.block_step(bounds, rule, values.tensors, gradient.tensors, momentum.tensors, blocks.data(),
                                       rest_curvature.data(), mask, multipliers.data(), values.rest, begin, end,
                                       scratch);
    });
}

void fold_blocks(Workers& self, const OutFloats3& blocks, const Floats2& fresh, const Floats1& weights) {
    const int64_t count = static_cast<int64_t>(fresh.shape(0));
    require(static_cast<int64_t>(blocks.shape(0)) == (count + 15) / 16 && blocks.shape(1) == 105 &&
                blocks.shape(2) == 16 && fresh.shape(1) == 105 && static_cast<int64_t>(weights.shape(0)) == count,
            "blocks must be (ceil(N/16), 105, 16), fresh ones (N, 105), weights (N,)");
    nb::gil_scoped_release release;
    for_row_tasks(self, count, 0, [&](int64_t begin, int64_t end, float*) {
        self.kernels.fold_blocks(blocks.data(), fresh.data(), weights.data(), begin, end);
    });
}

double block_form(Workers& self, const Floats2& blocks, const HeldTensors& step) {
    require(static_cast<int64_t>(blocks.shape(0)) == step.count && blocks.shape(1) == 105, "blocks must be (N, 105)");
    nb::gil_scoped_release release;
    return sum_of_row_tasks(self, step.count, 0, [&](int64_t begin, int64_t end, float*) {
        return self.kernels.block_form(blocks.data(), step.tensors, begin, end);
    });
}

void require_photograph(const Rasterizer& self, const Bytes3& target) {
    require(static_cast<int>(target.shape(0)) == self.height() && static_cast<int>(target.shape(1)) == self.width(),
            "the photograph must have the rendered image's size");
}

template <class Residuals>
void require_residuals(const Rasterizer& self, const ResidualRule& rule, const Residuals& residuals) {
    require(residuals.shape(0) == (rule.squared ? 1u : 2u) && static_cast<int>(residuals.shape(1)) == self.height() &&
                static_cast<int>(residuals.shape(2)) == self.width() && residuals.shape(3) == 3,
            "residuals must be (2, H, W, 3), or (1, H, W, 3) for squared errors");
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Native kernels of splatopt: rendering, its derivatives, the photometric loss and fused optimizer steps.";

    nb::class_<Constants>(m, "Constants", "The rendering rule's numbers.")
        .def("__init__",
             [](Constants* self, float near_plane, float low_pass, float max_alpha, float min_alpha,
                float min_transmittance, float frustum_margin, float ssim_c1, float ssim_c2,
                const std::array<float, splatopt::kWindow>& window) {
                 new (self) Constants(make_constants(near_plane, low_pass, max_alpha, min_alpha, min_transmittance,
                                                     frustum_margin, ssim_c1, ssim_c2, window));
             },
             nb::kw_only(), "near_plane"_a, "low_pass"_a, "max_alpha"_a, "min_alpha"_a, "min_transmittance"_a,
             "frustum_margin"_a, "ssim_c1"_a, "ssim_c2"_a, "window"_a);

    nb::class_<View>(m, "View", "A camera, the image's size and how it is drawn.")
        .def("__init__",
             [](View* self, const std::array<double, 9>& rotation, const std::array<double, 3>& center,
                const std::array<double, 4>& intrinsics, int width, int height, const std::array<float, 3>& background,
                bool antialiased) {
                 new (self) View(make_view(rotation, center, intrinsics, width, height, background, antialiased));
             },
             nb::kw_only(), "rotation"_a, "center"_a, "intrinsics"_a, "width"_a, "height"_a, "background"_a,
             "antialiased"_a);

    nb::class_<Cloud>(m, "Cloud", "Pointers to the Gaussians' six tensors, which the caller keeps alive.")
        .def("__init__",
             [](Cloud* self, const Floats2& means, const Floats2& log_scales, const Floats2& quats,
                const Floats1& logit_opacities, const Floats2& sh_dc, const Floats3& sh_rest, int degree) {
                 new (self) Cloud(make_cloud(means, log_scales, quats, logit_opacities, sh_dc, sh_rest, degree));
             },
             "means"_a, "log_scales"_a, "quats"_a, "logit_opacities"_a, "sh_dc"_a, "sh_rest"_a, "degree"_a);

    nb::class_<ResidualRule>(m, "ResidualRule", "How images become residuals.")
        .def("__init__",
             [](ResidualRule* self, bool squared, float scale, float absolute_slope, float dissimilarity_slope,
                float floor_absolute, float floor_dissimilarity) {
                 new (self) ResidualRule{squared,        scale, absolute_slope, dissimilarity_slope,
                                         floor_absolute, floor_dissimilarity};
             },
             nb::kw_only(), "squared"_a, "scale"_a, "absolute_slope"_a, "dissimilarity_slope"_a, "floor_absolute"_a,
             "floor_dissimilarity"_a);

    nb::class_<HeldTensors>(m, "CloudTensors", "Pointers to six tensors in a cloud's shapes, which the caller keeps alive.")
        .def("__init__",
             [](HeldTensors* self, const OutFloats2& means, const OutFloats2& log_scales, const OutFloats2& quats,
                const OutFloats1& logit_opacities, const OutFloats2& sh_dc, const OutFloats3& sh_rest) {
                 new (self) HeldTensors(hold_tensors(means, log_scales, quats, logit_opacities, sh_dc, sh_rest));
             },
             "means"_a, "log_scales"_a, "quats"_a, "logit_opacities"_a, "sh_dc"_a, "sh_rest"_a);

    nb::class_<TrustBounds>(m, "TrustBounds", "The trust region of one step.")
        .def("__init__",
             [](TrustBounds* self, float epsilon, float opacity_floor, float most_relative_distance, float most_mean,
                float most_log_scale, float most_quat, float most_logit, float most_color, float color_floor,
                float higher_bands, bool conditional_variance) {
                 new (self) TrustBounds{epsilon,        opacity_floor, most_relative_distance, most_mean,
                                        most_log_scale, most_quat,     most_logit,             most_color,
                                        color_floor,    higher_bands,  conditional_variance};
             },
             nb::kw_only(), "epsilon"_a, "opacity_floor"_a, "most_relative_distance"_a, "most_mean"_a,
             "most_log_scale"_a, "most_quat"_a, "most_logit"_a, "most_color"_a, "color_floor"_a, "higher_bands"_a,
             "conditional_variance"_a);

    nb::class_<Workers>(m, "Workers", "Threads and the kernels that fit this processor.")
        .def("__init__",
             [](Workers* self, int threads, const std::string& isa) {
                 require(threads >= 1 && threads <= 1024, "threads must be 1 to 1024");
                 new (self) Workers(threads, isa);
             },
             "threads"_a, "isa"_a = "auto")
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
             "rest_curvature"_a, "seen"_a.none(), "multipliers"_a, nb::kw_only(), "decay"_a, "correction"_a, "scale"_a,
             "damping"_a, "factorisations"_a, "measure_only"_a = false,
             "Trust-region steps with 14x14 blocks, in place; multipliers are read and updated. Returns the sum of "
             "|h| over the rows that were seen; with measure_only that is all it does.")
        .def("fold_blocks", &fold_blocks, "blocks"_a, "fresh"_a, "weights"_a,
             "Move kept blocks (M, 105, 16) towards fresh ones (N, 105) by each row's weight.")
        .def("block_form", &block_form, "blocks"_a, "step"_a, "The sum of d'Bd over all rows, blocks (N, 105).")
        .def(
            "blend_ceiling",
            [](Workers& self, int64_t rounds) {
                // Splats about the block's middle, all of them wide, dim and in the first-level cache.
                constexpr int kCount = 512;
                std::array<float, kCount * splatopt::kLocal> splats{};
                for (int i = 0; i < kCount; ++i) {
                    const float row[9] = {static_cast<float>(i % 7), static_cast<float>(i % 5), 0.3f, 0.1f, 0.3f,
                                          -6.0f,                     0.5f,                      0.4f, 0.3f};
                    std::copy(row, row + 9, splats.begin() + i * splatopt::kLocal);
                }
                nb::gil_scoped_release release;
                const int threads = self.pool.threads();
                const auto begin = std::chrono::steady_clock::now();
                self.pool.run(threads, [&](int64_t, int) {
                    volatile float sink = self.kernels.blend_ceiling(splats.data(), kCount, rounds);
                    (void)sink;
                });
                const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
                return 16.0 * kCount * threads * static_cast<double>(rounds) / seconds.count();
            },
            "rounds"_a, "Pixel-Gaussian pairs a second that all threads together blend in a bare loop: the renderer's ceiling.")
        .def_prop_ro("threads", [](const Workers& self) { return self.pool.threads(); })
        .def_prop_ro("isa", [](const Workers& self) { return std::string(self.kernels.name); });

    nb::class_<Rasterizer>(m, "Rasterizer", "One view's passes in order, with the buffers they share.")
        .def(nb::init<const Constants&, std::shared_ptr<Workers>>(), "constants"_a, "workers"_a)
        .def("forward", &Rasterizer::forward, "view"_a, "cloud"_a, "with_depth"_a = false,
             nb::call_guard<nb::gil_scoped_release>(), "Project, bin and blend.")
        .def("loss", &rasterizer_loss, "target"_a, "ssim_weight"_a,
             "Loss, mean squared error and mean SSIM against (H, W, 3) bytes; keeps dL/dimage for backward.")
        .def(
            "set_image_gradient",
            [](Rasterizer& self, const Floats3& gradient) {
                require(static_cast<int>(gradient.shape(0)) == self.height() &&
                            static_cast<int>(gradient.shape(1)) == self.width() && gradient.shape(2) == 3,
                        "the image's gradient must have the image's shape");
                self.set_image_gradient(gradient.data());
            },
            "gradient"_a, "Take dL/dimage (H, W, 3) from outside.")
        .def(
            "backward",
            [](Rasterizer& self, const Cloud& cloud, double weight, const OutFloats2& means,
               const OutFloats2& log_scales, const OutFloats2& quats, const OutFloats1& logit_opacities,
               const OutFloats2& sh_dc, const OutFloats3& sh_rest, const OutBools& seen, bool overwrite) {
                const size_t n = static_cast<size_t>(cloud.count);
                require(means.size() == 3 * n && log_scales.size() == 3 * n && quats.size() == 4 * n &&
                            logit_opacities.size() == n && sh_dc.size() == 3 * n &&
                            sh_rest.size() == 3 * n * cloud.rest && seen.size() == n,
                        "gradients must have their parameters' shapes");
                const CloudTensors out{means.data(),           log_scales.data(), quats.data(),
                                        logit_opacities.data(), sh_dc.data(),      sh_rest.data()};
                nb::gil_scoped_release release;
                self.backward(cloud, static_cast<float>(weight), overwrite, out,
                              reinterpret_cast<uint8_t*>(seen.data()));
            },
            "cloud"_a, "weight"_a, "means"_a, "log_scales"_a, "quats"_a, "logit_opacities"_a, "sh_dc"_a, "sh_rest"_a,
            "seen"_a, "overwrite"_a = false, "Add weight · dL/dθ to the six gradients and mark what was drawn.")
        .def(
            "residuals",
            [](Rasterizer& self, const Bytes3& target, const ResidualRule& rule, const OutFloats4& out) {
                require_photograph(self, target);
                require_residuals(self, rule, out);
                nb::gil_scoped_release release;
                self.residuals(target.data(), rule, out.data());
            },
            "target"_a, "rule"_a, "out"_a, "Residuals of the last view.")
        .def(
            "jvp",
            [](Rasterizer& self, const Cloud& cloud, const Cloud& tangent, const Bytes3& target,
               const ResidualRule& rule, const OutFloats4& out) {
                require_photograph(self, target);
                require_residuals(self, rule, out);
                require(tangent.count == cloud.count && tangent.rest == cloud.rest, "a tangent has its cloud's shapes");
                nb::gil_scoped_release release;
                self.jvp(cloud, tangent, target.data(), rule, out.data());
            },
            "cloud"_a, "tangent"_a, "target"_a, "rule"_a, "out"_a, "J · tangent for the last view.")
        .def(
            "set_cotangent",
            [](Rasterizer& self, const Bytes3& target, const ResidualRule& rule, const Floats4& cotangent) {
                require_photograph(self, target);
                require_residuals(self, rule, cotangent);
                nb::gil_scoped_release release;
                self.set_cotangent(target.data(), rule, cotangent.data());
            },
            "target"_a, "rule"_a, "cotangent"_a, "Keep J_imageᵀ · cotangent for backward.")
        .def(
            "diagonal",
            [](Rasterizer& self, const Cloud& cloud, const Bytes3& target, const ResidualRule& rule, double weight,
               const OutFloats2& means, const OutFloats2& log_scales, const OutFloats2& quats,
               const OutFloats1& logit_opacities, const OutFloats2& sh_dc, const OutFloats3& sh_rest,
               bool overwrite) {
                require_photograph(self, target);
                const size_t n = static_cast<size_t>(cloud.count);
                require(means.size() == 3 * n && log_scales.size() == 3 * n && quats.size() == 4 * n &&
                            logit_opacities.size() == n && sh_dc.size() == 3 * n &&
                            sh_rest.size() == 3 * n * cloud.rest,
                        "diagonals must have their parameters' shapes");
                const CloudTensors out{means.data(),           log_scales.data(), quats.data(),
                                        logit_opacities.data(), sh_dc.data(),      sh_rest.data()};
                nb::gil_scoped_release release;
                self.diagonal(cloud, target.data(), rule, static_cast<float>(weight), overwrite, out);
            },
            "cloud"_a, "target"_a, "rule"_a, "weight"_a, "means"_a, "log_scales"_a, "quats"_a, "logit_opacities"_a,
            "sh_dc"_a, "sh_rest"_a, "overwrite"_a = false, "Add weight · diag(JᵀJ) of the last view.")
        .def(
            "blocks",
            [](Rasterizer& self, const Cloud& cloud, const Bytes3& target, const ResidualRule& rule, double weight,
               const OutFloats2& blocks, const OutFloats3& sh_rest, bool overwrite) {
                require_photograph(self, target);
                require(static_cast<int64_t>(blocks.shape(0)) == cloud.count && blocks.shape(1) == 105 &&
                            static_cast<int64_t>(sh_rest.size()) == 3 * cloud.count * cloud.rest,
                        "blocks must be (N, 105) and the diagonal of sh_rest in its shape");
                nb::gil_scoped_release release;
                self.blocks(cloud, target.data(), rule, static_cast<float>(weight), overwrite, blocks.data(),
                            sh_rest.data());
            },
            "cloud"_a, "target"_a, "rule"_a, "weight"_a, "blocks"_a, "sh_rest"_a, "overwrite"_a = false,
            "Add weight · each Gaussian's block of JᵀJ of the last view, lower triangles row by row.")
        .def(
            "copy_image",
            [](const Rasterizer& self, const OutFloats3& out) {
                require(static_cast<int>(out.shape(0)) == self.height() &&
                            static_cast<int>(out.shape(1)) == self.width() && out.shape(2) == 3,
                        "the output must be (H, W, 3)");
                self.copy_image(out.data());
            },
            "out"_a)
        .def(
            "copy_depth",
            [](const Rasterizer& self, const OutFloats2& alpha, const OutFloats2& depth) {
                require(static_cast<int>(alpha.shape(0)) == self.height() &&
                            static_cast<int>(alpha.shape(1)) == self.width() && depth.shape(0) == alpha.shape(0) &&
                            depth.shape(1) == alpha.shape(1),
                        "the outputs must be (H, W)");
                self.copy_depth(alpha.data(), depth.data());
            },
            "alpha"_a, "depth"_a)
        .def(
            "copy_visible",
            [](const Rasterizer& self, const OutBools& out) {
                require(static_cast<int64_t>(out.size()) == self.count(), "the output must be (N,)");
                self.copy_visible(reinterpret_cast<uint8_t*>(out.data()));
            },
            "out"_a)
        .def("relevant_pairs", &Rasterizer::relevant_pairs, nb::call_guard<nb::gil_scoped_release>())
        .def("blended_pairs", &Rasterizer::blended_pairs, nb::call_guard<nb::gil_scoped_release>())
        .def_prop_ro("timings",
                     [](const Rasterizer& self) {
                         const splatopt::Timings& t = self.timings();
                         nb::dict out;
                         out["project"] = t.project;
                         out["sort"] = t.sort;
                         out["bin"] = t.bin;
                         out["blend"] = t.blend;
                         out["loss"] = t.loss;
                         out["blend_backward"] = t.blend_backward;
                         out["project_backward"] = t.project_backward;
                         out["jvp"] = t.jvp;
                         out["curvature"] = t.curvature;
                         return out;
                     },
                     "Seconds that the passes of the last view took.")
        .def("block_pairs", &Rasterizer::block_pairs)
        .def_prop_ro("visible_count", &Rasterizer::visible_count)
        .def_prop_ro("entry_count", &Rasterizer::entry_count)
        .def_prop_ro("memory_bytes", &Rasterizer::memory_bytes);

    m.def(
        "supported_isas",
        [] {
            nb::list names;
            for (const char* name : {"avx512", "avx2", "portable"}) {
                try {
                    splatopt::select_kernels(name);
                    names.append(name);
                } catch (const std::invalid_argument&) {
                }
            }
            return names;
        },
        "Instruction sets that this build and this processor share, fastest first.");
}
