// One trust-region step for each Gaussian's own block of curvature: sixteen Gaussians at a time, one a lane.
//
//     minimise gᵀd + ½ dᵀ(s B)d  subject to  Σ (d_k/η_k)² <= 1
//
// In x = d/η this is (A + μI) x = -h, A = s·ηBη, h = ηg, with μ >= 0 such that |x| = 1 or μ = 0 and |x| < 1
// (Moré and Sorensen 1983). μ is kept between steps: one Newton step on 1/|x| - 1 a factorisation follows it as
// the scene moves, and what still sticks out of the ball is scaled back onto it. No μ lies below the damping: a
// Gaussian whose whole ball promises little (|h| small) stays well inside it. A Gaussian without any curvature stays:
// nothing is known about how far it may go.
//
// The higher bands of the colour are in no block. A direction v sees them as Y(v)ᵀc: their part of JᵀJ is a Y Yᵀ, at
// most a |Y|² I, and |Y|² of all K coefficients is K Y₀² in every direction (Unsöld 1927). a Y₀² is what the block has
// for the colour itself, so that K times it bounds the curvature of every coefficient, also of a band that comes later.
//
// Blocks are kept row by row, so that rows that were not seen are not read, and transposed sixteen at a time.

// A lower triangular matrix by columns, l[column][row]; after factorise the diagonal is inverted.
struct Factor {
    Vec l[kBlockRows][kBlockRows];
};

constexpr int packed(int row, int column) { return row * (row + 1) / 2 + column; }

// Column C of the Cholesky factor of A + μI: its entries stay in registers, what earlier columns take from them
// is independent from entry to entry. The pivots of a matrix without negative eigenvalues are at least the shift. A
// block of a huge Gaussian may have one, by rounding of its sums: a pivot that falls below is noise, and counts as the
// trace + shift, so that the row hardly moves there and no column grows (after Gill and Murray 1974).
template <int C>
inline void factorise_column(const Vec* a, Vec shift, Vec trace, Factor& f) {
    Vec column[kBlockRows];
#pragma GCC unroll 14
    for (int r = C; r < kBlockRows; ++r) column[r] = a[packed(r, C)];
    column[C] += shift;
    for (int k = 0; k < C; ++k) {
        const Vec factor = f.l[k][C];
#pragma GCC unroll 14
        for (int r = C; r < kBlockRows; ++r) column[r] = fnmadd(f.l[k][r], factor, column[r]);
    }
    const Vec pivot = select(column[C] < shift * Vec(0.25f), trace + shift, column[C]);
    const Vec inverse = Vec(1.0f) / sqrt(pivot);
    f.l[C][C] = inverse;
#pragma GCC unroll 14
    for (int r = C + 1; r < kBlockRows; ++r) f.l[C][r] = column[r] * inverse;
    if constexpr (C + 1 < kBlockRows) factorise_column<C + 1>(a, shift, trace, f);
}

// x ← L⁻¹ x
inline void solve_lower(const Factor& f, Vec* x) {
    for (int k = 0; k < kBlockRows; ++k) {
        x[k] *= f.l[k][k];
        for (int r = k + 1; r < kBlockRows; ++r) x[r] = fnmadd(f.l[k][r], x[k], x[r]);
    }
}

// x ← L⁻ᵀ x
inline void solve_upper(const Factor& f, Vec* x) {
    for (int k = kBlockRows - 1; k >= 0; --k) {
        x[k] *= f.l[k][k];
        for (int r = 0; r < k; ++r) x[r] = fnmadd(f.l[r][k], x[k], x[r]);
    }
}

inline Vec squared_length(const Vec* x) {
    Vec sum(0.0f);
    for (int r = 0; r < kBlockRows; ++r) sum = fmadd(x[r], x[r], sum);
    return sum;
}

// The step x within the unit ball, from `rounds` factorisations; mu goes in as the kept one and out as the next.
inline void solve_in_ball(const Vec* a, Vec trace, const Vec* h, Vec damping, int rounds, Vec& mu, Vec* x) {
    const Vec one(1.0f), tiny(1e-30f);
    // What rounding may have taken from a block without full rank.
    const Vec floor = max(trace * Vec(1e-6f), tiny);
    Vec length(0.0f);
    Factor factor;
    const Vec kept = mu;
    mu = max(mu, damping);
    for (int round = 0; round < rounds; ++round) {
        factorise_column<0>(a, mu + floor, trace, factor);
        Vec q[kBlockRows];
        for (int r = 0; r < kBlockRows; ++r) x[r] = -h[r];
        solve_lower(factor, x);
        solve_upper(factor, x);
        for (int r = 0; r < kBlockRows; ++r) q[r] = x[r];
        solve_lower(factor, q);  // for d|x|/dμ
        const Vec squared = squared_length(x);
        length = sqrt(squared);
        mu = max(mu + (squared / max(squared_length(q), tiny)) * (length - one), damping);
    }
    // A step beyond all measure was made by rounding: that row stays.
    const Mask sound = length < Vec(1e15f);
    const Vec shrink = one / max(length, one);
    for (int r = 0; r < kBlockRows; ++r) x[r] = keep(sound, x[r] * shrink);
    mu = select(sound, mu, kept);
}

// m ← m + (1-θ₁)(g - m)
inline void fold_momentum(float* momentum, const float* gradient, Vec decay, int64_t count) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const Vec m = Vec::load(momentum + i);
        fmadd(Vec::load(gradient + i) - m, decay, m).store(momentum + i);
    }
    for (; i < count; ++i) {
        float tail[kLanes] = {momentum[i]};
        const Vec m = Vec::load(tail);
        fmadd(Vec(gradient[i]) - m, decay, m).store(tail);
        momentum[i] = tail[0];
    }
}

struct BlockColumn {
    float* CloudTensors::*tensor;
    int width, column;
};
constexpr BlockColumn kBlockColumns[kBlockRows] = {
    {&CloudTensors::means, 3, 0},           {&CloudTensors::means, 3, 1},      {&CloudTensors::means, 3, 2},
    {&CloudTensors::log_scales, 3, 0},      {&CloudTensors::log_scales, 3, 1}, {&CloudTensors::log_scales, 3, 2},
    {&CloudTensors::quats, 4, 0},           {&CloudTensors::quats, 4, 1},      {&CloudTensors::quats, 4, 2},
    {&CloudTensors::quats, 4, 3},           {&CloudTensors::logit_opacities, 1, 0},
    {&CloudTensors::sh_dc, 3, 0},           {&CloudTensors::sh_dc, 3, 1},      {&CloudTensors::sh_dc, 3, 2}};

constexpr int kFirstColor = kBlockRows - 3;  // the row of a block

// The lengths and curvatures of the colours of a task's rows, and both as the higher bands' coefficients lie.
struct ColorRows {
    float *radii, *curvature, *coefficient_radii, *coefficient_curvature;

    ColorRows(float* scratch, int rest)
        : radii(scratch), curvature(radii + 3 * kStepTask), coefficient_radii(curvature + 3 * kStepTask),
          coefficient_curvature(coefficient_radii + coefficient_floats(rest)) {}
};

// Up to sixteen rows that were seen, side by side, one a lane. Rows that were not seen take next to no time.
struct PackedRows {
    int64_t rows[kLanes];
    uint32_t used;  // lanes, as bits
    float means[3 * kLanes], log_scales[3 * kLanes], quats[4 * kLanes], logit_opacities[kLanes], sh_dc[3 * kLanes];
    float slopes[kBlockRows * kLanes], multipliers[kLanes], colors[3 * kLanes];
    alignas(64) float blocks[kBlockFloats * kLanes];

    // f(packed, all, width) for each tensor but the higher bands.
    template <class Function>
    void each_tensor(const CloudTensors& values, const Function& f) {
        f(means, values.means, 3);
        f(log_scales, values.log_scales, 3);
        f(quats, values.quats, 4);
        f(logit_opacities, values.logit_opacities, 1);
        f(sh_dc, values.sh_dc, 3);
    }

    // Takes on the first `count` of `some` rows.
    void take(const int64_t* some, int count, const CloudTensors& values, const CloudTensors& mean,
              const float* kept_blocks, const float* kept_mu) {
        used = (1u << count) - 1u;
        for (int lane = 0; lane < kLanes; ++lane) rows[lane] = some[lane < count ? lane : 0];
        each_tensor(values, [&](float* packed, const float* all, int width) {
            for (int lane = 0; lane < kLanes; ++lane)
                for (int c = 0; c < width; ++c) packed[width * lane + c] = all[width * rows[lane] + c];
        });
        for (int lane = 0; lane < kLanes; ++lane) {
            multipliers[lane] = kept_mu[rows[lane]];
            for (int r = 0; r < kBlockRows; ++r) {
                const BlockColumn& k = kBlockColumns[r];
                slopes[kLanes * r + lane] = (mean.*k.tensor)[k.width * rows[lane] + k.column];
            }
        }
        const float* entries[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) entries[lane] = kept_blocks + kBlockFloats * rows[lane];
        transpose_rows(entries, kBlockFloats, blocks);
    }

    // Puts back what a step has changed; what the higher bands take from the colours lies from row `begin` on.
    void put(const CloudTensors& values, float* kept_mu, const ColorRows& color_rows, int64_t begin) {
        for (uint32_t bits = used; bits; bits &= bits - 1) {
            const int lane = __builtin_ctz(bits);
            const int64_t row = rows[lane];
            each_tensor(values, [&](const float* packed, float* all, int width) {
                for (int c = 0; c < width; ++c) all[width * row + c] = packed[width * lane + c];
            });
            kept_mu[row] = multipliers[lane];
            for (int c = 0; c < 3; ++c) {
                color_rows.radii[3 * (row - begin) + c] = colors[3 * lane + c];
                color_rows.curvature[3 * (row - begin) + c] =
                    blocks[kLanes * packed(kFirstColor + c, kFirstColor + c) + lane];
            }
        }
    }

    // The step of all rows within their balls; returns Σ|h|. With measure_only values and multipliers stay.
    double step(const TrustBounds& bounds, const BlockRule& rule) {
        const Mask lanes_used = from_bits(used);
        const CloudTensors values{means, log_scales, quats, logit_opacities, sh_dc, nullptr};
        const Radii radii = hellinger_radii(bounds, values, 0, lanes_used);
        const Vec eta[kBlockRows] = {radii.mean[0],   radii.mean[1],   radii.mean[2], radii.log_scale, radii.log_scale,
                                     radii.log_scale, radii.quat[0],   radii.quat[1], radii.quat[2],   radii.quat[3],
                                     radii.logit,     radii.color[0],  radii.color[1], radii.color[2]};
        Vec a[kBlockFloats], h[kBlockRows], x[kBlockRows], trace(0.0f);
        for (int r = 0, n = 0; r < kBlockRows; ++r) {
            const Vec scaled = Vec(rule.scale) * eta[r];
            h[r] = keep(lanes_used, Vec(rule.correction) * eta[r] * Vec::load(slopes + kLanes * r));
            for (int c = 0; c <= r; ++c, ++n)
                a[n] = keep(lanes_used, scaled * eta[c] * Vec::load(blocks + kLanes * n));
            trace += a[packed(r, r)];
        }
        const Mask lanes = lanes_used & (trace > Vec(0.0f));
        store_rows<3>({keep(lanes, radii.color[0]), keep(lanes, radii.color[1]), keep(lanes, radii.color[2])}, colors);
        const double predicted = sum_lanes(sqrt(squared_length(h)));
        if (rule.measure_only) return predicted;
        const Vec kept = Vec::load(multipliers);
        Vec mu = kept;
        solve_in_ball(a, trace, h, Vec(rule.damping), rule.factorisations, mu, x);
        for (int r = 0; r < kBlockRows; ++r) {
            const BlockColumn& k = kBlockColumns[r];
            scatter_add(values.*k.tensor + k.column, k.width, lanes, eta[r] * x[r]);
        }
        keep_lengths(quats, radii.quat_length, lanes);
        select(lanes, mu, kept).store(multipliers);
        return predicted;
    }
};

// Moves rows [begin, end) and returns Σ|h| over those that were seen; with measure_only nothing is written, and h is
// made of the gradient alone.
double block_step(const TrustBounds& bounds, const BlockRule& rule, const CloudTensors& values,
                const CloudTensors& gradient, const CloudTensors& momentum, const float* blocks,
                const uint8_t* seen, float* multipliers, int rest, int64_t begin, int64_t end, float* scratch) {
    const ColorRows colors(scratch, rest);
    const int64_t rows = end - begin;
    const Vec decay(rule.decay1);
    const CloudTensors& mean = rule.measure_only ? gradient : momentum;
    double predicted = 0;
    const int widths[5] = {3, 3, 4, 1, 3};
    float* CloudTensors::*const tensors[5] = {&CloudTensors::means, &CloudTensors::log_scales, &CloudTensors::quats,
                                             &CloudTensors::logit_opacities, &CloudTensors::sh_dc};
    for (int t = 0; t < 5 && !rule.measure_only; ++t)
        fold_momentum(momentum.*tensors[t] + widths[t] * begin, gradient.*tensors[t] + widths[t] * begin, decay,
                      widths[t] * rows);

    std::memset(colors.radii, 0, sizeof(float) * 3 * rows);
    std::memset(colors.curvature, 0, sizeof(float) * 3 * rows);
    PackedRows pack;
    int64_t waiting[kLanes];
    int count = 0;
    const auto move = [&] {
        pack.take(waiting, count, values, mean, blocks, multipliers);
        predicted += pack.step(bounds, rule);
        if (!rule.measure_only) pack.put(values, multipliers, colors, begin);
        count = 0;
    };
    for (int64_t i = begin; i < end; ++i) {
        if (seen && !seen[i]) continue;
        waiting[count++] = i;
        if (count == kLanes) move();
    }
    if (count) move();
    if (rest == 0 || rule.measure_only) return predicted;
    KnownCurvatureRule rest_rule{{decay, Vec(rule.scale / rule.correction), Vec(0.0f)}};
    const auto coefficients = static_cast<float>(rest + 1);
    for (int64_t row = 0; row < rows; row += kCoefficientRows) {
        const int64_t count = rows - row < kCoefficientRows ? rows - row : kCoefficientRows;
        const int64_t at = 3 * rest * (begin + row);
        store_coefficients(colors.radii + 3 * row, bounds.higher_bands, rest, count, colors.coefficient_radii);
        store_coefficients(colors.curvature + 3 * row, coefficients, rest, count, colors.coefficient_curvature);
        sweep(rest_rule, values.sh_rest + at, gradient.sh_rest + at, momentum.sh_rest + at,
              colors.coefficient_curvature, colors.coefficient_radii, 3 * rest * count);
    }
    return predicted;
}

// B ← B + w·(fresh - B), w of each row.
void fold_blocks(float* blocks, const float* fresh, const float* weights, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
        const Vec weight(weights[i]);
        float* const kept = blocks + kBlockFloats * i;
        const float* const row = fresh + kBlockFloats * i;
        for (int n = 0; n < kBlockFloats; n += kLanes) {
            const Mask part = first_lanes(kBlockFloats - n < kLanes ? kBlockFloats - n : kLanes);
            const Vec old = load_part(kept + n, part);
            store_part(kept + n, part, fmadd(load_part(row + n, part) - old, weight, old));
        }
    }
}

// Σ dᵀBd + Σ D d² over rows [begin, end), the latter of the higher bands.
double block_form(const float* blocks, const CloudTensors& step, int rest, int64_t begin, int64_t end) {
    double total = 0;
    for (int64_t row = begin; row < end; ++row) {
        const float* const d = step.sh_rest + 3 * rest * row;
        float squares[3] = {};
        for (int n = 0; n < 3 * rest; ++n) squares[n % 3] += d[n] * d[n];
        for (int c = 0; c < 3; ++c)
            total += (rest + 1) * blocks[kBlockFloats * row + packed(kFirstColor + c, kFirstColor + c)] * squares[c];
    }
    for (int64_t i = begin; i < end; i += kLanes) {
        // The lower triangle stands for both: twice all of it, and the diagonal once less.
        Vec twice(0.0f), once(0.0f);
        const int count = static_cast<int>(end - i < kLanes ? end - i : kLanes);
        for (int row = 0; row < count; ++row) {
            alignas(64) float d[kLanes] = {};
            for (int r = 0; r < kBlockRows; ++r) {
                const BlockColumn& k = kBlockColumns[r];
                d[r] = (step.*k.tensor)[k.width * (i + row) + k.column];
            }
            const Vec all = Vec::load(d);
            const float* const block = blocks + kBlockFloats * (i + row);
            alignas(64) float diagonal[kLanes] = {};
            for (int r = 0; r < kBlockRows; ++r) {
                const Vec entries = load_part(block + packed(r, 0), first_lanes(r + 1));
                twice = fmadd(entries * Vec(d[r]), all, twice);
                diagonal[r] = block[packed(r, r)];
            }
            once = fmadd(Vec::load(diagonal) * all, all, once);
        }
        total += 2 * sum_lanes(twice) - sum_lanes(once);
    }
    return total;
}
