// The renderer for Python: checks shapes, releases the interpreter lock, calls the plain C++.

#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "bindings.h"
#include "pool.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace splatopt {

namespace {

HeldTensors hold_tensors(const OutFloats2& means, const OutFloats2& log_scales, const OutFloats2& quats,
                         const OutFloats1& logit_opacities, const OutFloats2& sh_dc, const OutFloats3& sh_rest) {
    const size_t n = means.shape(0);
    require(means.shape(1) == 3 && log_scales.shape(0) == n && log_scales.shape(1) == 3 && quats.shape(0) == n &&
                quats.shape(1) == 4 && logit_opacities.shape(0) == n && sh_dc.shape(0) == n && sh_dc.shape(1) == 3 &&
                sh_rest.shape(0) == n && (sh_rest.shape(2) == 3 || sh_rest.shape(1) == 0 || n == 0),
            "the Gaussians' tensors must have shapes (N, 3), (N, 3), (N, 4), (N,), (N, 3), (N, K, 3)");
    return {{means.data(), log_scales.data(), quats.data(), logit_opacities.data(), sh_dc.data(), sh_rest.data()},
            static_cast<int64_t>(n),
            static_cast<int>(sh_rest.shape(1))};
}

Cloud make_cloud(const HeldTensors& held, int degree) {
    require(degree >= 0 && degree <= 3 && (degree + 1) * (degree + 1) - 1 <= held.rest,
            "the degree that is evaluated must not exceed the stored one");
    const CloudTensors& t = held.tensors;
    return {held.count, t.means, t.log_scales, t.quats, t.logit_opacities, t.sh_dc, t.sh_rest, held.rest, degree};
}

Constants make_constants(float near_plane, float low_pass, float max_alpha, float min_alpha, float min_transmittance,
                         float frustum_margin, float ssim_c1, float ssim_c2,
                         const std::array<float, kWindow>& window) {
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
    const auto& [fx, fy, cx, cy] = intrinsics;
    view.fx = fx;
    view.fy = fy;
    view.cx = cx;
    view.cy = cy;
    view.width = width;
    view.height = height;
    view.tiles_x = (width + kTile - 1) / kTile;
    view.tiles_y = (height + kTile - 1) / kTile;
    view.stride = view.tiles_x * kTile;
    view.antialiased = antialiased;
    std::copy(background.begin(), background.end(), view.background);
    return view;
}

Penalty penalty_named(const std::string& name) {
    for (size_t i = 0; i < std::size(kPenaltyNames); ++i)
        if (name == kPenaltyNames[i]) return static_cast<Penalty>(i);
    throw std::invalid_argument("no penalty is named " + name);
}

LossRule make_loss_rule(const std::string& penalty, float penalty_parameter, float ssim_weight, double count,
                        float pixel_scale, float pixel_half_scale, float ssim_half_scale, float floor_dissimilarity) {
    require(count >= 0, "a loss cannot count less than nothing");
    return {.penalty = penalty_named(penalty), .penalty_parameter = penalty_parameter,
            .ssim_weight = ssim_weight, .count = count, .pixel_scale = pixel_scale,
            .pixel_half_scale = pixel_half_scale, .ssim_half_scale = ssim_half_scale,
            .floor_dissimilarity = floor_dissimilarity};
}

// What a view is compared with, and its size.
struct HeldTarget {
    TargetImage target;
    int height, width;
};

HeldTarget hold_target(const Bytes3& bytes, const std::optional<Floats2>& weights) {
    require(!weights || (weights->shape(0) == bytes.shape(0) && weights->shape(1) == bytes.shape(1)),
            "weights must be (H, W), as the target image");
    return {{bytes.data(), weights ? weights->data() : nullptr},
            static_cast<int>(bytes.shape(0)),
            static_cast<int>(bytes.shape(1))};
}

template <class Tensors>
struct HeldRows {
    Tensors tensors;
    int64_t count;
};
using HeldObserved = HeldRows<ObservedTensors>;      // what a gradient pass adds statistics to
using HeldStatistics = HeldRows<StatisticsTensors>;  // what the pass of statistics adds to

HeldObserved hold_observed(const OutFloats1& views, const OutFloats1& gradient, const OutFloats1& max_radius,
                           const std::optional<OutFloats1>& absolute, const std::optional<OutFloats2>& splitting) {
    const size_t n = views.shape(0);
    require(gradient.shape(0) == n && max_radius.shape(0) == n && (!absolute || absolute->shape(0) == n) &&
                (!splitting || (splitting->shape(0) == n && splitting->shape(1) == 6)),
            "what is observed must be (N,), and the splitting matrices (N, 6)");
    float *const optional[2] = {absolute ? absolute->data() : nullptr, splitting ? splitting->data() : nullptr};
    return {{views.data(), gradient.data(), max_radius.data(), optional[0], optional[1]}, static_cast<int64_t>(n)};
}

HeldStatistics hold_statistics(const std::array<OutFloats1, 6>& sums, const std::optional<OutFloats3>& cross) {
    const size_t n = sums[0].shape(0);
    for (const OutFloats1& each : sums) require(each.shape(0) == n, "statistics must be (N,)");
    require(!cross || (cross->shape(0) == n && cross->shape(1) == 3 && cross->shape(2) == 3),
            "the cross terms must be (N, 3, 3)");
    return {{sums[0].data(), sums[1].data(), sums[2].data(), sums[3].data(), sums[4].data(), sums[5].data(),
             cross ? cross->data() : nullptr},
            static_cast<int64_t>(n)};
}

const TargetImage& fitting(const Rasterizer& self, const HeldTarget& held) {
    require(held.height == self.height() && held.width == self.width(),
            "the target image must have the rendered image's size");
    return held.target;
}

template <class Image>
void require_image(const Rasterizer& self, const Image& image) {
    require(static_cast<int>(image.shape(0)) == self.height() && static_cast<int>(image.shape(1)) == self.width() &&
                image.shape(2) == 3,
            "an image must be (H, W, 3), as what was rendered");
}

template <class Residuals>
void require_residuals(const Rasterizer& self, const LossRule& rule, const Residuals& residuals) {
    require(residuals.shape(0) == (rule.has_ssim() ? 2u : 1u) &&
                static_cast<int>(residuals.shape(1)) == self.height() &&
                static_cast<int>(residuals.shape(2)) == self.width() && residuals.shape(3) == 3,
            "residuals must be (2, H, W, 3), or (1, H, W, 3) for losses without SSIM");
}

void require_tangent(const Cloud& cloud, const Cloud& tangent) {
    require(tangent.count == cloud.count && tangent.rest == cloud.rest, "a tangent has its cloud's shapes");
}

void require_sums(const Cloud& cloud, const HeldTensors& into) {
    require(into.count == cloud.count && into.rest == cloud.rest, "sums must have their parameters' shapes");
}

std::tuple<double, double> loss(Rasterizer& self, const HeldTarget& target, const LossRule& rule) {
    const TargetImage& fitted = fitting(self, target);
    nb::gil_scoped_release release;
    const ViewLoss found = self.loss(fitted, rule);
    return {found.loss, found.squared_error};
}

void set_image_gradient(Rasterizer& self, const Floats3& gradient) {
    require_image(self, gradient);
    nb::gil_scoped_release release;
    self.set_image_gradient(gradient.data());
}

void backward(Rasterizer& self, const Cloud& cloud, double weight, const HeldTensors& into, const OutBools& seen,
              bool overwrite, const HeldObserved* observed) {
    require_sums(cloud, into);
    require(static_cast<int64_t>(seen.size()) == cloud.count, "seen must be (N,)");
    require(!observed || observed->count == cloud.count, "what is observed must have the Gaussians' rows");
    nb::gil_scoped_release release;
    self.backward(cloud, static_cast<float>(weight), overwrite, into.tensors, reinterpret_cast<uint8_t*>(seen.data()),
                  observed ? &observed->tensors : nullptr);
}

void statistics(Rasterizer& self, const Cloud& cloud, const HeldTarget& target, const Floats2& error, double weight,
                const HeldStatistics& into, bool overwrite) {
    const TargetImage& fitted = fitting(self, target);
    require(static_cast<int>(error.shape(0)) == self.height() && static_cast<int>(error.shape(1)) == self.width(),
            "the errors must be (H, W), as what was rendered");
    require(into.count == cloud.count, "statistics must have the Gaussians' rows");
    nb::gil_scoped_release release;
    self.statistics(cloud, error.data(), fitted.weights, static_cast<float>(weight), overwrite, into.tensors);
}

void residuals(Rasterizer& self, const HeldTarget& target, const LossRule& rule, const OutFloats4& out) {
    const TargetImage& fitted = fitting(self, target);
    require_residuals(self, rule, out);
    nb::gil_scoped_release release;
    self.residuals(fitted, rule, out.data());
}

void image_jvp(Rasterizer& self, const Cloud& cloud, const Cloud& tangent, const OutFloats3& out) {
    require_tangent(cloud, tangent);
    require_image(self, out);
    nb::gil_scoped_release release;
    self.image_jvp(cloud, tangent, out.data());
}

void jvp(Rasterizer& self, const Cloud& cloud, const Cloud& tangent, const HeldTarget& target,
         const LossRule& rule, const OutFloats4& out) {
    const TargetImage& fitted = fitting(self, target);
    require_residuals(self, rule, out);
    require_tangent(cloud, tangent);
    nb::gil_scoped_release release;
    self.jvp(cloud, tangent, fitted, rule, out.data());
}

void set_cotangent(Rasterizer& self, const HeldTarget& target, const LossRule& rule,
                   const Floats4& cotangent) {
    const TargetImage& fitted = fitting(self, target);
    require_residuals(self, rule, cotangent);
    nb::gil_scoped_release release;
    self.set_cotangent(fitted, rule, cotangent.data());
}

void set_pixel_curvature(Rasterizer& self, const HeldTarget& target, const LossRule& rule) {
    const TargetImage& fitted = fitting(self, target);
    nb::gil_scoped_release release;
    self.set_pixel_curvature(fitted, rule);
}

void diagonal(Rasterizer& self, const Cloud& cloud, double weight, const HeldTensors& into, bool overwrite) {
    require_sums(cloud, into);
    nb::gil_scoped_release release;
    self.diagonal(cloud, static_cast<float>(weight), overwrite, into.tensors);
}

void blocks(Rasterizer& self, const Cloud& cloud, double weight, const OutFloats2& blocks, const OutFloats3& sh_rest,
            bool overwrite) {
    require(static_cast<int64_t>(blocks.shape(0)) == cloud.count && blocks.shape(1) == kBlockFloats &&
                static_cast<int64_t>(sh_rest.size()) == 3 * cloud.count * cloud.rest,
            "blocks must be (N, 105) and the diagonal of sh_rest in its shape");
    nb::gil_scoped_release release;
    self.blocks(cloud, static_cast<float>(weight), overwrite, blocks.data(), sh_rest.data());
}

void copy_image(const Rasterizer& self, const OutFloats3& out) {
    require_image(self, out);
    nb::gil_scoped_release release;
    self.copy_image(out.data());
}

void copy_depth(const Rasterizer& self, const OutFloats2& alpha, const OutFloats2& depth) {
    require(static_cast<int>(alpha.shape(0)) == self.height() && static_cast<int>(alpha.shape(1)) == self.width() &&
                depth.shape(0) == alpha.shape(0) && depth.shape(1) == alpha.shape(1),
            "the outputs must be (H, W)");
    self.copy_depth(alpha.data(), depth.data());
}

void copy_visible(const Rasterizer& self, const OutBools& out) {
    require(static_cast<int64_t>(out.size()) == self.count(), "the output must be (N,)");
    self.copy_visible(reinterpret_cast<uint8_t*>(out.data()));
}

nb::dict timings(const Rasterizer& self) {
    const Timings& t = self.timings();
    nb::dict out;
    out["project"] = t.project;
    out["sort"] = t.sort;
    out["bin"] = t.bin;
    out["blend"] = t.blend;
    out["loss"] = t.loss;
    out["blend_backward"] = t.blend_backward;
    out["project_backward"] = t.project_backward;
    out["jvp"] = t.jvp;
    out["pixel_curvature"] = t.pixel_curvature;
    out["curvature"] = t.curvature;
    out["statistics"] = t.statistics;
    return out;
}

void bind_inputs(nb::module_& m) {
    nb::class_<Constants>(m, "Constants", "The rendering rule's numbers.")
        .def("__init__",
             [](Constants* self, float near_plane, float low_pass, float max_alpha, float min_alpha,
                float min_transmittance, float frustum_margin, float ssim_c1, float ssim_c2,
                const std::array<float, kWindow>& window) {
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

    nb::class_<HeldTensors>(m, "CloudTensors",
                            "Pointers to six tensors in a cloud's shapes, which the caller keeps alive.")
        .def("__init__",
             [](HeldTensors* self, const OutFloats2& means, const OutFloats2& log_scales, const OutFloats2& quats,
                const OutFloats1& logit_opacities, const OutFloats2& sh_dc, const OutFloats3& sh_rest) {
                 new (self) HeldTensors(hold_tensors(means, log_scales, quats, logit_opacities, sh_dc, sh_rest));
             },
             "means"_a, "log_scales"_a, "quats"_a, "logit_opacities"_a, "sh_dc"_a, "sh_rest"_a);

    nb::class_<Cloud>(m, "Cloud", "Gaussians, or a tangent of them, and the degree of colour that is evaluated.")
        .def("__init__",
             [](Cloud* self, const HeldTensors& tensors, int degree) { new (self) Cloud(make_cloud(tensors, degree)); },
             "tensors"_a, "degree"_a);

    nb::class_<LossRule>(m, "LossRule", "A loss of a view and its residuals.")
        .def("__init__",
             [](LossRule* self, const std::string& penalty, float penalty_parameter, float ssim_weight, double count,
                float pixel_scale, float pixel_half_scale, float ssim_half_scale, float floor_dissimilarity) {
                 new (self) LossRule(make_loss_rule(penalty, penalty_parameter, ssim_weight, count, pixel_scale,
                                                    pixel_half_scale, ssim_half_scale, floor_dissimilarity));
             },
             nb::kw_only(), "penalty"_a, "penalty_parameter"_a = 0.0f, "ssim_weight"_a, "count"_a, "pixel_scale"_a,
             "pixel_half_scale"_a, "ssim_half_scale"_a, "floor_dissimilarity"_a);

    nb::class_<HeldTarget>(m, "TargetImage",
                               "Pointers to (H, W, 3) bytes and their (H, W) weights, kept alive by the caller.")
        .def("__init__",
             [](HeldTarget* self, const Bytes3& bytes, const std::optional<Floats2>& weights) {
                 new (self) HeldTarget(hold_target(bytes, weights));
             },
             "bytes"_a, "weights"_a.none());

    nb::class_<HeldObserved>(m, "ObservedTensors",
                             "Pointers to what a gradient pass adds statistics of rows to, kept alive by the caller.")
        .def("__init__",
             [](HeldObserved* self, const OutFloats1& views, const OutFloats1& gradient, const OutFloats1& max_radius,
                const std::optional<OutFloats1>& absolute, const std::optional<OutFloats2>& splitting) {
                 new (self) HeldObserved(hold_observed(views, gradient, max_radius, absolute, splitting));
             },
             "views"_a, "gradient"_a, "max_radius"_a, "absolute"_a.none(), "splitting"_a.none());

    nb::class_<HeldStatistics>(m, "StatisticsTensors",
                               "Pointers to what statistics of rows are added to, kept alive by the caller.")
        .def("__init__",
             [](HeldStatistics* self, const OutFloats1& weight, const OutFloats1& max_weight, const OutFloats1& pixels,
                const OutFloats1& error, const OutFloats1& weighted_error, const OutFloats1& weighted_squared_error,
                const std::optional<OutFloats3>& color_cross) {
                 new (self) HeldStatistics(hold_statistics(
                     {weight, max_weight, pixels, error, weighted_error, weighted_squared_error}, color_cross));
             },
             nb::kw_only(), "weight"_a, "max_weight"_a, "pixels"_a, "error"_a, "weighted_error"_a,
             "weighted_squared_error"_a, "color_cross"_a = nb::none());
}

}  // namespace

nb::class_<Rasterizer> bind_raster(nb::module_& m) {
    bind_inputs(m);
    nb::class_<Rasterizer> rasterizer(m, "Rasterizer", "One view's passes in order, with the buffers they share.");
    rasterizer.def(nb::init<const Constants&, std::shared_ptr<Workers>>(), "constants"_a, "workers"_a)
        .def("forward", &Rasterizer::forward, "view"_a, "cloud"_a, "with_depth"_a = false,
             nb::call_guard<nb::gil_scoped_release>(), "Project, bin and blend.")
        .def("loss", &loss, "target"_a, "rule"_a,
             "Loss and mean squared error of the last view; keeps dL/dimage for backward.")
        .def("set_image_gradient", &set_image_gradient, "gradient"_a,
             "Take dL/dimage (H, W, 3), or the pixels' curvature, from outside.")
        .def("backward", &backward, "cloud"_a, "weight"_a, "into"_a, "seen"_a, "overwrite"_a = false,
             "observed"_a = nb::none(), "Add weight · dL/dθ to the six gradients and mark what was drawn.")
        .def("statistics", &statistics, "cloud"_a, "target"_a, "error"_a, "weight"_a, "into"_a, "overwrite"_a = false,
             "Add weight · the statistics of rows of the last view, with the dL/dimage at hand and errors (H, W).")
        .def("residuals", &residuals, "target"_a, "rule"_a, "out"_a, "Residuals of the last view.")
        .def("image_jvp", &image_jvp, "cloud"_a, "tangent"_a, "out"_a, "∂image/∂θ · tangent for the last view.")
        .def("jvp", &jvp, "cloud"_a, "tangent"_a, "target"_a, "rule"_a, "out"_a, "J · tangent for the last view.")
        .def("set_cotangent", &set_cotangent, "target"_a, "rule"_a, "cotangent"_a,
             "Keep J_imageᵀ · cotangent for backward.")
        .def("set_pixel_curvature", &set_pixel_curvature, "target"_a, "rule"_a,
             "Keep the curvature of the residuals in each pixel for diagonal and blocks.")
        .def("diagonal", &diagonal, "cloud"_a, "weight"_a, "into"_a, "overwrite"_a = false,
             "Add weight · diag(JᵀJ) of the last view.")
        .def("blocks", &blocks, "cloud"_a, "weight"_a, "blocks"_a, "sh_rest"_a, "overwrite"_a = false,
             "Add weight · each Gaussian's own block of JᵀJ of the last view, lower triangles row by row.")
        .def("copy_image", &copy_image, "out"_a)
        .def("copy_depth", &copy_depth, "alpha"_a, "depth"_a)
        .def("copy_visible", &copy_visible, "out"_a)
        .def("relevant_pairs", &Rasterizer::relevant_pairs, nb::call_guard<nb::gil_scoped_release>())
        .def("blended_pairs", &Rasterizer::blended_pairs, nb::call_guard<nb::gil_scoped_release>())
        .def_prop_ro("timings", &timings, "Seconds that the passes of the last view took.")
        .def("block_pairs", &Rasterizer::block_pairs)
        .def_prop_ro("visible_count", &Rasterizer::visible_count)
        .def_prop_ro("entry_count", &Rasterizer::entry_count)
        .def_prop_ro("memory_bytes", &Rasterizer::memory_bytes);
    return rasterizer;
}

}  // namespace splatopt
