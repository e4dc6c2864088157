// simd.h on AVX-512: one register of sixteen floats.

struct Mask {
    __mmask16 bits;
};
struct Vec {
    __m512 v;
    Vec() = default;
    Vec(__m512 value) : v(value) {}
    Vec(float value) : v(_mm512_set1_ps(value)) {}
    static Vec load(const float* p) { return _mm512_loadu_ps(p); }
    void store(float* p) const { _mm512_storeu_ps(p, v); }
};
inline Vec operator+(Vec a, Vec b) { return _mm512_add_ps(a.v, b.v); }
inline Vec operator-(Vec a, Vec b) { return _mm512_sub_ps(a.v, b.v); }
inline Vec operator*(Vec a, Vec b) { return _mm512_mul_ps(a.v, b.v); }
inline Vec operator/(Vec a, Vec b) { return _mm512_div_ps(a.v, b.v); }
inline Vec fmadd(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
inline Vec fnmadd(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a.v, b.v, c.v); }
// sum + a·b where m, else sum.
inline Vec accumulate(Mask m, Vec a, Vec b, Vec sum) { return _mm512_mask3_fmadd_ps(a.v, b.v, sum.v, m.bits); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a.v, b.v); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a.v, b.v); }
inline Vec sqrt(Vec a) { return _mm512_sqrt_ps(a.v); }
inline Vec round(Vec a) { return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec floor(Vec a) { return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
// a * 2^n for integral n.
inline Vec scale_by_power(Vec a, Vec n) { return _mm512_scalef_ps(a.v, n.v); }
// Mantissa in [0.75, 1.5) and the exponent that belongs to it, for positive normal a.
inline void split_exponent(Vec a, Vec& mantissa, Vec& exponent) {
    mantissa = _mm512_getmant_ps(a.v, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
    exponent = _mm512_getexp_ps((a / mantissa).v);
}
// 1/a to about 1e-7: the 14-bit estimate and one Newton step.
inline Vec reciprocal(Vec a) {
    const Vec estimate = _mm512_rcp14_ps(a.v);
    return estimate * fnmadd(a, estimate, Vec(2.0f));
}
inline Mask operator<(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask operator>(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
inline Mask operator>=(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
inline Mask operator<=(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
inline Mask operator&(Mask a, Mask b) { return {static_cast<__mmask16>(a.bits & b.bits)}; }
inline Mask operator|(Mask a, Mask b) { return {static_cast<__mmask16>(a.bits | b.bits)}; }
inline Mask and_not(Mask a, Mask b) { return {static_cast<__mmask16>(a.bits & ~b.bits)}; }
inline bool any(Mask a) { return a.bits != 0; }
inline uint32_t to_bits(Mask a) { return a.bits; }
inline Mask from_bits(uint32_t bits) { return {static_cast<__mmask16>(bits)}; }
inline Vec select(Mask m, Vec yes, Vec no) { return _mm512_mask_mov_ps(no.v, m.bits, yes.v); }
inline Vec keep(Mask m, Vec a) { return _mm512_maskz_mov_ps(m.bits, a.v); }

// Lane i reads base[i * stride], for the lanes of m; the others are 0.
inline Vec gather(const float* base, int stride, Mask m) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i index = _mm512_mullo_epi32(lane, _mm512_set1_epi32(stride));
    return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), m.bits, index, base, 4);
}
// The lanes of m, from memory and to it; the others are 0 and are left alone.
inline Vec load_part(const float* p, Mask m) { return _mm512_maskz_loadu_ps(m.bits, p); }
// Sixteen floats from p + kAway on, |kAway| < 16, where p lies on whole cache lines.
template <int kAway>
inline Vec load_beside(const float* p) {
    const __m512i here = _mm512_load_si512(p);
    if constexpr (kAway > 0)
        return _mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_load_si512(p + kLanes), here, kAway));
    else
        return _mm512_castsi512_ps(_mm512_alignr_epi32(here, _mm512_load_si512(p - kLanes), kLanes + kAway));
}
inline void store_part(float* p, Mask m, Vec a) { _mm512_mask_storeu_ps(p, m.bits, a.v); }
// The sum of all lanes, in one order.
inline float add_lanes(Vec a) { return _mm512_reduce_add_ps(a.v); }
inline float max_lanes(Vec a) { return _mm512_reduce_max_ps(a.v); }
// base[i * stride] += lane i, for the lanes of m.
inline void scatter_add(float* base, int stride, Mask m, Vec value) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i index = _mm512_mullo_epi32(lane, _mm512_set1_epi32(stride));
    const __m512 old = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), m.bits, index, base, 4);
    _mm512_mask_i32scatter_ps(base, m.bits, index, _mm512_add_ps(old, value.v), 4);
}
// Sixteen list positions, -1 for none.
struct Position {
    __m512i v;
    static Position all(int32_t i) { return {_mm512_set1_epi32(i)}; }
    static Position load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
    void store(int32_t* p) const { _mm512_storeu_si512(p, v); }
    void set(Mask m, const uint32_t* to) {
        v = _mm512_mask_broadcastd_epi32(v, m.bits, _mm_loadu_si32(to));
    }
    Mask reaches(uint32_t i) const { return {_mm512_cmpge_epi32_mask(v, _mm512_set1_epi32(static_cast<int>(i)))}; }
};
// Four floats, and sixteen as four of them.
using Float4 = __m128;
inline Vec join(Float4 a, Float4 b, Float4 c, Float4 d) {
    return _mm512_insertf32x4(_mm512_insertf32x4(_mm512_insertf32x4(_mm512_castps128_ps512(a), b, 1), c, 2), d, 3);
}
template <int kQuarter>
inline Float4 quarter(Vec a) {
    return _mm512_extractf32x4_ps(a.v, kQuarter);
}
inline Vec interleave_low(Vec a, Vec b) { return _mm512_unpacklo_ps(a.v, b.v); }
inline Vec interleave_high(Vec a, Vec b) { return _mm512_unpackhi_ps(a.v, b.v); }
inline Vec pairs_low(Vec a, Vec b) { return _mm512_shuffle_ps(a.v, b.v, 0x44); }
inline Vec pairs_high(Vec a, Vec b) { return _mm512_shuffle_ps(a.v, b.v, 0xee); }
inline Vec from_bytes(__m128i bytes) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)); }
// Of integral values.
inline void store_integers(Vec a, int* p) { _mm512_storeu_si512(p, _mm512_cvtps_epi32(a.v)); }
// The four rows of a 4x4 block to and from an image plane.
inline void store_block(Vec a, float* p, int stride) {
    _mm_storeu_ps(p, _mm512_castps512_ps128(a.v));
    _mm_storeu_ps(p + stride, _mm512_extractf32x4_ps(a.v, 1));
    _mm_storeu_ps(p + 2 * stride, _mm512_extractf32x4_ps(a.v, 2));
    _mm_storeu_ps(p + 3 * stride, _mm512_extractf32x4_ps(a.v, 3));
}
inline Vec load_block(const float* p, int stride) {
    __m512 a = _mm512_castps128_ps512(_mm_loadu_ps(p));
    a = _mm512_insertf32x4(a, _mm_loadu_ps(p + stride), 1);
    a = _mm512_insertf32x4(a, _mm_loadu_ps(p + 2 * stride), 2);
    return _mm512_insertf32x4(a, _mm_loadu_ps(p + 3 * stride), 3);
}
