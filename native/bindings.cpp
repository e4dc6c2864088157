// The renderer for Python: checks shapes, releases the interpreter lock, calls the plain C++.

#include <nanobind/stl/array.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>

#include "bindings.h"
#include "pool.h"
#include "scratch.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace splatopt {

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

namespace {

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
    view.fx = intrinsics[0];
    view.fy = intrinsics[1];
    view.cx = intrinsics[2];
    view.cy = intrinsics[3];
    view.width = width;
    view.height = height;
    view.tiles_x = (width + kTile - 1) / kTile;
    view.tiles_y = (height + kTile - 1) / kTile;
    view.stride = view.tiles_x * kTile;
    view.antialiased = antialiased;
    std::copy(background.begin(), background.end(), view.background);
    return view;
}

std::tuple<double, double, double> rasterizer_loss(Rasterizer& self, const Bytes3& target, float ssim_weight) {
    require(static_cast<int>(target.shape(0)) == self.height() && static_cast<int>(target.shape(1)) == self.width(),
            "the photograph must have the rendered image's size");
    nb::gil_scoped_release release;
    const LossSums sums = self.loss(target.data(), ssim_weight);
    const double n = 3.0 * self.height() * self.width();
    const double loss = (1.0 - ssim_weight) * sums.absolute / n + ssim_weight * (1.0 - sums.ssim / n);
    return {loss, sums.squared / n, sums.ssim / n};
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
}  // namespace splatopt

using namespace splatopt;

NB_MODULE(_native, m) {
    m.doc() = "Native kernels of splatopt: rendering, its derivatives, the photometric loss and fused optimizer steps.";

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

    nb::class_<Workers> workers(m, "Workers", "Threads and the kernels that fit this processor.");
    workers
        .def("__init__",
             [](Workers* self, int threads, const std::string& isa) {
                 require(threads >= 1 && threads <= 1024, "threads must be 1 to 1024");
                 new (self) Workers(threads, isa);
             },
             "threads"_a, "isa"_a = "auto")
        .def(
            "blend_ceiling",
            [](Workers& self, int64_t rounds) {
                // Splats about the block's middle, all of them wide, dim and in the first-level cache.
                constexpr int kCount = 512;
                std::array<float, kCount * kLocal> splats{};
                for (int i = 0; i < kCount; ++i) {
                    const float row[9] = {static_cast<float>(i % 7), static_cast<float>(i % 5), 0.3f, 0.1f, 0.3f,
                                          -6.0f,                     0.5f,                      0.4f, 0.3f};
                    std::copy(row, row + 9, splats.begin() + i * kLocal);
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
    bind_steps(m, workers);
    bind_learned(m, workers);

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
                    select_kernels(name);
                    names.append(name);
                } catch (const std::invalid_argument&) {
                }
            }
            return names;
        },
        "Instruction sets that this build and this processor share, fastest first.");
}
