// Between rows, as tensors lie in memory, and channels, one row a lane.

// Both ways between sixteen rows of four floats and four channels of sixteen: of v[i] the quarters are the rows i, i+4,
// i+8 and i+12 on the one side, and v[i] is channel i on the other.
inline void transpose_fours(Vec* v) {
    const Vec a = interleave_low(v[0], v[1]), b = interleave_low(v[2], v[3]);
    const Vec c = interleave_high(v[0], v[1]), d = interleave_high(v[2], v[3]);
    v[0] = pairs_low(a, b);
    v[1] = pairs_high(a, b);
    v[2] = pairs_low(c, d);
    v[3] = pairs_high(c, d);
}

template <int kFloats>
inline Float4 load_floats(const float* p) {
    if constexpr (kFloats == 3) return Float4{p[0], p[1], p[2], 0.0f};
    Float4 out;
    std::memcpy(&out, p, sizeof(out));
    return out;
}
template <int kFloats>
inline void save_floats(Float4 a, float* p) {
    if constexpr (kFloats == 3) {
        p[0] = a[0];
        p[1] = a[1];
        p[2] = a[2];
    } else {
        std::memcpy(p, &a, sizeof(a));
    }
}

// kFloats, three or four, of each of sixteen rows, where at(row) points to; as channels.
template <int kFloats, class At>
inline void load_fours(const At& at, Vec* v) {
    for (int i = 0; i < 4; ++i)
        v[i] = join(load_floats<kFloats>(at(i)), load_floats<kFloats>(at(i + 4)), load_floats<kFloats>(at(i + 8)),
                    load_floats<kFloats>(at(i + 12)));
    transpose_fours(v);
}

// The other way, for the first `valid` rows; v is used up.
template <int kFloats, class At>
inline void save_fours(Vec* v, int valid, const At& at) {
    transpose_fours(v);
    for (int i = 0; i < 4; ++i) {
        if (i < valid) save_floats<kFloats>(quarter<0>(v[i]), at(i));
        if (i + 4 < valid) save_floats<kFloats>(quarter<1>(v[i]), at(i + 4));
        if (i + 8 < valid) save_floats<kFloats>(quarter<2>(v[i]), at(i + 8));
        if (i + 12 < valid) save_floats<kFloats>(quarter<3>(v[i]), at(i + 12));
    }
}

// out[16·n + lane] = rows[lane][n], n < width.
inline void transpose_rows(const float* const* rows, int width, float* out) {
    int n = 0;
    for (; n + 4 <= width; n += 4) {
        Vec v[4];
        load_fours<4>([&](int lane) { return rows[lane] + n; }, v);
        for (int k = 0; k < 4; ++k) v[k].store(out + kLanes * (n + k));
    }
    for (; n < width; ++n)
        for (int lane = 0; lane < kLanes; ++lane) out[kLanes * n + lane] = rows[lane][n];
}

// The first `width` floats of sixteen rows, `stride` apart; of lanes that are not asked for, any of those that are.
inline void transpose_rows(const float* first, int64_t stride, Mask lanes, int width, float* out) {
    const uint32_t bits = to_bits(lanes);
    const float* rows[kLanes];
    for (int lane = 0; lane < kLanes; ++lane)
        rows[lane] = first + stride * (bits >> lane & 1 ? lane : __builtin_ctz(bits));
    transpose_rows(rows, width, out);
}

// out[stride·lane + n] += in[16·n + lane], n < width, for these lanes.
inline void add_transposed(const float* in, int width, Mask lanes, float* out, int64_t stride) {
    const uint32_t bits = to_bits(lanes);
    int n = 0;
    for (; n + 4 <= width; n += 4) {
        Vec v[4];
        for (int k = 0; k < 4; ++k) v[k] = Vec::load(in + kLanes * (n + k));
        transpose_fours(v);
        const auto add = [&](int lane, Float4 sum) {
            float* const to = out + stride * lane + n;
            if (bits >> lane & 1) save_floats<4>(load_floats<4>(to) + sum, to);
        };
        for (int k = 0; k < 4; ++k) {
            add(k, quarter<0>(v[k]));
            add(k + 4, quarter<1>(v[k]));
            add(k + 8, quarter<2>(v[k]));
            add(k + 12, quarter<3>(v[k]));
        }
    }
    for (; n < width; ++n)
        for (uint32_t left = bits; left; left &= left - 1) {
            const int lane = __builtin_ctz(left);
            out[stride * lane + n] += in[kLanes * n + lane];
        }
}

// Records of floats and their lanes, a struct with the same fields in the same order, of vectors.
template <class Lanes, class Record>
inline void save_records(const Lanes& lanes, uint32_t bits, Record* records) {
    constexpr int kFields = sizeof(Lanes) / sizeof(Vec);
    static_assert(sizeof(Record) >= kFields * sizeof(float));
    alignas(64) float columns[kFields][kLanes];
    std::memcpy(columns, &lanes, sizeof(columns));
    for (; bits; bits &= bits - 1) {
        const int lane = __builtin_ctz(bits);
        float* out = reinterpret_cast<float*>(records + lane);
        for (int f = 0; f < kFields; ++f) out[f] = columns[f][lane];
    }
}
template <class Lanes, class Record>
inline Lanes load_records(const Record* records, Mask m) {
    constexpr int kFields = sizeof(Lanes) / sizeof(Vec), kStride = sizeof(Record) / sizeof(float);
    Vec fields[kFields];
    for (int f = 0; f < kFields; ++f) fields[f] = gather(reinterpret_cast<const float*>(records) + f, kStride, m);
    Lanes lanes;
    std::memcpy(&lanes, fields, sizeof(lanes));
    return lanes;
}
