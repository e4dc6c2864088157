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
// Blocks are kept sixteen rows a lane: entry n of row i is blocks[16·(105·(i / 16) + n) + i % 16].

constexpr int kBlockRows = 14;
constexpr int kBlockFloats = kBlockRows * (kBlockRows + 1) / 2;

// A lower triangular matrix by columns, l[column][row]; after factorise the diagonal is inverted.
struct Factor {
    Vec l[kBlockRows][kBlockRows];
};

constexpr int packed(int row, int column) { return row * (row + 1) / 2 + column; }

// Column C of the Cholesky factor of A + μI: its entries stay in registers, what earlier columns take from them
// is independent from entry to entry.
template <int C>
inline void factorise_column(const Vec* a, Vec shift, Vec floor, Factor& f) {
    Vec column[kBlockRows];
#pragma GCC unroll 14
    for (int r = C; r < kBlockRows; ++r) column[r] = a[packed(r, C)];
    column[C] += shift;
    for (int k = 0; k < C; ++k) {
        const Vec factor = f.l[k][C];
#pragma GCC unroll 14
        for (int r = C; r < kBlockRows; ++r) column[r] = fnmadd(f.l[k][r], factor, column[r]);
    }
    const Vec inverse = Vec(1.0f) / sqrt(max(column[C], floor));
    f.l[C][C] = inverse;
#pragma GCC unroll 14
    for (int r = C + 1; r < kBlockRows; ++r) f.l[C][r] = column[r] * inverse;
    if constexpr (C + 1 < kBlockRows) factorise_column<C + 1>(a, shift, floor, f);
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
    mu = max(mu, damping);
    for (int round = 0; round < rounds; ++round) {
        factorise_column<0>(a, mu + floor, floor * Vec(1e-3f), factor);
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
    const Vec shrink = one / max(length, one);
    for (int r = 0; r < kBlockRows; ++r) x[r] *= shrink;
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

// The lanes of rows i to i + 15 that were seen; all where seen is null.
inline Mask seen_lanes(const uint8_t* seen, int64_t i, int64_t end) {
    uint32_t bits = 0;
    for (int lane = 0; lane < kLanes && i + lane < end; ++lane) bits |= (!seen || seen[i + lane] ? 1u : 0u) << lane;
    return from_bits(bits);
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

// Moves rows [begin, end) and returns Σ|h| over those that were seen; with measure_only nothing is written, and h is
// made of the gradient alone.
double block_step(const TrustBounds& bounds, const BlockRule& rule, const CloudTensors& values,
                const CloudTensors& gradient, const CloudTensors& momentum, const float* blocks,
                const float* rest_curvature, const uint8_t* seen, float* multipliers, int rest, int64_t begin,
                int64_t end, float* scratch) {
    const RowRadii row_radii(scratch);
    const int64_t rows = end - begin;
    const Vec decay(rule.decay1);
    const CloudTensors& mean = rule.measure_only ? gradient : momentum;
    double promised = 0;
    const int widths[5] = {3, 3, 4, 1, 3};
    float* CloudTensors::*const tensors[5] = {&CloudTensors::means, &CloudTensors::log_scales, &CloudTensors::quats,
                                             &CloudTensors::logit_opacities, &CloudTensors::sh_dc};
    for (int t = 0; t < 5 && !rule.measure_only; ++t)
        fold_momentum(momentum.*tensors[t] + widths[t] * begin, gradient.*tensors[t] + widths[t] * begin, decay,
                      widths[t] * rows);

    for (int64_t i = begin; i < end; i += kLanes) {
        const Mask seen_here = seen_lanes(seen, i, end);
        float* const colors = row_radii.sh_dc + 3 * (i - begin);
        if (!any(seen_here)) {
            std::memset(colors, 0, sizeof(float) * 3 * kLanes);
            continue;
        }
        const Radii radii = hellinger_radii(bounds, values, i, seen_here);
        const Vec eta[kBlockRows] = {radii.mean[0],   radii.mean[1],   radii.mean[2], radii.log_scale, radii.log_scale,
                                     radii.log_scale, radii.quat[0],   radii.quat[1], radii.quat[2],   radii.quat[3],
                                     radii.logit,     radii.color[0],  radii.color[1], radii.color[2]};
        Vec a[kBlockFloats], h[kBlockRows], x[kBlockRows], trace(0.0f);
        const float* const block = blocks + kBlockFloats * i;
        for (int r = 0, n = 0; r < kBlockRows; ++r) {
            const BlockColumn& k = kBlockColumns[r];
            const Vec scaled = Vec(rule.scale) * eta[r];
            h[r] = Vec(rule.correction) * eta[r] *
                   gather(mean.*k.tensor + k.width * i + k.column, k.width, seen_here);
            for (int c = 0; c <= r; ++c, ++n) a[n] = keep(seen_here, scaled * eta[c] * Vec::load(block + kLanes * n));
            trace += a[packed(r, r)];
        }
        const Mask lanes = seen_here & (trace > Vec(0.0f));
        store_rows<3>({keep(lanes, radii.color[0]), keep(lanes, radii.color[1]), keep(lanes, radii.color[2])}, colors);
        promised += sum_lanes(sqrt(squared_length(h)));
        if (rule.measure_only) continue;
        Vec mu = gather(multipliers + i, 1, lanes);
        solve_in_ball(a, trace, h, Vec(rule.damping), rule.factorisations, mu, x);
        for (int r = 0; r < kBlockRows; ++r) {
            const BlockColumn& k = kBlockColumns[r];
            scatter_add(values.*k.tensor + k.width * i + k.column, k.width, lanes, eta[r] * x[r]);
        }
        keep_lengths(values.quats + 4 * i, radii.quat_length, lanes);
        float next[kLanes];
        mu.store(next);
        const uint32_t bits = to_bits(lanes);
        for (int lane = 0; lane < kLanes; ++lane)
            if (bits >> lane & 1) multipliers[i + lane] = next[lane];
    }
    if (rest == 0 || rule.measure_only) return promised;
    CurvatureRule rest_rule{decay, Vec(rule.scale / rule.correction), Vec(0.0f)};
    for (int64_t row = 0; row < rows; row += kCoefficientRows) {
        const int64_t count = rows - row < kCoefficientRows ? rows - row : kCoefficientRows;
        const int64_t at = 3 * rest * (begin + row);
        store_coefficients(row_radii.sh_dc + 3 * row, bounds.higher_bands, rest, count, row_radii.coefficients);
        sweep(rest_rule, values.sh_rest + at, gradient.sh_rest + at, momentum.sh_rest + at,
              const_cast<float*>(rest_curvature) + at, row_radii.coefficients, 3 * rest * count);
    }
    return promised;
}

// Strided gathers hide the order of memory from the processor: fetch the next sixteen rows' blocks by hand.
inline void prefetch_blocks(const float* blocks, int64_t i, int64_t end) {
    if (i + 2 * kLanes > end) return;
    const float* next = blocks + kBlockFloats * (i + kLanes);
    for (int line = 0; line < kBlockFloats * kLanes; line += 16) __builtin_prefetch(next + line);
}

// B ← B + w·(fresh - B), w of each row; fresh lies row by row.
void fold_blocks(float* blocks, const float* fresh, const float* weights, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kLanes) {
        const Mask lanes = first_lanes(static_cast<int>(end - i < kLanes ? end - i : kLanes));
        prefetch_blocks(fresh, i, end);
        const Vec weight = gather(weights + i, 1, lanes);
        for (int n = 0; n < kBlockFloats; ++n) {
            float* const entry = blocks + kBlockFloats * i + kLanes * n;
            const Vec kept = Vec::load(entry);
            fmadd(gather(fresh + kBlockFloats * i + n, kBlockFloats, lanes) - kept, weight, kept).store(entry);
        }
    }
}

// Σ dᵀBd over rows [begin, end), blocks row by row.
double block_form(const float* blocks, const CloudTensors& step, int64_t begin, int64_t end) {
    double total = 0;
    for (int64_t i = begin; i < end; i += kLanes) {
        const Mask lanes = first_lanes(static_cast<int>(end - i < kLanes ? end - i : kLanes));
        prefetch_blocks(blocks, i, end);
        Vec d[kBlockRows], sum(0.0f);
        for (int r = 0, n = 0; r < kBlockRows; ++r) {
            const BlockColumn& k = kBlockColumns[r];
            d[r] = gather(step.*k.tensor + k.width * i + k.column, k.width, lanes);
            Vec row(0.0f);
            for (int c = 0; c <= r; ++c, ++n) {
                const Vec entry = gather(blocks + kBlockFloats * i + n, kBlockFloats, lanes);
                row = fmadd(c < r ? entry + entry : entry, d[c], row);
            }
            sum = fmadd(row, d[r], sum);
        }
        total += sum_lanes(sum);
    }
    return total;
}
