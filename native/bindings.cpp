// The native module: its workers, and what the other files bind.

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

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
using namespace splatopt;

namespace {

double blend_ceiling(Workers& self, int64_t rounds) {
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
        .def("blend_ceiling", &blend_ceiling, "rounds"_a,
             "Pixel-Gaussian pairs a second that all threads together blend in a bare loop: the renderer's ceiling.")
        .def_prop_ro("threads", [](const Workers& self) { return self.pool.threads(); })
        .def_prop_ro("isa", [](const Workers& self) { return std::string(self.kernels.name); });
    bind_raster(m);
    bind_steps(m, workers);
    bind_learned(m, workers);
    m.def("supported_isas", &supported_isas,
          "Instruction sets that this build and this processor share, fastest first.");
}
