// Trust radii by the squared Hellinger distance, sixteen Gaussians at a time, one a lane. The formulas are those
// of HellingerRadii in Python, which is their reference.

struct Radii {
    Vec mean[3], log_scale, quat[4], logit, color[3];
    Vec quat_length;
};

// -8·ln(1 - r) for 0 <= r < 1; the series where the difference from 1 has lost r's digits.
inline Vec eightfold_log(Vec r) {
    constexpr float kTerms[] = {1.0f / 4.0f, 1.0f / 3.0f, 1.0f / 2.0f, 1.0f};
    Vec series(1.0f / 5.0f);
    for (const float term : kTerms) series = fmadd(series, r, Vec(term));
    const Vec direct = log2(max(Vec(1.0f) - r, Vec(1e-30f))) * Vec(-kLn2);
    return Vec(8.0f) * select(r < Vec(0.02f), r * series, direct);
}

// sinh²(x), |x| <= 10; the series where e^x - e^-x has lost x's digits.
inline Vec squared_sinh(Vec x) {
    const Vec squared = x * x;
    const Vec series = fmadd(squared, fmadd(squared, Vec(1.0f / 120.0f), Vec(1.0f / 6.0f)), Vec(1.0f)) * x;
    const Vec direct = Vec(0.5f) * (exp(x) - exp(-x));
    const Vec sinh = select(squared < Vec(0.0625f), series, direct);
    return sinh * sinh;
}

inline Radii hellinger_radii(const TrustBounds& k, const CloudTensors& cloud, int64_t i, Mask lanes) {
    const Vec one(1.0f), two(2.0f);
    Radii out;

    const Vec logit = gather(cloud.logit_opacities + i, 1, lanes);
    const Vec opacity = max(one / (one + exp(-logit)), Vec(k.opacity_floor));
    const Vec relative = min(Vec(k.epsilon) / opacity, Vec(k.max_relative_distance));
    const Vec eightfold = eightfold_log(relative);
    const Vec clear = max(one / (one + exp(logit)), Vec(kMinNormal));
    out.logit = min(two * sqrt(relative) / clear, Vec(k.max_logit));
    out.log_scale = min(sqrt(two * relative), Vec(k.max_log_scale));
    for (int c = 0; c < 3; ++c) {
        const Vec dc = gather(cloud.sh_dc + 3 * i + c, 3, lanes);
        const Vec color = max(fmadd(Vec(kSh0), dc, Vec(0.5f)), Vec(k.color_floor));
        out.color[c] = min(sqrt(color * Vec(4.0f) * relative), Vec(k.max_color)) * Vec(1.0f / kSh0);
    }

    Vec log_scale[3], q[4];
    for (int c = 0; c < 3; ++c) log_scale[c] = gather(cloud.log_scales + 3 * i + c, 3, lanes);
    Vec squared_norm(0.0f);
    for (int c = 0; c < 4; ++c) {
        q[c] = gather(cloud.quats + 4 * i + c, 4, lanes);
        squared_norm = fmadd(q[c], q[c], squared_norm);
    }
    out.quat_length = sqrt(squared_norm);
    const Vec inverse_length = one / max(out.quat_length, Vec(kMinNormal));
    for (Vec& entry : q) entry *= inverse_length;
    const Vec w = q[0], x = q[1], y = q[2], z = q[3];

    Vec stretch[3];
    for (int c = 0; c < 3; ++c) {
        const Vec ratio = log_scale[(c + 1) % 3] - log_scale[(c + 2) % 3];
        stretch[c] = Vec(32.0f) * squared_sinh(clamp(ratio, Vec(-kMaxLogRatio), Vec(kMaxLogRatio)));
    }
    const Vec ww = w * w, xx = x * x, yy = y * y, zz = z * z;
    const Vec turns[4][3] = {{xx, yy, zz}, {ww, zz, yy}, {zz, ww, xx}, {yy, xx, ww}};
    const Vec max_quat = Vec(k.max_quat) * out.quat_length;
    for (int c = 0; c < 4; ++c) {
        Vec curvature(0.0f);
        for (int axis = 0; axis < 3; ++axis) curvature = fmadd(turns[c][axis], stretch[axis], curvature);
        // √(8·-ln(1-ε/α)/β), β = curvature / length²; infinite for a sphere, and then capped.
        out.quat[c] = min(sqrt(eightfold / curvature) * out.quat_length, max_quat);
    }

    const Vec xy = x * y, xz = x * z, yz = y * z, wx = w * x, wy = w * y, wz = w * z;
    const Vec rotation[3][3] = {{one - two * (yy + zz), two * (xy - wz), two * (xz + wy)},
                                {two * (xy + wz), one - two * (xx + zz), two * (yz - wx)},
                                {two * (xz - wy), two * (yz + wx), one - two * (xx + yy)}};
    Vec variance[3];
    for (int c = 0; c < 3; ++c) {
        const Vec doubled = two * clamp(log_scale[c], Vec(-kMaxLogScale), Vec(kMaxLogScale));
        variance[c] = exp(k.conditional_variance ? -doubled : doubled);
    }
    for (int c = 0; c < 3; ++c) {
        Vec sum(0.0f);
        for (int axis = 0; axis < 3; ++axis) sum = fmadd(rotation[c][axis] * rotation[c][axis], variance[axis], sum);
        out.mean[c] = min(sqrt((k.conditional_variance ? one / sum : sum) * eightfold), Vec(k.max_mean));
    }
    const Vec place(k.place), shape(k.shape), look(k.look);
    for (Vec& mean : out.mean) mean *= place;
    out.log_scale *= shape;
    for (Vec& quat : out.quat) quat *= shape;
    out.logit *= look;
    for (Vec& color : out.color) color *= look;
    return out;
}

// out[width·lane + column] = values[column]'s lane: how rows of a tensor lie in memory.
template <int kWidth>
inline void store_rows(const Vec (&values)[kWidth], float* out) {
    for (int c = 0; c < kWidth; ++c) {
        float lanes[kLanes];
        values[c].store(lanes);
        for (int lane = 0; lane < kLanes; ++lane) out[kWidth * lane + c] = lanes[lane];
    }
}

// The colour's radii of some rows, repeated over their `rest` coefficients, at out[3·rest·row + 3·k + channel].
// Writes up to kLanes floats past the end.
inline void store_coefficients(const float* color_rows, float factor, int rest, int64_t count, float* out) {
    const Mask first = from_bits(0x9249), second = from_bits(0x2492);  // every third lane, from 0 and from 1 on
    for (int64_t i = 0; i < count; ++i) {
        const Vec r(factor * color_rows[3 * i]), g(factor * color_rows[3 * i + 1]), b(factor * color_rows[3 * i + 2]);
        const Vec turns[3] = {select(first, r, select(second, g, b)), select(first, g, select(second, b, r)),
                              select(first, b, select(second, r, g))};
        float* row = out + 3 * rest * i;
        for (int at = 0, turn = 0; at < 3 * rest; at += kLanes, turn = (turn + 1) % 3) turns[turn].store(row + at);
    }
}

// Scale sixteen quaternions back to the given lengths.
inline void keep_lengths(float* quats, Vec lengths, Mask lanes) {
    Vec q[4], squared(0.0f);
    for (int c = 0; c < 4; ++c) {
        q[c] = gather(quats + c, 4, lanes);
        squared = fmadd(q[c], q[c], squared);
    }
    const Vec moved = sqrt(squared);
    float factors[kLanes];
    select(moved > Vec(0.0f), lengths / moved, Vec(1.0f)).store(factors);
    const uint32_t bits = to_bits(lanes);
    for (int lane = 0; lane < kLanes; ++lane)
        if (bits >> lane & 1)
            for (int c = 0; c < 4; ++c) quats[4 * lane + c] *= factors[lane];
}
