// θ ← θ - clip(Δ, -η, η) on a whole cloud, a task's rows at a time: their radii are laid out in cache as the rows lie
// in memory, then every tensor is one sweep.

// m ← m + (1-θ₁)(g - m); Δ = sign(m)·∞.
struct SignRule {
    static constexpr bool kReadsSecond = false, kWritesSecond = false;
    Vec decay;
    Vec operator()(Vec g, Vec& m, Vec&, Vec radius) const {
        m = fmadd(g - m, decay, m);
        return select(m > Vec(0.0f), radius, select(m < Vec(0.0f), -radius, Vec(0.0f)));
    }
};

// Adam's step.
struct AdamRule {
    static constexpr bool kReadsSecond = true, kWritesSecond = true;
    Vec decay1, beta2, decay2, step_size, root, epsilon;
    Vec operator()(Vec g, Vec& m, Vec& v, Vec radius) const {
        m = fmadd(g - m, decay1, m);
        v = beta2 * v + decay2 * g * g;
        return clamp(step_size * m / (sqrt(v) / root + epsilon), -radius, radius);
    }
};

// Δ = m / (factor·D + δ/η²), clipped; in units of the radius x = h / (factor·Dη² + δ), h = mη. To the end of the
// radius where that is 0 and h is not. Sums |h|, and counts where it is not 0, for the next step's δ.
struct CurvatureRule {
    static constexpr bool kReadsSecond = true, kWritesSecond = false;
    Vec decay, factor, damping;
    Vec predicted = Vec(0.0f), counted = Vec(0.0f);
    Vec operator()(Vec g, Vec& m, Vec& d, Vec radius) {
        m = fmadd(g - m, decay, m);
        const Vec h = m * radius;
        const Vec size = max(h, -h);
        predicted += size;
        counted += select(size > Vec(0.0f), Vec(1.0f), Vec(0.0f));
        const Vec curvature = fmadd(factor * d, radius * radius, damping);
        return radius * clamp(h / max(curvature, Vec(kMinNormal)), Vec(-1.0f), Vec(1.0f));
    }
};

// The same where the curvature is known alone: no step where D is 0.
struct KnownCurvatureRule : CurvatureRule {
    Vec operator()(Vec g, Vec& m, Vec& d, Vec radius) {
        const Vec change = CurvatureRule::operator()(g, m, d, radius);
        return select(d > Vec(0.0f), change, Vec(0.0f));
    }
};

template <class Rule>
void sweep(Rule& rule, float* value, const float* gradient, float* first, float* second, const float* radius,
           int64_t count) {
    int64_t i = 0;
    Vec b(0.0f);
    for (; i + kLanes <= count; i += kLanes) {
        Vec a = Vec::load(first + i);
        if constexpr (Rule::kReadsSecond) b = Vec::load(second + i);
        const Vec change = rule(Vec::load(gradient + i), a, b, Vec::load(radius + i));
        (Vec::load(value + i) - change).store(value + i);
        a.store(first + i);
        if constexpr (Rule::kWritesSecond) b.store(second + i);
    }
    if (i == count) return;
    float tail[5][kLanes] = {};
    const size_t bytes = sizeof(float) * static_cast<size_t>(count - i);
    std::memcpy(tail[0], value + i, bytes);
    std::memcpy(tail[1], gradient + i, bytes);
    std::memcpy(tail[2], first + i, bytes);
    if constexpr (Rule::kReadsSecond) std::memcpy(tail[3], second + i, bytes);
    std::memcpy(tail[4], radius + i, bytes);
    Vec a = Vec::load(tail[2]);
    b = Vec::load(tail[3]);
    const Vec change = rule(Vec::load(tail[1]), a, b, Vec::load(tail[4]));
    (Vec::load(tail[0]) - change).store(tail[0]);
    a.store(tail[2]);
    b.store(tail[3]);
    std::memcpy(value + i, tail[0], bytes);
    std::memcpy(first + i, tail[2], bytes);
    if constexpr (Rule::kWritesSecond) std::memcpy(second + i, tail[3], bytes);
}

// Σ|h| and its count, of a rule that keeps them.
template <class Rule>
PredictedReduction predicted_of(const Rule& rule) {
    if constexpr (std::is_same_v<Rule, CurvatureRule>) return {sum_lanes(rule.predicted), sum_lanes(rule.counted)};
    return {};
}

// Radii of some rows, as their tensors lie in memory, within a task's scratch.
struct RowRadii {
    float *means, *log_scales, *quats, *logit_opacities, *sh_dc, *quat_lengths, *coefficients;

    explicit RowRadii(float* scratch)
        : means(scratch), log_scales(means + 3 * kStepTask), quats(log_scales + 3 * kStepTask),
          logit_opacities(quats + 4 * kStepTask), sh_dc(logit_opacities + kStepTask),
          quat_lengths(sh_dc + 3 * kStepTask), coefficients(quat_lengths + kStepTask) {}

    // Radii of sixteen Gaussians, of which the first is row `row` of the task.
    void set(const Radii& radii, int64_t row) const {
        store_rows<3>(radii.mean, means + 3 * row);
        store_rows<3>({radii.log_scale, radii.log_scale, radii.log_scale}, log_scales + 3 * row);
        store_rows<4>(radii.quat, quats + 4 * row);
        radii.logit.store(logit_opacities + row);
        store_rows<3>(radii.color, sh_dc + 3 * row);
        radii.quat_length.store(quat_lengths + row);
    }
};

// rule_of(tensor) gives the rule of one of the cloud's tensors.
template <class RuleOf>
void clipped_rows(const TrustBounds& bounds, const RuleOf& rule_of, const CloudTensors& values,
                  const CloudTensors& gradient, const CloudTensors& first, const CloudTensors& second, int rest,
                  int64_t begin, int64_t end, float* scratch, PredictedReduction* predicted) {
    const RowRadii radii(scratch);
    const int64_t rows = end - begin;
    const auto lanes_at = [&](int64_t row) {
        return first_lanes(static_cast<int>(rows - row < kLanes ? rows - row : kLanes));
    };
    for (int64_t row = 0; row < rows; row += kLanes)
        radii.set(hellinger_radii(bounds, values, begin + row, lanes_at(row)), row);
    const auto move = [&](auto&& rule, float* CloudTensors::*tensor, const float* radius, int64_t width,
                          int64_t row, int64_t count) {
        const int64_t at = width * (begin + row);
        sweep(rule, values.*tensor + at, gradient.*tensor + at, first.*tensor + at,
              second.*tensor ? second.*tensor + at : nullptr, radius, width * count);
    };
    const auto move_all = [&](TensorIndex tensor, float* CloudTensors::*which, const float* radius, int64_t width) {
        auto rule = rule_of(tensor);
        move(rule, which, radius, width, 0, rows);
        predicted[tensor] = predicted_of(rule);
    };
    move_all(kMeans, &CloudTensors::means, radii.means, 3);
    move_all(kLogScales, &CloudTensors::log_scales, radii.log_scales, 3);
    move_all(kQuats, &CloudTensors::quats, radii.quats, 4);
    for (int64_t row = 0; row < rows; row += kLanes)
        keep_lengths(values.quats + 4 * (begin + row), Vec::load(radii.quat_lengths + row), lanes_at(row));
    move_all(kLogitOpacities, &CloudTensors::logit_opacities, radii.logit_opacities, 1);
    move_all(kShDc, &CloudTensors::sh_dc, radii.sh_dc, 3);
    if (rest == 0) return;
    auto rule_rest = rule_of(kShRest);
    for (int64_t row = 0; row < rows; row += kCoefficientRows) {
        const int64_t count = rows - row < kCoefficientRows ? rows - row : kCoefficientRows;
        store_coefficients(radii.sh_dc + 3 * row, bounds.higher_bands, rest, count, radii.coefficients);
        move(rule_rest, &CloudTensors::sh_rest, radii.coefficients, 3 * rest, row, count);
    }
    predicted[kShRest] = predicted_of(rule_rest);
}

void clipped_step(const TrustBounds& bounds, const ClippedRule& rule, const CloudTensors& values,
                  const CloudTensors& gradient, const CloudTensors& first, const CloudTensors& second, int rest,
                  int64_t begin, int64_t end, float* scratch, PredictedReduction* predicted) {
    const auto rows = [&](const auto& rule_of) {
        clipped_rows(bounds, rule_of, values, gradient, first, second, rest, begin, end, scratch, predicted);
    };
    switch (rule.kind) {
        case StepKind::sign:
            return rows([&](TensorIndex) { return SignRule{Vec(rule.decay1)}; });
        case StepKind::adam:
            return rows([&](TensorIndex tensor) {
                return AdamRule{Vec(rule.decay1),           Vec(rule.beta2), Vec(rule.decay2),
                                Vec(rule.step_size[tensor]), Vec(rule.root),  Vec(rule.epsilon)};
            });
        case StepKind::curvature:
            return rows([&](TensorIndex tensor) {
                return CurvatureRule{Vec(rule.decay1), Vec(rule.factor), Vec(rule.damping[tensor])};
            });
    }
}
