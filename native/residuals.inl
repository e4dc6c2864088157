// The residual view of the loss, one colour plane at a time: with n = 3HW,
//
//     r1 = √(2(1-λ)/n · |x - y|),  r2 = √(2λ/n · (1 - SSIM)),  loss = ½ Σ (r1² + r2²),
//
// or, squared, r = (x - y)/√n. At zero error the square roots have no derivative: |x - y| and 1 - SSIM are taken
// no smaller than the rule's floors there, and only there. Residuals are (kinds, H, W, 3) in memory.

struct Slopes {
    Vec absolute, dissimilarity;  // ∂r1/∂x, and ∂r2/∂SSIM
};

inline Slopes slopes_at(const ResidualRule& rule, Vec difference, Vec ssim) {
    if (rule.squared) return {Vec(rule.scale), Vec(0.0f)};
    const Vec size = max(max(difference, -difference), Vec(rule.floor_absolute));
    const Vec lack = max(Vec(1.0f) - ssim, Vec(rule.floor_dissimilarity));
    return {sign_of(difference) * Vec(rule.absolute_slope) / sqrt(size), Vec(-rule.dissimilarity_slope) / sqrt(lack)};
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

// Rows [begin, end) of the residuals.
void residuals(const Constants& k, const View& view, const ResidualRule& rule, const float* image,
               const uint8_t* target, int channel, int begin, int end, float* scratch, float* out) {
    float* y_row = second_sweep(view, scratch).target;
    sweep(k, view, image, target, channel, begin, end, 0, scratch, ignore_source, [&](int row, const float* ring) {
        Vec taps[kWindow];
        ring_taps(k, row, taps);
        target_row(view, target, channel, row, y_row);
        const float* pixels = image + static_cast<int64_t>(row) * view.stride;
        float* first = out + row_offset(view, row);
        for (int x = 0; x < view.width; x += kLanes, ring += kWindow * 4 * kLanes) {
            const Vec d = Vec::load(pixels + x) - Vec::load(y_row + x);
            if (rule.squared) {
                store_interleaved(view, first, x, channel, Vec(rule.scale) * d);
                continue;
            }
            const Vec lack = max(Vec(1.0f) - window_at(k, taps, ring).ssim, Vec(0.0f));
            store_interleaved(view, first, x, channel, Vec(2.0f * rule.absolute_slope) * sqrt(max(d, -d)));
            store_interleaved(view, first + image_floats(view), x, channel,
                              Vec(2.0f * rule.dissimilarity_slope) * sqrt(lack));
        }
    });
}

// Rows [begin, end) of J_image · tangent, over whole windows.
void residual_jvp(const Constants& k, const View& view, const ResidualRule& rule, const float* image,
                  const float* tangent, const uint8_t* target, int channel, int begin, int end, float* scratch,
                  float* out) {
    const SecondSweep second = second_sweep(view, scratch);
    const int64_t width = padded_width(view);
    // The second ring holds the windows' sums of dx, x dx and y dx, filled in step with the first.
    const auto on_source = [&](int row, double, double) {
        const float* dx = tangent + static_cast<int64_t>(row) * view.stride;
        for (int x = 0; x < view.width; x += kLanes) {
            const Mask inside = first_lanes(view.width - x);
            const Vec d = keep(inside, Vec::load(dx + x));
            float* to = second.derivatives + kMargin + x;
            d.store(to);
            (d * Vec::load(scratch + kMargin + x)).store(to + width);
            (d * Vec::load(scratch + width + kMargin + x)).store(to + 2 * width);
        }
        filter_across<3>(k, view, second.derivatives, second.ring, ring_slot(row));
    };
    for (int slot = 0; slot < kWindow; ++slot) clear_slot<3>(view, second.ring, slot);
    sweep(k, view, image, target, channel, begin, end, 0, scratch, on_source, [&](int row, const float* ring) {
        // A row below the image has entered the first ring as zeros and must enter the second one too.
        if (row + kHalfWindow >= view.height) clear_slot<3>(view, second.ring, ring_slot(row + kHalfWindow));
        Vec taps[kWindow];
        ring_taps(k, row, taps);
        target_row(view, target, channel, row, second.target);
        const int64_t at = static_cast<int64_t>(row) * view.stride;
        const float* sums = second.ring;
        float* first = out + row_offset(view, row);
        for (int x = 0; x < view.width; x += kLanes, ring += kWindow * 4 * kLanes, sums += kWindow * 3 * kLanes) {
            const Vec d = Vec::load(image + at + x) - Vec::load(second.target + x);
            const Window w = rule.squared ? Window{} : window_at(k, taps, ring);
            const Slopes slopes = slopes_at(rule, d, w.ssim);
            store_interleaved(view, first, x, channel, slopes.absolute * Vec::load(tangent + at + x));
            if (rule.squared) continue;
            const Vec change = fmadd(w.by_mean, ring_sum<3>(taps, sums, 0),
                                     fmadd(Vec(2.0f) * w.by_squares, ring_sum<3>(taps, sums, 1),
                                           w.by_product * ring_sum<3>(taps, sums, 2)));
            store_interleaved(view, first + image_floats(view), x, channel, slopes.dissimilarity * change);
        }
    });
}

// Rows [begin, end) of J_imageᵀ · cotangent, over whole windows.
void residual_vjp(const Constants& k, const View& view, const ResidualRule& rule, const float* image,
                  const uint8_t* target, int channel, int begin, int end, float* scratch, const float* cotangent,
                  float* gradient) {
    const SecondSweep second = second_sweep(view, scratch);
    sweep(k, view, image, target, channel, begin, end, kHalfWindow, scratch, ignore_source,
          [&](int row, const float* ring) {
              if (row < 0 || row >= view.height || rule.squared) {
                  clear_slot<3>(view, second.ring, ring_slot(row));
              } else {
                  const float* u = cotangent + image_floats(view) + row_offset(view, row);
                  const auto factor = [&](int x, Vec ssim) {
                      return slopes_at(rule, Vec(0.0f), ssim).dissimilarity * load_interleaved(view, u, x, channel);
                  };
                  derivative_rows(k, view, row, ring, second.derivatives, factor);
                  filter_across<3>(k, view, second.derivatives, second.ring, ring_slot(row));
              }
              const int out = row - kHalfWindow;
              if (out < begin) return;
              const int64_t at = static_cast<int64_t>(out) * view.stride;
              const float* u = cotangent + row_offset(view, out);
              target_row(view, target, channel, out, second.target);
              gradient_row(k, view, out, second.ring, image + at, second.target, gradient + at,
                           [&](int x, Vec a, Vec b) {
                               return slopes_at(rule, a - b, Vec(0.0f)).absolute * load_interleaved(view, u, x, channel);
                           });
          });
}

// Rows [begin, end) of the weights W = Σ (∂r/∂x)² that a pixel has through its own residuals alone: of a window,
// the derivative by its centre pixel (3DGS-LM).
void residual_weights(const Constants& k, const View& view, const ResidualRule& rule, const float* image,
                      const uint8_t* target, int channel, int begin, int end, float* scratch, float* out) {
    float* y_row = second_sweep(view, scratch).target;
    const Vec center(k.window[kHalfWindow] * k.window[kHalfWindow]), two(2.0f);
    sweep(k, view, image, target, channel, begin, end, 0, scratch, ignore_source, [&](int row, const float* ring) {
        Vec taps[kWindow];
        ring_taps(k, row, taps);
        target_row(view, target, channel, row, y_row);
        const int64_t at = static_cast<int64_t>(row) * view.stride;
        for (int x = 0; x < view.width; x += kLanes, ring += kWindow * 4 * kLanes) {
            const Vec a = Vec::load(image + at + x), b = Vec::load(y_row + x);
            const Window w = rule.squared ? Window{} : window_at(k, taps, ring);
            const Slopes slopes = slopes_at(rule, a - b, w.ssim);
            const Vec own = center * (w.by_mean + two * a * w.by_squares + b * w.by_product);
            const Vec by_window = slopes.dissimilarity * own;
            const Vec weight = fmadd(slopes.absolute, slopes.absolute, by_window * by_window);
            keep(first_lanes(view.width - x), rule.squared ? slopes.absolute * slopes.absolute : weight)
                .store(out + at + x);
        }
    });
}
