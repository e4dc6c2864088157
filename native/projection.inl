// EWA projection of sixteen Gaussians at a time, and its gradient.
//
// With M = J W R(q) S (2x3; J the projection's Jacobian, W the camera's rotation, S the scales) the image
// covariance is Σ = M Mᵀ + low_pass·I. Its determinant is taken as |M₀×M₁|² + low_pass·(|M₀|²+|M₁|²) +
// low_pass² (Cauchy-Binet): the usual ac - b² loses all digits for needles in float32.

struct Projected {
    Vec point[3], inverse_z, ratio_x, ratio_y, mean_x, mean_y, tangent_x, tangent_y;
    Mask inside_x, inside_y;  // where the Jacobian's point is not clamped
    Vec j00, j02, j11, j12;
    Vec camera_to_image[2][3];  // J W
    Vec quat[4], quat_inverse_norm, rotation[3][3];
    Vec scale[3];
    Vec rotated[2][3];  // J W R
    Vec half[2][3];    // M
    Vec cov_xx, cov_xy, cov_yy, cross[3], cross_squared, determinant;
};

inline void rotation_of(const Vec* q, Vec r[3][3]) {
    const Vec two(2.0f), one(1.0f);
    r[0][0] = one - two * (q[2] * q[2] + q[3] * q[3]);
    r[0][1] = two * (q[1] * q[2] - q[0] * q[3]);
    r[0][2] = two * (q[1] * q[3] + q[0] * q[2]);
    r[1][0] = two * (q[1] * q[2] + q[0] * q[3]);
    r[1][1] = one - two * (q[1] * q[1] + q[3] * q[3]);
    r[1][2] = two * (q[2] * q[3] - q[0] * q[1]);
    r[2][0] = two * (q[1] * q[3] - q[0] * q[2]);
    r[2][1] = two * (q[2] * q[3] + q[0] * q[1]);
    r[2][2] = one - two * (q[1] * q[1] + q[2] * q[2]);
}

inline void rotation_floats(const View& view, float* w) {
    for (int i = 0; i < 9; ++i) w[i] = static_cast<float>(view.rotation[i]);
}

inline Vec dot3(const Vec* a, const Vec* b) { return fmadd(a[0], b[0], fmadd(a[1], b[1], a[2] * b[2])); }

// The camera-space point and where it falls in the image, in double: the pixel position of a splat below a
// pixel's size must not carry the rounding of the pose. Lanes behind the near plane are given a harmless
// point and left out of the mask.
inline Mask project_point(const Constants& k, const View& view, const Cloud& cloud, int64_t i, Mask lanes,
                          Vec* offset, Projected& p) {
    float world[3][kLanes], from_center[3][kLanes], camera[3][kLanes], ratio[2][kLanes], mean[2][kLanes];
    for (int c = 0; c < 3; ++c) gather(cloud.means + 3 * i + c, 3, lanes).store(world[c]);
    for (int lane = 0; lane < kLanes; ++lane) {
        double d[3], q[3];
        for (int c = 0; c < 3; ++c) d[c] = world[c][lane] - view.center[c];
        for (int r = 0; r < 3; ++r) {
            const double* w = view.rotation + 3 * r;
            q[r] = w[0] * d[0] + w[1] * d[1] + w[2] * d[2];
        }
        const double z = q[2] > k.near_plane ? q[2] : 1.0;
        const double x = q[0] / z, y = q[1] / z;
        for (int c = 0; c < 3; ++c) {
            from_center[c][lane] = static_cast<float>(d[c]);
            camera[c][lane] = static_cast<float>(q[c]);
        }
        ratio[0][lane] = static_cast<float>(x);
        ratio[1][lane] = static_cast<float>(y);
        mean[0][lane] = static_cast<float>(view.fx * x + view.cx);
        mean[1][lane] = static_cast<float>(view.fy * y + view.cy);
    }
    for (int c = 0; c < 3; ++c) {
        offset[c] = Vec::load(from_center[c]);
        p.point[c] = Vec::load(camera[c]);
    }
    const Mask front = lanes & (p.point[2] > Vec(k.near_plane));
    p.point[2] = select(front, p.point[2], Vec(1.0f));
    p.inverse_z = Vec(1.0f) / p.point[2];
    p.ratio_x = Vec::load(ratio[0]);
    p.ratio_y = Vec::load(ratio[1]);
    p.mean_x = Vec::load(mean[0]);
    p.mean_y = Vec::load(mean[1]);
    return front;
}

inline void project_covariance(const Constants& k, const View& view, const Cloud& cloud, int64_t i, Mask lanes,
                               Projected& p) {
    const float fx = static_cast<float>(view.fx), fy = static_cast<float>(view.fy);
    const float cx = static_cast<float>(view.cx), cy = static_cast<float>(view.cy);
    const float margin_x = k.frustum_margin * 0.5f * view.width / fx;
    const float margin_y = k.frustum_margin * 0.5f * view.height / fy;
    const Vec low_x(-(cx / fx + margin_x)), high_x((view.width - cx) / fx + margin_x);
    const Vec low_y(-(cy / fy + margin_y)), high_y((view.height - cy) / fy + margin_y);
    p.inside_x = (p.ratio_x >= low_x) & (p.ratio_x <= high_x);
    p.inside_y = (p.ratio_y >= low_y) & (p.ratio_y <= high_y);
    p.tangent_x = clamp(p.ratio_x, low_x, high_x);
    p.tangent_y = clamp(p.ratio_y, low_y, high_y);
    p.j00 = Vec(fx) * p.inverse_z;
    p.j02 = -(p.j00 * p.tangent_x);
    p.j11 = Vec(fy) * p.inverse_z;
    p.j12 = -(p.j11 * p.tangent_y);
    float w[9];
    rotation_floats(view, w);
    for (int c = 0; c < 3; ++c) {
        p.camera_to_image[0][c] = fmadd(p.j00, Vec(w[c]), p.j02 * Vec(w[6 + c]));
        p.camera_to_image[1][c] = fmadd(p.j11, Vec(w[3 + c]), p.j12 * Vec(w[6 + c]));
    }
    Vec norm(0.0f);
    for (int c = 0; c < 4; ++c) {
        p.quat[c] = gather(cloud.quats + 4 * i + c, 4, lanes);
        norm = fmadd(p.quat[c], p.quat[c], norm);
    }
    p.quat_inverse_norm = Vec(1.0f) / sqrt(max(norm, Vec(1e-30f)));
    for (int c = 0; c < 4; ++c) p.quat[c] *= p.quat_inverse_norm;
    rotation_of(p.quat, p.rotation);
    for (int c = 0; c < 3; ++c) p.scale[c] = exp(gather(cloud.log_scales + 3 * i + c, 3, lanes));
    for (int r = 0; r < 2; ++r)
        for (int c = 0; c < 3; ++c) {
            const Vec* t = p.camera_to_image[r];
            p.rotated[r][c] = fmadd(t[0], p.rotation[0][c], fmadd(t[1], p.rotation[1][c], t[2] * p.rotation[2][c]));
            p.half[r][c] = p.rotated[r][c] * p.scale[c];
        }
    const Vec* a = p.half[0];
    const Vec* b = p.half[1];
    p.cross[0] = a[1] * b[2] - a[2] * b[1];
    p.cross[1] = a[2] * b[0] - a[0] * b[2];
    p.cross[2] = a[0] * b[1] - a[1] * b[0];
    p.cross_squared = dot3(p.cross, p.cross);
    const Vec aa = dot3(a, a), bb = dot3(b, b);
    p.cov_xx = aa + Vec(k.low_pass);
    p.cov_xy = dot3(a, b);
    p.cov_yy = bb + Vec(k.low_pass);
    p.determinant = p.cross_squared + Vec(k.low_pass) * (aa + bb + Vec(k.low_pass));
}

inline Vec opacity_of(const Cloud& cloud, int64_t i, Mask lanes) {
    const Vec logit = gather(cloud.logit_opacities + i, 1, lanes);
    return Vec(1.0f) / (Vec(1.0f) + exp(-logit));
}

inline Vec direction_of(const Vec* offset, Vec* direction) {
    const Vec inverse = Vec(1.0f) / sqrt(max(dot3(offset, offset), Vec(1e-30f)));
    for (int c = 0; c < 3; ++c) direction[c] = offset[c] * inverse;
    return inverse;
}

// The first `bands` coefficients of sixteen rows, colour c of band b at out[16·(3·b + c)].
inline void transpose_coefficients(const Cloud& cloud, const float* sh_rest, int64_t i, Mask lanes, int bands, float* out) {
    const int64_t stride = 3 * static_cast<int64_t>(cloud.rest);
    if (bands) transpose_rows(sh_rest + stride * i, stride, lanes, 3 * bands, out);
}

// The other way: adds to the first `bands` coefficients of these rows.
inline void add_coefficients(const Cloud& cloud, const float* in, int64_t i, Mask lanes, int bands, float* sh_rest) {
    const int64_t stride = 3 * static_cast<int64_t>(cloud.rest);
    add_transposed(in, 3 * bands, lanes, sh_rest + stride * i, stride);
}

// Colours before the clamp at 0.
inline void colors_of(const Cloud& cloud, int64_t i, Mask lanes, const Vec* direction, Vec* color) {
    Vec basis[15];
    const int count = sh_basis(cloud.degree, direction[0], direction[1], direction[2], basis);
    alignas(64) float rest[45 * kLanes];
    transpose_coefficients(cloud, cloud.sh_rest, i, lanes, count, rest);
    for (int c = 0; c < 3; ++c) {
        color[c] = fmadd(Vec(kSh0), gather(cloud.sh_dc + 3 * i + c, 3, lanes), Vec(0.5f));
        for (int b = 0; b < count; ++b) color[c] = fmadd(basis[b], Vec::load(rest + kLanes * (3 * b + c)), color[c]);
    }
}

void project(const Constants& k, const View& view, const Cloud& cloud, int64_t begin, int64_t end, Splat* splats,
             uint8_t* visible) {
    const Vec log2_min = log2(Vec(k.min_alpha));
    for (int64_t i = begin; i < end; i += kLanes) {
        const int count = static_cast<int>(end - i < kLanes ? end - i : kLanes);
        const Mask lanes = first_lanes(count);
        Projected p;
        Vec offset[3];
        Mask drawn = project_point(k, view, cloud, i, lanes, offset, p);
        std::memset(visible + i, 0, count);
        if (!any(drawn)) continue;
        project_covariance(k, view, cloud, i, lanes, p);
        Vec opacity = opacity_of(cloud, i, lanes);
        if (view.antialiased) opacity *= sqrt(p.cross_squared / p.determinant);
        const Vec log2_opacity = log2(max(opacity, Vec(1e-37f)));
        const Vec reach = log2_opacity - log2_min;
        const Vec spread = max(reach, Vec(0.0f)) * Vec(1.0f / kHalfLog2e);
        const Vec half_x = sqrt(spread * p.cov_xx), half_y = sqrt(spread * p.cov_yy);
        const Vec mean_x = p.mean_x, mean_y = p.mean_y;
        drawn = drawn & (reach >= Vec(0.0f)) & (mean_x + half_x >= Vec(0.5f)) & (mean_y + half_y >= Vec(0.5f)) &
                (mean_x - half_x <= Vec(view.width - 0.5f)) & (mean_y - half_y <= Vec(view.height - 0.5f));
        // A covariance that overflowed is not drawn: its determinant is no number to divide by.
        drawn = drawn & (p.determinant < Vec(3e38f)) & (half_x < Vec(3e38f)) & (half_y < Vec(3e38f));
        if (!any(drawn)) continue;
        Vec direction[3], color[3];
        direction_of(offset, direction);
        colors_of(cloud, i, drawn, direction, color);
        const Vec a11 = sqrt(Vec(kHalfLog2e) * p.cov_yy / p.determinant);
        // A black point's colour, stored as -0.5/C₀, may come out some rounding below 0: it still passes its
        // gradient, or it would stay black for good.
        const Vec below(-1e-6f), one(1.0f);
        const Vec fields[16] = {mean_x, mean_y, a11, -(a11 * p.cov_xy / p.cov_yy), sqrt(Vec(kHalfLog2e) / p.cov_yy),
                                log2_opacity, max(color[0], Vec(0.0f)), max(color[1], Vec(0.0f)),
                                max(color[2], Vec(0.0f)), p.point[2], reach, half_x, half_y,
                                keep(color[0] >= below, one), keep(color[1] >= below, one), keep(color[2] >= below, one)};
        float columns[16][kLanes];
        for (int f = 0; f < 16; ++f) fields[f].store(columns[f]);
        const uint32_t bits = to_bits(drawn);
        for (int lane = 0; lane < count; ++lane) {
            if (!(bits >> lane & 1)) continue;
            visible[i + lane] = 1;
            float* out = &splats[i + lane].mean_x;
            for (int f = 0; f < 16; ++f) out[f] = columns[f][lane];
        }
    }
}

// ∂L/∂q (unnormalised) from ∂L/∂R.
inline void quaternion_gradient(const Projected& p, const Vec d[3][3], Vec* out) {
    const Vec two(2.0f);
    const Vec *q = p.quat, w = q[0], x = q[1], y = q[2], z = q[3];
    Vec g[4];
    g[0] = two * (x * (d[2][1] - d[1][2]) + y * (d[0][2] - d[2][0]) + z * (d[1][0] - d[0][1]));
    g[1] = two * (y * (d[0][1] + d[1][0]) + z * (d[0][2] + d[2][0]) + w * (d[2][1] - d[1][2]) -
                  two * x * (d[1][1] + d[2][2]));
    g[2] = two * (x * (d[0][1] + d[1][0]) + z * (d[1][2] + d[2][1]) + w * (d[0][2] - d[2][0]) -
                  two * y * (d[0][0] + d[2][2]));
    g[3] = two * (x * (d[0][2] + d[2][0]) + y * (d[1][2] + d[2][1]) + w * (d[1][0] - d[0][1]) -
                  two * z * (d[0][0] + d[1][1]));
    const Vec along = g[0] * w + g[1] * x + g[2] * y + g[3] * z;
    for (int c = 0; c < 4; ++c) out[c] = (g[c] - q[c] * along) * p.quat_inverse_norm;
}

// ∂L/∂M from ∂L/∂Σ (symmetric: xx, xy, yy) and, antialiased, from ∂L/∂log2 o.
inline void half_gradient(const Constants& k, bool antialiased, const Projected& p, Vec s_xx, Vec s_xy, Vec s_yy,
                          Vec log2_opacity, Vec out[2][3]) {
    const Vec two(2.0f);
    for (int c = 0; c < 3; ++c) {
        out[0][c] = two * (s_xx * p.half[0][c] + s_xy * p.half[1][c]);
        out[1][c] = two * (s_xy * p.half[0][c] + s_yy * p.half[1][c]);
    }
    if (!antialiased) return;
    // log2 ρ = (ln D₀ - ln det)/(2 ln2), D₀ = |M₀×M₁|², det = D₀ + low_pass (|M₀|²+|M₁|²+low_pass).
    const Vec scale = log2_opacity * Vec(0.5f * 1.44269504f);
    const Vec of_cross = scale * (Vec(1.0f) / max(p.cross_squared, Vec(1e-30f)) - Vec(1.0f) / p.determinant);
    const Vec of_norm = scale * Vec(k.low_pass) / p.determinant;
    const Vec *a = p.half[0], *b = p.half[1], *n = p.cross;
    for (int c = 0; c < 3; ++c) {
        const int d = (c + 1) % 3, e = (c + 2) % 3;
        out[0][c] += two * (of_cross * (b[d] * n[e] - b[e] * n[d]) - of_norm * a[c]);
        out[1][c] += two * (of_cross * (n[d] * a[e] - n[e] * a[d]) - of_norm * b[c]);
    }
}

// Through the colours; `passes` is 0 where the clamp at 0 acted, else 1.
inline void color_gradient(const Cloud& cloud, int64_t i, Mask lanes, const Vec* offset, const Vec* passes,
                           const Vec* color, const CloudTensors& out, Vec* mean) {
    Vec direction[3], basis[15], along[15];
    const Vec inverse = direction_of(offset, direction);
    const int count = sh_basis(cloud.degree, direction[0], direction[1], direction[2], basis);
    for (int b = 0; b < count; ++b) along[b] = Vec(0.0f);
    alignas(64) float rest[45 * kLanes];
    transpose_coefficients(cloud, cloud.sh_rest, i, lanes, count, rest);
    for (int c = 0; c < 3; ++c) {
        const Vec g = passes[c] * color[c];
        scatter_add(out.sh_dc + 3 * i + c, 3, lanes, Vec(kSh0) * g);
        for (int b = 0; b < count; ++b) {
            float* const at = rest + kLanes * (3 * b + c);
            along[b] = fmadd(g, Vec::load(at), along[b]);
            (basis[b] * g).store(at);
        }
    }
    add_coefficients(cloud, rest, i, lanes, count, out.sh_rest);
    Vec g[3];
    sh_direction_gradient(cloud.degree, direction[0], direction[1], direction[2], along, g);
    const Vec radial = dot3(g, direction);
    for (int c = 0; c < 3; ++c) mean[c] = (g[c] - direction[c] * radial) * inverse;
}

// Empties the gradient of a few rows just before they are written, while they are about to be in the cache.
inline void clear_rows(const Cloud& cloud, const CloudTensors& out, uint8_t* seen, int64_t row, int64_t count) {
    const auto clear = [&](float* p, int64_t width) {
        if (width == 0) return;  // p is null then, which memset must not be given
        std::memset(p + row * width, 0, sizeof(float) * static_cast<size_t>(count * width));
    };
    clear(out.means, 3);
    clear(out.log_scales, 3);
    clear(out.quats, 4);
    clear(out.logit_opacities, 1);
    clear(out.sh_dc, 3);
    clear(out.sh_rest, 3 * static_cast<int64_t>(cloud.rest));
    std::memset(seen + row, 0, static_cast<size_t>(count));
}

void project_backward(const Constants& k, const View& view, const Cloud& cloud, int64_t begin, int64_t end,
                      const Splat* splats, const uint8_t* visible, const float* splat_gradient, float weight,
                      bool overwrite, const CloudTensors& out, uint8_t* seen) {
    for (int64_t i = begin; i < end; i += kLanes) {
        const int count = static_cast<int>(end - i < kLanes ? end - i : kLanes);
        if (overwrite) clear_rows(cloud, out, seen, i, count);
        uint32_t bits = 0;
        for (int lane = 0; lane < count; ++lane) bits |= static_cast<uint32_t>(visible[i + lane] != 0) << lane;
        if (!bits) continue;
        for (int lane = 0; lane < count; ++lane) seen[i + lane] |= visible[i + lane];
        const Mask lanes = from_bits(bits);
        Projected p;
        Vec offset[3];
        project_point(k, view, cloud, i, lanes, offset, p);
        project_covariance(k, view, cloud, i, lanes, p);
        Vec g[9];
        for (int f = 0; f < 9; ++f)
            g[f] = gather(splat_gradient + kSplatGradient * i + f, kSplatGradient, lanes) * Vec(weight);
        constexpr int kFloats = sizeof(Splat) / sizeof(float);
        const float* splat = &splats[i].mean_x;
        const Vec a11 = gather(splat + 2, kFloats, lanes), a12 = gather(splat + 3, kFloats, lanes),
                  a22 = gather(splat + 4, kFloats, lanes);
        const Vec passes[3] = {gather(splat + 13, kFloats, lanes), gather(splat + 14, kFloats, lanes),
                               gather(splat + 15, kFloats, lanes)};
        // g: Σ g, Σ g w (2), Σ g w wᵀ (3) over the pixels with g = ∂L/∂log2 α, then ∂L/∂colour (3).
        const Vec two(2.0f), inverse_unit(1.0f / kHalfLog2e);
        const Vec mean_x = two * a11 * g[1], mean_y = two * (a12 * g[1] + a22 * g[2]);
        const Vec t = a12 * g[3] + a22 * g[4];  // row u of M A, second column
        const Vec s_xx = inverse_unit * a11 * a11 * g[3];
        const Vec s_xy = inverse_unit * a11 * t;
        const Vec s_yy = inverse_unit * (a12 * t + a22 * (a12 * g[4] + a22 * g[5]));
        Vec d_half[2][3], d_rotated[2][3], d_image[2][3], d_rotation[3][3], d_quat[4];
        half_gradient(k, view.antialiased, p, s_xx, s_xy, s_yy, g[0], d_half);
        for (int c = 0; c < 3; ++c) {
            const Vec d_scale = d_half[0][c] * p.half[0][c] + d_half[1][c] * p.half[1][c];
            scatter_add(out.log_scales + 3 * i + c, 3, lanes, d_scale);
            for (int r = 0; r < 2; ++r) d_rotated[r][c] = d_half[r][c] * p.scale[c];
        }
        for (int a = 0; a < 3; ++a) {
            for (int r = 0; r < 2; ++r) d_image[r][a] = dot3(d_rotated[r], p.rotation[a]);
            for (int c = 0; c < 3; ++c)
                d_rotation[a][c] = p.camera_to_image[0][a] * d_rotated[0][c] + p.camera_to_image[1][a] * d_rotated[1][c];
        }
        quaternion_gradient(p, d_rotation, d_quat);
        for (int c = 0; c < 4; ++c) scatter_add(out.quats + 4 * i + c, 4, lanes, d_quat[c]);
        // log2 σ(x) has the derivative (1 - σ)/ln2, and 1 - σ(x) = 1/(1 + eˣ) keeps its digits near 0.
        const Vec transparency = Vec(1.0f) / (Vec(1.0f) + exp(gather(cloud.logit_opacities + i, 1, lanes)));
        scatter_add(out.logit_opacities + i, 1, lanes, g[0] * Vec(1.44269504f) * transparency);
        const float fx = static_cast<float>(view.fx), fy = static_cast<float>(view.fy);
        float w[9];
        rotation_floats(view, w);
        Vec d_j00(0.0f), d_j02(0.0f), d_j11(0.0f), d_j12(0.0f);
        for (int c = 0; c < 3; ++c) {
            d_j00 += d_image[0][c] * Vec(w[c]);
            d_j02 += d_image[0][c] * Vec(w[6 + c]);
            d_j11 += d_image[1][c] * Vec(w[3 + c]);
            d_j12 += d_image[1][c] * Vec(w[6 + c]);
        }
        const Vec d_ratio_x = Vec(fx) * mean_x - keep(p.inside_x, d_j02 * p.j00);
        const Vec d_ratio_y = Vec(fy) * mean_y - keep(p.inside_y, d_j12 * p.j11);
        const Vec d_inverse_z = Vec(fx) * (d_j00 - d_j02 * p.tangent_x) +
                                Vec(fy) * (d_j11 - d_j12 * p.tangent_y) + d_ratio_x * p.point[0] +
                                d_ratio_y * p.point[1];
        const Vec d_point[3] = {d_ratio_x * p.inverse_z, d_ratio_y * p.inverse_z,
                                -(d_inverse_z * p.inverse_z * p.inverse_z)};
        Vec d_mean[3];
        color_gradient(cloud, i, lanes, offset, passes, g + 6, out, d_mean);
        for (int c = 0; c < 3; ++c) {
            d_mean[c] += d_point[0] * Vec(w[c]) + d_point[1] * Vec(w[3 + c]) + d_point[2] * Vec(w[6 + c]);
            scatter_add(out.means + 3 * i + c, 3, lanes, d_mean[c]);
        }
    }
}

void block_spans(const View&, const Splat& s, int row_begin, int row_end, int* first, int* last) {
    // The strip of pixel centres of a block row cuts the ellipse |A d|² <= reach; x = slope·dy ± √(reach - v²)/a11.
    constexpr float slack = 1e-3f;  // pixels, over the rounding of what follows
    const Vec slope(-s.a12 / s.a11), inverse_a11(1.0f / s.a11), reach(s.reach), a22(s.a22);
    // The dy at which the ellipse reaches furthest right; furthest left is its negative.
    const float tip = s.half_x > 0.0f ? -s.a12 / s.a11 / (s.a22 * s.a22) * s.reach / s.half_x : 0.0f;
    const float lanes[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int row = row_begin; row < row_end; row += kLanes) {
        const Vec top = fmadd(Vec::load(lanes), Vec(kBlock), Vec(row * kBlock + 0.5f - s.mean_y));
        const Vec bottom = top + Vec(kBlock - 1.0f);
        const Vec from = max(top, Vec(-s.half_y)), to = min(bottom, Vec(s.half_y));
        const Mask empty = (top > Vec(s.half_y + slack)) | (bottom < Vec(-s.half_y - slack));
        const auto width_at = [&](Vec dy) {
            const Vec v = a22 * dy;
            return sqrt(max(fnmadd(v, v, reach), Vec(0.0f))) * inverse_a11;
        };
        const Vec right_dy = min(max(Vec(tip), from), to), left_dy = min(max(Vec(-tip), from), to);
        const Vec right = fmadd(slope, right_dy, width_at(right_dy)) + Vec(s.mean_x + slack);
        const Vec left = fmadd(slope, left_dy, -width_at(left_dy)) + Vec(s.mean_x - slack);
        // Blocks whose pixel centres 4c+0.5 … 4c+3.5 meet [left, right].
        const Vec limit(1e6f);
        const Vec first_column = -floor((Vec(kBlock - 0.5f) - clamp(left, -limit, limit)) * Vec(1.0f / kBlock));
        const Vec last_column = floor((clamp(right, -limit, limit) - Vec(0.5f)) * Vec(1.0f / kBlock));
        float lows[kLanes], highs[kLanes];
        select(empty, Vec(1.0f), first_column).store(lows);
        select(empty, Vec(0.0f), last_column).store(highs);
        const int rows = row_end - row < kLanes ? row_end - row : kLanes;
        for (int lane = 0; lane < rows; ++lane) {
            first[row - row_begin + lane] = static_cast<int>(lows[lane]);
            last[row - row_begin + lane] = static_cast<int>(highs[lane]);
        }
    }
}
