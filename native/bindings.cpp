// The native module: its workers, and what the other files bind.

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

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
using namespace splatopt;

namespace {

double blend_ceiling(Workers& self, const Constants& constants, int64_t rounds) {
    // Splats about the block's middle, all of them wide, dim and in the first-level cache.
    constexpr int kCount = 512;
    std::array<LocalSplat, kCount> splats{};
    for (int i = 0; i < kCount; ++i)
        splats[i] = {{.mean_x = static_cast<float>(i % 7),
                      .mean_y = static_cast<float>(i % 5),
                      .whitening_xx = 0.3f,
                      .whitening_xy = 0.1f,
                      .whitening_yy = 0.3f,
                      .log2_opacity = -6.0f,
                      .color = {0.5f, 0.4f, 0.3f},
                      .depth = 0.0f},
                     {}};
    nb::gil_scoped_release release;
    const int threads = self.pool.threads();
    const auto begin = std::chrono::steady_clock::now();
    self.pool.run(threads, [&](int64_t, int) {
        volatile float sink = self.kernels.blend_ceiling(constants, splats.data(), kCount, rounds);
        (void)sink;
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    return 16.0 * kCount * threads * static_cast<double>(rounds) / seconds.count();
}

nb::list supported_isas() {
    nb::list names;
    for (const char* name : {"avx512", "avx2", "portable"}) {
        try {
            select_kernels(name);
            names.append(name);
        } catch (const std::invalid_argument&) {
        }
    }
    return names;
}

nb::dict shared_constants() {
    nb::dict numbers;
    for (const SharedNumber& number : kSharedNumbers) {
        if (!numbers.contains(number.name)) numbers[number.name] = nb::list();
        nb::cast<nb::list>(numbers[number.name]).append(number.value);
    }
    return numbers;
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Native kernels of splatopt: rendering, its derivatives, the photometric loss and fused optimizer steps.";

    nb::class_<Workers> workers(m, "Workers", "Threads and the kernels that fit this processor.");
    workers
        .def("__init__",
             [](Workers* self, int threads, const std::string& isa) {
                 require(threads >= 1 && threads <= 1024, "threads must be 1 to 1024");
                 new (self) Workers(threads, isa);
             },
             "threads"_a, "isa"_a = "auto")
        .def("blend_ceiling", &blend_ceiling, "constants"_a, "rounds"_a,
             "Pixel-Gaussian pairs a second that all threads together blend in a bare loop: the renderer's ceiling.")
        .def_prop_ro("threads", [](const Workers& self) { return self.pool.threads(); })
        .def_prop_ro("isa", [](const Workers& self) { return std::string(self.kernels.name); });
    nb::class_<Rasterizer> rasterizer = bind_raster(m);
    bind_rows(m, workers, rasterizer);
    bind_steps(m, workers);
    bind_learned(m, workers);
    m.def("shared_constants", &shared_constants,
          "The numbers that were compiled in from the package's sources, a list under each name.");
    m.def("supported_isas", &supported_isas,
          "Instruction sets that this build and this processor share, fastest first.");
}
