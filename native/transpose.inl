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

#if defined(SPLATOPT_AVX512)
// Where each of kFloats vectors of sixteen finds its lanes in kFloats others, seen as 16·kFloats floats in a row.
template <int kFloats>
struct LaneSources {
    alignas(64) int32_t index[kFloats][kLanes];
    uint16_t beyond[kFloats] = {};  // lanes that come from the third vector or the fourth
    explicit constexpr LaneSources(bool to_channels) {
        for (int k = 0; k < kFloats; ++k)
            for (int lane = 0; lane < kLanes; ++lane) {
                const int n = kLanes * k + lane;
                index[k][lane] = to_channels ? kFloats * lane + k : n / kFloats + kLanes * (n % kFloats);
                if (index[k][lane] >= 2 * kLanes) beyond[k] |= 1 << lane;
            }
    }
};

template <int kFloats>
inline void rearrange(const LaneSources<kFloats>& sources, const Vec* from, Vec* to) {
    for (int k = 0; k < kFloats; ++k) {
        const __m512i index = _mm512_load_si512(sources.index[k]);
        const __m512 near = _mm512_permutex2var_ps(from[0].v, index, from[1].v);
        if constexpr (kFloats == 3)
            to[k] = _mm512_mask_permutexvar_ps(near, sources.beyond[k], index, from[2].v);
        else
            to[k] = _mm512_mask_mov_ps(near, sources.beyond[k], _mm512_permutex2var_ps(from[2].v, index, from[3].v));
    }
}

inline Mask lanes_of_part(int floats, int part) {
    return first_lanes(floats > kLanes * part ? floats - kLanes * part : 0);
}
#endif

// Rows of three or four floats that follow each other, as channels. The first `rows` are read; other lanes hold
// anything.
template <int kFloats>
inline void load_rows(const float* first, int rows, Vec* channels) {
#if defined(SPLATOPT_AVX512)
    static constexpr LaneSources<kFloats> kSources(true);
    Vec parts[kFloats];
    for (int k = 0; k < kFloats; ++k) parts[k] = load_part(first + kLanes * k, lanes_of_part(kFloats * rows, k));
    rearrange(kSources, parts, channels);
#else
    Vec v[4];
    load_fours<kFloats>([&](int lane) { return first + kFloats * (lane < rows ? lane : 0); }, v);
    for (int k = 0; k < kFloats; ++k) channels[k] = v[k];
#endif
}

// The other way.
template <int kFloats>
inline void store_rows(const Vec* channels, int rows, float* first) {
#if defined(SPLATOPT_AVX512)
    static constexpr LaneSources<kFloats> kSources(false);
    Vec parts[kFloats];
    rearrange(kSources, channels, parts);
    for (int k = 0; k < kFloats; ++k) store_part(first + kLanes * k, lanes_of_part(kFloats * rows, k), parts[k]);
#else
    Vec v[4] = {};
    for (int k = 0; k < kFloats; ++k) v[k] = channels[k];
    save_fours<kFloats>(v, rows, [&](int lane) { return first + kFloats * lane; });
#endif
}

// Up to the last of these lanes.
inline int rows_up_to(Mask lanes) { return to_bits(lanes) ? 32 - __builtin_clz(to_bits(lanes)) : 0; }
template <int kFloats>
inline void load_rows(const float* first, Mask lanes, Vec* channels) {
    load_rows<kFloats>(first, rows_up_to(lanes), channels);
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

constexpr int kMaxTransposed = kBlockFloats;  // floats of a row
// out[stride·lane + n] += in[16·n + lane], n < width, for these lanes; with overwrite =.
inline void add_transposed(const float* in, int width, Mask lanes, float* out, int64_t stride, bool overwrite = false) {
    const uint32_t bits = to_bits(lanes);
    // Rows that do not count take place too, somewhere else: which ones they are, no predictor sees coming.
    float elsewhere[kMaxTransposed + 4] = {};
    float* rows[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) rows[lane] = bits >> lane & 1 ? out + stride * lane : elsewhere;
    const int whole = width / 4 * 4;
    for (int n = 0; n < whole; n += 4) {
        Vec v[4];
        for (int k = 0; k < 4; ++k) v[k] = Vec::load(in + kLanes * (n + k));
        transpose_fours(v);
        const auto add = [&](int lane, Float4 sum) {
            float* const to = rows[lane] + n;
            save_floats<4>(overwrite ? sum : load_floats<4>(to) + sum, to);
        };
        for (int k = 0; k < 4; ++k) {
            add(k, quarter<0>(v[k]));
            add(k + 4, quarter<1>(v[k]));
            add(k + 8, quarter<2>(v[k]));
            add(k + 12, quarter<3>(v[k]));
        }
    }
    for (int n = whole; n < width; ++n)
        for (uint32_t left = bits; left; left &= left - 1) {
            const int lane = __builtin_ctz(left);
            float& to = out[stride * lane + n];
            to = overwrite ? in[kLanes * n + lane] : to + in[kLanes * n + lane];
        }
}

// Records of floats and their lanes, a struct with the same fields in the same order, of vectors.
template <class Lanes, class Record>
inline void save_records(const Lanes& lanes, uint32_t bits, Record* records) {
    constexpr int kFields = sizeof(Lanes) / sizeof(Vec);
    static_assert(sizeof(Record) >= kFields * sizeof(float));
    constexpr int kStride = sizeof(Record) / sizeof(float);
    alignas(64) float columns[kFields * kLanes];
    std::memcpy(columns, &lanes, sizeof(columns));
    add_transposed(columns, kFields, from_bits(bits), reinterpret_cast<float*>(records), kStride, true);
}
// Lanes that are not asked for hold anything.
template <class Lanes, class Record>
inline Lanes load_records(const Record* records, Mask m) {
    constexpr int kFields = sizeof(Lanes) / sizeof(Vec), kStride = sizeof(Record) / sizeof(float);
    constexpr int kWhole = (kFields + 3) / 4 * 4, kWidth = kWhole <= kStride ? kWhole : kFields;
    const float* first = reinterpret_cast<const float*>(records);
    Lanes lanes;
    if constexpr (kStride == 3 && kFields == 3) {
        Vec fields[kFields];
        load_rows<kFields>(first, m, fields);
        std::memcpy(&lanes, fields, sizeof(lanes));
    } else {
        alignas(64) float columns[kWidth * kLanes];
        transpose_rows(first, kStride, m, kWidth, columns);
        std::memcpy(&lanes, columns, sizeof(lanes));
    }
    return lanes;
}
