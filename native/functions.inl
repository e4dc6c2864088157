// Functions of the learned step, to some 1e-7 relative. Unlike those of simd.h they hand NaN on, and infinity where
// they are unbounded: a row whose numbers are not finite has to be found out.

constexpr float kInfinity = __builtin_inff();

// As in torch: NaN where a is. The second operand comes back where either is NaN.
inline Vec bounded(Vec a, float low, float high) { return min(Vec(high), max(Vec(low), a)); }
inline Vec relu(Vec a) { return max(Vec(0.0f), a); }

// e^x - 1 for x <= 88: with x = n ln2 + r, 2^n (e^r - 1) + (2^n - 1) loses no digit near 0.
inline Vec expm1(Vec x) {
    x = bounded(x, -87.0f, 88.0f);
    const Vec n = round(x * Vec(kLog2e));
    const Vec r = fnmadd(n, Vec(1.42860677e-6f), fnmadd(n, Vec(0.693145751953125f), x));
    Vec p = Vec(1.0f / 5040.0f);
    p = fmadd(p, r, Vec(1.0f / 720.0f));
    p = fmadd(p, r, Vec(1.0f / 120.0f));
    p = fmadd(p, r, Vec(1.0f / 24.0f));
    p = fmadd(p, r, Vec(1.0f / 6.0f));
    p = fmadd(p, r, Vec(0.5f));
    p = fmadd(p * r, r, r);
    const Vec power = scale_by_power(Vec(1.0f), n);
    return fmadd(power, p, power - Vec(1.0f));
}
inline Vec power_of_e(Vec x) { return expm1(x) + Vec(1.0f); }

// ln a for a >= 1e-37.
inline Vec logarithm(Vec a) {
    const Vec direct = log2(a) * Vec(kLn2);
    return select(a < Vec(kInfinity), direct, a);
}

inline Vec signed_as(Vec size, Vec a) { return select(a < Vec(0.0f), -size, size); }

// With t = 1 - e^(-2|x|): tanh|x| = t / (2 - t).
inline Vec tanh(Vec x) {
    const Vec t = -expm1(Vec(-2.0f) * magnitude(x));
    return signed_as(t / (Vec(2.0f) - t), x);
}
inline Vec sigmoid(Vec x) { return Vec(1.0f) / (Vec(1.0f) + power_of_e(-x)); }

// asinh x, |x| < 1e19: the series near 0, ln(|x| + √(x²+1)) elsewhere.
inline Vec asinh(Vec x) {
    constexpr float kTerms[] = {35.0f / 1152.0f, -5.0f / 112.0f, 3.0f / 40.0f, -1.0f / 6.0f};
    const Vec size = magnitude(x), square = x * x;
    Vec series(-63.0f / 2816.0f);
    for (const float term : kTerms) series = fmadd(series, square, Vec(term));
    series = fmadd(series * square, size, size);
    const Vec direct = logarithm(size + sqrt(square + Vec(1.0f)));
    return signed_as(select(square > Vec(0.0625f), direct, series), x);
}

// 1 where a is finite, NaN elsewhere, times what was.
inline Vec marked(Vec mark, Vec a) { return fmadd(a, Vec(0.0f), mark); }
