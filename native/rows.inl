// Projection, blending's splats and spherical harmonics of rows as other people's PyTorch holds them, one step at a time,
// so that a graph may have what lies between: see src/splatopt/torch_api. Sixteen rows at a time.

constexpr float kRootHalfLog2e = 0.8493218f;  // √kHalfLog2e: U, with UᵀU = Σ⁻¹, times this whitens

struct Pairs {
    Vec x, y;
};
struct Triples {
    Vec x, y, z;
};
template <int kFloats>
struct Floats {
    float value[kFloats];
};

template <int kFloats>
inline Floats<kFloats>* rows_of(float* p) {
    return reinterpret_cast<Floats<kFloats>*>(p);
}
template <int kFloats>
inline const Floats<kFloats>* rows_of(const float* p) {
    return reinterpret_cast<const Floats<kFloats>*>(p);
}

inline Cloud cloud_of(const PlainRows& rows) {
    return {rows.count, rows.means, nullptr, rows.quats, nullptr, nullptr, nullptr, 0, 0};
}

// Projects these lanes in full; returns which of them lie before the near plane.
inline Mask project_plain(const Constants& k, const View& view, const PlainRows& rows, int64_t i, Mask lanes,
                          Projected& p) {
    const Cloud cloud = cloud_of(rows);
    Vec offset[3];
    const Mask front = project_point(k, view, cloud, i, lanes, offset, p);
    if (!any(front)) return front;
    for (int c = 0; c < 3; ++c) p.scale[c] = gather(rows.scales + 3 * i + c, 3, lanes);
    project_scaled(k, view, cloud, i, lanes, p);
    return front;
}

inline Vec compensation_of(const Projected& p) { return sqrt(p.cross_squared / p.determinant); }

// U of sixteen rows: the whitening matrix without its factor.
inline Whitening factor_of(const Projected& p) {
    Whitening u;
    u.xx = sqrt(p.cov_yy / p.determinant);
    u.xy = -(u.xx * p.cov_xy / p.cov_yy);
    u.yy = Vec(1.0f) / sqrt(p.cov_yy);
    return u;
}

inline void clear_splats(const PlainSplats& out, int64_t i, int count) {
    const auto clear = [&](auto* p, int width) {
        std::memset(p + i * width, 0, sizeof(*p) * static_cast<size_t>(count * width));
    };
    clear(out.centers, 2);
    clear(out.factors, 3);
    clear(out.conics, 3);
    clear(out.depths, 1);
    clear(out.compensations, 1);
    clear(out.radii, 2);
    clear(out.tiles, 1);
}

// Half sides of the box within which α may reach min_alpha, whole pixels, as gsplat rounds them.
inline Pairs box_of(const Constants& k, const Projected& p, Vec opacity) {
    const Vec reach = log2(max(opacity, Vec(1e-37f))) - log2(Vec(k.min_alpha));
    const Vec extent = min(sqrt(max(reach, Vec(0.0f)) * Vec(1.0f / kHalfLog2e)), Vec(3.33f));
    const auto up = [](Vec a) { return min(-floor(-a), Vec(1e9f)); };
    return {up(extent * sqrt(p.cov_xx)), up(extent * sqrt(p.cov_yy))};
}

// How many tiles of the image lie between middle - half and middle + half along one side.
inline Vec tiles_along(Vec middle, Vec half, int tiles) {
    const Vec one_tile(1.0f / kTile);
    const Vec begin = max(floor((middle - half) * one_tile), Vec(0.0f));
    return min(-floor(-(middle + half) * one_tile), Vec(static_cast<float>(tiles))) - begin;
}

void project_rows(const Constants& k, const View& view, const RowLimits& limits, const PlainRows& rows, int64_t begin,
                  int64_t end, const PlainSplats& out) {
    for (int64_t i = begin; i < end; i += kLanes) {
        const int count = static_cast<int>(end - i < kLanes ? end - i : kLanes);
        const Mask lanes = first_lanes(count);
        Projected p;
        clear_splats(out, i, count);
        Mask drawn = project_plain(k, view, rows, i, lanes, p);
        if (!any(drawn)) continue;
        const Vec compensation = compensation_of(p);
        Vec opacity = load_part(rows.opacities + i, lanes);
        if (view.antialiased) opacity *= compensation;
        const Pairs box = box_of(k, p, opacity);
        const Vec clip(limits.radius_clip);
        drawn = drawn & (p.point[2] <= Vec(limits.far_plane)) & (opacity >= Vec(k.min_alpha)) &
                (p.determinant > Vec(0.0f)) & (p.determinant < Vec(3e38f)) & ((box.x > clip) | (box.y > clip)) &
                (p.mean_x + box.x > Vec(0.0f)) & (p.mean_x - box.x < Vec(static_cast<float>(view.width))) &
                (p.mean_y + box.y > Vec(0.0f)) & (p.mean_y - box.y < Vec(static_cast<float>(view.height)));
        const uint32_t bits = to_bits(drawn);
        if (!bits) continue;
        const Whitening u = factor_of(p);
        save_records(Pairs{p.mean_x, p.mean_y}, bits, rows_of<2>(out.centers) + i);
        save_records(Triples{u.xx, u.xy, u.yy}, bits, rows_of<3>(out.factors) + i);
        save_records(Triples{u.xx * u.xx, u.xx * u.xy, fmadd(u.xy, u.xy, u.yy * u.yy)}, bits,
                     rows_of<3>(out.conics) + i);
        store_part(out.depths + i, drawn, p.point[2]);
        store_part(out.compensations + i, drawn, compensation);
        float x[kLanes], y[kLanes], tiles[kLanes];
        box.x.store(x);
        box.y.store(y);
        (tiles_along(p.mean_x, box.x, view.tiles_x) * tiles_along(p.mean_y, box.y, view.tiles_y)).store(tiles);
        for (uint32_t left = bits; left; left &= left - 1) {
            const int lane = __builtin_ctz(left);
            out.radii[2 * (i + lane)] = static_cast<int32_t>(x[lane]);
            out.radii[2 * (i + lane) + 1] = static_cast<int32_t>(y[lane]);
            out.tiles[i + lane] = static_cast<int32_t>(tiles[lane]);
        }
    }
}

inline uint32_t drawn_bits(const int32_t* radii, int64_t i, int count) {
    uint32_t bits = 0;
    for (int lane = 0; lane < count; ++lane) {
        const int32_t* r = radii + 2 * (i + lane);
        bits |= static_cast<uint32_t>(r[0] > 0 && r[1] > 0) << lane;
    }
    return bits;
}

// ∂L/∂centre and ∂L/∂U as blending would have handed them back: U's entries hold the second moments.
inline DerivativeFields<Vec> moments_of(const Whitening& u, const PlainSplatGradients& g, int64_t i, Mask lanes) {
    const Vec zero(0.0f), root(kRootHalfLog2e), minus_half(-0.5f);
    DerivativeFields<Vec> out{zero, zero, zero, zero, zero, zero, {zero, zero, zero}};
    if (g.factors) {
        const auto d = load_records<Triples>(rows_of<3>(g.factors) + i, lanes);
        out.uv = minus_half * d.y * u.yy;
        out.vv = minus_half * d.z * u.yy;
        out.uu = fmadd(minus_half * d.x, u.xx, u.xy * out.uv / u.yy);
    }
    if (g.centers) {
        const auto d = load_records<Pairs>(rows_of<2>(g.centers) + i, lanes);
        const Whitening a{u.xx * root, u.xy * root, u.yy * root};
        out.u = d.x / (a.xx + a.xx);
        out.v = fnmadd(a.xy, out.u, Vec(0.5f) * d.y) / a.yy;
    }
    return out;
}

// Adds what these rows say of the pose: p = W x + t, and J W.
inline void add_pose_gradient(const PlainRows& rows, const Projected& p, const Vec d_image[2][3], const Vec* d_point,
                              int64_t i, Mask lanes, double* pose) {
    for (int c = 0; c < 3; ++c) {
        const Vec mean = gather(rows.means + 3 * i + c, 3, lanes);
        const Vec through_axes[3] = {p.j00 * d_image[0][c], p.j11 * d_image[1][c],
                                     fmadd(p.j02, d_image[0][c], p.j12 * d_image[1][c])};
        for (int r = 0; r < 3; ++r) pose[3 * r + c] += add_lanes(keep(lanes, fmadd(d_point[r], mean, through_axes[r])));
        pose[9 + c] += add_lanes(keep(lanes, d_point[c]));
    }
}

void project_rows_backward(const Constants& k, const View& view, const PlainRows& rows, int64_t begin, int64_t end,
                           const PlainSplatGradients& given, const PlainGradients& out, double* pose) {
    const CameraRotation w(view);
    for (int64_t i = begin; i < end; i += kLanes) {
        const int count = static_cast<int>(end - i < kLanes ? end - i : kLanes);
        const uint32_t bits = drawn_bits(given.radii, i, count);
        if (!bits) continue;
        const Mask lanes = from_bits(bits);
        Projected p;
        project_plain(k, view, rows, i, lanes, p);
        const Whitening u = factor_of(p), a{u.xx * Vec(kRootHalfLog2e), u.xy * Vec(kRootHalfLog2e),
                                            u.yy * Vec(kRootHalfLog2e)};
        const FootprintGradient footprint = footprint_gradient(a, moments_of(u, given, i, lanes));
        // ρ = 2^(log2 ρ) has the derivative ρ ln 2.
        const Vec log2_compensation =
            given.compensations ? load_part(given.compensations + i, lanes) * compensation_of(p) * Vec(kLn2) : Vec(0.0f);
        Vec d_half[2][3], d_rotated[2][3], d_image[2][3], d_quat[4], d_point[3];
        half_gradient(k, given.compensations != nullptr, p, footprint.cov_xx, footprint.cov_xy, footprint.cov_yy,
                      log2_compensation, d_half);
        for (int c = 0; c < 3; ++c) {
            scatter_add(out.scales + 3 * i + c, 3, lanes,
                        fmadd(d_half[0][c], p.rotated[0][c], d_half[1][c] * p.rotated[1][c]));
            for (int r = 0; r < 2; ++r) d_rotated[r][c] = d_half[r][c] * p.scale[c];
        }
        rotated_gradient(p, d_rotated, d_image, d_quat);
        for (int c = 0; c < 4; ++c) scatter_add(out.quats + 4 * i + c, 4, lanes, d_quat[c]);
        camera_point_gradient(view, p, d_image, footprint, d_point);
        if (given.depths) d_point[2] += load_part(given.depths + i, lanes);
        for (int c = 0; c < 3; ++c)
            scatter_add(out.means + 3 * i + c, 3, lanes,
                        d_point[0] * Vec(w[0][c]) + d_point[1] * Vec(w[1][c]) + d_point[2] * Vec(w[2][c]));
        add_pose_gradient(rows, p, d_image, d_point, i, lanes, pose);
    }
}

// Splats without colours of rows that are projected already.
void splats_of_rows(const Constants& k, const View& view, const BlendRows& rows, int64_t begin, int64_t end,
                    Splat* splats, uint8_t* visible) {
    const Vec log2_min = log2(Vec(k.min_alpha)), root(kRootHalfLog2e), one(1.0f), zero(0.0f);
    for (int64_t i = begin; i < end; i += kLanes) {
        const int count = static_cast<int>(end - i < kLanes ? end - i : kLanes);
        std::memset(visible + i, 0, count);
        Mask drawn = from_bits(drawn_bits(rows.radii, i, count));
        if (!any(drawn)) continue;
        const auto center = load_records<Pairs>(rows_of<2>(rows.centers) + i, drawn);
        const auto u = load_records<Triples>(rows_of<3>(rows.factors) + i, drawn);
        SplatFields<Vec> s;
        s.mean_x = center.x;
        s.mean_y = center.y;
        s.whitening_xx = u.x * root;
        s.whitening_xy = u.y * root;
        s.whitening_yy = u.z * root;
        s.log2_opacity = log2(max(load_part(rows.opacities + i, drawn), Vec(1e-37f)));
        s.depth = load_part(rows.depths + i, drawn);
        s.reach = s.log2_opacity - log2_min;
        const Vec spread = sqrt(max(s.reach, zero) * Vec(1.0f / kHalfLog2e)), ratio = u.y / u.z;
        s.half_x = spread * sqrt(fmadd(ratio, ratio, one)) / u.x;
        s.half_y = spread / u.z;
        drawn = drawn & (s.reach >= zero) & (s.depth > zero) & (u.x > zero) & (u.z > zero) &
                (s.half_x < Vec(3e38f)) & (s.half_y < Vec(3e38f)) & (s.mean_x + s.half_x >= Vec(0.5f)) &
                (s.mean_y + s.half_y >= Vec(0.5f)) & (s.mean_x - s.half_x <= Vec(view.width - 0.5f)) &
                (s.mean_y - s.half_y <= Vec(view.height - 0.5f));
        for (int c = 0; c < 3; ++c) s.color[c] = s.color_passes[c] = zero;
        const uint32_t bits = to_bits(drawn);
        for (int lane = 0; lane < count; ++lane) visible[i + lane] = bits >> lane & 1;
        save_records(s, bits, splats + i);
    }
}

// Adds ∂L/∂(centre, U, opacity) from what blending hands back.
void row_gradients(const Splat* splats, const uint8_t* visible, const SplatDerivative* derivative, int64_t begin,
                   int64_t end, const BlendRowGradients& out) {
    const Vec two(2.0f), minus_two(-2.0f), root(kRootHalfLog2e);
    for (int64_t i = begin; i < end; i += kLanes) {
        const int count = static_cast<int>(end - i < kLanes ? end - i : kLanes);
        const uint32_t bits = visible_bits(visible, i, count);
        if (!bits) continue;
        const Mask lanes = from_bits(bits);
        const auto g = load_records<ObservedFields<Vec>>(derivative + i, lanes);
        const Whitening a = whitening_of(splats, i, lanes);
        const auto add = [&](float* to, int stride, int place, Vec value) {
            scatter_add(to + stride * i + place, stride, lanes, value);
        };
        add(out.centers, 2, 0, two * a.xx * g.u);
        add(out.centers, 2, 1, two * (a.xy * g.u + a.yy * g.v));
        // u = A_xx dx + A_xy dy and v = A_yy dy give dx and dy; the factor is that of A = root · U.
        const Vec scale = minus_two * root;
        add(out.factors, 3, 0, scale * (g.uu - a.xy * g.uv / a.yy) / a.xx);
        add(out.factors, 3, 1, scale * g.uv / a.yy);
        add(out.factors, 3, 2, scale * g.vv / a.yy);
        const Vec log2_opacity = gather(&splats[i].log2_opacity, kSplatFloats, lanes);
        add(out.opacities, 1, 0, g.log2_opacity * Vec(kLog2e) * exp2(-log2_opacity));
        if (!out.absolute) continue;
        add(out.absolute, 2, 0, two * a.xx * g.absolute_x);
        add(out.absolute, 2, 1, two * g.absolute_y);
    }
}

inline uint32_t counted_bits(const uint8_t* counted, int64_t i, int count) {
    return counted ? visible_bits(counted, i, count) : (count >= kLanes ? 0xffffu : (1u << count) - 1u);
}

// Where sixteen rows are looked at from: unit directions; returns one over their lengths.
inline Vec directions_of(const HarmonicRows& rows, int64_t i, Mask lanes, Vec* direction) {
    const auto given = load_records<Triples>(rows_of<3>(rows.directions) + i, lanes);
    Vec offset[3] = {given.x, given.y, given.z};
    for (int c = 0; c < 3 && rows.seen_from; ++c) offset[c] = offset[c] - Vec(rows.seen_from[c]);
    return direction_of(offset, direction);
}

// A colour that is black but for rounding keeps a trace, by which its gradient is known to pass; gradients of what lies
// below do not. What is no number stays so, to be seen.
inline Vec shifted_color(Vec sum) {
    const Vec color = sum + Vec(0.5f), trace(1e-30f);
    return select(color < Vec(-1e-6f), Vec(0.0f), select(color < trace, trace, color));
}

// Σ_k coefficient_k Y_k(direction) of each channel, 0 where a row does not count.
void harmonics(const HarmonicRows& rows, int64_t begin, int64_t end, float* colors) {
    const int used = (rows.degree + 1) * (rows.degree + 1);
    const int64_t stride = 3 * static_cast<int64_t>(rows.stored);
    alignas(64) float coefficients[48 * kLanes];
    for (int64_t i = begin; i < end; i += kLanes) {
        const int count = static_cast<int>(end - i < kLanes ? end - i : kLanes);
        std::memset(colors + 3 * i, 0, sizeof(float) * 3 * static_cast<size_t>(count));
        const uint32_t bits = counted_bits(rows.counted, i, count);
        if (!bits) continue;
        const Mask lanes = from_bits(bits);
        Vec direction[3], basis[15];
        directions_of(rows, i, lanes, direction);
        sh_basis(rows.degree, direction[0], direction[1], direction[2], basis);
        transpose_rows(rows.coefficients + stride * i, stride, lanes, 3 * used, coefficients);
        Vec color[3];
        for (int c = 0; c < 3; ++c) {
            color[c] = Vec(kSh0) * Vec::load(coefficients + kLanes * c);
            for (int b = 1; b < used; ++b)
                color[c] = fmadd(basis[b - 1], Vec::load(coefficients + kLanes * (3 * b + c)), color[c]);
            if (rows.seen_from) color[c] = shifted_color(color[c]);
        }
        save_records(Triples{color[0], color[1], color[2]}, bits, rows_of<3>(colors) + i);
    }
}

// Zeros where sixteen rows' coefficients will not be overwritten: of rows that do not count, and above the degree.
inline void clear_coefficients(float* rows, int64_t stride, int used, uint32_t bits, int count) {
    for (int lane = 0; lane < count; ++lane) {
        const int64_t kept = bits >> lane & 1 ? used : 0;
        std::memset(rows + stride * lane + kept, 0, sizeof(float) * static_cast<size_t>(stride - kept));
    }
}

// Adds ∂L/∂(direction or position) and ∂L/∂coefficients, and to sums what all directions together have, (3,). Colours
// are those that came out, by which the clamp is known; they are read with `seen_from` alone.
void harmonics_backward(const HarmonicRows& rows, int64_t begin, int64_t end, const float* colors,
                        const float* gradient, const HarmonicGradients& out, double* sums) {
    const int used = (rows.degree + 1) * (rows.degree + 1);
    const int64_t stride = 3 * static_cast<int64_t>(rows.stored);
    alignas(64) float coefficients[48 * kLanes];
    for (int64_t i = begin; i < end; i += kLanes) {
        const int count = static_cast<int>(end - i < kLanes ? end - i : kLanes);
        const uint32_t bits = counted_bits(rows.counted, i, count);
        if (out.overwrite) clear_coefficients(out.coefficients + stride * i, stride, 3 * used, bits, count);
        if (!bits) continue;
        const Mask lanes = from_bits(bits);
        const auto d_color = load_records<Triples>(rows_of<3>(gradient) + i, lanes);
        Vec g[3] = {d_color.x, d_color.y, d_color.z};
        if (rows.seen_from) {
            const auto color = load_records<Triples>(rows_of<3>(colors) + i, lanes);
            const Vec zero(0.0f);
            g[0] = keep(color.x > zero, g[0]);
            g[1] = keep(color.y > zero, g[1]);
            g[2] = keep(color.z > zero, g[2]);
        }
        Vec direction[3], basis[15], along[15], d_direction[3];
        const Vec inverse = directions_of(rows, i, lanes, direction);
        sh_basis(rows.degree, direction[0], direction[1], direction[2], basis);
        transpose_rows(rows.coefficients + stride * i, stride, lanes, 3 * used, coefficients);
        for (int c = 0; c < 3; ++c) (Vec(kSh0) * g[c]).store(coefficients + kLanes * c);
        for (int b = 1; b < used; ++b) {
            along[b - 1] = Vec(0.0f);
            for (int c = 0; c < 3; ++c) {
                float* const at = coefficients + kLanes * (3 * b + c);
                along[b - 1] = fmadd(g[c], Vec::load(at), along[b - 1]);
                (basis[b - 1] * g[c]).store(at);
            }
        }
        add_transposed(coefficients, 3 * used, lanes, out.coefficients + stride * i, stride, out.overwrite);
        sh_direction_gradient(rows.degree, direction[0], direction[1], direction[2], along, d_direction);
        const Vec radial = dot3(d_direction, direction);
        for (int c = 0; c < 3; ++c) {
            const Vec d = (d_direction[c] - direction[c] * radial) * inverse;
            scatter_add(out.directions + 3 * i + c, 3, lanes, d);
            sums[c] += add_lanes(keep(lanes, d));
        }
    }
}
