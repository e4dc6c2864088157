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

// Where a pair's second round finds what the first one left: W g w per channel, u, v.
enum KeptPlane { kKeptColor, kKeptU = kKeptColor + 3, kKeptV, kKeptPlanes };

// Moments and colour sums of one pair, over the blocks that it touches. `behind_of` is what lies behind a pixel's
// present pair, per channel.
template <bool kCross>
inline void sum_moments(const Constants& k, const LocalSplat& s, uint32_t position, uint32_t blocks,
                        TileScratch& scratch, float (*behind_of)[kTilePixels], float (*kept)[kTilePixels], float* out) {
    const Vec max_alpha(k.max_alpha), min_alpha(k.min_alpha), one(1.0f), ln2(kLn2), zero(0.0f);
    Vec sums[kMomentSums];
    for (Vec& sum : sums) sum = zero;
    for (; blocks; blocks &= blocks - 1) {
        const int block = __builtin_ctz(blocks), at = block * kLanes;
        BlockRays& rays = scratch.rays[block];
        const Pair pair = evaluate(s, Vec::load(rays.x), Vec::load(rays.y));
        const Mask used = (pair.alpha >= min_alpha) & Position::load(rays.last).reaches(position);
        const Vec alpha = keep(used, min(pair.alpha, max_alpha));
        const Vec inverse = reciprocal(one - alpha);
        const Vec t = Vec::load(rays.transmittance) * inverse;
        const Vec w = alpha * t, ww = w * w, slope = keep(pair.alpha <= max_alpha, alpha * ln2);
        const Vec own = slope * t, others = slope * inverse;
        t.store(rays.transmittance);
        const Vec uu = pair.u * pair.u, uv = pair.u * pair.v, vv = pair.v * pair.v;
        Vec omega = zero;
        for (int c = 0; c < 3; ++c) {
            const Vec weight = Vec::load(rays.gradient[c]), behind = Vec::load(behind_of[c] + at);
            const Vec g = fnmadd(behind, others, own * Vec(s.color[c]));
            const Vec weighted = weight * g;
            fmadd(w, Vec(s.color[c]), behind).store(behind_of[c] + at);
            omega = fmadd(weighted, g, omega);
            sums[kColorMoments + c] = fmadd(weight, ww, sums[kColorMoments + c]);
            if (kCross) (weighted * w).store(kept[kKeptColor + c] + at);
        }
        if (kCross) {
            pair.u.store(kept[kKeptU] + at);
            pair.v.store(kept[kKeptV] + at);
        }
        const Vec ouu = omega * uu, ouv = omega * uv, ovv = omega * vv;
        sums[kOne] += omega;
        sums[kU] = fmadd(omega, pair.u, sums[kU]);
        sums[kV] = fmadd(omega, pair.v, sums[kV]);
        sums[kUU] += ouu;
        sums[kUV] += ouv;
        sums[kVV] += ovv;
        sums[kUUU] = fmadd(ouu, pair.u, sums[kUUU]);
        sums[kUUV] = fmadd(ouu, pair.v, sums[kUUV]);
        sums[kUVV] = fmadd(ovv, pair.u, sums[kUVV]);
        sums[kVVV] = fmadd(ovv, pair.v, sums[kVVV]);
        sums[kUUUU] = fmadd(ouu, uu, sums[kUUUU]);
        sums[kUUUV] = fmadd(ouu, uv, sums[kUUUV]);
        sums[kUUVV] = fmadd(ouu, vv, sums[kUUVV]);
        sums[kUVVV] = fmadd(ovv, uv, sums[kUVVV]);
        sums[kVVVV] = fmadd(ovv, vv, sums[kVVVV]);
    }
    reduce_nine(sums, out);
    reduce_nine(sums + 9, out + 9);
}

// The cross sums of the same pair, from what was kept: as many again as there are registers for.
inline void sum_cross(uint32_t blocks, const float (*kept)[kTilePixels], float* out) {
    Vec sums[3 * kPhi];
    for (Vec& sum : sums) sum = Vec(0.0f);
    for (; blocks; blocks &= blocks - 1) {
        const int at = __builtin_ctz(blocks) * kLanes;
        const Vec u = Vec::load(kept[kKeptU] + at), v = Vec::load(kept[kKeptV] + at);
        const Vec uu = u * u, uv = u * v, vv = v * v;
        for (int c = 0; c < 3; ++c) {
            const Vec h = Vec::load(kept[kKeptColor + c] + at);
            Vec* cross = sums + kPhi * c;
            cross[kOne] += h;
            cross[kU] = fmadd(h, u, cross[kU]);
            cross[kV] = fmadd(h, v, cross[kV]);
            cross[kUU] = fmadd(h, uu, cross[kUU]);
            cross[kUV] = fmadd(h, uv, cross[kUV]);
            cross[kVV] = fmadd(h, vv, cross[kVV]);
        }
    }
    reduce_nine(sums, out);
    reduce_nine(sums + 9, out + 9);
}

template <bool kCross>
void moments_of_tile(const Constants& k, const View& view, const Splat* splats, const Entry* entries, int64_t count,
                     int tile, TileScratch& scratch, const TileState& state, const float* const* weights,
                     float* pair_moments) {
    constexpr int kSums = moment_sums(kCross);
    if (!count) return;
    gather_tile(view, splats, entries, count, tile, scratch);
    load_tile_gradient(view, tile, state, weights, scratch);
    // At first the background.
    alignas(64) float behind_of[3][kTilePixels];
    for (int c = 0; c < 3; ++c)
        for (int block = 0; block < kBlocksPerTile; ++block) {
            const Vec t = Vec::load(scratch.rays[block].transmittance);
            (t * Vec(view.background[c])).store(behind_of[c] + block * kLanes);
        }
    alignas(64) float kept[kCross ? kKeptPlanes : 1][kTilePixels];
    for (int64_t i = count - 1; i >= 0; --i) {
        float* out = pair_moments + static_cast<int64_t>(entries[i].slot) * kSums;
        const uint32_t blocks = scratch.blocks[i];
        if (!blocks) {
            std::memset(out, 0, sizeof(float) * kSums);
            continue;
        }
        sum_moments<kCross>(k, scratch.splats[i], static_cast<uint32_t>(i), blocks, scratch, behind_of, kept, out);
        if (kCross) sum_cross(blocks, kept, out + kCrossMoments);
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
constexpr MomentSum kMomentOf[kPhi][kPhi] = {
    {kOne, kU, kV, kUU, kUV, kVV},          {kU, kUU, kUV, kUUU, kUUV, kUVV},
    {kV, kUV, kVV, kUUV, kUVV, kVVV},       {kUU, kUUU, kUUV, kUUUU, kUUUV, kUUVV},
    {kUV, kUUV, kUVV, kUUUV, kUUVV, kUVVV}, {kVV, kUVV, kVVV, kUUVV, kUVVV, kVVVV}};

struct Moments {
    Vec geometry[kMoments], color[3], cross[3][kPhi];
    bool has_cross;
};

inline Moments load_moments(const float* moments, int64_t i, bool cross, Mask lanes, float weight) {
    const int stride = moment_sums(cross);
    alignas(64) float sums[kMomentSumsWithCross * kLanes];
    transpose_rows(moments + stride * i, stride, lanes, stride, sums);
    const auto at = [&](int f) { return Vec::load(sums + kLanes * f) * Vec(weight); };
    Moments m;
    m.has_cross = cross;
    for (int f = 0; f < kMoments; ++f) m.geometry[f] = at(f);
    for (int c = 0; c < 3; ++c) m.color[c] = at(kColorMoments + c);
    for (int c = 0; c < 3; ++c)
        for (int f = 0; f < kPhi; ++f) m.cross[c][f] = cross ? at(kCrossMoments + kPhi * c + f) : Vec(0.0f);
    return m;
}

// How one parameter moves the exponent, a of a·φ, and the colours (b).
struct Column {
    Vec a[kPhi], b[3];
};

inline Column column_of(const DerivativeFields<Vec>& d) {
    return {{d.log2_opacity, d.u, d.v, d.uu, Vec(2.0f) * d.uv, d.vv}, {d.color[0], d.color[1], d.color[2]}};
}

// The n-th of the eleven geometric parameters alone.
inline Direction unit_direction(int n) {
    Direction d{};
    (n < 3 ? d.mean[n] : n < 6 ? d.log_scale[n - 3] : n < 10 ? d.quat[n - 6] : d.logit) = Vec(1.0f);
    return d;
}

inline void apply_moments(const Moments& m, const Column& column, Vec* phi_a, Vec* x_a) {
    for (int r = 0; r < kPhi; ++r) {
        phi_a[r] = Vec(0.0f);
        for (int c = 0; c < kPhi; ++c) phi_a[r] = fmadd(m.geometry[kMomentOf[r][c]], column.a[c], phi_a[r]);
    }
    for (int c = 0; c < 3; ++c) {
        x_a[c] = Vec(0.0f);
        for (int r = 0; r < kPhi; ++r) x_a[c] = fmadd(m.cross[c][r], column.a[r], x_a[c]);
    }
}

// (JᵀJ) of two columns that have been applied to the moments, x Xa and phi_right Φa.
inline Vec curvature_of(const Moments& m, const Column& left, const Vec* x_left, const Column& right,
                        const Vec* phi_right, const Vec* x_right) {
    Vec sum(0.0f);
    for (int r = 0; r < kPhi; ++r) sum = fmadd(left.a[r], phi_right[r], sum);
    for (int c = 0; c < 3; ++c) {
        sum = fmadd(left.b[c], x_right[c], fmadd(right.b[c], x_left[c], sum));
        sum = fmadd(left.b[c] * right.b[c], m.color[c], sum);
    }
    return sum;
}

// The columns of means, log_scales, quats, logit_opacity and, for blocks, sh_dc.
inline void columns_of(const Constants& k, const View& view, const Cloud& cloud, const Splat* splats, int64_t i,
                       Mask lanes, const Vec* offset, const Projected& p, Column* columns) {
    const CameraRotation w(view);
    const Whitening a = whitening_of(splats, i, lanes);
    const Vec transparency = transparency_of(cloud, i, lanes), zero(0.0f);
    Vec direction[3], by_mean[3][3], passes[3];
    const Vec inverse = direction_of(offset, direction);
    color_by_mean(cloud, i, lanes, direction, inverse, by_mean);
    for (int c = 0; c < 3; ++c) passes[c] = color_passes(splats, i, c, lanes);
    for (int n = 0; n < kGeometryRows; ++n) {
        columns[n] = column_of(geometry_jvp(k, view, w, p, a, transparency, unit_direction(n)));
        if (n < 3)
            for (int c = 0; c < 3; ++c) columns[n].b[c] = passes[c] * by_mean[c][n];
    }
    for (int n = 0; n < 3; ++n) {
        columns[kGeometryRows + n] = Column{{zero, zero, zero, zero, zero, zero}, {zero, zero, zero}};
        columns[kGeometryRows + n].b[n] = Vec(kSh0) * passes[n];
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
        Column columns[kBlockRows];
        columns_of(k, view, cloud, splats, i, lanes, offset, p, columns);
        const int width[5] = {3, 3, 4, 1, 3};
        float* const base[5] = {out.means, out.log_scales, out.quats, out.logit_opacities, out.sh_dc};
        for (int group = 0, n = 0; group < 5; ++group)
            for (int c = 0; c < width[group]; ++c, ++n) {
                Vec phi_a[kPhi], x_a[3];
                apply_moments(m, columns[n], phi_a, x_a);
                const Vec value = curvature_of(m, columns[n], x_a, columns[n], phi_a, x_a);
                scatter_add(base[group] + width[group] * i + c, width[group], lanes, max(value, Vec(0.0f)));
            }
        rest_diagonal(cloud, splats, i, lanes, offset, m, out.sh_rest);
    }
}

// Lower triangles row by row, kBlockFloats a Gaussian, and the higher bands' diagonal.
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
        Column columns[kBlockRows];
        columns_of(k, view, cloud, splats, i, lanes, offset, p, columns);
        Vec x[kBlockRows][3];
        alignas(64) float entries[kBlockFloats * kLanes];
        for (int r = 0, n = 0; r < kBlockRows; ++r) {
            Vec phi_a[kPhi];
            apply_moments(m, columns[r], phi_a, x[r]);
            for (int c = 0; c <= r; ++c, ++n)
                curvature_of(m, columns[c], x[c], columns[r], phi_a, x[r]).store(entries + kLanes * n);
        }
        add_transposed(entries, kBlockFloats, lanes, blocks + kBlockFloats * i, kBlockFloats);
        rest_diagonal(cloud, splats, i, lanes, offset, m, rest);
    }
}
