// The projection's gradient, sixteen Gaussians at a time. What it reads of their splats serves forward mode and
// curvature too.

// A of sixteen splats.
struct Whitening {
    Vec xx, xy, yy;
};

inline Whitening whitening_of(const Splat* splats, int64_t i, Mask lanes) {
    alignas(64) float columns[4 * kLanes];  // with the opacity, four floats of each
    transpose_rows(&splats[i].whitening_xx, kSplatFloats, lanes, 4, columns);
    return {Vec::load(columns), Vec::load(columns + kLanes), Vec::load(columns + 2 * kLanes)};
}

inline Vec color_passes(const Splat* splats, int64_t i, int channel, Mask lanes) {
    return gather(splats[i].color_passes + channel, kSplatFloats, lanes);
}

inline Vec transparency_of(const Cloud& cloud, int64_t i, Mask lanes) {
    return Vec(1.0f) / (Vec(1.0f) + exp(load_part(cloud.logit_opacities + i, lanes)));
}

inline uint32_t visible_bits(const uint8_t* visible, int64_t i, int count) {
    uint32_t bits = 0;
    for (int lane = 0; lane < count; ++lane) bits |= static_cast<uint32_t>(visible[i + lane] != 0) << lane;
    return bits;
}

inline DerivativeFields<Vec> scaled(const DerivativeFields<Vec>& g, Vec weight) {
    return {g.log2_opacity * weight, g.u * weight,  g.v * weight, g.uu * weight, g.uv * weight, g.vv * weight,
            {g.color[0] * weight, g.color[1] * weight, g.color[2] * weight}};
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
    const Vec scale = log2_opacity * Vec(0.5f * kLog2e);
    const Vec of_cross = scale * (Vec(1.0f) / max(p.cross_squared, Vec(1e-30f)) - Vec(1.0f) / p.determinant);
    const Vec of_norm = scale * Vec(k.low_pass) / p.determinant;
    const Vec *a = p.half[0], *b = p.half[1], *n = p.cross;
    for (int c = 0; c < 3; ++c) {
        const int d = (c + 1) % 3, e = (c + 2) % 3;
        out[0][c] += two * (of_cross * (b[d] * n[e] - b[e] * n[d]) - of_norm * a[c]);
        out[1][c] += two * (of_cross * (n[d] * a[e] - n[e] * a[d]) - of_norm * b[c]);
    }
}

// ∂L/∂(J W) and ∂L/∂q from ∂L/∂(J W R).
inline void rotated_gradient(const Projected& p, const Vec d_rotated[2][3], Vec d_image[2][3], Vec* d_quat) {
    Vec d_rotation[3][3];
    for (int a = 0; a < 3; ++a) {
        for (int r = 0; r < 2; ++r) d_image[r][a] = dot3(d_rotated[r], p.rotation[a]);
        for (int c = 0; c < 3; ++c)
            d_rotation[a][c] = p.camera_to_image[0][a] * d_rotated[0][c] + p.camera_to_image[1][a] * d_rotated[1][c];
    }
    quaternion_gradient(p, d_rotation, d_quat);
}

// The rows whose gradient is written, sixteen from `first` on: what is there is overwritten or added to.
struct GradientRows {
    int64_t first;
    int count;
    Mask lanes;  // those that were drawn; the others' gradient is 0
    bool overwrite;

    template <int kFloats>
    void put(const Vec* gradient, float* to) const {
        to += kFloats * first;
        Vec sum[kFloats];
        if (overwrite)
            for (Vec& old : sum) old = Vec(0.0f);
        else
            load_rows<kFloats>(to, count, sum);
        for (int c = 0; c < kFloats; ++c) sum[c] += keep(lanes, gradient[c]);
        store_rows<kFloats>(sum, count, to);
    }
    void put(Vec gradient, float* to) const {
        const Mask all = first_lanes(count);
        const Vec old = overwrite ? Vec(0.0f) : load_part(to + first, all);
        store_part(to + first, all, old + keep(lanes, gradient));
    }
};

// Through the colours, where the clamp at 0 did not act.
inline void color_gradient(const Cloud& cloud, const GradientRows& rows, const Vec* offset, const Splat* splats,
                           const Vec* color, const CloudTensors& out, Vec* mean) {
    const int64_t i = rows.first;
    const Mask lanes = rows.lanes;
    Vec direction[3], basis[15], along[15];
    const Vec inverse = direction_of(offset, direction);
    const int count = sh_basis(cloud.degree, direction[0], direction[1], direction[2], basis);
    for (int b = 0; b < count; ++b) along[b] = Vec(0.0f);
    alignas(64) float rest[45 * kLanes];
    transpose_coefficients(cloud, cloud.sh_rest, i, lanes, count, rest);
    alignas(64) float passes[4 * kLanes];  // with half_y before them, four floats of each
    transpose_rows(&splats[i].half_y, kSplatFloats, lanes, 4, passes);
    Vec of_dc[3];
    for (int c = 0; c < 3; ++c) {
        const Vec g = Vec::load(passes + kLanes * (c + 1)) * color[c];
        of_dc[c] = Vec(kSh0) * g;
        for (int b = 0; b < count; ++b) {
            float* const at = rest + kLanes * (3 * b + c);
            along[b] = fmadd(g, Vec::load(at), along[b]);
            (basis[b] * g).store(at);
        }
    }
    rows.put<3>(of_dc, out.sh_dc);
    add_coefficients(cloud, rest, i, lanes, count, out.sh_rest, rows.overwrite);
    Vec g[3];
    sh_direction_gradient(cloud.degree, direction[0], direction[1], direction[2], along, g);
    const Vec radial = dot3(g, direction);
    for (int c = 0; c < 3; ++c) mean[c] = (g[c] - direction[c] * radial) * inverse;
}

inline void clear(float* p, int64_t floats) {
    if (floats) std::memset(p, 0, sizeof(float) * static_cast<size_t>(floats));  // p is null where there are none
}

// Empties what the gradient of these rows leaves as it is: all, where none was drawn.
inline void clear_rows(const Cloud& cloud, const CloudTensors& out, const GradientRows& rows) {
    const int64_t width = 3 * static_cast<int64_t>(cloud.rest);
    const int64_t used = 3 * (int64_t{cloud.degree} + 1) * (cloud.degree + 1) - 3;
    const uint32_t drawn = to_bits(rows.lanes);
    if (used && drawn) {
        for (int lane = 0; lane < rows.count; ++lane) {
            const int64_t from = drawn >> lane & 1 ? used : 0;
            clear(out.sh_rest + (rows.first + lane) * width + from, width - from);
        }
    } else {
        clear(out.sh_rest + rows.first * width, rows.count * width);
    }
    if (drawn) return;
    clear(out.means + 3 * rows.first, 3 * rows.count);
    clear(out.log_scales + 3 * rows.first, 3 * rows.count);
    clear(out.quats + 4 * rows.first, 4 * rows.count);
    clear(out.logit_opacities + rows.first, rows.count);
    clear(out.sh_dc + 3 * rows.first, 3 * rows.count);
}

// ∂L/∂(mean in the image) and ∂L/∂Σ (symmetric: xx, xy, yy) from what blending hands back.
struct FootprintGradient {
    Vec mean_x, mean_y, cov_xx, cov_xy, cov_yy;
};

inline FootprintGradient footprint_gradient(const Whitening& a, const DerivativeFields<Vec>& g) {
    const Vec two(2.0f), inverse_unit(1.0f / kHalfLog2e);
    const Vec t = a.xy * g.uu + a.yy * g.uv;  // row u of M A, second column
    return {two * a.xx * g.u, two * (a.xy * g.u + a.yy * g.v), inverse_unit * a.xx * a.xx * g.uu,
            inverse_unit * a.xx * t, inverse_unit * (a.xy * t + a.yy * (a.xy * g.uv + a.yy * g.vv))};
}

// ∂L/∂(point in the camera's axes), from ∂L/∂(J W) and ∂L/∂(mean in the image).
inline void camera_point_gradient(const View& view, const Projected& p, const Vec d_image[2][3],
                                  const FootprintGradient& g, Vec* d_point) {
    const float fx = static_cast<float>(view.fx), fy = static_cast<float>(view.fy);
    const CameraRotation w(view);
    Vec d_j00(0.0f), d_j02(0.0f), d_j11(0.0f), d_j12(0.0f);
    for (int c = 0; c < 3; ++c) {
        d_j00 += d_image[0][c] * Vec(w[0][c]);
        d_j02 += d_image[0][c] * Vec(w[2][c]);
        d_j11 += d_image[1][c] * Vec(w[1][c]);
        d_j12 += d_image[1][c] * Vec(w[2][c]);
    }
    const Vec d_ratio_x = Vec(fx) * g.mean_x - keep(p.inside_x, d_j02 * p.j00);
    const Vec d_ratio_y = Vec(fy) * g.mean_y - keep(p.inside_y, d_j12 * p.j11);
    const Vec d_inverse_z = Vec(fx) * (d_j00 - d_j02 * p.tangent_x) + Vec(fy) * (d_j11 - d_j12 * p.tangent_y) +
                            d_ratio_x * p.point[0] + d_ratio_y * p.point[1];
    d_point[0] = d_ratio_x * p.inverse_z;
    d_point[1] = d_ratio_y * p.inverse_z;
    d_point[2] = -(d_inverse_z * p.inverse_z * p.inverse_z);
}

// Adds ∂L/∂mean through the projection to `mean`.
inline void point_gradient(const View& view, const Projected& p, const Vec d_image[2][3], const FootprintGradient& g,
                           Vec* mean) {
    Vec d_point[3];
    camera_point_gradient(view, p, d_image, g, d_point);
    const CameraRotation w(view);
    for (int c = 0; c < 3; ++c)
        mean[c] += d_point[0] * Vec(w[0][c]) + d_point[1] * Vec(w[1][c]) + d_point[2] * Vec(w[2][c]);
}

// P = ∂(mean in the image)/∂mean. The Jacobian of the covariance is clamped, the mean is not.
inline void center_jacobian(const View& view, const Projected& p, Vec out[2][3]) {
    const CameraRotation w(view);
    const Vec x = Vec(static_cast<float>(view.fx)) * p.inverse_z, y = Vec(static_cast<float>(view.fy)) * p.inverse_z;
    for (int c = 0; c < 3; ++c) {
        out[0][c] = x * (Vec(w[0][c]) - p.ratio_x * Vec(w[2][c]));
        out[1][c] = y * (Vec(w[1][c]) - p.ratio_y * Vec(w[2][c]));
    }
}

// Adds 2 ∂L/∂Σ - (o ∂L/∂o) Q, taken to the world, to the rows' splitting matrices.
inline void add_splitting(const View& view, const Projected& p, const Whitening& a, const FootprintGradient& footprint,
                          Vec log2_opacity, Mask lanes, float* splitting) {
    const Vec two(2.0f), by_opacity = log2_opacity * Vec(kLog2e / kHalfLog2e);
    const Vec s_xx = two * footprint.cov_xx - by_opacity * a.xx * a.xx;
    const Vec s_xy = two * footprint.cov_xy - by_opacity * a.xx * a.xy;
    const Vec s_yy = two * footprint.cov_yy - by_opacity * (a.xy * a.xy + a.yy * a.yy);
    Vec jacobian[2][3];
    center_jacobian(view, p, jacobian);
    const Vec *x = jacobian[0], *y = jacobian[1];
    alignas(64) float entries[6 * kLanes];
    for (int r = 0, n = 0; r < 3; ++r)
        for (int c = r; c < 3; ++c, ++n)
            (x[r] * (s_xx * x[c] + s_xy * y[c]) + y[r] * (s_xy * x[c] + s_yy * y[c])).store(entries + kLanes * n);
    add_transposed(entries, 6, lanes, splitting, 6);
}

// Adds what these derivatives, which are of the view's own loss, say of their rows.
inline void observe(const View& view, const Projected& p, const Whitening& a, const SplatDerivative* splat_gradient,
                    int64_t i, Mask lanes, const ObservedTensors& out) {
    const auto g = load_records<ObservedFields<Vec>>(splat_gradient + i, lanes);
    const FootprintGradient footprint = footprint_gradient(a, g);
    const Vec half_width(0.5f * view.width), half_height(0.5f * view.height), two(2.0f), half(0.5f);
    const auto length = [&](Vec x, Vec y) {
        x *= half_width;
        y *= half_height;
        return sqrt(fmadd(x, x, y * y));
    };
    const auto add = [&](float* to, Vec value) { store_part(to + i, lanes, load_part(to + i, lanes) + value); };
    add(out.views, Vec(1.0f));
    add(out.gradient, length(footprint.mean_x, footprint.mean_y));
    const Vec difference = half * (p.cov_xx - p.cov_yy);
    const Vec longest = sqrt(fmadd(half, p.cov_xx + p.cov_yy, sqrt(fmadd(difference, difference, p.cov_xy * p.cov_xy))));
    const Vec radius = longest * Vec(3.0f / (view.width > view.height ? view.width : view.height));
    store_part(out.max_radius + i, lanes, max(load_part(out.max_radius + i, lanes), radius));
    if (out.absolute) add(out.absolute, length(two * a.xx * g.absolute_x, two * g.absolute_y));
    if (out.splitting) add_splitting(view, p, a, footprint, g.log2_opacity, lanes, out.splitting + 6 * i);
}

void project_backward(const Constants& k, const View& view, const Cloud& cloud, int64_t begin, int64_t end,
                      const Splat* splats, const uint8_t* visible, const SplatDerivative* splat_gradient, float weight,
                      bool overwrite, const CloudTensors& out, uint8_t* seen, const ObservedTensors* observed) {
    for (int64_t i = begin; i < end; i += kLanes) {
        const int count = static_cast<int>(end - i < kLanes ? end - i : kLanes);
        const uint32_t bits = visible_bits(visible, i, count);
        const Mask lanes = from_bits(bits);
        const GradientRows rows{i, count, lanes, overwrite};
        if (overwrite) clear_rows(cloud, out, rows);
        if (overwrite) std::memset(seen + i, 0, static_cast<size_t>(count));
        if (!bits) continue;
        for (int lane = 0; lane < count; ++lane) seen[i + lane] |= visible[i + lane];
        Projected p;
        Vec offset[3];
        project_point(k, view, cloud, i, lanes, offset, p);
        project_covariance(k, view, cloud, i, lanes, p);
        const auto g = scaled(load_records<DerivativeFields<Vec>>(splat_gradient + i, lanes), Vec(weight));
        const FootprintGradient footprint = footprint_gradient(whitening_of(splats, i, lanes), g);
        if (observed) observe(view, p, whitening_of(splats, i, lanes), splat_gradient, i, lanes, *observed);
        Vec d_half[2][3], d_rotated[2][3], d_image[2][3], d_quat[4], d_mean[3], d_scale[3];
        half_gradient(k, view.antialiased, p, footprint.cov_xx, footprint.cov_xy, footprint.cov_yy, g.log2_opacity,
                      d_half);
        for (int c = 0; c < 3; ++c) {
            d_scale[c] = d_half[0][c] * p.half[0][c] + d_half[1][c] * p.half[1][c];
            for (int r = 0; r < 2; ++r) d_rotated[r][c] = d_half[r][c] * p.scale[c];
        }
        rotated_gradient(p, d_rotated, d_image, d_quat);
        // log2 σ(x) has the derivative (1 - σ)/ln2, and 1 - σ(x) = 1/(1 + eˣ) keeps its digits near 0.
        const Vec transparency = transparency_of(cloud, i, lanes);
        color_gradient(cloud, rows, offset, splats, g.color, out, d_mean);
        point_gradient(view, p, d_image, footprint, d_mean);
        rows.put<3>(d_mean, out.means);
        rows.put<3>(d_scale, out.log_scales);
        rows.put<4>(d_quat, out.quats);
        rows.put(g.log2_opacity * Vec(kLog2e) * transparency, out.logit_opacities);
    }
}
