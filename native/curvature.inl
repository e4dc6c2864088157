// Gauss-Newton curvature in one pass: diag(JᵀJ) and each Gaussian's own block of JᵀJ.
//
// With per-pixel weights W_c (the squared slopes of the residuals) and φ = (1, u, v, u², uv, v²), a pixel's
// colour changes by g_c·(a·φ) + w·b_c along a parameter, where g_c = ∂C_c/∂log2 α, w is the blending weight, and
// a = (l', t, N_uu, 2N_uv, N_vv) and b (the change of colour) belong to the Gaussian. So all curvature of a
// Gaussian follows from sums over its pixels that know nothing of its parameters:
//
//     Φ = Σ Ω φφᵀ with Ω = Σ_c W_c g_c²   (15 different moments u^i v^j),
//     Y_c = Σ W_c w²,   X_c = Σ W_c g_c w φ,
//     (JᵀJ)_ij = aᵢᵀ Φ aⱼ + Σ_c (b_ci X_c·aⱼ + b_cj X_c·aᵢ + b_ci b_cj Y_c).

constexpr int kCrossBegin = 18;  // 15 moments, 3 colour sums, then 18 cross sums

template <bool kCross>
void moments_of_tile(const Constants& k, const View& view, const Splat* splats, const Entry* entries, int64_t count,
                     int tile, TileScratch& scratch, const TileState& state, const float* const* weights,
                     float* pair_moments) {
    constexpr int kSums = kCross ? 36 : 18;
    if (!count) return;
    gather_tile(view, splats, entries, count, tile, scratch);
    load_tile_gradient(view, tile, state, weights, scratch);
    // What lies behind a pixel's present pair, per channel: at first the background.
    alignas(64) float behind_of[3][kTilePixels];
    for (int c = 0; c < 3; ++c)
        for (int at = 0; at < kTilePixels; at += kLanes)
            (Vec::load(scratch.transmittance + at) * Vec(view.background[c])).store(behind_of[c] + at);
    alignas(64) float kept[kCross ? 5 : 1][kTilePixels];  // W g w per channel, u, v
    const Vec max_alpha(k.max_alpha), min_alpha(k.min_alpha), one(1.0f), ln2(0.69314718f), zero(0.0f);
    for (int64_t i = count - 1; i >= 0; --i) {
        float* out = pair_moments + static_cast<int64_t>(entries[i].slot) * kSums;
        const uint32_t blocks = scratch.blocks[i];
        if (!blocks) {
            std::memset(out, 0, sizeof(float) * kSums);
            continue;
        }
        const float* s = scratch.splats + kLocal * i;
        // Two rounds over the blocks, each with as many sums as there are registers for.
        Vec sums[18];
        for (Vec& sum : sums) sum = zero;
        for (uint32_t left = blocks; left; left &= left - 1) {
            const int block = __builtin_ctz(left), at = block * kLanes;
            const Vec x = Vec::load(kLaneX) + Vec(block % kTileBlocks * kBlock);
            const Vec y = Vec::load(kLaneY) + Vec(block / kTileBlocks * kBlock);
            const Pair pair = evaluate(s, x, y);
            const Mask used = (pair.alpha >= min_alpha) & Position::load(scratch.last + at).reaches(static_cast<uint32_t>(i));
            const Vec alpha = keep(used, min(pair.alpha, max_alpha));
            const Vec inverse = reciprocal(one - alpha);
            const Vec t = Vec::load(scratch.transmittance + at) * inverse;
            const Vec w = alpha * t, ww = w * w, slope = keep(pair.alpha <= max_alpha, alpha * ln2);
            const Vec own = slope * t, others = slope * inverse;
            t.store(scratch.transmittance + at);
            const Vec uu = pair.u * pair.u, uv = pair.u * pair.v, vv = pair.v * pair.v;
            Vec omega = zero;
            for (int c = 0; c < 3; ++c) {
                const Vec weight = Vec::load(scratch.gradient[c] + at), behind = Vec::load(behind_of[c] + at);
                const Vec g = fnmadd(behind, others, own * Vec(s[6 + c]));
                const Vec weighted = weight * g;
                fmadd(w, Vec(s[6 + c]), behind).store(behind_of[c] + at);
                omega = fmadd(weighted, g, omega);
                sums[15 + c] = fmadd(weight, ww, sums[15 + c]);
                if (kCross) (weighted * w).store(kept[c] + at);
            }
            if (kCross) {
                pair.u.store(kept[3] + at);
                pair.v.store(kept[4] + at);
            }
            const Vec ouu = omega * uu, ouv = omega * uv, ovv = omega * vv;
            sums[0] += omega;
            sums[1] = fmadd(omega, pair.u, sums[1]);
            sums[2] = fmadd(omega, pair.v, sums[2]);
            sums[3] += ouu;
            sums[4] += ouv;
            sums[5] += ovv;
            sums[6] = fmadd(ouu, pair.u, sums[6]);
            sums[7] = fmadd(ouu, pair.v, sums[7]);
            sums[8] = fmadd(ovv, pair.u, sums[8]);
            sums[9] = fmadd(ovv, pair.v, sums[9]);
            sums[10] = fmadd(ouu, uu, sums[10]);
            sums[11] = fmadd(ouu, uv, sums[11]);
            sums[12] = fmadd(ouu, vv, sums[12]);
            sums[13] = fmadd(ovv, uv, sums[13]);
            sums[14] = fmadd(ovv, vv, sums[14]);
        }
        reduce_nine(sums, out);
        reduce_nine(sums + 9, out + 9);
        if (!kCross) continue;
        for (Vec& sum : sums) sum = zero;
        for (uint32_t left = blocks; left; left &= left - 1) {
            const int at = __builtin_ctz(left) * kLanes;
            const Vec u = Vec::load(kept[3] + at), v = Vec::load(kept[4] + at), uu = u * u, uv = u * v, vv = v * v;
            for (int c = 0; c < 3; ++c) {
                const Vec h = Vec::load(kept[c] + at);
                Vec* cross = sums + 6 * c;
                cross[0] += h;
                cross[1] = fmadd(h, u, cross[1]);
                cross[2] = fmadd(h, v, cross[2]);
                cross[3] = fmadd(h, uu, cross[3]);
                cross[4] = fmadd(h, uv, cross[4]);
                cross[5] = fmadd(h, vv, cross[5]);
            }
        }
        reduce_nine(sums, out + kCrossBegin);
        reduce_nine(sums + 9, out + kCrossBegin + 9);
    }
}

void blend_moments(const Constants& k, const View& view, const Splat* splats, const Entry* entries, int64_t count,
                   int tile, TileScratch& scratch, const TileState& state, const float* const* weights, bool cross,
                   float* pair_moments) {
    if (cross)
        moments_of_tile<true>(k, view, splats, entries, count, tile, scratch, state, weights, pair_moments);
    else
        moments_of_tile<false>(k, view, splats, entries, count, tile, scratch, state, weights, pair_moments);
}

// Which moment stands in Φ at each pair of φ = (1, u, v, u², uv, v²).
constexpr int kMomentOf[6][6] = {{0, 1, 2, 3, 4, 5},  {1, 3, 4, 6, 7, 8},   {2, 4, 5, 7, 8, 9},
                                 {3, 6, 7, 10, 11, 12}, {4, 7, 8, 11, 12, 13}, {5, 8, 9, 12, 13, 14}};

struct Moments {
    Vec geometry[15], color[3], cross[3][6];
    bool has_cross;
};

inline Moments load_moments(const float* moments, int64_t i, bool cross, Mask lanes, float weight) {
    const int stride = cross ? 36 : 18;
    alignas(64) float sums[36 * kLanes];
    transpose_rows(moments + stride * i, stride, lanes, stride, sums);
    const auto at = [&](int f) { return Vec::load(sums + kLanes * f) * Vec(weight); };
    Moments m;
    m.has_cross = cross;
    for (int f = 0; f < 15; ++f) m.geometry[f] = at(f);
    for (int c = 0; c < 3; ++c) m.color[c] = at(15 + c);
    for (int c = 0; c < 3; ++c)
        for (int f = 0; f < 6; ++f) m.cross[c][f] = cross ? at(kCrossBegin + 6 * c + f) : Vec(0.0f);
    return m;
}

// How one parameter moves the exponent (a) and the colours (b).
struct Column {
    Vec a[6], b[3];
};

inline Column column_of(const Tangent& t) {
    return {{t.log2_opacity, t.t[0], t.t[1], t.n[0], Vec(2.0f) * t.n[1], t.n[2]}, {Vec(0.0f), Vec(0.0f), Vec(0.0f)}};
}

inline void apply_moments(const Moments& m, const Column& column, Vec* phi_a, Vec* x_a) {
    for (int r = 0; r < 6; ++r) {
        phi_a[r] = Vec(0.0f);
        for (int c = 0; c < 6; ++c) phi_a[r] = fmadd(m.geometry[kMomentOf[r][c]], column.a[c], phi_a[r]);
    }
    for (int c = 0; c < 3; ++c) {
        x_a[c] = Vec(0.0f);
        for (int r = 0; r < 6; ++r) x_a[c] = fmadd(m.cross[c][r], column.a[r], x_a[c]);
    }
}

// (JᵀJ) of two columns that have been applied to the moments, x Xa and phi_right Φa.
inline Vec curvature_of(const Moments& m, const Column& left, const Vec* x_left, const Column& right,
                        const Vec* phi_right, const Vec* x_right) {
    Vec sum(0.0f);
    for (int r = 0; r < 6; ++r) sum = fmadd(left.a[r], phi_right[r], sum);
    for (int c = 0; c < 3; ++c) {
        sum = fmadd(left.b[c], x_right[c], fmadd(right.b[c], x_left[c], sum));
        sum = fmadd(left.b[c] * right.b[c], m.color[c], sum);
    }
    return sum;
}

// The columns of means, log_scales, quats, logit_opacity and, for blocks, sh_dc.
inline void columns_of(const Constants& k, const View& view, const Cloud& cloud, const Splat* splats, int64_t i,
                       Mask lanes, const Vec* offset, const Projected& p, Column* columns) {
    float w[9];
    rotation_floats(view, w);
    const Whitening a = whitening_of(splats, i, lanes);
    const Vec transparency = transparency_of(cloud, i, lanes), one(1.0f), zero(0.0f);
    Vec direction[3], by_mean[3][3], passes[3];
    const Vec inverse = direction_of(offset, direction);
    color_by_mean(cloud, i, lanes, direction, inverse, by_mean);
    for (int c = 0; c < 3; ++c) passes[c] = color_passes(splats, i, c, lanes);
    for (int n = 0; n < 11; ++n) {
        Direction d{};
        Vec* all = d.mean;  // eleven vectors side by side
        static_assert(sizeof(Direction) == 11 * sizeof(Vec));
        for (int m = 0; m < 11; ++m) all[m] = m == n ? one : zero;
        columns[n] = column_of(geometry_jvp(k, view, w, p, a, transparency, d));
        if (n < 3)
            for (int c = 0; c < 3; ++c) columns[n].b[c] = passes[c] * by_mean[c][n];
    }
    for (int n = 0; n < 3; ++n) {
        columns[11 + n] = Column{{zero, zero, zero, zero, zero, zero}, {zero, zero, zero}};
        columns[11 + n].b[n] = Vec(kSh0) * passes[n];
    }
}

inline void rest_diagonal(const Cloud& cloud, const Splat* splats, int64_t i, Mask lanes, const Vec* offset,
                          const Moments& m, float* out) {
    Vec direction[3], basis[15];
    direction_of(offset, direction);
    const int bands = sh_basis(cloud.degree, direction[0], direction[1], direction[2], basis);
    alignas(64) float sums[45 * kLanes];
    for (int c = 0; c < 3; ++c) {
        const Vec passed = m.color[c] * color_passes(splats, i, c, lanes);
        for (int b = 0; b < bands; ++b) (basis[b] * basis[b] * passed).store(sums + kLanes * (3 * b + c));
    }
    add_coefficients(cloud, sums, i, lanes, bands, out);
}

void project_diagonal(const Constants& k, const View& view, const Cloud& cloud, int64_t begin, int64_t end,
                      const Splat* splats, const uint8_t* visible, const float* moments, bool cross, float weight,
                      const CloudTensors& out) {
    for (int64_t i = begin; i < end; i += kLanes) {
        const int count = static_cast<int>(end - i < kLanes ? end - i : kLanes);
        const uint32_t bits = visible_bits(visible, i, count);
        if (!bits) continue;
        const Mask lanes = from_bits(bits);
        Projected p;
        Vec offset[3];
        project_point(k, view, cloud, i, lanes, offset, p);
        project_covariance(k, view, cloud, i, lanes, p);
        const Moments m = load_moments(moments, i, cross, lanes, weight);
        Column columns[14];
        columns_of(k, view, cloud, splats, i, lanes, offset, p, columns);
        const int width[5] = {3, 3, 4, 1, 3};
        float* const base[5] = {out.means, out.log_scales, out.quats, out.logit_opacities, out.sh_dc};
        for (int group = 0, n = 0; group < 5; ++group)
            for (int c = 0; c < width[group]; ++c, ++n) {
                Vec phi_a[6], x_a[3];
                apply_moments(m, columns[n], phi_a, x_a);
                const Vec value = curvature_of(m, columns[n], x_a, columns[n], phi_a, x_a);
                scatter_add(base[group] + width[group] * i + c, width[group], lanes, max(value, Vec(0.0f)));
            }
        rest_diagonal(cloud, splats, i, lanes, offset, m, out.sh_rest);
    }
}

// Lower triangles row by row, 105 floats a Gaussian, and the higher bands' diagonal.
void project_blocks(const Constants& k, const View& view, const Cloud& cloud, int64_t begin, int64_t end,
                    const Splat* splats, const uint8_t* visible, const float* moments, float weight, float* blocks,
                    float* rest) {
    for (int64_t i = begin; i < end; i += kLanes) {
        const int count = static_cast<int>(end - i < kLanes ? end - i : kLanes);
        const uint32_t bits = visible_bits(visible, i, count);
        if (!bits) continue;
        const Mask lanes = from_bits(bits);
        Projected p;
        Vec offset[3];
        project_point(k, view, cloud, i, lanes, offset, p);
        project_covariance(k, view, cloud, i, lanes, p);
        const Moments m = load_moments(moments, i, true, lanes, weight);
        Column columns[14];
        columns_of(k, view, cloud, splats, i, lanes, offset, p, columns);
        Vec x[14][3];
        alignas(64) float entries[105 * kLanes];
        for (int r = 0, n = 0; r < 14; ++r) {
            Vec phi_a[6];
            apply_moments(m, columns[r], phi_a, x[r]);
            for (int c = 0; c <= r; ++c, ++n)
                curvature_of(m, columns[c], x[c], columns[r], phi_a, x[r]).store(entries + kLanes * n);
        }
        add_transposed(entries, 105, lanes, blocks + 105 * i, 105);
        rest_diagonal(cloud, splats, i, lanes, offset, m, rest);
    }
}
