// A pixel penalty and SSIM of one colour plane against a photograph, and their gradient, in one sweep down a band of
// rows.
//
// SSIM's windows are separable. A row is filtered across once and kept in a ring of the last eleven; filtering
// down the ring gives the window sums of the row five above, and from them ∂SSIM/∂(E[x], E[x²]+E[y²], E[xy]).
// Those three go through a second ring the same way and come out, five rows later still, as the gradient.
// Outside the image everything is 0. A ring holds, for each sixteen columns, its slots and maps side by side,
// so that all addresses within the sum are constants.

constexpr int kHalfWindow = kWindow / 2;
constexpr int kMargin = kLanes;  // zeros before a row, so that rows start on whole cache lines

// What is filtered of the two images x and y, and of SSIM's derivatives.
enum SourceMap { kImageMap, kTargetMap, kSquaresMap, kProductsMap, kSourceMaps };
enum DerivativeMap { kByMean, kBySquares, kByProduct, kDerivativeMaps };
constexpr int kAllMaps = int{kSourceMaps} + int{kDerivativeMaps};

inline int64_t padded_width(const View& view) { return view.stride + 2 * kMargin; }

int64_t loss_scratch_floats(const View& view) {
    return padded_width(view) * (kAllMaps + 1) + static_cast<int64_t>(view.stride) * kWindow * kAllMaps;
}

inline int ring_slot(int row) { return (row + 4 * kWindow) % kWindow; }

// Filters kMaps rows across into a slot of the ring.
static_assert(kHalfWindow == 5);
template <int kMaps>
inline void filter_across(const Constants& k, const View& view, const float* source, float* ring, int slot) {
    Vec taps[kHalfWindow + 1];
    for (int i = 0; i <= kHalfWindow; ++i) taps[i] = Vec(k.window[i]);
    const int64_t width = padded_width(view);
    for (int m = 0; m < kMaps; ++m) {
        const float* p = source + m * width + kMargin;
        float* out = ring + (slot * kMaps + m) * kLanes;
        for (int x = 0; x < view.width; x += kLanes, p += kLanes, out += kWindow * kMaps * kLanes) {
            Vec sum = taps[kHalfWindow] * Vec::load(p);
            sum = fmadd(taps[0], load_beside<-5>(p) + load_beside<5>(p), sum);
            sum = fmadd(taps[1], load_beside<-4>(p) + load_beside<4>(p), sum);
            sum = fmadd(taps[2], load_beside<-3>(p) + load_beside<3>(p), sum);
            sum = fmadd(taps[3], load_beside<-2>(p) + load_beside<2>(p), sum);
            sum = fmadd(taps[4], load_beside<-1>(p) + load_beside<1>(p), sum);
            sum.store(out);
        }
    }
}

template <int kMaps>
inline void clear_slot(const View& view, float* ring, int slot) {
    for (int x = 0; x < view.width; x += kLanes)
        std::memset(ring + static_cast<int64_t>(x) * kWindow * kMaps + slot * kMaps * kLanes, 0,
                    sizeof(float) * kMaps * kLanes);
}

// Weights of the ring's slots for one output row, so that the ring itself never moves.
inline void ring_taps(const Constants& k, int row, Vec* taps) {
    for (int tap = 0; tap < kWindow; ++tap) taps[ring_slot(row - kHalfWindow + tap)] = Vec(k.window[tap]);
}

template <int kMaps>
inline Vec ring_sum(const Vec* taps, const float* column, int map) {
    Vec even = taps[0] * Vec::load(column + map * kLanes);
    Vec odd = taps[1] * Vec::load(column + (kMaps + map) * kLanes);
    for (int s = 2; s < kWindow; s += 2) even = fmadd(taps[s], Vec::load(column + (s * kMaps + map) * kLanes), even);
    for (int s = 3; s < kWindow; s += 2) odd = fmadd(taps[s], Vec::load(column + (s * kMaps + map) * kLanes), odd);
    return even + odd;
}

// One row of the photograph's channel as floats in [0, 1].
inline void target_row(const View& view, const uint8_t* target, int channel, int row, float* out) {
    const uint8_t* bytes = target + static_cast<int64_t>(row) * view.width * 3;
    const Vec scale(1.0f / 255.0f);
    for (int x = 0; x + kLanes <= view.width; x += kLanes)
        (load_channel(bytes + 3 * x, channel) * scale).store(out + x);
    // The last sixteen pixels once more, where the row does not end with a whole vector.
    if (view.width >= kLanes)
        (load_channel(bytes + 3 * (view.width - kLanes), channel) * scale).store(out + view.width - kLanes);
    else
        for (int x = 0; x < view.width; ++x) out[x] = static_cast<float>(bytes[3 * x + channel]) * (1.0f / 255.0f);
}

inline double sum_lanes(Vec a) {
    float lanes[kLanes];
    a.store(lanes);
    double sum = 0.0;
    for (const float lane : lanes) sum += lane;
    return sum;
}

// Rows of x, y, x² + y² and xy, and the sums of wρ(x - y) and w(x - y)²; pixels that do not count are 0 in both images.
template <class Weights, class Penalty>
inline void source_rows(const View& view, const Weights& weights, const Penalty& penalty, const float* pixels,
                        float* rows, double* penalties, double* squared) {
    const int64_t width = padded_width(view);
    const auto row_of = [&](SourceMap map) { return rows + map * width + kMargin; };
    float *a_row = row_of(kImageMap), *b_row = row_of(kTargetMap);
    float *squares_row = row_of(kSquaresMap), *products_row = row_of(kProductsMap);
    Vec total_penalty(0.0f), total_squared(0.0f);
    for (int x = 0; x < view.width; x += kLanes) {
        const Mask inside = first_lanes(view.width - x);
        const Vec a = weights.counted(x, keep(inside, Vec::load(pixels + x)));
        const Vec b = weights.counted(x, keep(inside, Vec::load(b_row + x)));
        a.store(a_row + x);
        if constexpr (std::is_same_v<Weights, ByWeights>) b.store(b_row + x);
        fmadd(a, a, b * b).store(squares_row + x);
        (a * b).store(products_row + x);
        const Vec d = a - b;
        total_penalty += weights.weighted(x, keep(inside, penalty.value(d)));
        total_squared = fmadd(weights.weighted(x, d), d, total_squared);
    }
    *penalties = sum_lanes(total_penalty);
    *squared = sum_lanes(total_squared);
}

// SSIM of one window and its derivatives by E[x], E[x²] + E[y²] and E[xy].
struct Window {
    Vec ssim, by_mean, by_squares, by_product;
};

inline Window window_at(const Constants& k, const Vec* taps, const float* ring) {
    const Vec c1(k.ssim_c1), c2(k.ssim_c2), two(2.0f), one(1.0f);
    const Vec mx = ring_sum<kSourceMaps>(taps, ring, kImageMap), my = ring_sum<kSourceMaps>(taps, ring, kTargetMap);
    const Vec squares = ring_sum<kSourceMaps>(taps, ring, kSquaresMap);
    const Vec products = ring_sum<kSourceMaps>(taps, ring, kProductsMap);
    const Vec mxmy = mx * my, mean_squares = fmadd(mx, mx, my * my);
    const Vec a1 = fmadd(two, mxmy, c1), a2 = fmadd(two, products - mxmy, c2);
    const Vec b1 = mean_squares + c1, b2 = squares - mean_squares + c2;
    const Vec inverse = one / (b1 * b2), inverse_b1 = inverse * b2, inverse_b2 = inverse * b1;
    const Vec ssim = a1 * a2 * inverse;
    return {ssim, two * (my * (a2 - a1) * inverse + mx * ssim * (inverse_b2 - inverse_b1)), -(ssim * inverse_b2),
            two * a1 * inverse};
}

// One row of wSSIM summed, and its three derivatives as rows ready to be filtered. factor(x, ssim) multiplies
// the derivatives of sixteen windows.
template <class Weights, class Factor>
inline double derivative_rows(const Constants& k, const View& view, const Weights& weights, int row, const float* ring,
                              float* rows, const Factor& factor) {
    const int64_t width = padded_width(view);
    Vec taps[kWindow], total(0.0f);
    ring_taps(k, row, taps);
    for (int x = 0; x < view.width; x += kLanes, ring += kWindow * kSourceMaps * kLanes) {
        const Window at = window_at(k, taps, ring);
        const Mask inside = first_lanes(view.width - x);
        total += keep(inside, weights.weighted(x, at.ssim));
        const Vec f = factor(x, at.ssim);
        float* out = rows + kMargin + x;
        keep(inside, f * at.by_mean).store(out + kByMean * width);
        keep(inside, f * at.by_squares).store(out + kBySquares * width);
        keep(inside, f * at.by_product).store(out + kByProduct * width);
    }
    return sum_lanes(total);
}

// One row of ∂(what the windows' derivatives were multiplied with · SSIM)/∂x, and `extra(x, a, b)` added to it; 0 where
// a pixel does not count.
template <class Weights, class Extra>
inline void gradient_row(const Constants& k, const View& view, const Weights& weights, int row, const float* ring,
                         const float* pixels, const float* target, float* out, const Extra& extra) {
    Vec taps[kWindow];
    ring_taps(k, row, taps);
    for (int x = 0; x < view.width; x += kLanes, ring += kWindow * kDerivativeMaps * kLanes) {
        const Vec a = Vec::load(pixels + x), b = Vec::load(target + x);
        const Vec ssim = fmadd(Vec(2.0f) * a, ring_sum<kDerivativeMaps>(taps, ring, kBySquares),
                               fmadd(b, ring_sum<kDerivativeMaps>(taps, ring, kByProduct),
                                     ring_sum<kDerivativeMaps>(taps, ring, kByMean)));
        const Mask inside = first_lanes(view.width - x);
        weights.counted(x, keep(inside, ssim + extra(x, a, b))).store(out + x);
    }
}

// Fills the first ring row by row. on_source(row, sum wρ(x - y), sum w(x - y)²) hears of each row of the image that
// enters, on_window(row, ring) of each row in [begin - halo, end + halo) whose windows are complete.
template <class Weights, class Penalty, class OnSource, class OnWindow>
inline void sweep(const Constants& k, const View& view, const Penalty& penalty, const float* image,
                  const TargetImage& target, int channel, int begin, int end, int halo, float* scratch,
                  const OnSource& on_source, const OnWindow& on_window) {
    const int64_t width = padded_width(view);
    float* ring = scratch + (kAllMaps + 1) * width;
    std::memset(scratch, 0, sizeof(float) * (kAllMaps + 1) * width);
    for (int r = begin - halo - kHalfWindow; r < end + halo + kHalfWindow; ++r) {
        if (r < 0 || r >= view.height) {
            clear_slot<kSourceMaps>(view, ring, ring_slot(r));
        } else {
            double penalties, squared;
            target_row(view, target.bytes, channel, r, scratch + kTargetMap * width + kMargin);
            source_rows(view, Weights(view, target, r), penalty, image + static_cast<int64_t>(r) * view.stride,
                        scratch, &penalties, &squared);
            filter_across<kSourceMaps>(k, view, scratch, ring, ring_slot(r));
            on_source(r, penalties, squared);
        }
        if (r - kHalfWindow >= begin - halo) on_window(r - kHalfWindow, ring);
    }
}

// Where the rows of the three derivatives, the photograph's row and the second ring lie in the scratch.
struct SecondSweep {
    float *derivatives, *target, *ring;
};

inline SecondSweep second_sweep(const View& view, float* scratch) {
    const int64_t width = padded_width(view);
    return {scratch + kSourceMaps * width, scratch + kAllMaps * width + kMargin,
            scratch + (kAllMaps + 1) * width + static_cast<int64_t>(view.stride) * kWindow * kSourceMaps};
}

template <class Weights, class Penalty>
inline void photometric_loss_of(const Constants& k, const View& view, const LossRule& rule, const Penalty& penalty,
                                const float* image, const TargetImage& target, int channel, int begin, int end,
                                float* scratch, float* gradient, LossSums* sums) {
    const SecondSweep second = second_sweep(view, scratch);
    const Vec ssim_scale(static_cast<float>(-rule.ssim_scale()));
    const Vec pixel_scale(static_cast<float>(rule.penalty_scale()));
    const auto on_source = [&](int row, double penalties, double squared) {
        if (row < begin || row >= end) return;
        sums[row].penalty = penalties;
        sums[row].squared = squared;
    };
    const auto on_window = [&](int row, const float* ring) {
        if (row < 0 || row >= view.height) {
            clear_slot<kDerivativeMaps>(view, second.ring, ring_slot(row));
        } else {
            const Weights weights(view, target, row);
            const auto factor = [&](int x, Vec) { return weights.weighted(x, ssim_scale); };
            const double ssim = derivative_rows(k, view, weights, row, ring, second.derivatives, factor);
            if (row >= begin && row < end) sums[row].ssim = ssim;
            filter_across<kDerivativeMaps>(k, view, second.derivatives, second.ring, ring_slot(row));
        }
        const int out = row - kHalfWindow;
        if (out < begin) return;
        const int64_t at = static_cast<int64_t>(out) * view.stride;
        const Weights weights(view, target, out);
        target_row(view, target.bytes, channel, out, second.target);
        gradient_row(k, view, weights, out, second.ring, image + at, second.target, gradient + at,
                     [&](int x, Vec a, Vec b) { return weights.weighted(x, pixel_scale * penalty.slope(a - b)); });
    };
    sweep<Weights>(k, view, penalty, image, target, channel, begin, end, kHalfWindow, scratch, on_source,
                   on_window);
}

// Rows [begin, end) of one channel: each row's sums of the loss, and its gradient.
void photometric_loss(const Constants& k, const View& view, const LossRule& rule, const float* image,
                      const TargetImage& target, int channel, int begin, int end, float* scratch, float* gradient,
                      LossSums* sums) {
    with_penalty_and_weights(rule, target, [&](const auto& penalty, auto* weights) {
        photometric_loss_of<WeightsOf<decltype(weights)>>(k, view, rule, penalty, image, target, channel, begin,
                                                          end, scratch, gradient, sums);
    });
}
