// simd.h on anything else: two halves of eight floats, by AVX2 where there is it and by the compiler's generic vectors.

typedef float Float8 __attribute__((vector_size(32)));
typedef int32_t Int8 __attribute__((vector_size(32)));

struct Mask {
    Int8 lo, hi;
};
struct Vec {
    Float8 lo, hi;
    Vec() = default;
    Vec(Float8 l, Float8 h) : lo(l), hi(h) {}
    Vec(float value) : lo(Float8{} + value), hi(Float8{} + value) {}
    static Vec load(const float* p) {
        Vec a;
        std::memcpy(&a.lo, p, 32);
        std::memcpy(&a.hi, p + 8, 32);
        return a;
    }
    void store(float* p) const {
        std::memcpy(p, &lo, 32);
        std::memcpy(p + 8, &hi, 32);
    }
};
inline Vec operator+(Vec a, Vec b) { return {a.lo + b.lo, a.hi + b.hi}; }
inline Vec operator-(Vec a, Vec b) { return {a.lo - b.lo, a.hi - b.hi}; }
inline Vec operator*(Vec a, Vec b) { return {a.lo * b.lo, a.hi * b.hi}; }
inline Vec operator/(Vec a, Vec b) { return {a.lo / b.lo, a.hi / b.hi}; }
inline Mask operator<(Vec a, Vec b) { return {a.lo < b.lo, a.hi < b.hi}; }
inline Mask operator>(Vec a, Vec b) { return {a.lo > b.lo, a.hi > b.hi}; }
inline Mask operator>=(Vec a, Vec b) { return {a.lo >= b.lo, a.hi >= b.hi}; }
inline Mask operator<=(Vec a, Vec b) { return {a.lo <= b.lo, a.hi <= b.hi}; }
inline Mask operator&(Mask a, Mask b) { return {a.lo & b.lo, a.hi & b.hi}; }
inline Mask operator|(Mask a, Mask b) { return {a.lo | b.lo, a.hi | b.hi}; }
inline Mask and_not(Mask a, Mask b) { return {a.lo & ~b.lo, a.hi & ~b.hi}; }
inline Float8 bit_select(Int8 m, Float8 yes, Float8 no) { return (Float8)((m & (Int8)yes) | (~m & (Int8)no)); }
inline Vec select(Mask m, Vec yes, Vec no) {
    return {bit_select(m.lo, yes.lo, no.lo), bit_select(m.hi, yes.hi, no.hi)};
}
inline Vec keep(Mask m, Vec a) { return {(Float8)(m.lo & (Int8)a.lo), (Float8)(m.hi & (Int8)a.hi)}; }

#if defined(SPLATOPT_AVX2)
inline Vec fmadd(Vec a, Vec b, Vec c) {
    return {(Float8)_mm256_fmadd_ps((__m256)a.lo, (__m256)b.lo, (__m256)c.lo),
            (Float8)_mm256_fmadd_ps((__m256)a.hi, (__m256)b.hi, (__m256)c.hi)};
}
inline Vec fnmadd(Vec a, Vec b, Vec c) {
    return {(Float8)_mm256_fnmadd_ps((__m256)a.lo, (__m256)b.lo, (__m256)c.lo),
            (Float8)_mm256_fnmadd_ps((__m256)a.hi, (__m256)b.hi, (__m256)c.hi)};
}
inline Vec min(Vec a, Vec b) {
    return {(Float8)_mm256_min_ps((__m256)a.lo, (__m256)b.lo), (Float8)_mm256_min_ps((__m256)a.hi, (__m256)b.hi)};
}
inline Vec max(Vec a, Vec b) {
    return {(Float8)_mm256_max_ps((__m256)a.lo, (__m256)b.lo), (Float8)_mm256_max_ps((__m256)a.hi, (__m256)b.hi)};
}
inline Vec sqrt(Vec a) { return {(Float8)_mm256_sqrt_ps((__m256)a.lo), (Float8)_mm256_sqrt_ps((__m256)a.hi)}; }
inline Vec round(Vec a) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {(Float8)_mm256_round_ps((__m256)a.lo, mode), (Float8)_mm256_round_ps((__m256)a.hi, mode)};
}
inline Vec floor(Vec a) { return {(Float8)_mm256_floor_ps((__m256)a.lo), (Float8)_mm256_floor_ps((__m256)a.hi)}; }
inline uint32_t to_bits(Mask a) {
    return static_cast<uint32_t>(_mm256_movemask_ps((__m256)a.lo)) |
           static_cast<uint32_t>(_mm256_movemask_ps((__m256)a.hi)) << 8;
}
inline Vec load_part(const float* p, Mask m) {
    return {(Float8)_mm256_maskload_ps(p, (__m256i)m.lo), (Float8)_mm256_maskload_ps(p + 8, (__m256i)m.hi)};
}
inline void store_part(float* p, Mask m, Vec a) {
    _mm256_maskstore_ps(p, (__m256i)m.lo, (__m256)a.lo);
    _mm256_maskstore_ps(p + 8, (__m256i)m.hi, (__m256)a.hi);
}
inline Vec from_bytes(__m128i bytes) {
    return {(Float8)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
            (Float8)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)))};
}
inline Int8 to_int(Float8 a) { return (Int8)_mm256_cvtps_epi32((__m256)a); }
inline Float8 to_float(Int8 a) { return (Float8)_mm256_cvtepi32_ps((__m256i)a); }
#else
inline Vec fmadd(Vec a, Vec b, Vec c) { return {a.lo * b.lo + c.lo, a.hi * b.hi + c.hi}; }
inline Vec fnmadd(Vec a, Vec b, Vec c) { return {c.lo - a.lo * b.lo, c.hi - a.hi * b.hi}; }
// Like the x86 instruction, the second operand comes back where either is a NaN.
inline Vec min(Vec a, Vec b) { return select(a < b, a, b); }
inline Vec max(Vec a, Vec b) { return select(a > b, a, b); }
template <class Function>
inline Vec each(Vec a, Function function) {
    for (int i = 0; i < 8; ++i) {
        a.lo[i] = function(a.lo[i]);
        a.hi[i] = function(a.hi[i]);
    }
    return a;
}
inline Vec sqrt(Vec a) {
    return each(a, [](float x) { return std::sqrt(x); });
}
inline Vec floor(Vec a) {
    return each(a, [](float x) { return std::floor(x); });
}
// Round to nearest even by the float format itself, for |a| < 2^22; larger values come back as they are.
inline Vec round(Vec a) {
    const Vec magic(12582912.0f);
    volatile float barrier = 12582912.0f;  // keeps the compiler from cancelling the two operations
    const Vec shifted = a + Vec(barrier);
    const Vec rounded = shifted - Vec(barrier);
    const Mask small = (a < Vec(4194304.0f)) & (a > Vec(-4194304.0f));
    (void)magic;
    return select(small, rounded, a);
}
inline uint32_t to_bits(Mask a) {
    uint32_t bits = 0;
    for (int i = 0; i < 8; ++i) bits |= (a.lo[i] ? 1u : 0u) << i | (a.hi[i] ? 1u : 0u) << (i + 8);
    return bits;
}
inline Vec load_part(const float* p, Mask m) {
    const uint32_t bits = to_bits(m);
    float lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = bits >> i & 1 ? p[i] : 0.0f;
    return Vec::load(lanes);
}
inline void store_part(float* p, Mask m, Vec a) {
    const uint32_t bits = to_bits(m);
    float lanes[kLanes];
    a.store(lanes);
    for (int i = 0; i < kLanes; ++i)
        if (bits >> i & 1) p[i] = lanes[i];
}
inline Int8 to_int(Float8 a) { return __builtin_convertvector(a, Int8); }
inline Float8 to_float(Int8 a) { return __builtin_convertvector(a, Float8); }
#endif

template <int kAway>
inline Vec load_beside(const float* p) {
    return Vec::load(p + kAway);
}

typedef float Float4 __attribute__((vector_size(16)));
inline Vec join(Float4 a, Float4 b, Float4 c, Float4 d) {
    return {__builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7),
            __builtin_shufflevector(c, d, 0, 1, 2, 3, 4, 5, 6, 7)};
}
template <int kQuarter>
inline Float4 quarter(Vec a) {
    const Float8 half = kQuarter < 2 ? a.lo : a.hi;
    constexpr int at = kQuarter % 2 * 4;
    return __builtin_shufflevector(half, half, at, at + 1, at + 2, at + 3);
}
template <int a, int b, int c, int d>
inline Float8 mix(Float8 x, Float8 y) {
    return __builtin_shufflevector(x, y, a, b, c, d, a + 4, b + 4, c + 4, d + 4);
}
inline Vec interleave_low(Vec a, Vec b) { return {mix<0, 8, 1, 9>(a.lo, b.lo), mix<0, 8, 1, 9>(a.hi, b.hi)}; }
inline Vec interleave_high(Vec a, Vec b) { return {mix<2, 10, 3, 11>(a.lo, b.lo), mix<2, 10, 3, 11>(a.hi, b.hi)}; }
inline Vec pairs_low(Vec a, Vec b) { return {mix<0, 1, 8, 9>(a.lo, b.lo), mix<0, 1, 8, 9>(a.hi, b.hi)}; }
inline Vec pairs_high(Vec a, Vec b) { return {mix<2, 3, 10, 11>(a.lo, b.lo), mix<2, 3, 10, 11>(a.hi, b.hi)}; }

struct Position {
    Int8 lo, hi;
    static Position all(int32_t i) { return {Int8{} + i, Int8{} + i}; }
    static Position load(const int32_t* p) {
        Position a;
        std::memcpy(&a.lo, p, 32);
        std::memcpy(&a.hi, p + 8, 32);
        return a;
    }
    void store(int32_t* p) const {
        std::memcpy(p, &lo, 32);
        std::memcpy(p + 8, &hi, 32);
    }
    void set(Mask m, const uint32_t* to) {
        const Int8 all = Int8{} + static_cast<int32_t>(*to);
        lo = (m.lo & all) | (~m.lo & lo);
        hi = (m.hi & all) | (~m.hi & hi);
    }
    Mask reaches(uint32_t i) const {
        const Int8 all = Int8{} + static_cast<int32_t>(i);
        return {lo >= all, hi >= all};
    }
};
inline Vec accumulate(Mask m, Vec a, Vec b, Vec sum) { return fmadd(keep(m, a), b, sum); }
inline Mask from_bits(uint32_t bits) {
    const Int8 low = {1, 2, 4, 8, 16, 32, 64, 128};
    const Int8 all = Int8{} + static_cast<int32_t>(bits);
    return {(all & low) != 0, (all & (low << 8)) != 0};
}
inline bool any(Mask a) { return to_bits(a) != 0; }
// a * 2^n by adding to the exponent field, n clamped so that the factor stays a normal number.
inline Vec scale_by_power(Vec a, Vec n) {
    n = min(max(n, Vec(-126.0f)), Vec(127.0f));
    return a * Vec((Float8)((to_int(n.lo) + 127) << 23), (Float8)((to_int(n.hi) + 127) << 23));
}
inline void store_integers(Vec a, int* p) {
    const Int8 lo = to_int(a.lo), hi = to_int(a.hi);
    std::memcpy(p, &lo, 32);
    std::memcpy(p + 8, &hi, 32);
}
inline void split_exponent(Vec a, Vec& mantissa, Vec& exponent) {
    // Adding the bits of 1/0.75 moves the split point from 1 to 0.75.
    const Int8 offset = Int8{} + (0x3f800000 - 0x3f400000);
    const Int8 lo = (((Int8)a.lo + offset) >> 23) - 127, hi = (((Int8)a.hi + offset) >> 23) - 127;
    exponent = {to_float(lo), to_float(hi)};
    mantissa = {(Float8)((Int8)a.lo - (lo << 23)), (Float8)((Int8)a.hi - (hi << 23))};
}
inline Vec reciprocal(Vec a) { return Vec(1.0f) / a; }
inline Vec gather(const float* base, int stride, Mask m) {
    const uint32_t bits = to_bits(m);
    float lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = bits >> i & 1 ? base[static_cast<int64_t>(i) * stride] : 0.0f;
    return Vec::load(lanes);
}
inline float add_lanes(Vec a) {
    const Float8 eight = a.lo + a.hi;
    float lanes[8];
    std::memcpy(lanes, &eight, 32);
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}
inline float max_lanes(Vec a) {
    float lanes[kLanes];
    a.store(lanes);
    for (int i = 1; i < kLanes; ++i) lanes[0] = lanes[i] > lanes[0] ? lanes[i] : lanes[0];
    return lanes[0];
}
inline void scatter_add(float* base, int stride, Mask m, Vec value) {
    const uint32_t bits = to_bits(m);
    float lanes[kLanes];
    value.store(lanes);
    for (int i = 0; i < kLanes; ++i)
        if (bits >> i & 1) base[static_cast<int64_t>(i) * stride] += lanes[i];
}
inline void store_block(Vec a, float* p, int stride) {
    std::memcpy(p, &a.lo, 16);
    std::memcpy(p + stride, reinterpret_cast<const char*>(&a.lo) + 16, 16);
    std::memcpy(p + 2 * stride, &a.hi, 16);
    std::memcpy(p + 3 * stride, reinterpret_cast<const char*>(&a.hi) + 16, 16);
}
inline Vec load_block(const float* p, int stride) {
    float lanes[kLanes];
    for (int row = 0; row < 4; ++row) std::memcpy(lanes + 4 * row, p + row * stride, 16);
    return Vec::load(lanes);
}
