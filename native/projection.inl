// EWA projection of sixteen Gaussians at a time.
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

// A camera's rotation, world to camera, in float.
struct CameraRotation {
    float w[3][3];
    explicit CameraRotation(const View& view) {
        for (int i = 0; i < 9; ++i) w[i / 3][i % 3] = static_cast<float>(view.rotation[i]);
    }
    const float* operator[](int row) const { return w[row]; }
};

inline Vec dot3(const Vec* a, const Vec* b) { return fmadd(a[0], b[0], fmadd(a[1], b[1], a[2] * b[2])); }

// The camera-space point and where it falls in the image, in double: the pixel position of a splat below a
// pixel's size must not carry the rounding of the pose. Lanes behind the near plane are given a harmless
// point and left out of the mask.
inline Mask project_point(const Constants& k, const View& view, const Cloud& cloud, int64_t i, Mask lanes,
                          Vec* offset, Projected& p) {
    float world[3][kLanes], from_center[3][kLanes], camera[3][kLanes], ratio[2][kLanes], mean[2][kLanes];
    load_rows<3>(cloud.means + 3 * i, lanes, p.point);
    for (int c = 0; c < 3; ++c) p.point[c].store(world[c]);
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

// With the scales at hand.
inline void project_scaled(const Constants& k, const View& view, const Cloud& cloud, int64_t i, Mask lanes,
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
    const CameraRotation w(view);
    for (int c = 0; c < 3; ++c) {
        p.camera_to_image[0][c] = fmadd(p.j00, Vec(w[0][c]), p.j02 * Vec(w[2][c]));
        p.camera_to_image[1][c] = fmadd(p.j11, Vec(w[1][c]), p.j12 * Vec(w[2][c]));
    }
    Vec norm(0.0f);
    load_rows<4>(cloud.quats + 4 * i, lanes, p.quat);
    for (int c = 0; c < 4; ++c) norm = fmadd(p.quat[c], p.quat[c], norm);
    p.quat_inverse_norm = Vec(1.0f) / sqrt(max(norm, Vec(1e-30f)));
    for (int c = 0; c < 4; ++c) p.quat[c] *= p.quat_inverse_norm;
    rotation_of(p.quat, p.rotation);
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

inline void project_covariance(const Constants& k, const View& view, const Cloud& cloud, int64_t i, Mask lanes,
                               Projected& p) {
    load_rows<3>(cloud.log_scales + 3 * i, lanes, p.scale);
    for (Vec& scale : p.scale) scale = exp(scale);
    project_scaled(k, view, cloud, i, lanes, p);
}

inline Vec opacity_of(const Cloud& cloud, int64_t i, Mask lanes) {
    const Vec logit = load_part(cloud.logit_opacities + i, lanes);
    return Vec(1.0f) / (Vec(1.0f) + exp(-logit));
}

inline Vec direction_of(const Vec* offset, Vec* direction) {
    const Vec inverse = Vec(1.0f) / sqrt(max(dot3(offset, offset), Vec(1e-30f)));
    for (int c = 0; c < 3; ++c) direction[c] = offset[c] * inverse;
    return inverse;
}

// The first `bands` coefficients of sixteen rows, colour c of band b at out[16·(3·b + c)].
inline void transpose_coefficients(const Cloud& cloud, const float* sh_rest, int64_t i, Mask lanes, int bands,
                                   float* out) {
    const int64_t stride = 3 * static_cast<int64_t>(cloud.rest);
    if (bands) transpose_rows(sh_rest + stride * i, stride, lanes, 3 * bands, out);
}

// The other way: adds to the first `bands` coefficients of these rows, or overwrites them.
inline void add_coefficients(const Cloud& cloud, const float* in, int64_t i, Mask lanes, int bands, float* sh_rest,
                             bool overwrite = false) {
    const int64_t stride = 3 * static_cast<int64_t>(cloud.rest);
    add_transposed(in, 3 * bands, lanes, sh_rest + stride * i, stride, overwrite);
}

// Colours before the clamp at 0.
inline void colors_of(const Cloud& cloud, int64_t i, Mask lanes, const Vec* direction, Vec* color) {
    Vec basis[15];
    const int count = sh_basis(cloud.degree, direction[0], direction[1], direction[2], basis);
    alignas(64) float rest[45 * kLanes];
    transpose_coefficients(cloud, cloud.sh_rest, i, lanes, count, rest);
    load_rows<3>(cloud.sh_dc + 3 * i, lanes, color);
    for (int c = 0; c < 3; ++c) {
        color[c] = fmadd(Vec(kSh0), color[c], Vec(0.5f));
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
        // A black point's colour, stored as -0.5/C₀, may come out some rounding below 0: it still passes its
        // gradient, or it would stay black for good.
        const Vec below(-1e-6f), one(1.0f);
        SplatFields<Vec> s;
        s.mean_x = mean_x;
        s.mean_y = mean_y;
        s.whitening_xx = sqrt(Vec(kHalfLog2e) * p.cov_yy / p.determinant);
        s.whitening_xy = -(s.whitening_xx * p.cov_xy / p.cov_yy);
        s.whitening_yy = sqrt(Vec(kHalfLog2e) / p.cov_yy);
        s.log2_opacity = log2_opacity;
        s.depth = p.point[2];
        s.reach = reach;
        s.half_x = half_x;
        s.half_y = half_y;
        for (int c = 0; c < 3; ++c) {
            s.color[c] = max(color[c], Vec(0.0f));
            s.color_passes[c] = keep(color[c] >= below, one);
        }
        const uint32_t bits = to_bits(drawn);
        for (int lane = 0; lane < count; ++lane) visible[i + lane] = bits >> lane & 1;
        save_records(s, bits, splats + i);
    }
}

void block_spans(const View&, const Splat& s, int row_begin, int row_end, int* first, int* last) {
    // The strip of pixel centres of a block row cuts the ellipse |A d|² <= reach; x = slope·dy ± √(reach - v²)/A_xx.
    constexpr float slack = 1e-3f;  // pixels, over the rounding of what follows
    const float x_per_y = -s.whitening_xy / s.whitening_xx;
    const Vec slope(x_per_y), inverse_xx(1.0f / s.whitening_xx), reach(s.reach), yy(s.whitening_yy);
    // The dy at which the ellipse reaches furthest right; furthest left is its negative.
    const float tip = s.half_x > 0.0f ? x_per_y / (s.whitening_yy * s.whitening_yy) * s.reach / s.half_x : 0.0f;
    const float lanes[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int row = row_begin; row < row_end; row += kLanes) {
        const Vec top = fmadd(Vec::load(lanes), Vec(kBlock), Vec(row * kBlock + 0.5f - s.mean_y));
        const Vec bottom = top + Vec(kBlock - 1.0f);
        const Vec from = max(top, Vec(-s.half_y)), to = min(bottom, Vec(s.half_y));
        const Mask empty = (top > Vec(s.half_y + slack)) | (bottom < Vec(-s.half_y - slack));
        const auto width_at = [&](Vec dy) {
            const Vec v = yy * dy;
            return sqrt(max(fnmadd(v, v, reach), Vec(0.0f))) * inverse_xx;
        };
        const Vec right_dy = min(max(Vec(tip), from), to), left_dy = min(max(Vec(-tip), from), to);
        const Vec right = fmadd(slope, right_dy, width_at(right_dy)) + Vec(s.mean_x + slack);
        const Vec left = fmadd(slope, left_dy, -width_at(left_dy)) + Vec(s.mean_x - slack);
        // Blocks whose pixel centres 4c+0.5 … 4c+3.5 meet [left, right].
        const Vec limit(1e6f);
        const Vec first_column = -floor((Vec(kBlock - 0.5f) - clamp(left, -limit, limit)) * Vec(1.0f / kBlock));
        const Vec last_column = floor((clamp(right, -limit, limit) - Vec(0.5f)) * Vec(1.0f / kBlock));
        store_integers(select(empty, Vec(1.0f), first_column), first + (row - row_begin));
        store_integers(select(empty, Vec(0.0f), last_column), last + (row - row_begin));
    }
}
