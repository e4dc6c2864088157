// What rows do in a view, and how much error lies where they do it: see core/row_statistics.py. One pass in the order of
// the lists, which needs no transmittance but the one that it takes along.

template <bool kCross>
inline void load_tile_statistics(const View& view, int tile, const TileState& state, const StatisticsPlanes& planes,
                                 TileScratch& scratch) {
    const int64_t corner = static_cast<int64_t>(tile / view.tiles_x) * kTile * view.stride +
                           static_cast<int64_t>(tile % view.tiles_x) * kTile;
    constexpr uint32_t none = 0xffffffffu;  // -1: pixels that do not count are reached by no row
    for (int block = 0; block < kBlocksPerTile; ++block) {
        const int64_t at = corner + static_cast<int64_t>(block / kTileBlocks) * kBlock * view.stride +
                           block % kTileBlocks * kBlock;
        BlockRays& rays = scratch.rays[block];
        for (int c = 0; kCross && c < 3; ++c) load_block(planes.gradient[c] + at, view.stride).store(rays.gradient[c]);
        load_block(planes.error + at, view.stride).store(rays.fourth);
        Vec(1.0f).store(rays.transmittance);
        Position last = Position::load(state.last + block * kLanes);
        last.set(load_block(planes.counted + at, view.stride) <= Vec(0.0f), &none);
        last.store(rays.last);
    }
}

// Per pair, over the tile's pixels: see StatisticFields.
template <bool kCross>
void blend_tile_statistics(const Constants& k, const View& view, const Splat* splats, const Entry* entries,
                           int64_t count, int tile, TileScratch& scratch, const TileState& state,
                           const StatisticsPlanes& planes, RowSums* pair_sums) {
    if (!count) return;
    gather_tile(view, splats, entries, count, tile, scratch);
    load_tile_statistics<kCross>(view, tile, state, planes, scratch);
    const Vec max_alpha(k.max_alpha), min_alpha(k.min_alpha), zero(0.0f);
    for (int64_t i = 0; i < count; ++i) {
        RowSums& out = pair_sums[entries[i].slot];
        uint32_t blocks = scratch.blocks[i];
        if (!blocks) {
            out = RowSums{};
            continue;
        }
        const LocalSplat& s = scratch.splats[i];
        StatisticFields<Vec> sums{zero, zero, zero, zero, {zero, zero, zero}, {zero, zero, zero}, zero, zero};
        int pixels = 0;
        for (; blocks; blocks &= blocks - 1) {
            BlockRays& rays = scratch.rays[__builtin_ctz(blocks)];
            const Pair pair = evaluate(s, Vec::load(rays.x), Vec::load(rays.y));
            const Mask reached = Position::load(rays.last).reaches(static_cast<uint32_t>(i));
            const Mask used = (pair.alpha >= min_alpha) & reached;
            const Vec alpha = keep(used, min(pair.alpha, max_alpha));
            const Vec t = Vec::load(rays.transmittance), error = Vec::load(rays.fourth);
            const Vec w = alpha * t, weighted = w * error;
            fnmadd(alpha, t, t).store(rays.transmittance);
            pixels += __builtin_popcount(to_bits(used));
            sums.weight += w;
            sums.error += keep(used, error);
            sums.weighted_error += weighted;
            sums.weighted_squared_error = fmadd(weighted, error, sums.weighted_squared_error);
            sums.max_weight = max(sums.max_weight, w);
            if (!kCross) continue;
            const Vec passing = keep(pair.alpha <= max_alpha, w), wu = passing * pair.u, wv = passing * pair.v;
            for (int c = 0; c < 3; ++c) {
                const Vec along = Vec::load(rays.gradient[c]);
                sums.cross_u[c] = fmadd(wu, along, sums.cross_u[c]);
                sums.cross_v[c] = fmadd(wv, along, sums.cross_v[c]);
            }
        }
        if (kCross) {
            reduce_nine(&sums.weight, &out.weight);
            out.cross_v[2] = add_lanes(sums.cross_v[2]);
        } else {
            reduce_four(&sums.weight, &out.weight);
        }
        out.pixels = static_cast<float>(pixels);
        out.max_weight = max_lanes(sums.max_weight);
    }
}

void blend_statistics(const Constants& k, const View& view, const Splat* splats, const Entry* entries, int64_t count,
                      int tile, TileScratch& scratch, const TileState& state, const StatisticsPlanes& planes,
                      bool cross, RowSums* pair_sums) {
    const auto pass = cross ? blend_tile_statistics<true> : blend_tile_statistics<false>;
    pass(k, view, splats, entries, count, tile, scratch, state, planes, pair_sums);
}

// Adds the sums of rows [begin, end) to `out`; Σ w Qd rᵀ = Aᵀ (Σ w (u, v) rᵀ) / kHalfLog2e is taken to the world.
void project_statistics(const Constants& k, const View& view, const Cloud& cloud, int64_t begin, int64_t end,
                        const Splat* splats, const uint8_t* visible, const RowSums* sums, float weight,
                        const StatisticsTensors& out) {
    for (int64_t i = begin; i < end; i += kLanes) {
        const int count = static_cast<int>(end - i < kLanes ? end - i : kLanes);
        const uint32_t bits = visible_bits(visible, i, count);
        if (!bits) continue;
        const Mask lanes = from_bits(bits);
        alignas(64) StatisticFields<Vec> found;
        transpose_rows(&sums[i].weight, kStatisticFloats, lanes, kStatisticFloats, reinterpret_cast<float*>(&found));
        const auto add = [&](float* to, Vec sum) {
            store_part(to + i, lanes, fmadd(Vec(weight), sum, load_part(to + i, lanes)));
        };
        add(out.weight, found.weight);
        add(out.pixels, found.pixels);
        add(out.error, found.error);
        add(out.weighted_error, found.weighted_error);
        add(out.weighted_squared_error, found.weighted_squared_error);
        store_part(out.max_weight + i, lanes, max(load_part(out.max_weight + i, lanes), found.max_weight));
        if (!out.color_cross) continue;
        Projected p;
        Vec offset[3], jacobian[2][3];
        project_point(k, view, cloud, i, lanes, offset, p);
        center_jacobian(view, p, jacobian);
        const Whitening a = whitening_of(splats, i, lanes);
        const Vec unit(weight / kHalfLog2e);
        alignas(64) float cross[9 * kLanes];
        for (int c = 0; c < 3; ++c) {
            const Vec x = unit * a.xx * found.cross_u[c];
            const Vec y = unit * (a.xy * found.cross_u[c] + a.yy * found.cross_v[c]);
            for (int axis = 0; axis < 3; ++axis)
                (jacobian[0][axis] * x + jacobian[1][axis] * y).store(cross + kLanes * (3 * axis + c));
        }
        add_transposed(cross, 9, lanes, out.color_cross + 9 * i, 9);
    }
}
