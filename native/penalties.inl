// The penalties ρ of a pixel's difference d = x - y that a loss may have. Each gives ρ and its slope, which the loss
// and its gradient are made of, and the residual r with ½Σr² = (1-λ)/n·Σρ and its slope, which are finite where ρ ends
// in zero. A new one is a class here, a name in types.h and a line in with_penalty.

inline Vec sign_of(Vec a) {
    const Vec zero(0.0f);
    return select(a > zero, Vec(1.0f), select(a < zero, Vec(-1.0f), zero));
}

// ρ = |d|, r = √(2(1-λ)/n·|d|); the residual's slope holds |d| above a floor.
struct AbsolutePenalty {
    Vec residual_scale, slope_scale, floor;
    explicit AbsolutePenalty(const LossRule& rule)
        : residual_scale(2.0f * rule.pixel_half_scale), slope_scale(rule.pixel_half_scale),
          floor(rule.penalty_parameter) {}
    Vec value(Vec d) const { return max(d, -d); }
    Vec slope(Vec d) const { return sign_of(d); }
    Vec residual(Vec d) const { return residual_scale * sqrt(max(d, -d)); }
    Vec residual_slope(Vec d) const { return sign_of(d) * slope_scale / sqrt(max(max(d, -d), floor)); }
};

// ρ = ½d², r = √((1-λ)/n)·d.
struct SquaredPenalty {
    Vec scale;
    explicit SquaredPenalty(const LossRule& rule) : scale(rule.pixel_scale) {}
    Vec value(Vec d) const { return Vec(0.5f) * d * d; }
    Vec slope(Vec d) const { return d; }
    Vec residual(Vec d) const { return scale * d; }
    Vec residual_slope(Vec) const { return scale; }
};

// ρ = √(d² + ε²), r = √(2(1-λ)/n·ρ).
struct CharbonnierPenalty {
    Vec residual_scale, slope_scale, epsilon_squared;
    explicit CharbonnierPenalty(const LossRule& rule)
        : residual_scale(2.0f * rule.pixel_half_scale), slope_scale(rule.pixel_half_scale),
          epsilon_squared(rule.penalty_parameter * rule.penalty_parameter) {}
    Vec value(Vec d) const { return sqrt(fmadd(d, d, epsilon_squared)); }
    Vec slope(Vec d) const { return d / value(d); }
    Vec residual(Vec d) const { return residual_scale * sqrt(value(d)); }
    Vec residual_slope(Vec d) const {
        const Vec penalty = value(d);
        return slope_scale * d / (penalty * sqrt(penalty));
    }
};

// Calls work with the rule's penalty.
template <class Work>
inline void with_penalty(const LossRule& rule, const Work& work) {
    switch (rule.penalty) {
        case Penalty::absolute: return work(AbsolutePenalty(rule));
        case Penalty::squared: return work(SquaredPenalty(rule));
        case Penalty::charbonnier: return work(CharbonnierPenalty(rule));
    }
}

// What pixels count, sixteen of one row at a time.
struct AllAlike {
    explicit AllAlike(const View&, const TargetImage&, int) {}
    Vec weighted(int, Vec value) const { return value; }
    Vec rooted(int, Vec value) const { return value; }
    Vec counted(int, Vec value) const { return value; }
};
struct ByWeights {
    const float* row;
    int width;
    ByWeights(const View& view, const TargetImage& target, int at)
        : row(target.weights + static_cast<int64_t>(at) * view.width), width(view.width) {}
    Vec weight(int x) const { return load_part(row + x, first_lanes(width - x)); }
    Vec weighted(int x, Vec value) const { return weight(x) * value; }         // w·value
    Vec rooted(int x, Vec value) const { return sqrt(weight(x)) * value; }     // √w·value
    Vec counted(int x, Vec value) const { return keep(weight(x) > Vec(0.0f), value); }  // 0 where w is
};

// The type of the weights that with_penalty_and_weights calls with.
template <class Pointer>
using WeightsOf = std::remove_const_t<std::remove_pointer_t<Pointer>>;

// Calls work with the rule's penalty and, as a null pointer's, with the type of the photograph's weights.
template <class Work>
inline void with_penalty_and_weights(const LossRule& rule, const TargetImage& target, const Work& work) {
    with_penalty(rule, [&](const auto& penalty) {
        if (target.weights)
            work(penalty, static_cast<const ByWeights*>(nullptr));
        else
            work(penalty, static_cast<const AllAlike*>(nullptr));
    });
}
