// One trust-region step for each Gaussian's own block: sixteen Gaussians at a time, one a lane.
//
//     minimise gᵀd + ½ dᵀ(s B)d  subject to  Σ (d_k/η_k)² <= 1
//
// In x = d/η this is (A + μI) x = -h, A = s·ηBη, h = ηg, with μ >= 0 such that |x| = 1 or μ = 0 and |x| < 1
// (Moré and Sorensen 1983). μ is kept between steps: one Newton step on 1/|x| - 1 a factorisation follows it as
// the scene moves, and what still sticks out of the ball is scaled back onto it. A Gaussian without any curvature
// stays: nothing is known about how far it may go.

constexpr int kBlockRows = 14;
constexpr int kBlockFloats = kBlockRows * (kBlockRows + 1) / 2;

inline int packed(int row, int column) { return row * (row + 1) / 2 + column; }

// Cholesky factor of A + μI in place of A's lower triangle, diagonal entries inverted.
inline void factorise(const Vec* a, Vec mu, Vec floor, Vec* l) {
    for (int r = 0; r < kBlockRows; ++r)
        for (int c = 0; c <= r; ++c) {
            Vec sum = a[packed(r, c)];
            if (r == c) sum += mu;
            for (int k = 0; k < c; ++k) sum = fnmadd(l[packed(r, k)], l[packed(c, k)], sum);
            l[packed(r, c)] = r == c ? Vec(1.0f) / sqrt(max(sum, floor)) : sum * l[packed(c, c)];
        }
}

inline Vec squared_length(const Vec* x) {
    Vec sum(0.0f);
    for (int r = 0; r < kBlockRows; ++r) sum = fmadd(x[r], x[r], sum);
    return sum;
}

void solve_blocks(const float* blocks, const float* gradient, const float* radii, float scale, int factorisations,
                  int64_t begin, int64_t end, float* multipliers, float* steps) {
    const Vec one(1.0f), zero(0.0f);
    for (int64_t i = begin; i < end; i += kLanes) {
        const Mask lanes = first_lanes(static_cast<int>(end - i < kLanes ? end - i : kLanes));
        Vec a[kBlockFloats], l[kBlockFloats], h[kBlockRows], eta[kBlockRows], x[kBlockRows];
        Vec trace(0.0f);
        for (int r = 0; r < kBlockRows; ++r) {
            eta[r] = gather(radii + kBlockRows * i + r, kBlockRows, lanes);
            h[r] = eta[r] * gather(gradient + kBlockRows * i + r, kBlockRows, lanes);
            for (int c = 0; c <= r; ++c)
                a[packed(r, c)] = Vec(scale) * eta[r] * eta[c] *
                                  gather(blocks + kBlockFloats * i + packed(r, c), kBlockFloats, lanes);
            trace += a[packed(r, r)];
        }
        // What rounding may have taken from a block without full rank.
        const Vec floor = max(trace * Vec(1e-6f), Vec(1e-30f));
        const Mask known = trace > zero;
        const Vec kept = max(gather(multipliers + i, 1, lanes), zero);
        Vec mu = kept;
        Vec length(0.0f);
        for (int round = 0; round < factorisations; ++round) {
            factorise(a, mu + floor, floor * Vec(1e-3f), l);
            Vec q[kBlockRows];
            for (int r = 0; r < kBlockRows; ++r) {  // L y = -h
                Vec sum = -h[r];
                for (int k = 0; k < r; ++k) sum = fnmadd(l[packed(r, k)], x[k], sum);
                x[r] = sum * l[packed(r, r)];
            }
            for (int r = kBlockRows - 1; r >= 0; --r) {  // Lᵀ x = y
                Vec sum = x[r];
                for (int k = r + 1; k < kBlockRows; ++k) sum = fnmadd(l[packed(k, r)], x[k], sum);
                x[r] = sum * l[packed(r, r)];
            }
            for (int r = 0; r < kBlockRows; ++r) {  // L q = x, for d|x|/dμ
                Vec sum = x[r];
                for (int k = 0; k < r; ++k) sum = fnmadd(l[packed(r, k)], q[k], sum);
                q[r] = sum * l[packed(r, r)];
            }
            const Vec squared = squared_length(x);
            length = sqrt(squared);
            const Vec change = (squared / max(squared_length(q), Vec(1e-30f))) * (length - one);
            mu = max(mu + change, zero);
        }
        const Vec shrink = one / max(length, one);
        for (int r = 0; r < kBlockRows; ++r) {
            float out[kLanes];
            keep(known, x[r] * eta[r] * shrink).store(out);
            for (int lane = 0; lane < kLanes && i + lane < end; ++lane) steps[kBlockRows * (i + lane) + r] = out[lane];
        }
        float out[kLanes];
        select(known, mu, kept).store(out);
        for (int lane = 0; lane < kLanes && i + lane < end; ++lane) multipliers[i + lane] = out[lane];
    }
}
