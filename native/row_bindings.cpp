// Passes over rows of others' tensors, for Python: checks shapes, releases the interpreter lock, calls the plain C++.

#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "bindings.h"
#include "pool.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace splatopt {

namespace {

using Radii = Array<const int32_t, nb::shape<-1, 2>>;
using OutRadii = Array<int32_t, nb::shape<-1, 2>>;
using OutTiles = Array<int32_t, nb::shape<-1>>;

constexpr int64_t kTask = 512;  // rows

template <class Rows>
bool has_shape(const Rows& rows, int64_t count, int64_t width) {
    return static_cast<int64_t>(rows.shape(0)) == count && static_cast<int64_t>(rows.shape(1)) == width;
}

template <class T>
auto data_of(const std::optional<T>& array) -> decltype(array->data()) {
    return array ? array->data() : nullptr;
}

// Splats on an image, or derivatives with respect to them, which the caller keeps alive.
template <class Pointers>
struct Held {
    Pointers pointers;
    int64_t count;
};
using HeldRows = Held<PlainRows>;
using HeldSplats = Held<PlainSplats>;
using HeldSplatGradients = Held<PlainSplatGradients>;
using HeldBlendRows = Held<BlendRows>;
using HeldBlendGradients = Held<BlendRowGradients>;

HeldRows hold_rows(const Floats2& means, const Floats2& quats, const Floats2& scales, const Floats1& opacities) {
    const int64_t n = means.shape(0);
    require(has_shape(means, n, 3) && has_shape(quats, n, 4) && has_shape(scales, n, 3) &&
                static_cast<int64_t>(opacities.shape(0)) == n,
            "rows must have shapes (N, 3), (N, 4), (N, 3), (N,)");
    return {{n, means.data(), quats.data(), scales.data(), opacities.data()}, n};
}

HeldSplats hold_splats(const OutFloats2& centers, const OutFloats2& factors, const OutFloats2& conics,
                       const OutFloats1& depths, const OutFloats1& compensations, const OutRadii& radii,
                       const OutTiles& tiles) {
    const int64_t n = centers.shape(0);
    require(has_shape(centers, n, 2) && has_shape(factors, n, 3) && has_shape(conics, n, 3) &&
                static_cast<int64_t>(depths.shape(0)) == n && static_cast<int64_t>(compensations.shape(0)) == n &&
                has_shape(radii, n, 2) && static_cast<int64_t>(tiles.shape(0)) == n,
            "splats must have shapes (N, 2), (N, 3), (N, 3), (N,), (N,), (N, 2), (N,)");
    return {{centers.data(), factors.data(), conics.data(), depths.data(), compensations.data(), radii.data(),
             tiles.data()}, n};
}

HeldSplatGradients hold_splat_gradients(const std::optional<Floats2>& centers, const std::optional<Floats2>& factors,
                                        const std::optional<Floats1>& depths,
                                        const std::optional<Floats1>& compensations, const Radii& radii) {
    const int64_t n = radii.shape(0);
    require((!centers || has_shape(*centers, n, 2)) && (!factors || has_shape(*factors, n, 3)) &&
                (!depths || static_cast<int64_t>(depths->shape(0)) == n) &&
                (!compensations || static_cast<int64_t>(compensations->shape(0)) == n),
            "gradients of splats must have their shapes");
    return {{data_of(centers), data_of(factors), data_of(depths), data_of(compensations), radii.data()}, n};
}

HeldBlendRows hold_blend_rows(const Floats2& centers, const Floats2& factors, const Floats1& opacities,
                              const Floats1& depths, const Radii& radii) {
    const int64_t n = centers.shape(0);
    require(has_shape(centers, n, 2) && has_shape(factors, n, 3) && static_cast<int64_t>(opacities.shape(0)) == n &&
                static_cast<int64_t>(depths.shape(0)) == n && has_shape(radii, n, 2),
            "projected rows must have shapes (N, 2), (N, 3), (N,), (N,), (N, 2)");
    return {{n, centers.data(), factors.data(), opacities.data(), depths.data(), radii.data()}, n};
}

HeldBlendGradients hold_blend_gradients(const OutFloats2& centers, const OutFloats2& factors,
                                        const OutFloats1& opacities, const std::optional<OutFloats2>& absolute) {
    const int64_t n = centers.shape(0);
    require(has_shape(centers, n, 2) && has_shape(factors, n, 3) && static_cast<int64_t>(opacities.shape(0)) == n &&
                (!absolute || has_shape(*absolute, n, 2)),
            "gradients of projected rows must have their shapes");
    return {{centers.data(), factors.data(), opacities.data(), data_of(absolute)}, n};
}

// Rows of harmonics, and where they are seen from, which the record holds itself.
struct HeldHarmonics {
    HarmonicRows pointers;
    int64_t count;
    std::optional<std::array<float, 3>> seen_from;

    HarmonicRows rows() const {
        HarmonicRows held = pointers;
        held.seen_from = seen_from ? seen_from->data() : nullptr;
        return held;
    }
};

HeldHarmonics hold_harmonics(int degree, const Floats2& directions, const Floats3& coefficients,
                             const std::optional<Bools1>& counted,
                             const std::optional<std::array<float, 3>>& seen_from) {
    const int64_t n = directions.shape(0);
    require(degree >= 0 && degree <= 3 && has_shape(directions, n, 3) &&
                static_cast<int64_t>(coefficients.shape(0)) == n && coefficients.shape(2) == 3 &&
                static_cast<int64_t>(coefficients.shape(1)) >= (degree + 1) * (degree + 1) &&
                (!counted || static_cast<int64_t>(counted->shape(0)) == n),
            "harmonics need directions (N, 3), coefficients (N, K, 3) and rows that count (N,)");
    const auto* bytes = reinterpret_cast<const uint8_t*>(data_of(counted));
    const int stored = static_cast<int>(coefficients.shape(1));
    return {{n, degree, stored, directions.data(), coefficients.data(), bytes, nullptr}, n, seen_from};
}

template <class Work>
void for_tasks(Workers& self, int64_t count, const Work& work) {
    nb::gil_scoped_release release;
    self.pool.run((count + kTask - 1) / kTask,
                  [&](int64_t task, int) { work(task * kTask, std::min(count, (task + 1) * kTask), task); });
}

// What work(begin, end, sums) adds to its task's N sums, all tasks' together in their order.
template <size_t N, class Work>
std::array<double, N> summed_over_tasks(Workers& self, int64_t count, const Work& work) {
    std::vector<std::array<double, N>> sums((count + kTask - 1) / kTask);
    for_tasks(self, count, [&](int64_t begin, int64_t end, int64_t task) {
        sums[task].fill(0);
        work(begin, end, sums[task].data());
    });
    std::array<double, N> total{};
    for (const auto& part : sums)
        for (size_t c = 0; c < N; ++c) total[c] += part[c];
    return total;
}

void project_rows(Workers& self, const Constants& constants, const View& view, const std::array<float, 2>& limits,
                  const HeldRows& rows, const HeldSplats& out) {
    require(rows.count == out.count, "splats must have the rows they are of");
    const RowLimits held{limits[0], limits[1]};
    for_tasks(self, rows.count, [&](int64_t begin, int64_t end, int64_t) {
        self.kernels.project_rows(constants, view, held, rows.pointers, begin, end, out.pointers);
    });
}

std::array<double, kPoseNumbers> project_rows_backward(Workers& self, const Constants& constants, const View& view,
                                                       const HeldRows& rows, const HeldSplatGradients& given,
                                                       const OutFloats2& means, const OutFloats2& quats,
                                                       const OutFloats2& scales) {
    const int64_t n = rows.count;
    require(given.count == n && has_shape(means, n, 3) && has_shape(quats, n, 4) && has_shape(scales, n, 3),
            "gradients must have the shapes of the rows");
    const PlainGradients out{means.data(), quats.data(), scales.data()};
    return summed_over_tasks<kPoseNumbers>(self, n, [&](int64_t begin, int64_t end, double* sums) {
        self.kernels.project_rows_backward(constants, view, rows.pointers, begin, end, given.pointers, out, sums);
    });
}

void harmonics(Workers& self, const HeldHarmonics& held, const OutFloats2& colors) {
    require(has_shape(colors, held.count, 3), "colours must be (N, 3)");
    const HarmonicRows rows = held.rows();
    for_tasks(self, held.count, [&](int64_t begin, int64_t end, int64_t) {
        self.kernels.harmonics(rows, begin, end, colors.data());
    });
}

std::array<double, 3> harmonics_backward(Workers& self, const HeldHarmonics& held,
                                         const std::optional<Floats2>& colors, const Floats2& gradient,
                                         const OutFloats2& directions, const OutFloats3& coefficients,
                                         bool overwrite) {
    const int64_t n = held.count;
    require(has_shape(gradient, n, 3) && has_shape(directions, n, 3) &&
                has_shape(coefficients, n, held.pointers.stored) && coefficients.shape(2) == 3,
            "gradients of harmonics must have the shapes of what they are of");
    require(colors ? has_shape(*colors, n, 3) : !held.seen_from, "gradients of clamped colours need the colours (N, 3)");
    const HarmonicRows rows = held.rows();
    const HarmonicGradients out{directions.data(), coefficients.data(), overwrite};
    return summed_over_tasks<3>(self, n, [&](int64_t begin, int64_t end, double* sums) {
        self.kernels.harmonics_backward(rows, begin, end, data_of(colors), gradient.data(), out, sums);
    });
}

void draw_rows(Rasterizer& self, const View& view, const HeldBlendRows& rows) {
    nb::gil_scoped_release release;
    self.draw_rows(view, rows.pointers);
}

template <class Colors>
ChannelRange range_of(const Rasterizer& self, const Colors& colors, int first, int count) {
    require(static_cast<int64_t>(colors.shape(0)) == self.count(), "colours must be (N, D), as what was drawn");
    require(first >= 0 && count >= 1 && count <= 4 && first + count <= static_cast<int>(colors.shape(1)),
            "one to four of the channels are blended at a time");
    return {static_cast<int64_t>(colors.shape(1)), first, count};
}

template <class Image>
void require_size(const Rasterizer& self, const Image& image) {
    require(static_cast<int>(image.shape(0)) == self.height() && static_cast<int>(image.shape(1)) == self.width(),
            "images must have the size of what was drawn");
}

void blend_channels(Rasterizer& self, const Floats2& colors, int first, int count, const OutFloats3& image,
                    const std::optional<OutFloats2>& alpha) {
    const ChannelRange range = range_of(self, colors, first, count);
    require_size(self, image);
    require(static_cast<int64_t>(image.shape(2)) == range.stride, "the image must have the channels of the colours");
    if (alpha) require_size(self, *alpha);
    nb::gil_scoped_release release;
    self.blend_channels(range, colors.data(), image.data(), data_of(alpha));
}

void channels_backward(Rasterizer& self, const Floats2& colors, int first, int count,
                       const std::optional<Floats3>& image_gradient, const std::optional<Floats2>& alpha_gradient,
                       const HeldBlendGradients& into, const OutFloats2& color_gradient) {
    const ChannelRange range = range_of(self, colors, first, count);
    range_of(self, color_gradient, first, count);
    if (image_gradient) {
        require_size(self, *image_gradient);
        require(static_cast<int64_t>(image_gradient->shape(2)) == range.stride, "gradients have the image's channels");
    }
    if (alpha_gradient) require_size(self, *alpha_gradient);
    require(into.count == self.count() && color_gradient.shape(1) == colors.shape(1),
            "gradients must have the rows that were drawn");
    nb::gil_scoped_release release;
    self.channels_backward(range, colors.data(), data_of(image_gradient), data_of(alpha_gradient), into.pointers,
                           color_gradient.data());
}

// A class of pointers, from a function that checks their shapes.
template <class Record, class... Arguments, class... Extra>
void bind_pointers(nb::module_& m, const char* name, const char* doc, Record (*hold)(Arguments...),
                   const Extra&... extra) {
    static Record (*const build)(Arguments...) = hold;
    nb::class_<Record>(m, name, doc)
        .def("__init__", [](Record* self, Arguments... arguments) { new (self) Record(build(arguments...)); }, extra...);
}

}  // namespace

void bind_rows(nb::module_& m, nb::class_<Workers>& workers, nb::class_<Rasterizer>& rasterizer) {
    bind_pointers(m, "PlainRows", "Pointers to means, quaternions, scales and opacities, kept alive by the caller.",
                  &hold_rows, "means"_a, "quats"_a, "scales"_a, "opacities"_a);
    bind_pointers(m, "PlainSplats", "Pointers to where projected rows go, kept alive by the caller.", &hold_splats,
                  "centers"_a, "factors"_a, "conics"_a, "depths"_a, "compensations"_a, "radii"_a, "tiles"_a);
    bind_pointers(m, "PlainSplatGradients", "Pointers to the gradients of projected rows, kept alive by the caller.",
                  &hold_splat_gradients, "centers"_a.none(), "factors"_a.none(), "depths"_a.none(),
                  "compensations"_a.none(), "radii"_a);
    bind_pointers(m, "BlendRows", "Pointers to projected rows that are blended, kept alive by the caller.",
                  &hold_blend_rows, "centers"_a, "factors"_a, "opacities"_a, "depths"_a, "radii"_a);
    bind_pointers(m, "BlendRowGradients", "Pointers to where their gradients are added, kept alive by the caller.",
                  &hold_blend_gradients, "centers"_a, "factors"_a, "opacities"_a, "absolute"_a.none());
    bind_pointers(m, "HarmonicRows", "Pointers to directions, coefficients and which rows count, kept alive likewise.",
                  &hold_harmonics, "degree"_a, "directions"_a, "coefficients"_a, "counted"_a.none(), "seen_from"_a.none());
    workers
        .def("project_rows", &project_rows, "constants"_a, "view"_a, "limits"_a, "rows"_a, "into"_a,
             "Project rows; limits are the far plane and the radius up to which they are left out.")
        .def("project_rows_backward", &project_rows_backward, "constants"_a, "view"_a, "rows"_a, "given"_a, "means"_a,
             "quats"_a, "scales"_a, "Add to the rows' gradients; returns that of world to camera, 3x3 and 3 numbers.")
        .def("harmonics", &harmonics, "rows"_a, "colors"_a, "Evaluate spherical harmonics, (N, 3).")
        .def("harmonics_backward", &harmonics_backward, "rows"_a, "colors"_a.none(), "gradient"_a, "directions"_a,
             "coefficients"_a, "overwrite"_a,
             "Add to the directions' gradient, and to the coefficients' or overwrite it; returns the directions' sum.");
    rasterizer
        .def("draw_rows", &draw_rows, "view"_a, "rows"_a, "Make the lists of rows that are projected already.")
        .def("blend_channels", &blend_channels, "colors"_a, "first"_a, "count"_a, "image"_a, "alpha"_a = nb::none(),
             "Blend one to four channels of (N, D) colours into those of (H, W, D).")
        .def("channels_backward", &channels_backward, "colors"_a, "first"_a, "count"_a, "image_gradient"_a.none(),
             "alpha_gradient"_a.none(), "into"_a, "color_gradient"_a,
             "Add to the rows' gradients and write those of these channels.");
}

}  // namespace splatopt
