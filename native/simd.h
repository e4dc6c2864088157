// Sixteen floats at a time, the same interface on AVX-512, AVX2 and anything else.
//
// Each kernel file is compiled once per instruction set; SPLATOPT_ISA names the namespace so that the
// three copies never mix. All operations are lane-wise; reductions add in one fixed order.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(SPLATOPT_AVX512) || defined(SPLATOPT_AVX2)
#include <immintrin.h>
#endif

namespace splatopt {
namespace SPLATOPT_ISA {

constexpr int kLanes = 16;

#if defined(SPLATOPT_AVX512)

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
inline void store_part(float* p, Mask m, Vec a) { _mm512_mask_storeu_ps(p, m.bits, a.v); }
// The sum of all lanes, in one order.
inline float add_lanes(Vec a) { return _mm512_reduce_add_ps(a.v); }
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

#else  // AVX2 as two halves, or the compiler's generic vectors

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
inline Vec select(Mask m, Vec yes, Vec no) { return {bit_select(m.lo, yes.lo, no.lo), bit_select(m.hi, yes.hi, no.hi)}; }
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
#endif

// One channel of sixteen RGB pixels, 48 bytes, as floats.
inline Vec load_channel(const uint8_t* p, int channel) {
#if defined(SPLATOPT_AVX512) || defined(SPLATOPT_AVX2)
    // Byte 3i + channel of the 48 lies in the part where it falls; elsewhere the shuffle gives 0.
    alignas(16) static constexpr int8_t kOrder[3][3][16] = {
        {{0, 3, 6, 9, 12, 15, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1},
         {-1, -1, -1, -1, -1, -1, 2, 5, 8, 11, 14, -1, -1, -1, -1, -1},
         {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 1, 4, 7, 10, 13}},
        {{1, 4, 7, 10, 13, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1},
         {-1, -1, -1, -1, -1, 0, 3, 6, 9, 12, 15, -1, -1, -1, -1, -1},
         {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 2, 5, 8, 11, 14}},
        {{2, 5, 8, 11, 14, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1},
         {-1, -1, -1, -1, -1, 1, 4, 7, 10, 13, -1, -1, -1, -1, -1, -1},
         {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 3, 6, 9, 12, 15}}};
    __m128i bytes = _mm_setzero_si128();
    for (int part = 0; part < 3; ++part) {
        const __m128i order = _mm_load_si128(reinterpret_cast<const __m128i*>(kOrder[channel][part]));
        const __m128i source = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * part));
        bytes = _mm_or_si128(bytes, _mm_shuffle_epi8(source, order));
    }
    return from_bytes(bytes);
#else
    float lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = p[3 * i + channel];
    return Vec::load(lanes);
#endif
}

inline Vec operator-(Vec a) { return Vec(0.0f) - a; }
inline Vec& operator+=(Vec& a, Vec b) { return a = a + b; }
inline Vec& operator*=(Vec& a, Vec b) { return a = a * b; }
inline Vec clamp(Vec a, Vec low, Vec high) { return min(max(a, low), high); }
inline Mask first_lanes(int count) { return from_bits(count >= kLanes ? 0xffffu : (1u << count) - 1u); }

// 2^x to 1e-7 relative: x = n + f with |f| <= 1/2, a degree-5 minimax polynomial for 2^f.
inline Vec exp2(Vec x) {
    const Vec n = round(x);
    const Vec f = x - n;
    Vec p = Vec(1.32647e-3f);
    p = fmadd(p, f, Vec(9.67151e-3f));
    p = fmadd(p, f, Vec(5.550734e-2f));
    p = fmadd(p, f, Vec(2.4022242e-1f));
    p = fmadd(p, f, Vec(6.9314698e-1f));
    p = fmadd(p, f, Vec(1.0f));
    return scale_by_power(p, n);
}
// e^x, |x| below 87: the product with log2(e) in two parts keeps the relative error near 1e-7.
inline Vec exp(Vec x) {
    x = clamp(x, Vec(-87.0f), Vec(88.0f));
    const Vec n = round(x * Vec(1.44269504f));
    const Vec r = fnmadd(n, Vec(1.42860677e-6f), fnmadd(n, Vec(0.693145751953125f), x));
    Vec p = Vec(1.0f / 5040.0f);
    p = fmadd(p, r, Vec(1.0f / 720.0f));
    p = fmadd(p, r, Vec(1.0f / 120.0f));
    p = fmadd(p, r, Vec(1.0f / 24.0f));
    p = fmadd(p, r, Vec(1.0f / 6.0f));
    p = fmadd(p, r, Vec(0.5f));
    p = fmadd(p, r, Vec(1.0f));
    p = fmadd(p, r, Vec(1.0f));
    return scale_by_power(p, n);
}
// log2(a) for positive normal a: exponent + 2/ln2 · atanh((m-1)/(m+1)).
inline Vec log2(Vec a) {
    Vec m, e;
    split_exponent(a, m, e);
    const Vec t = (m - Vec(1.0f)) / (m + Vec(1.0f));
    const Vec s = t * t;
    Vec p = Vec(1.0f / 11.0f);
    p = fmadd(p, s, Vec(1.0f / 9.0f));
    p = fmadd(p, s, Vec(1.0f / 7.0f));
    p = fmadd(p, s, Vec(1.0f / 5.0f));
    p = fmadd(p, s, Vec(1.0f / 3.0f));
    p = fmadd(p, s, Vec(1.0f));
    return fmadd(p * t, Vec(2.88539008f), e);
}

}  // namespace SPLATOPT_ISA
}  // namespace splatopt
