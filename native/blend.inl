// Blending of one tile, front to back, and its gradient, back to front.
//
// Forward works block by block: the tile's list is compacted to the positions that touch the 4x4 block, and
// the block's sixteen rays stay in registers. Backward works Gaussian by Gaussian, so that a pair's sums over
// the tile's pixels are reduced across lanes once and not once a block.

alignas(64) constexpr float kLaneX[kLanes] = {0.5f, 1.5f, 2.5f, 3.5f, 0.5f, 1.5f, 2.5f, 3.5f,
                                              0.5f, 1.5f, 2.5f, 3.5f, 0.5f, 1.5f, 2.5f, 3.5f};
alignas(64) constexpr float kLaneY[kLanes] = {0.5f, 0.5f, 0.5f, 0.5f, 1.5f, 1.5f, 1.5f, 1.5f,
                                              2.5f, 2.5f, 2.5f, 2.5f, 3.5f, 3.5f, 3.5f, 3.5f};

// Splats lie in the cloud's order, which the list jumps about in: fetched this many positions ahead.
constexpr int64_t kAhead = 32;

inline void gather_tile(const View& view, const Splat* splats, const Entry* entries, int64_t count, int tile,
                        TileScratch& scratch) {
    const float left = static_cast<float>(tile % view.tiles_x * kTile);
    const float top = static_cast<float>(tile / view.tiles_x * kTile);
    scratch.reserve(count);
    for (int64_t i = 0; i < count; ++i) {
        __builtin_prefetch(&splats[entries[i + kAhead < count ? i + kAhead : i].gaussian]);
        BlendFields<float>& local = scratch.splats[i];
        local = splats[entries[i].gaussian];
        local.mean_x -= left;
        local.mean_y -= top;
        scratch.blocks[i] = entries[i].blocks;
    }
    for (int64_t i = count; i < count + kLanes; ++i) scratch.blocks[i] = 0;
}

// Positions of the list that touch the block; returns how many.
inline int64_t compact(TileScratch& scratch, int64_t count, int block) {
    uint32_t* list = scratch.list;
    const uint32_t* blocks = scratch.blocks;
    int64_t found = 0;
#if defined(SPLATOPT_AVX512)
    const __m512i bit = _mm512_set1_epi32(1 << block), step = _mm512_set1_epi32(kLanes);
    __m512i position = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int64_t i = 0; i < count; i += kLanes) {
        const __mmask16 hit = _mm512_test_epi32_mask(_mm512_loadu_si512(blocks + i), bit);
        _mm512_storeu_si512(list + found, _mm512_maskz_compress_epi32(hit, position));
        found += __builtin_popcount(hit);
        position = _mm512_add_epi32(position, step);
    }
#else
    for (int64_t i = 0; i < count; ++i) {
        list[found] = static_cast<uint32_t>(i);
        found += blocks[i] >> block & 1;
    }
#endif
    return found;
}

struct Pair {
    Vec u, v, alpha;
};

// α before its clamp, and the whitened offset (u, v) = A (pixel - mean).
inline Pair evaluate(const LocalSplat& s, Vec x, Vec y) {
    const Vec dx = x - Vec(s.mean_x), dy = y - Vec(s.mean_y);
    Pair pair;
    pair.u = fmadd(Vec(s.whitening_xx), dx, Vec(s.whitening_xy) * dy);
    pair.v = Vec(s.whitening_yy) * dy;
    pair.alpha = exp2(fnmadd(pair.v, pair.v, fnmadd(pair.u, pair.u, Vec(s.log2_opacity))));
    return pair;
}

// Sixteen rays on their way through a block's list.
struct Rays {
    Vec t, red, green, blue, depth;
};

template <bool kDepth>
inline void add(Rays& rays, const LocalSplat& s, Mask m, Vec w) {
    rays.red = accumulate(m, w, Vec(s.color[0]), rays.red);
    rays.green = accumulate(m, w, Vec(s.color[1]), rays.green);
    rays.blue = accumulate(m, w, Vec(s.color[2]), rays.blue);
    if (kDepth) rays.depth = accumulate(m, w, Vec(s.depth), rays.depth);
}

// Follows the rays as long as none of them ends; returns the list position before which the first one may.
template <bool kDepth>
inline int64_t follow_together(const Constants& k, const LocalSplat* local, const uint32_t* list, int64_t found, Vec x,
                               Vec y, Rays& rays) {
    constexpr int64_t kStride = 8;  // looking at the rays costs a wait for all that is in flight
    const Vec max_alpha(k.max_alpha), min_alpha(k.min_alpha), min_transmittance(k.min_transmittance);
    for (int64_t begin = 0; begin < found; begin += kStride) {
        Rays next = rays;
        const int64_t end = begin + kStride < found ? begin + kStride : found;
        for (int64_t j = begin; j < end; ++j) {
            const LocalSplat& s = local[list[j]];
            const Vec alpha = min(evaluate(s, x, y).alpha, max_alpha);
            const Mask counts = alpha >= min_alpha;
            add<kDepth>(next, s, counts, alpha * next.t);
            next.t = select(counts, fnmadd(alpha, next.t, next.t), next.t);
        }
        if (any(next.t < min_transmittance)) return begin;
        rays = next;
    }
    return found;
}

// Follows each ray to its own end. A ray that has ended goes on being multiplied, but t stays under the limit, so
// nothing more is added and neither final_t nor last moves. Returns the last list position that was looked at.
template <bool kDepth>
inline int64_t follow_each(const Constants& k, const LocalSplat* local, const uint32_t* list, int64_t begin,
                           int64_t found, Vec x, Vec y, Rays& rays, Position& last) {
    constexpr int64_t kLook = 4;
    const Vec max_alpha(k.max_alpha), min_alpha(k.min_alpha), min_transmittance(k.min_transmittance);
    Vec t = rays.t;
    int64_t j = begin;
    for (; j < found; ++j) {
        const LocalSplat& s = local[list[j]];
        const Vec alpha = min(evaluate(s, x, y).alpha, max_alpha);
        const Mask counts = alpha >= min_alpha;
        const Vec next = select(counts, fnmadd(alpha, t, t), t);
        const Mask adds = counts & (next >= min_transmittance);
        add<kDepth>(rays, s, adds, alpha * t);
        t = next;
        rays.t = select(adds, next, rays.t);
        last.set(adds, list + j);
        if (j % kLook == kLook - 1 && !any(t >= min_transmittance)) break;
    }
    return j;
}

template <bool kDepth>
void blend_tile(const Constants& k, const View& view, const Splat* splats, Entry* entries, int64_t count, int tile,
                TileScratch& scratch, TileState& state, const BlendPlanes& planes) {
    gather_tile(view, splats, entries, count, tile, scratch);
    const uint32_t* list = scratch.list;
    const int64_t corner = static_cast<int64_t>(tile / view.tiles_x) * kTile * view.stride +
                           static_cast<int64_t>(tile % view.tiles_x) * kTile;
    for (int block = 0; block < kBlocksPerTile; ++block) {
        const int column = block % kTileBlocks, row = block / kTileBlocks;
        const Vec x = Vec::load(kLaneX) + Vec(column * kBlock), y = Vec::load(kLaneY) + Vec(row * kBlock);
        const int64_t found = compact(scratch, count, block);
        Rays rays{Vec(1.0f), Vec(0.0f), Vec(0.0f), Vec(0.0f), Vec(0.0f)};
        const int64_t together = follow_together<kDepth>(k, scratch.splats, list, found, x, y, rays);
        Position last = Position::all(together ? static_cast<int32_t>(list[together - 1]) : -1);
        if (together < found) {
            const int64_t end = follow_each<kDepth>(k, scratch.splats, list, together, found, x, y, rays, last);
            // Nothing behind is seen by this block: spare the backward pass these pairs.
            const uint32_t others = ~(1u << block);
            if (end < found)
                for (int64_t i = static_cast<int64_t>(list[end]) + 1; i < count; ++i) entries[i].blocks &= others;
        }
        rays.t.store(state.transmittance + block * kLanes);
        last.store(state.last + block * kLanes);
        const int64_t at = corner + static_cast<int64_t>(row) * kBlock * view.stride + column * kBlock;
        store_block(fmadd(rays.t, Vec(view.background[0]), rays.red), planes.color[0] + at, view.stride);
        store_block(fmadd(rays.t, Vec(view.background[1]), rays.green), planes.color[1] + at, view.stride);
        store_block(fmadd(rays.t, Vec(view.background[2]), rays.blue), planes.color[2] + at, view.stride);
        if (kDepth) {
            store_block(Vec(1.0f) - rays.t, planes.alpha + at, view.stride);
            store_block(rays.depth, planes.depth + at, view.stride);
        }
    }
}

void blend(const Constants& k, const View& view, const Splat* splats, Entry* entries, int64_t count, int tile,
           TileScratch& scratch, TileState& state, const BlendPlanes& planes) {
    if (planes.depth)
        blend_tile<true>(k, view, splats, entries, count, tile, scratch, state, planes);
    else
        blend_tile<false>(k, view, splats, entries, count, tile, scratch, state, planes);
}

#if defined(SPLATOPT_AVX512)
// Four floats of each of four vectors, whose sums are those of its lanes.
inline __m512 fold_four(const Vec* sums) {
    const auto fold_halves = [](__m512 a, __m512 b) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    };
    const __m512 a = fold_halves(sums[0].v, sums[1].v), b = fold_halves(sums[2].v, sums[3].v);
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
#endif

// The sums of nine vectors' lanes, each in one fixed order.
inline void reduce_nine(const Vec* sums, float* out) {
#if defined(SPLATOPT_AVX512)
    const __m512 a = fold_four(sums), b = fold_four(sums + 4);
    const __m512 pairs = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
    const __m512 all = _mm512_add_ps(pairs, _mm512_permute_ps(pairs, 0xb1));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm256_storeu_ps(out, _mm512_castps512_ps256(_mm512_permutexvar_ps(order, all)));
    out[8] = _mm512_reduce_add_ps(sums[8].v);
#else
    for (int i = 0; i < 9; ++i) {
        const Float8 half = sums[i].lo + sums[i].hi;
        out[i] = ((half[0] + half[4]) + (half[2] + half[6])) + ((half[1] + half[5]) + (half[3] + half[7]));
    }
#endif
}

// The sums of four vectors' lanes, likewise.
inline void reduce_four(const Vec* sums, float* out) {
#if defined(SPLATOPT_AVX512)
    const __m512 a = fold_four(sums);
    const __m512 pairs = _mm512_add_ps(_mm512_shuffle_ps(a, a, 0x88), _mm512_shuffle_ps(a, a, 0xdd));
    const __m512 all = _mm512_add_ps(pairs, _mm512_permute_ps(pairs, 0xb1));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(order, all)));
#else
    for (int i = 0; i < 4; ++i) out[i] = add_lanes(sums[i]);
#endif
}

// What blending behind a tile's rays begins with: ∂L/∂C; where they are given, ∂L/∂alpha and that of the depth.
inline void load_tile_gradient(const View& view, int tile, const TileState& state, const float* const* gradient,
                               TileScratch& scratch, const float* alpha = nullptr, const float* depth = nullptr) {
    const int64_t corner = static_cast<int64_t>(tile / view.tiles_x) * kTile * view.stride +
                           static_cast<int64_t>(tile % view.tiles_x) * kTile;
    for (int block = 0; block < kBlocksPerTile; ++block) {
        const int64_t at = corner + static_cast<int64_t>(block / kTileBlocks) * kBlock * view.stride +
                           block % kTileBlocks * kBlock;
        BlockRays& rays = scratch.rays[block];
        const Vec t = Vec::load(state.transmittance + block * kLanes);
        Vec behind(0.0f);
        for (int c = 0; c < 3; ++c) {
            const Vec g = load_block(gradient[c] + at, view.stride);
            g.store(rays.gradient[c]);
            behind = fmadd(g, Vec(view.background[c]), behind);
        }
        if (alpha) behind = behind - load_block(alpha + at, view.stride);
        if (depth) load_block(depth + at, view.stride).store(rays.fourth);
        (behind * t).store(rays.behind);
        t.store(rays.transmittance);
        std::memcpy(rays.last, state.last + block * kLanes, sizeof(int32_t) * kLanes);
    }
}

inline void reduce(const DerivativeFields<Vec>& sums, SplatDerivative& out) {
    const Vec all[kDerivativeFields] = {sums.log2_opacity, sums.u,        sums.v,        sums.uu,      sums.uv,
                                        sums.vv,           sums.color[0], sums.color[1], sums.color[2]};
    reduce_nine(all, reinterpret_cast<float*>(&out));
    for (float* sum = &out.log2_opacity; sum <= &out.vv; ++sum) *sum *= kLn2;
}

// Per pair, over the tile's pixels: see DerivativeFields and, for kAbsolute, ObservedFields. With kDepth there is a
// fourth channel, which lies in the place of the depth.
template <bool kAbsolute, bool kDepth>
void blend_tile_backward(const Constants& k, const View& view, const Splat* splats, const Entry* entries,
                         int64_t count, int tile, TileScratch& scratch, const TileState& state,
                         const GradientPlanes& planes, SplatDerivative* pair_gradient) {
    if (!count) return;
    gather_tile(view, splats, entries, count, tile, scratch);
    load_tile_gradient(view, tile, state, planes.color, scratch, planes.alpha, planes.depth);
    const Vec max_alpha(k.max_alpha), min_alpha(k.min_alpha), one(1.0f);
    for (int64_t i = count - 1; i >= 0; --i) {
        SplatDerivative& out = pair_gradient[entries[i].slot];
        uint32_t blocks = scratch.blocks[i];
        if (!blocks) {
            out = SplatDerivative{};
            continue;
        }
        const LocalSplat& s = scratch.splats[i];
        const Vec zero(0.0f);
        DerivativeFields<Vec> sums{zero, zero, zero, zero, zero, zero, {zero, zero, zero}};
        Vec absolute_x = zero, absolute_y = zero, depth = zero;
        for (; blocks; blocks &= blocks - 1) {
            BlockRays& rays = scratch.rays[__builtin_ctz(blocks)];
            const Pair pair = evaluate(s, Vec::load(rays.x), Vec::load(rays.y));
            const Position last = Position::load(rays.last);
            const Mask used = (pair.alpha >= min_alpha) & last.reaches(static_cast<uint32_t>(i));
            const Vec alpha = keep(used, min(pair.alpha, max_alpha));
            const Vec inverse = reciprocal(one - alpha);
            const Vec t = Vec::load(rays.transmittance) * inverse;
            const Vec behind = Vec::load(rays.behind);
            const Vec red = Vec::load(rays.gradient[0]), green = Vec::load(rays.gradient[1]),
                      blue = Vec::load(rays.gradient[2]);
            const Vec w = alpha * t;
            Vec along = fmadd(Vec(s.color[0]), red, fmadd(Vec(s.color[1]), green, Vec(s.color[2]) * blue));
            if (kDepth) {
                const Vec fourth = Vec::load(rays.fourth);
                along = fmadd(Vec(s.depth), fourth, along);
                depth = fmadd(w, fourth, depth);
            }
            const Vec d_alpha = fnmadd(behind, inverse, t * along);
            const Vec g = keep(pair.alpha <= max_alpha, alpha * d_alpha);
            const Vec gu = g * pair.u, gv = g * pair.v;
            t.store(rays.transmittance);
            fmadd(w, along, behind).store(rays.behind);
            sums.log2_opacity += g;
            sums.u += gu;
            sums.v += gv;
            sums.uu = fmadd(gu, pair.u, sums.uu);
            sums.uv = fmadd(gu, pair.v, sums.uv);
            sums.vv = fmadd(gv, pair.v, sums.vv);
            sums.color[0] = fmadd(w, red, sums.color[0]);
            sums.color[1] = fmadd(w, green, sums.color[1]);
            sums.color[2] = fmadd(w, blue, sums.color[2]);
            if (kAbsolute) {
                absolute_x += magnitude(gu);
                absolute_y += magnitude(fmadd(Vec(s.whitening_xy), gu, Vec(s.whitening_yy) * gv));
            }
        }
        reduce(sums, out);
        if (kDepth) out.depth = add_lanes(depth);
        if (kAbsolute) {
            out.absolute_x = add_lanes(absolute_x * Vec(kLn2));
            out.absolute_y = add_lanes(absolute_y * Vec(kLn2));
        }
    }
}

void blend_backward(const Constants& k, const View& view, const Splat* splats, const Entry* entries, int64_t count,
                    int tile, TileScratch& scratch, const TileState& state, const GradientPlanes& planes,
                    bool absolute, SplatDerivative* pair_gradient) {
    const auto plain = absolute ? blend_tile_backward<true, false> : blend_tile_backward<false, false>;
    const auto deep = absolute ? blend_tile_backward<true, true> : blend_tile_backward<false, true>;
    (planes.depth ? deep : plain)(k, view, splats, entries, count, tile, scratch, state, planes, pair_gradient);
}

// The bare loop that blending is measured against: one block, `splats` in the first-level cache, every pair
// counted, no lists, no cut-offs, no ray that ends. Returns a colour so that nothing is optimised away.
float blend_ceiling(const Constants& k, const LocalSplat* splats, int count, int64_t rounds) {
    Vec x = Vec::load(kLaneX);
    const Vec y = Vec::load(kLaneY), max_alpha(k.max_alpha);
    Vec total(0.0f);
    for (int64_t round = 0; round < rounds; ++round) {
        Vec t(1.0f), red(0.0f), green(0.0f), blue(0.0f);
        for (int j = 0; j < count; ++j) {
            const LocalSplat& s = splats[j];
            const Vec alpha = min(evaluate(s, x, y).alpha, max_alpha);
            const Vec w = alpha * t;
            t = t - w;
            red = fmadd(w, Vec(s.color[0]), red);
            green = fmadd(w, Vec(s.color[1]), green);
            blue = fmadd(w, Vec(s.color[2]), blue);
        }
        total += red + green + blue + t;
        x += Vec(1e-6f);
    }
    float lanes[kLanes];
    total.store(lanes);
    return lanes[0];
}
