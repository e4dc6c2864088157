// The core on a processor without Python: renders a scene of its own, takes a loss, its gradients, the blocks of JᵀJ and
// an Adam step, and writes what came out, or compares it with what another processor wrote.
//
// Usage: core_check write|compare FILE
// `compare` ends with 1 where anything is further apart than 1e-6 of the largest number of its kind.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "neighbours.h"
#include "rasterizer.h"

namespace {

using namespace splatopt;
using Floats = std::vector<float>;

constexpr int kWidth = 70, kHeight = 50, kCount = 500, kRest = 15, kNear = 5;
constexpr double kTolerance = 1e-6;

// A sequence of its own (Numerical Recipes' constants), so that every processor has the same scene.
struct Random {
    uint32_t state = 1;
    float between(float low, float high) {
        state = 1664525u * state + 1013904223u;
        return low + (high - low) * static_cast<float>(state >> 8) * (1.0f / 16777216.0f);
    }
    Floats many(size_t count, float low, float high) {
        Floats out(count);
        for (float& value : out) value = between(low, high);
        return out;
    }
};

struct Values {
    Floats means, log_scales, quats, logit_opacities, sh_dc, sh_rest;

    Values() : means(3 * kCount), log_scales(3 * kCount), quats(4 * kCount), logit_opacities(kCount), sh_dc(3 * kCount),
               sh_rest(3 * kRest * kCount) {}
    explicit Values(Random& random)
        : means(random.many(3 * kCount, -1, 1)), log_scales(random.many(3 * kCount, -4, -1.5f)),
          quats(random.many(4 * kCount, -1, 1)), logit_opacities(random.many(kCount, -2, 3)),
          sh_dc(random.many(3 * kCount, -1, 1)), sh_rest(random.many(3 * kRest * kCount, -0.2f, 0.2f)) {}
    Cloud cloud() const {
        return {kCount, means.data(), log_scales.data(), quats.data(), logit_opacities.data(), sh_dc.data(),
                sh_rest.data(), kRest, 3};
    }
    CloudTensors tensors() {
        return {means.data(), log_scales.data(), quats.data(), logit_opacities.data(), sh_dc.data(), sh_rest.data()};
    }
};

// The numbers of the rendering rule as src/splatopt/raster/constants.py has them.
Constants constants() {
    Constants k{0.01f, 0.3f, 0.999f, 1.0f / 255.0f, 1e-4f, 0.3f, 1e-4f, 9e-4f, {}};
    double sum = 0;
    for (int i = 0; i < kWindow; ++i) sum += std::exp(-(i - kWindow / 2) * (i - kWindow / 2) / 4.5);
    for (int i = 0; i < kWindow; ++i)
        k.window[i] = static_cast<float>(std::exp(-(i - kWindow / 2) * (i - kWindow / 2) / 4.5) / sum);
    return k;
}

View view() {
    View v{};
    const double turned[9] = {0.8, 0, -0.6, 0, 1, 0, 0.6, 0, 0.8}, center[3] = {-1.8, 0.1, -2.4};
    std::copy(turned, turned + 9, v.rotation);
    std::copy(center, center + 3, v.center);
    v.fx = v.fy = 60;
    v.cx = 0.5 * kWidth;
    v.cy = 0.5 * kHeight;
    v.width = kWidth;
    v.height = kHeight;
    v.tiles_x = (kWidth + kTile - 1) / kTile;
    v.tiles_y = (kHeight + kTile - 1) / kTile;
    v.stride = v.tiles_x * kTile;
    v.background[0] = v.background[1] = v.background[2] = 0.5f;
    return v;
}

LossRule loss_rule() {
    const double count = 3.0 * kWidth * kHeight, ssim = 0.2;
    return {Penalty::absolute, 0.0f, static_cast<float>(ssim), count,
            static_cast<float>(std::sqrt((1 - ssim) / count)), static_cast<float>(std::sqrt((1 - ssim) / (2 * count))),
            static_cast<float>(std::sqrt(ssim / (2 * count))), 1e-6f};
}

struct Result {
    const char* name;
    Floats numbers;
};

std::vector<Result> results() {
    Random random;
    Values values(random), gradient, first, second;
    Floats image(3 * kWidth * kHeight), blocks(kBlockFloats * kCount), rest(3 * kRest * kCount);
    std::vector<uint8_t> bytes(image.size()), seen(kCount);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.between(0, 255));

    const auto workers = std::make_shared<Workers>(2, "portable");
    Rasterizer rasterizer(constants(), workers);
    const TargetImage target{bytes.data(), nullptr};
    rasterizer.forward(view(), values.cloud(), false);
    rasterizer.copy_image(image.data());
    const ViewLoss loss = rasterizer.loss(target, loss_rule());
    rasterizer.backward(values.cloud(), 1.0f, true, gradient.tensors(), seen.data(), nullptr);
    rasterizer.set_pixel_curvature(target, loss_rule());
    rasterizer.blocks(values.cloud(), 1.0f, true, blocks.data(), rest.data());
    std::vector<int64_t> near(kNear * kCount);
    nearest_others(workers->pool, workers->kernels, values.means.data(), kCount, kNear, near.data());
    Floats moved = values.means;
    workers->kernels.adam(moved.data(), gradient.means.data(), first.means.data(), second.means.data(), 3 * kCount,
                          1e-2f, 0.1f, 0.999f, 1e-3f, 1e-15f, 0.0316227766f);
    return {{"image", image},
            {"loss", {static_cast<float>(loss.loss), static_cast<float>(loss.squared_error)}},
            {"gradient of means", gradient.means},
            {"gradient of log-scales", gradient.log_scales},
            {"gradient of quaternions", gradient.quats},
            {"gradient of opacities", gradient.logit_opacities},
            {"gradient of base colours", gradient.sh_dc},
            {"gradient of coefficients", gradient.sh_rest},
            {"blocks of curvature", blocks},
            {"curvature of coefficients", rest},
            {"rows of nearest others", Floats(near.begin(), near.end())},
            {"means after Adam's step", moved}};
}

bool holds_something(const Floats& numbers) {
    return std::any_of(numbers.begin(), numbers.end(), [](float x) { return x != 0; }) &&
           std::all_of(numbers.begin(), numbers.end(), [](float x) { return std::isfinite(x); });
}

// Whether `numbers` are those of `other`, to the tolerance; says how near they are.
bool agree(const char* name, const Floats& numbers, const Floats& other) {
    double largest = 0, apart = 0;
    for (size_t i = 0; i < numbers.size(); ++i) {
        largest = std::max(largest, std::abs(static_cast<double>(other[i])));
        apart = std::max(apart, std::abs(static_cast<double>(numbers[i]) - other[i]));
    }
    if (std::memcmp(numbers.data(), other.data(), numbers.size() * sizeof(float)) == 0) {
        std::printf("%-26s %6zu numbers, the same bits\n", name, numbers.size());
        return true;
    }
    std::printf("%-26s %6zu numbers, %.1e of the largest apart\n", name, numbers.size(), apart / largest);
    return apart <= kTolerance * largest;
}

}  // namespace

int main(int argc, char** argv) {
    const std::string mode = argc == 3 ? argv[1] : "";
    if (mode != "write" && mode != "compare") {
        std::fprintf(stderr, "usage: core_check write|compare FILE\n");
        return 2;
    }
    std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(argv[2], mode == "write" ? "wb" : "rb"), std::fclose);
    if (!file) {
        std::fprintf(stderr, "core_check: %s cannot be opened\n", argv[2]);
        return 2;
    }
    bool good = true;
    for (const auto& [name, numbers] : results()) {
        if (!holds_something(numbers)) {
            std::printf("%-26s are nothing but 0, or not finite\n", name);
            good = false;
        }
        Floats other(numbers.size());
        const bool whole = mode == "write"
                               ? std::fwrite(numbers.data(), sizeof(float), numbers.size(), file.get()) == numbers.size()
                               : std::fread(other.data(), sizeof(float), other.size(), file.get()) == other.size();
        if (!whole) {
            std::fprintf(stderr, "core_check: %s is cut short\n", argv[2]);
            return 2;
        }
        if (mode == "compare") good = agree(name, numbers, other) && good;
    }
    return good ? 0 : 1;
}
