// The residual view of the loss, one colour plane at a time: with n = 3Σw,
//
//     r1 = √((1-λ)w/n)·q(x - y), ½q² = ρ,   r2 = √(2λw/n · (1 - SSIM)),   loss = ½ Σ (r1² + r2²).
//
// At zero error the square roots have no derivative: what is under them is taken no smaller than the rule's floors
// there, and only there. Residuals are (kinds, H, W, 3) in memory; without SSIM's share there is one kind.

// ∂r2/∂SSIM of a pixel of weight 1.
inline Vec ssim_slope(const LossRule& rule, Vec ssim) {
    return Vec(-rule.ssim_half_scale) / sqrt(max(Vec(1.0f) - ssim, Vec(rule.floor_dissimilarity)));
}

// Sixteen values of one channel of an (…, W, 3) row to and from memory.
inline Vec load_interleaved(const View& view, const float* row, int x, int channel) {
    return gather(row + 3 * x + channel, 3, first_lanes(view.width - x));
}
inline void store_interleaved(const View& view, float* row, int x, int channel, Vec value) {
    float lanes[kLanes];
    value.store(lanes);
    const int count = view.width - x < kLanes ? view.width - x : kLanes;
    for (int lane = 0; lane < count; ++lane) row[3 * (x + lane) + channel] = lanes[lane];
}

inline int64_t image_floats(const View& view) { return static_cast<int64_t>(view.height) * view.width * 3; }
inline int64_t row_offset(const View& view, int row) { return static_cast<int64_t>(row) * view.width * 3; }
inline void ignore_source(int, double, double) {}

template <class Weights, class Penalty>
inline void residuals_of(const Constants& k, const View& view, const LossRule& rule, const Penalty& penalty,
                         const float* image, const TargetImage& target, int channel, int begin, int end,
                         float* scratch, float* out) {
    float* y_row = second_sweep(view, scratch).target;
    const auto on_window = [&](int row, const float* ring) {
        Vec taps[kWindow];
        ring_taps(k, row, taps);
        target_row(view, target.bytes, channel, row, y_row);
        const Weights weights(view, target, row);
        const float* pixels = image + static_cast<int64_t>(row) * view.stride;
        float* first = out + row_offset(view, row);
        for (int x = 0; x < view.width; x += kLanes, ring += kWindow * kSourceMaps * kLanes) {
            const Vec d = Vec::load(pixels + x) - Vec::load(y_row + x);
            store_interleaved(view, first, x, channel, weights.rooted(x, penalty.residual(d)));
            if (!rule.has_ssim()) continue;
            const Vec lack = max(Vec(1.0f) - window_at(k, taps, ring).ssim, Vec(0.0f));
            store_interleaved(view, first + image_floats(view), x, channel,
                              weights.rooted(x, Vec(2.0f * rule.ssim_half_scale) * sqrt(lack)));
        }
    };
    sweep<Weights>(k, view, penalty, image, target, channel, begin, end, 0, scratch, ignore_source, on_window);
}

template <class Weights, class Penalty>
inline void residual_jvp_of(const Constants& k, const View& view, const LossRule& rule, const Penalty& penalty,
                            const float* image, const float* tangent, const TargetImage& target, int channel,
                            int begin, int end, float* scratch, float* out) {
    const SecondSweep second = second_sweep(view, scratch);
    const int64_t width = padded_width(view);
    // The second ring holds the windows' sums of dx, x dx and y dx, filled in step with the first.
    const auto on_source = [&](int row, double, double) {
        const Weights weights(view, target, row);
        const float* dx = tangent + static_cast<int64_t>(row) * view.stride;
        for (int x = 0; x < view.width; x += kLanes) {
            const Mask inside = first_lanes(view.width - x);
            const Vec d = weights.counted(x, keep(inside, Vec::load(dx + x)));
            float* to = second.derivatives + kMargin + x;
            d.store(to + kByMean * width);
            (d * Vec::load(scratch + kImageMap * width + kMargin + x)).store(to + kBySquares * width);
            (d * Vec::load(scratch + kTargetMap * width + kMargin + x)).store(to + kByProduct * width);
        }
        filter_across<kDerivativeMaps>(k, view, second.derivatives, second.ring, ring_slot(row));
    };
    const auto on_window = [&](int row, const float* ring) {
        // A row below the image has entered the first ring as zeros and must enter the second one too.
        if (row + kHalfWindow >= view.height)
            clear_slot<kDerivativeMaps>(view, second.ring, ring_slot(row + kHalfWindow));
        Vec taps[kWindow];
        ring_taps(k, row, taps);
        target_row(view, target.bytes, channel, row, second.target);
        const Weights weights(view, target, row);
        const int64_t at = static_cast<int64_t>(row) * view.stride;
        float* first = out + row_offset(view, row);
        for (int x = 0; x < view.width; x += kLanes) {
            const float* const source_column = ring + static_cast<int64_t>(x) * kWindow * kSourceMaps;
            const float* const column = second.ring + static_cast<int64_t>(x) * kWindow * kDerivativeMaps;
            const Vec d = Vec::load(image + at + x) - Vec::load(second.target + x);
            const Vec own = penalty.residual_slope(d) * Vec::load(tangent + at + x);
            store_interleaved(view, first, x, channel, weights.rooted(x, own));
            if (!rule.has_ssim()) continue;
            const Window w = window_at(k, taps, source_column);
            const auto sum = [&](DerivativeMap map) { return ring_sum<kDerivativeMaps>(taps, column, map); };
            const Vec change = fmadd(w.by_mean, sum(kByMean),
                                     fmadd(Vec(2.0f) * w.by_squares, sum(kBySquares), w.by_product * sum(kByProduct)));
            store_interleaved(view, first + image_floats(view), x, channel,
                              weights.rooted(x, ssim_slope(rule, w.ssim) * change));
        }
    };
    for (int slot = 0; slot < kWindow; ++slot) clear_slot<kDerivativeMaps>(view, second.ring, slot);
    sweep<Weights>(k, view, penalty, image, target, channel, begin, end, 0, scratch, on_source, on_window);
}

template <class Weights, class Penalty>
inline void residual_vjp_of(const Constants& k, const View& view, const LossRule& rule, const Penalty& penalty,
                            const float* image, const TargetImage& target, int channel, int begin, int end,
                            float* scratch, const float* cotangent, float* gradient) {
    const SecondSweep second = second_sweep(view, scratch);
    const auto on_window = [&](int row, const float* ring) {
        if (row < 0 || row >= view.height || !rule.has_ssim()) {
            clear_slot<kDerivativeMaps>(view, second.ring, ring_slot(row));
        } else {
            const Weights weights(view, target, row);
            const float* u = cotangent + image_floats(view) + row_offset(view, row);
            const auto factor = [&](int x, Vec ssim) {
                return weights.rooted(x, ssim_slope(rule, ssim) * load_interleaved(view, u, x, channel));
            };
            derivative_rows(k, view, weights, row, ring, second.derivatives, factor);
            filter_across<kDerivativeMaps>(k, view, second.derivatives, second.ring, ring_slot(row));
        }
        const int out = row - kHalfWindow;
        if (out < begin) return;
        const int64_t at = static_cast<int64_t>(out) * view.stride;
        const Weights weights(view, target, out);
        const float* u = cotangent + row_offset(view, out);
        target_row(view, target.bytes, channel, out, second.target);
        gradient_row(k, view, weights, out, second.ring, image + at, second.target, gradient + at,
                     [&](int x, Vec a, Vec b) {
                         const Vec slope = penalty.residual_slope(a - b);
                         return weights.rooted(x, slope * load_interleaved(view, u, x, channel));
                     });
    };
    sweep<Weights>(k, view, penalty, image, target, channel, begin, end, kHalfWindow, scratch, ignore_source,
                   on_window);
}

template <class Weights, class Penalty>
inline void pixel_curvature_of(const Constants& k, const View& view, const LossRule& rule, const Penalty& penalty,
                               const float* image, const TargetImage& target, int channel, int begin, int end,
                               float* scratch, float* out) {
    float* y_row = second_sweep(view, scratch).target;
    const Vec center(k.window[kHalfWindow] * k.window[kHalfWindow]), two(2.0f);
    const auto on_window = [&](int row, const float* ring) {
        Vec taps[kWindow];
        ring_taps(k, row, taps);
        target_row(view, target.bytes, channel, row, y_row);
        const Weights weights(view, target, row);
        const int64_t at = static_cast<int64_t>(row) * view.stride;
        for (int x = 0; x < view.width; x += kLanes, ring += kWindow * kSourceMaps * kLanes) {
            const Vec a = Vec::load(image + at + x), b = Vec::load(y_row + x);
            const Vec by_pixel = penalty.residual_slope(a - b);
            Vec by_window(0.0f);
            if (rule.has_ssim()) {
                const Window w = window_at(k, taps, ring);
                by_window =
                    ssim_slope(rule, w.ssim) * (center * (w.by_mean + two * a * w.by_squares + b * w.by_product));
            }
            const Vec curvature = fmadd(by_pixel, by_pixel, by_window * by_window);
            keep(first_lanes(view.width - x), weights.weighted(x, curvature)).store(out + at + x);
        }
    };
    sweep<Weights>(k, view, penalty, image, target, channel, begin, end, 0, scratch, ignore_source, on_window);
}

// Rows [begin, end) of the residuals.
void residuals(const Constants& k, const View& view, const LossRule& rule, const float* image,
               const TargetImage& target, int channel, int begin, int end, float* scratch, float* out) {
    with_penalty_and_weights(rule, target, [&](const auto& penalty, auto* weights) {
        residuals_of<WeightsOf<decltype(weights)>>(k, view, rule, penalty, image, target, channel, begin, end,
                                                   scratch, out);
    });
}

// Rows [begin, end) of J_image · tangent, over whole windows.
void residual_jvp(const Constants& k, const View& view, const LossRule& rule, const float* image,
                  const float* tangent, const TargetImage& target, int channel, int begin, int end, float* scratch,
                  float* out) {
    with_penalty_and_weights(rule, target, [&](const auto& penalty, auto* weights) {
        residual_jvp_of<WeightsOf<decltype(weights)>>(k, view, rule, penalty, image, tangent, target, channel,
                                                      begin, end, scratch, out);
    });
}

// Rows [begin, end) of J_imageᵀ · cotangent, over whole windows.
void residual_vjp(const Constants& k, const View& view, const LossRule& rule, const float* image,
                  const TargetImage& target, int channel, int begin, int end, float* scratch,
                  const float* cotangent, float* gradient) {
    with_penalty_and_weights(rule, target, [&](const auto& penalty, auto* weights) {
        residual_vjp_of<WeightsOf<decltype(weights)>>(k, view, rule, penalty, image, target, channel, begin, end,
                                                      scratch, cotangent, gradient);
    });
}

// Rows [begin, end) of W = Σ (∂r/∂x)², which a pixel has through its own residuals alone: of a window, the derivative
// by its centre pixel (3DGS-LM).
void pixel_curvature(const Constants& k, const View& view, const LossRule& rule, const float* image,
                     const TargetImage& target, int channel, int begin, int end, float* scratch, float* out) {
    with_penalty_and_weights(rule, target, [&](const auto& penalty, auto* weights) {
        pixel_curvature_of<WeightsOf<decltype(weights)>>(k, view, rule, penalty, image, target, channel, begin,
                                                         end, scratch, out);
    });
}
