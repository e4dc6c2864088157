// Adam (Kingma and Ba 2015) on one tensor, in place, the operations in torch.optim.Adam's order. decay = 1 - β
// comes from outside, where it is taken in double: in float 1 - 0.999 has only five digits.

void adam(float* parameter, const float* gradient, float* exp_avg, float* exp_avg_sq, int64_t count, float step_size,
          float decay1, float beta2, float decay2, float epsilon, float correction2_sqrt) {
    const Vec d1(decay1), b2(beta2), d2(decay2), step(step_size), root(correction2_sqrt), eps(epsilon);
    const auto update = [&](Vec p, Vec g, Vec& m, Vec& v) {
        m = fmadd(g - m, d1, m);
        v = b2 * v + d2 * g * g;
        return p - step * m / (sqrt(v) / root + eps);
    };
    const Vec zero(0.0f);
    const auto is_zero = [&](Vec a) { return to_bits((a >= zero) & (a <= zero)) == 0xffffu; };
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const Vec g = Vec::load(gradient + i);
        Vec m = Vec::load(exp_avg + i), v = Vec::load(exp_avg_sq + i);
        // Bands of colour that are not evaluated yet: nothing moves, and memory is spared the writing.
        if (epsilon > 0.0f && is_zero(g) && is_zero(m)) {
            if (!is_zero(v)) (b2 * v).store(exp_avg_sq + i);
            continue;
        }
        update(Vec::load(parameter + i), g, m, v).store(parameter + i);
        m.store(exp_avg + i);
        v.store(exp_avg_sq + i);
    }
    if (i == count) return;
    float tail[4][kLanes] = {};
    const size_t bytes = sizeof(float) * static_cast<size_t>(count - i);
    const float* sources[4] = {parameter + i, gradient + i, exp_avg + i, exp_avg_sq + i};
    for (int t = 0; t < 4; ++t) std::memcpy(tail[t], sources[t], bytes);
    Vec m = Vec::load(tail[2]), v = Vec::load(tail[3]);
    update(Vec::load(tail[0]), Vec::load(tail[1]), m, v).store(tail[0]);
    m.store(tail[2]);
    v.store(tail[3]);
    std::memcpy(parameter + i, tail[0], bytes);
    std::memcpy(exp_avg + i, tail[2], bytes);
    std::memcpy(exp_avg_sq + i, tail[3], bytes);
}
