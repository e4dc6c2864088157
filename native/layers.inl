// Layers of the learned optimizer's network on groups of thirty-two rows: channel c of row i lies at 32·c + i.

// Results of a tile that are kept in registers at a time.
#if defined(SPLATOPT_AVX512)
constexpr int kPart = kTileOutputs, kWide = 2;
#else
constexpr int kPart = kTileOutputs / 2, kWide = 1;
#endif

struct Keep {
    Vec operator()(Vec made, const float*) const { return made; }
};
struct Rectify {
    Vec operator()(Vec made, const float*) const { return relu(made); }
};
struct Add {
    Vec operator()(Vec made, const float* at) const { return Vec::load(at) + made; }
};

// out = finish(W in + b, out), 32 floats an output.
template <class Finish>
void apply(const Layer& layer, const float* in, float* out, const Finish& finish) {
    const float* tile = layer.packed;
    const int64_t inputs = layer.inputs;
    for (int first = 0; first < layer.outputs; first += kTileOutputs, tile += kTileOutputs * (inputs + 1)) {
        for (int part = 0; part < kTileOutputs; part += kPart) {
            for (int lane = 0; lane < kGroup; lane += kWide * kLanes) {
                Vec sums[kPart][kWide];
#pragma GCC unroll 8
                for (int o = 0; o < kPart; ++o)
#pragma GCC unroll 2
                    for (int v = 0; v < kWide; ++v) sums[o][v] = Vec(tile[part + o]);
                const float* weights = tile + kTileOutputs + part;
                const float* column = in + lane;
                for (int64_t i = 0; i < inputs; ++i, weights += kTileOutputs, column += kGroup) {
                    Vec x[kWide];
#pragma GCC unroll 2
                    for (int v = 0; v < kWide; ++v) x[v] = Vec::load(column + v * kLanes);
#pragma GCC unroll 8
                    for (int o = 0; o < kPart; ++o) {
                        const Vec weight(weights[o]);
#pragma GCC unroll 2
                        for (int v = 0; v < kWide; ++v) sums[o][v] = fmadd(weight, x[v], sums[o][v]);
                    }
                }
#pragma GCC unroll 8
                for (int o = 0; o < kPart; ++o)
#pragma GCC unroll 2
                    for (int v = 0; v < kWide; ++v) {
                        float* at = out + (first + part + o) * kGroup + lane + v * kLanes;
                        finish(sums[o][v], at).store(at);
                    }
            }
        }
    }
}

// LayerNorm over the channels of each row.
inline void normalise(const Norm& norm, int width, const float* in, float* out) {
    constexpr int kHalves = kGroup / kLanes;
    const Vec share(1.0f / static_cast<float>(width));
    Vec mean[kHalves], squares[kHalves], scale[kHalves];
    for (int v = 0; v < kHalves; ++v) mean[v] = squares[v] = Vec(0.0f);
    for (int c = 0; c < width; ++c)
        for (int v = 0; v < kHalves; ++v) mean[v] += Vec::load(in + c * kGroup + v * kLanes);
    for (Vec& sum : mean) sum *= share;
    for (int c = 0; c < width; ++c)
        for (int v = 0; v < kHalves; ++v) {
            const Vec d = Vec::load(in + c * kGroup + v * kLanes) - mean[v];
            squares[v] = fmadd(d, d, squares[v]);
        }
    for (int v = 0; v < kHalves; ++v) scale[v] = Vec(1.0f) / sqrt(fmadd(squares[v], share, Vec(1e-5f)));
    for (int c = 0; c < width; ++c)
        for (int v = 0; v < kHalves; ++v) {
            const int at = c * kGroup + v * kLanes;
            const Vec unit = (Vec::load(in + at) - mean[v]) * scale[v];
            fmadd(unit, Vec(norm.weight[c]), Vec(norm.bias[c])).store(out + at);
        }
}

// out[stride·row + channel] = in[32·channel + row], and back; widths are multiples of 4.
inline void to_rows(const float* in, int width, float* out, int64_t stride) {
    for (int lane = 0; lane < kGroup; lane += kLanes)
        for (int c = 0; c < width; c += 4) {
            Vec v[4];
            for (int i = 0; i < 4; ++i) v[i] = Vec::load(in + (c + i) * kGroup + lane);
            save_fours<4>(v, kLanes, [&](int row) { return out + stride * (lane + row) + c; });
        }
}
inline void to_channels(const float* in, int width, float* out) {
    for (int lane = 0; lane < kGroup; lane += kLanes)
        for (int c = 0; c < width; c += 4) {
            Vec v[4];
            load_fours<4>([&](int row) { return in + width * (lane + row) + c; }, v);
            for (int i = 0; i < 4; ++i) v[i].store(out + (c + i) * kGroup + lane);
        }
}

// Each row's queries against its neighbours' keys, softmax, and their values by these shares: mixed[32·channel + row].
// Of the rows of `keys_values` the first `heads` floats are keys, the others values.
inline void attend(const LearnedRun& run, int64_t group, const float* query, const float* keys_values, float* scratch,
                   float* mixed) {
    const Network& net = *run.network;
    const int heads = net.heads, neighbours = run.neighbours;
    float* scores = scratch;
    float* by_row = scores + kGroup * neighbours;
    const int32_t* rows = run.rows + group * kGroup;
    const auto place_of = [&](int row, int j) {
        return run.place[run.near[static_cast<int64_t>(rows[row]) * neighbours + j]];
    };
    const float scale = net.score_scale;
    for (int row = 0; row < kGroup; ++row) {
        for (int j = 0; j < neighbours; ++j) {
            const int32_t place = place_of(row, j);
            float score = -1e9f;
            if (place >= 0) {
                const float* key = keys_values + int64_t{2} * heads * place;
                Vec sum = Vec::load(query + heads * row) * Vec::load(key);
                for (int c = kLanes; c < heads; c += kLanes)
                    sum = fmadd(Vec::load(query + heads * row + c), Vec::load(key + c), sum);
                score = scale * add_lanes(sum);
            }
            scores[kGroup * j + row] = score;
        }
    }
    for (int lane = 0; lane < kGroup; lane += kLanes) {
        Vec max_score(-1e9f), total(0.0f);
        for (int j = 0; j < neighbours; ++j) max_score = max(max_score, Vec::load(scores + kGroup * j + lane));
        for (int j = 0; j < neighbours; ++j) {
            const Vec share = power_of_e(Vec::load(scores + kGroup * j + lane) - max_score);
            total += share;
            share.store(scores + kGroup * j + lane);
        }
        const Vec factor = Vec(1.0f) / total;
        for (int j = 0; j < neighbours; ++j)
            (factor * Vec::load(scores + kGroup * j + lane)).store(scores + kGroup * j + lane);
    }
    for (int row = 0; row < kGroup; ++row)
        for (int c = 0; c < heads; c += kLanes) {
            Vec sum(0.0f);
            for (int j = 0; j < neighbours; ++j) {
                const int32_t place = place_of(row, j);
                if (place < 0) continue;  // of those alone whom nobody saw, shares are not 0
                const float* value = keys_values + int64_t{2} * heads * place + heads;
                sum = fmadd(Vec(scores[kGroup * j + row]), Vec::load(value + c), sum);
            }
            sum.store(by_row + heads * row + c);
        }
    to_channels(by_row, heads, mixed);
}
