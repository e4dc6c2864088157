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

#include "types.h"

namespace splatopt {
namespace SPLATOPT_ISA {

static_assert(kLanes == 16);

#if defined(SPLATOPT_AVX512)
#include "simd_avx512.inl"
#else
#include "simd_halves.inl"
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
inline Vec magnitude(Vec a) { return max(-a, a); }
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
    const Vec n = round(x * Vec(kLog2e));
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
