// Forward mode: what a change of the parameters does to a splat, and what that does to the image.
//
// A splat's exponent is log2 α = l - |w|², w = A (pixel - mean). To first order it changes by
// l' + t·w + wᵀ N w with t = 2 A mean' and N = A Σ' Aᵀ / kHalfLog2e: the very sums that the backward pass
// takes over pixels, read the other way. Whitened like this, needles keep their digits here too.

// A direction of the eleven geometric parameters.
struct Direction {
    Vec mean[3], log_scale[3], quat[4], logit;
};

inline void rotation_tangent(const Vec* q, const Vec* d, Vec r[3][3]) {
    const Vec two(2.0f), four(4.0f);
    const auto pair = [&](int i, int j) { return q[i] * d[j] + q[j] * d[i]; };
    r[0][0] = -(four * (q[2] * d[2] + q[3] * d[3]));
    r[1][1] = -(four * (q[1] * d[1] + q[3] * d[3]));
    r[2][2] = -(four * (q[1] * d[1] + q[2] * d[2]));
    r[0][1] = two * (pair(1, 2) - pair(0, 3));
    r[1][0] = two * (pair(1, 2) + pair(0, 3));
    r[0][2] = two * (pair(1, 3) + pair(0, 2));
    r[2][0] = two * (pair(1, 3) - pair(0, 2));
    r[1][2] = two * (pair(2, 3) - pair(0, 1));
    r[2][1] = two * (pair(2, 3) + pair(0, 1));
}

// The change of the exponent along one direction; that of the colour is left at 0.
inline DerivativeFields<Vec> geometry_jvp(const Constants& k, const View& view, const CameraRotation& w,
                                          const Projected& p, const Whitening& a, Vec transparency,
                                          const Direction& d) {
    const Vec fx(static_cast<float>(view.fx)), fy(static_cast<float>(view.fy)), two(2.0f);
    Vec point[3];
    for (int r = 0; r < 3; ++r)
        point[r] = fmadd(Vec(w[r][0]), d.mean[0], fmadd(Vec(w[r][1]), d.mean[1], Vec(w[r][2]) * d.mean[2]));
    const Vec ratio_x = fnmadd(p.ratio_x, point[2], point[0]) * p.inverse_z;
    const Vec ratio_y = fnmadd(p.ratio_y, point[2], point[1]) * p.inverse_z;
    const Vec inverse_z = -(p.inverse_z * p.inverse_z * point[2]);
    const Vec j00 = fx * inverse_z, j11 = fy * inverse_z;
    const Vec j02 = -(j00 * p.tangent_x + keep(p.inside_x, p.j00 * ratio_x));
    const Vec j12 = -(j11 * p.tangent_y + keep(p.inside_y, p.j11 * ratio_y));
    Vec along(0.0f), quat[4], rotation[3][3], half[2][3];
    for (int c = 0; c < 4; ++c) along = fmadd(p.quat[c], d.quat[c], along);
    for (int c = 0; c < 4; ++c) quat[c] = fnmadd(p.quat[c], along, d.quat[c]) * p.quat_inverse_norm;
    rotation_tangent(p.quat, quat, rotation);
    for (int c = 0; c < 3; ++c) {
        Vec rotated[2] = {Vec(0.0f), Vec(0.0f)};
        for (int m = 0; m < 3; ++m) {
            const Vec image_0 = fmadd(j00, Vec(w[0][m]), j02 * Vec(w[2][m]));
            const Vec image_1 = fmadd(j11, Vec(w[1][m]), j12 * Vec(w[2][m]));
            rotated[0] += fmadd(image_0, p.rotation[m][c], p.camera_to_image[0][m] * rotation[m][c]);
            rotated[1] += fmadd(image_1, p.rotation[m][c], p.camera_to_image[1][m] * rotation[m][c]);
        }
        for (int r = 0; r < 2; ++r) half[r][c] = fmadd(rotated[r], p.scale[c], p.half[r][c] * d.log_scale[c]);
    }
    const Vec s_xx = two * dot3(p.half[0], half[0]), s_yy = two * dot3(p.half[1], half[1]);
    const Vec s_xy = dot3(p.half[0], half[1]) + dot3(p.half[1], half[0]);
    DerivativeFields<Vec> out;
    out.log2_opacity = Vec(kLog2e) * transparency * d.logit;
    if (view.antialiased) {
        const Vec *m0 = p.half[0], *m1 = p.half[1], *n = p.cross;
        Vec cross(0.0f);  // of |M₀×M₁|²
        for (int c = 0; c < 3; ++c) {
            const int e = (c + 1) % 3, f = (c + 2) % 3;
            cross += (m1[e] * n[f] - m1[f] * n[e]) * half[0][c] + (n[e] * m0[f] - n[f] * m0[e]) * half[1][c];
        }
        cross *= two;
        const Vec determinant = cross + Vec(k.low_pass) * (s_xx + s_yy);
        out.log2_opacity += Vec(0.5f * kLog2e) *
                            (cross / max(p.cross_squared, Vec(1e-30f)) - determinant / p.determinant);
    }
    out.u = two * (a.xx * fx * ratio_x + a.xy * fy * ratio_y);
    out.v = two * a.yy * fy * ratio_y;
    const Vec unit(1.0f / kHalfLog2e);
    const Vec e0 = a.xx * s_xx + a.xy * s_xy, e1 = a.xx * s_xy + a.xy * s_yy;
    out.uu = unit * (a.xx * e0 + a.xy * e1);
    out.uv = unit * a.yy * e1;
    out.vv = unit * a.yy * a.yy * s_yy;
    for (Vec& color : out.color) color = Vec(0.0f);
    return out;
}

// ∂(colour before its clamp)/∂mean: [channel][coordinate], through the direction of sight.
inline void color_by_mean(const Cloud& cloud, int64_t i, Mask lanes, const Vec* direction, Vec inverse_distance,
                          Vec out[3][3]) {
    const int count = (cloud.degree + 1) * (cloud.degree + 1) - 1;
    alignas(64) float rest[45 * kLanes];
    transpose_coefficients(cloud, cloud.sh_rest, i, lanes, count, rest);
    for (int c = 0; c < 3; ++c) {
        Vec factor[15], g[3];
        for (int b = 0; b < count; ++b) factor[b] = Vec::load(rest + kLanes * (3 * b + c));
        sh_direction_gradient(cloud.degree, direction[0], direction[1], direction[2], factor, g);
        const Vec radial = dot3(g, direction);
        for (int m = 0; m < 3; ++m) out[c][m] = (g[m] - direction[m] * radial) * inverse_distance;
    }
}

// The change of each splat.
void project_jvp(const Constants& k, const View& view, const Cloud& cloud, const Cloud& tangent, int64_t begin,
                 int64_t end, const Splat* splats, const uint8_t* visible, SplatDerivative* splat_tangent) {
    const CameraRotation w(view);
    for (int64_t i = begin; i < end; i += kLanes) {
        const int count = static_cast<int>(end - i < kLanes ? end - i : kLanes);
        const uint32_t bits = visible_bits(visible, i, count);
        if (!bits) continue;
        const Mask lanes = from_bits(bits);
        Projected p;
        Vec offset[3], direction[3], basis[15], by_mean[3][3];
        project_point(k, view, cloud, i, lanes, offset, p);
        project_covariance(k, view, cloud, i, lanes, p);
        Direction d;
        for (int c = 0; c < 3; ++c) {
            d.mean[c] = gather(tangent.means + 3 * i + c, 3, lanes);
            d.log_scale[c] = gather(tangent.log_scales + 3 * i + c, 3, lanes);
        }
        for (int c = 0; c < 4; ++c) d.quat[c] = gather(tangent.quats + 4 * i + c, 4, lanes);
        d.logit = gather(tangent.logit_opacities + i, 1, lanes);
        DerivativeFields<Vec> change =
            geometry_jvp(k, view, w, p, whitening_of(splats, i, lanes), transparency_of(cloud, i, lanes), d);
        const Vec inverse = direction_of(offset, direction);
        const int bands = sh_basis(cloud.degree, direction[0], direction[1], direction[2], basis);
        color_by_mean(cloud, i, lanes, direction, inverse, by_mean);
        alignas(64) float rest[45 * kLanes];
        transpose_coefficients(cloud, tangent.sh_rest, i, lanes, bands, rest);
        for (int c = 0; c < 3; ++c) {
            Vec color = Vec(kSh0) * gather(tangent.sh_dc + 3 * i + c, 3, lanes) + dot3(by_mean[c], d.mean);
            for (int b = 0; b < bands; ++b) color = fmadd(basis[b], Vec::load(rest + kLanes * (3 * b + c)), color);
            change.color[c] = color * color_passes(splats, i, c, lanes);
        }
        save_records(change, bits, splat_tangent + i);
    }
}

// The tangent of the tile's image, from the lists and the ends of rays that the forward pass left.
void blend_jvp(const Constants& k, const View& view, const Splat* splats, const Entry* entries, int64_t count,
               int tile, TileScratch& scratch, const TileState& state, const SplatDerivative* splat_tangent,
               float* const* image_tangent) {
    gather_tile(view, splats, entries, count, tile, scratch);
    const Vec max_alpha(k.max_alpha), min_alpha(k.min_alpha), ln2(kLn2), two(2.0f);
    const int64_t corner = static_cast<int64_t>(tile / view.tiles_x) * kTile * view.stride +
                           static_cast<int64_t>(tile % view.tiles_x) * kTile;
    for (int block = 0; block < kBlocksPerTile; ++block) {
        const int column = block % kTileBlocks, row = block / kTileBlocks;
        const Vec x = Vec::load(kLaneX) + Vec(column * kBlock), y = Vec::load(kLaneY) + Vec(row * kBlock);
        const int64_t found = compact(scratch, count, block);
        const Position last = Position::load(state.last + block * kLanes);
        Vec t(1.0f), dt(0.0f), out[3] = {Vec(0.0f), Vec(0.0f), Vec(0.0f)};
        for (int64_t j = 0; j < found; ++j) {
            const uint32_t at = scratch.list[j];
            const LocalSplat& s = scratch.splats[at];
            const SplatDerivative& d = splat_tangent[entries[at].gaussian];
            const Pair pair = evaluate(s, x, y);
            const Mask used = (pair.alpha >= min_alpha) & last.reaches(at);
            const Vec alpha = keep(used, min(pair.alpha, max_alpha));
            const Vec by_u = fmadd(Vec(d.uu), pair.u, fmadd(two * Vec(d.uv), pair.v, Vec(d.u)));
            const Vec by_v = fmadd(Vec(d.vv), pair.v, Vec(d.v));
            const Vec exponent = fmadd(by_u, pair.u, fmadd(by_v, pair.v, Vec(d.log2_opacity)));
            const Vec d_alpha = keep(pair.alpha <= max_alpha, ln2 * alpha * exponent);
            const Vec w = alpha * t, d_w = fmadd(d_alpha, t, alpha * dt);
            for (int c = 0; c < 3; ++c) out[c] = fmadd(d_w, Vec(s.color[c]), fmadd(w, Vec(d.color[c]), out[c]));
            dt = dt - d_w;
            t = t - w;
        }
        const int64_t to = corner + static_cast<int64_t>(row) * kBlock * view.stride + column * kBlock;
        for (int c = 0; c < 3; ++c)
            store_block(fmadd(dt, Vec(view.background[c]), out[c]), image_tangent[c] + to, view.stride);
    }
}
