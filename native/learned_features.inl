// What the learned step's network is told of each row: moments first, then the features of meta/features.py.

// Sixteen rows of one group, of which the first `valid` are meant; the others repeat one of them.
struct RowLanes {
    const int32_t* rows;
    int valid;
};

inline RowLanes lanes_among(const int32_t* rows, int64_t count, int64_t at) {
    const int64_t left = count - at;
    return {rows + at, static_cast<int>(left < 0 ? 0 : left < kLanes ? left : kLanes)};
}

inline RowLanes lanes_of(const LearnedRun& run, int64_t group, int lane) {
    return lanes_among(run.rows, run.count, group * kGroup + lane);
}

// One, three or four floats of sixteen rows of a tensor, as channels, and back.
template <int kWidth>
inline void load_rows(const float* base, const RowLanes& lanes, Vec* out) {
    Vec v[4];
    load_fours<kWidth>([&](int row) { return base + static_cast<int64_t>(kWidth) * lanes.rows[row]; }, v);
    for (int c = 0; c < kWidth; ++c) out[c] = v[c];
}
template <>
inline void load_rows<1>(const float* base, const RowLanes& lanes, Vec* out) {
    alignas(64) float all[kLanes];
    for (int i = 0; i < kLanes; ++i) all[i] = base[lanes.rows[i]];
    *out = Vec::load(all);
}

template <int kWidth>
inline void save_rows(const Vec* values, const RowLanes& lanes, float* base) {
    Vec v[4] = {Vec(0.0f), Vec(0.0f), Vec(0.0f), Vec(0.0f)};
    for (int c = 0; c < kWidth; ++c) v[c] = values[c];
    save_fours<kWidth>(v, lanes.valid, [&](int row) { return base + static_cast<int64_t>(kWidth) * lanes.rows[row]; });
}
template <>
inline void save_rows<1>(const Vec* values, const RowLanes& lanes, float* base) {
    alignas(64) float all[kLanes];
    values->store(all);
    for (int i = 0; i < lanes.valid; ++i) base[lanes.rows[i]] = all[i];
}

// The latent state of sixteen rows, channel by channel, a group's width apart; and back, zeros where not kept.
inline void load_latent(const LearnedRun& run, const RowLanes& lanes, float* out) {
    const int64_t width = run.network->shape.latent;
    const auto at = [&](int row, int64_t c) { return run.latent + width * lanes.rows[row] + c; };
    int64_t c = 0;
    for (; c + 4 <= width; c += 4) {
        Vec v[4];
        load_fours<4>([&](int row) { return at(row, c); }, v);
        for (int i = 0; i < 4; ++i) v[i].store(out + (c + i) * kGroup);
    }
    for (; c < width; ++c)
        for (int row = 0; row < kLanes; ++row) out[c * kGroup + row] = *at(row, c);
}
inline void save_latent(const LearnedRun& run, const RowLanes& lanes, Mask kept, const float* in) {
    const int64_t width = run.network->shape.latent;
    const auto at = [&](int row, int64_t c) { return run.latent + width * lanes.rows[row] + c; };
    int64_t c = 0;
    for (; c + 4 <= width; c += 4) {
        Vec v[4];
        for (int i = 0; i < 4; ++i) v[i] = keep(kept, Vec::load(in + (c + i) * kGroup));
        save_fours<4>(v, lanes.valid, [&](int row) { return at(row, c); });
    }
    const uint32_t bits = to_bits(kept);
    for (; c < width; ++c)
        for (int row = 0; row < lanes.valid; ++row) *at(row, c) = bits >> row & 1 ? in[c * kGroup + row] : 0.0f;
}

// The fourteen numbers of a row that have a place of their own, in the order of the groups.
enum OwnPlace { kMean = 0, kLogScale = 3, kQuat = 6, kLogit = 10, kColor = 11 };
constexpr int kOwnStart[kShRest + 1] = {kMean, kLogScale, kQuat, kLogit, kColor, kOwn};

// The thirteen along its own axes.
enum AxesPlace { kAxesMean = 0, kAxesLogScale = 3, kAxesTurn = 6, kAxesLogit = 9, kAxesColor = 10 };

struct Own {
    Vec v[kOwn];
};

inline Own load_own(const CloudTensors& from, const RowLanes& lanes) {
    Own own;
    load_rows<3>(from.means, lanes, own.v + kMean);
    load_rows<3>(from.log_scales, lanes, own.v + kLogScale);
    load_rows<4>(from.quats, lanes, own.v + kQuat);
    load_rows<1>(from.logit_opacities, lanes, own.v + kLogit);
    load_rows<3>(from.sh_dc, lanes, own.v + kColor);
    return own;
}

inline void save_own(const Own& own, const RowLanes& lanes, const CloudTensors& to) {
    save_rows<3>(own.v + kMean, lanes, to.means);
    save_rows<3>(own.v + kLogScale, lanes, to.log_scales);
    save_rows<4>(own.v + kQuat, lanes, to.quats);
    save_rows<1>(own.v + kLogit, lanes, to.logit_opacities);
    save_rows<3>(own.v + kColor, lanes, to.sh_dc);
}

// A Gaussian's axes, the columns of r, and its unit quaternion.
struct Axes {
    Vec w, x, y, z, r[3][3];
};

inline Axes axes_of(const Vec* quat) {
    Vec squared(0.0f);
    for (int c = 0; c < 4; ++c) squared = fmadd(quat[c], quat[c], squared);
    const Vec inverse = Vec(1.0f) / max(Vec(1e-12f), sqrt(squared));
    const Vec one(1.0f), two(2.0f), w = quat[0] * inverse, x = quat[1] * inverse, y = quat[2] * inverse,
                                    z = quat[3] * inverse;
    return {w, x, y, z,
            {{one - two * (y * y + z * z), two * (x * y - w * z), two * (x * z + w * y)},
             {two * (x * y + w * z), one - two * (x * x + z * z), two * (y * z - w * x)},
             {two * (x * z - w * y), two * (y * z + w * x), one - two * (x * x + y * y)}}};
}

// asinh of thirteen numbers along the Gaussian's own axes: Rᵀ mean, log-scales, Im(q̄ ∘ quat), logit, colour.
inline void save_squashed(const Own& own, const Axes& a, float* out) {
    const Vec *mean = own.v + kMean, *q = own.v + kQuat;
    Vec along[kDirections];
    for (int c = 0; c < 3; ++c) {
        along[kAxesMean + c] = fmadd(a.r[2][c], mean[2], fmadd(a.r[1][c], mean[1], a.r[0][c] * mean[0]));
        along[kAxesLogScale + c] = own.v[kLogScale + c];
        along[kAxesColor + c] = own.v[kColor + c];
    }
    along[kAxesTurn] = a.w * q[1] - q[0] * a.x - (a.y * q[3] - a.z * q[2]);
    along[kAxesTurn + 1] = a.w * q[2] - q[0] * a.y - (a.z * q[1] - a.x * q[3]);
    along[kAxesTurn + 2] = a.w * q[3] - q[0] * a.z - (a.x * q[2] - a.y * q[1]);
    along[kAxesLogit] = own.v[kLogit];
    for (int c = 0; c < kDirections; ++c) asinh(along[c]).store(out + c * kGroup);
}

inline Vec mean_square(const Vec* values, int count) {
    Vec sum(0.0f);
    for (int c = 0; c < count; ++c) sum = fmadd(values[c], values[c], sum);
    return sum * Vec(1.0f / static_cast<float>(count));
}

// 1-βᵗ of each row since it was first seen, one step at least.
inline Vec correction(float log_beta, Vec age) { return -expm1(Vec(log_beta) * max(Vec(1.0f), age)); }

// Sums over the higher bands of one row each.
struct RestSums {
    alignas(64) float power[kLanes], size[kLanes], values[kLanes];
};

// Moments of the higher bands, in place, and the sums of squares that the features are made of.
inline RestSums observe_rest(const LearnedRun& run, const RowLanes& lanes, Vec first, Vec second_root) {
    RestSums sums{};
    const int64_t width = 3 * run.rest;
    const LearnedRule& rule = run.rule;
    const Vec d1(rule.decay1), b2(rule.beta2), d2(rule.decay2), epsilon(rule.epsilon);
    alignas(64) float firsts[kLanes], roots[kLanes];
    first.store(firsts);
    (Vec(1.0f) / second_root).store(roots);
    const float *gradient = run.gradient.sh_rest, *values = run.values.sh_rest;
    float *means = run.exp_avg.sh_rest, *squares_of = run.exp_avg_sq.sh_rest;
    for (int lane = 0; lane < lanes.valid; ++lane) {
        const int64_t at = width * lanes.rows[lane];
        const Vec correct(firsts[lane]), factor(roots[lane]);
        Vec power(0.0f), size(0.0f), squares(0.0f);
        for (int64_t c = 0; c < width; c += kLanes) {
            const Mask some = first_lanes(static_cast<int>(width - c));
            const Vec g = load_part(gradient + at + c, some), m0 = load_part(means + at + c, some);
            const Vec m = fmadd(g - m0, d1, m0);
            const Vec v = b2 * load_part(squares_of + at + c, some) + d2 * g * g;
            store_part(means + at + c, some, m);
            store_part(squares_of + at + c, some, v);
            const Vec root = keep(some, fmadd(sqrt(v), factor, epsilon));
            const Vec fast = m * reciprocal(bounded(correct * root, 1e-37f, 8e37f));
            const Vec value = load_part(values + at + c, some);
            power = fmadd(fast, fast, power);
            size = fmadd(root, root, size);
            squares = fmadd(value, value, squares);
        }
        sums.power[lane] = add_lanes(power);
        sums.size[lane] = add_lanes(size);
        sums.values[lane] = add_lanes(squares);
    }
    return sums;
}

// What a task adds up: all but positions lane by lane.
struct LaneSums {
    Vec all[kPositionSums];
    double positions[4] = {};

    LaneSums() {
        for (Vec& sum : all) sum = Vec(0.0f);
    }
};

// Sums of positions and of their squares, in double: the distance from their middle is made of the difference.
inline void add_positions(const float* means, const RowLanes& lanes, double* sums) {
    double x = 0, y = 0, z = 0, squares = 0;
    for (int i = 0; i < lanes.valid; ++i) {
        const float* at = means + int64_t{3} * lanes.rows[i];
        const double a = at[0], b = at[1], c = at[2];
        x += a;
        y += b;
        z += c;
        squares += (a * a + b * b) + c * c;
    }
    sums[0] += x;
    sums[1] += y;
    sums[2] += z;
    sums[3] += squares;
}

// What age leaves of gates and corrections.
inline Vec share_of(const LearnedRule& rule, Vec age) {
    return Vec(1.0f) / (max(age - Vec(1.0f), Vec(0.0f)) / Vec(rule.handover) + Vec(1.0f));
}

// What age leaves of the rates.
inline Vec fallen_of(const LearnedRule& rule, Vec age) {
    alignas(64) float ages[kLanes];
    age.store(ages);
    for (float& one : ages) {
        const double elapsed = (one > 1.0f ? static_cast<double>(one) - 1 : 0.0) / rule.patience + 1;
        one = static_cast<float>(rule.fall == 1 ? 1 / elapsed : std::pow(elapsed, -rule.fall));
    }
    return Vec::load(ages);
}

// Gradients and moments of sixteen rows: all but v divided by √v̂ + ε, which v holds, and means by 1-βᵗ.
struct Observed {
    Own g, m, v, s;
    Vec age, first, root;  // t, 1-β₁ᵗ, √(1-β₂ᵗ)
};

// Takes the gradient in, moments in place.
inline Observed observe_own(const LearnedRun& run, const RowLanes& lanes) {
    const LearnedRule& rule = run.rule;
    Own g = load_own(run.gradient, lanes), m = load_own(run.exp_avg, lanes), v = load_own(run.exp_avg_sq, lanes),
        s = load_own(run.slow, lanes);
    Vec age;
    load_rows<1>(run.age, lanes, &age);
    age += Vec(1.0f);
    const Vec d1(rule.decay1), b2(rule.beta2), d2(rule.decay2), ds(rule.decay_slow), epsilon(rule.epsilon);
    for (int c = 0; c < kOwn; ++c) {
        m.v[c] = fmadd(g.v[c] - m.v[c], d1, m.v[c]);
        v.v[c] = b2 * v.v[c] + d2 * g.v[c] * g.v[c];
        s.v[c] = fmadd(g.v[c] - s.v[c], ds, s.v[c]);
    }
    save_rows<1>(&age, lanes, run.age);
    save_own(m, lanes, run.exp_avg);
    save_own(v, lanes, run.exp_avg_sq);
    save_own(s, lanes, run.slow);

    const Vec one(1.0f), first = correction(rule.log_beta1, age), root = sqrt(correction(rule.log_beta2, age));
    const Vec by_first = one / first, by_root = one / root, by_slow = one / correction(rule.log_beta_slow, age);
    for (int c = 0; c < kOwn; ++c) {
        v.v[c] = fmadd(sqrt(v.v[c]), by_root, epsilon);
        const Vec inverse = one / v.v[c];
        m.v[c] = m.v[c] * inverse * by_first;
        s.v[c] = s.v[c] * inverse * by_slow;
        g.v[c] = g.v[c] * inverse;
    }
    return {g, m, v, s, age, first, root};
}

// Inputs of sixteen rows, but for what takes the scene's means: there sizes, log-scales and their mean lie as they are.
inline void observe_lanes(const LearnedRun& run, int64_t group, int lane, LaneSums& sums) {
    const RowLanes lanes = lanes_of(run, group, lane);
    const Mask some = first_lanes(lanes.valid);
    const Network& net = *run.network;
    const LearnedRule& rule = run.rule;
    float* out = run.inputs + group * input_floats(net) + lane;
    Observed observed = observe_own(run, lanes);
    Own &g = observed.g, &m = observed.m, &v = observed.v, &s = observed.s;
    for (int c = 0; c < kOwn; ++c) m.v[c].store(run.adam + (group * kOwn + c) * kGroup + lane);
    const Vec one(1.0f), age = observed.age;
    const RestSums rest = observe_rest(run, lanes, observed.first, observed.root);
    const Vec share(1.0f / static_cast<float>(run.rest > 0 ? 3 * run.rest : 1));

    const Own values = load_own(run.values, lanes);
    const Axes a = axes_of(values.v + kQuat);
    const auto place = [&](int i) { return out + i * kGroup; };
    save_squashed(m, a, place(kFastPlace));
    save_squashed(s, a, place(kSlowPlace));
    save_squashed(g, a, place(kNowPlace));
    Vec powers[kPowers], sizes[kTensors];
    for (int i = 0; i < kShRest; ++i) {
        const int start = kOwnStart[i], count = kOwnStart[i + 1] - start;
        powers[i] = mean_square(m.v + start, count);
        powers[kTensors + i] = mean_square(s.v + start, count);
        sizes[i] = mean_square(v.v + start, count);
        // g is divided by its entries' own roots here: back, and by the group's.
        const Vec whole = one / sqrt(max(Vec(kMinSquare), sizes[i]));
        for (int c = start; c < start + count; ++c) g.v[c] = g.v[c] * v.v[c] * whole;
    }
    save_squashed(g, a, place(kWholePlace));
    powers[kShRest] = Vec::load(rest.power) * share;
    sizes[kShRest] = Vec::load(rest.size) * share;
    for (int i = 0; i < kPowers; ++i) {
        sqrt(powers[i]).store(place(kPowerPlace + i));
        sums.all[kPowerSums + i] += keep(some, powers[i]);
    }
    for (int i = 0; i < kTensors; ++i) {
        const Vec size = Vec(0.5f) * logarithm(max(Vec(kMinSquare), sizes[i]));
        size.store(place(kSizePlace + i));
        sums.all[kSizeSums + i] += keep(some, size);
    }
    const Vec* log_scale = values.v + kLogScale;
    const Vec three = log_scale[0] + log_scale[1] + log_scale[2];
    sums.all[kLogScaleSum] += keep(some, three);
    for (int c = 0; c < 3; ++c) log_scale[c].store(place(kLogScalePlace + c));
    (bounded(values.v[kLogit], -8.0f, 8.0f) * Vec(0.25f)).store(place(kLogitPlace));
    for (int c = 0; c < 3; ++c) bounded(values.v[kColor + c], -3.0f, 3.0f).store(place(kColorPlace + c));
    const Vec bands = sqrt(Vec::load(rest.values) * share + Vec(kMinSquare));
    (min(Vec(2.0f), bands) * Vec(4.0f)).store(place(kBandsPlace));
    const Vec mean_log_scale = three * Vec(1.0f / 3.0f);
    mean_log_scale.store(place(kMeanLogScalePlace));
    const Vec pace = logarithm(fallen_of(rule, age) * Vec(rule.rates[kMeans])) - mean_log_scale;
    (bounded(pace, -6.0f, 6.0f) * Vec(0.5f)).store(place(kPacePlace));
    float* at = place(kAgePlace);
    for (const float scale : kAges) {
        power_of_e(age * Vec(-1.0f / scale)).store(at);
        at += kGroup;
    }
    add_positions(run.values.means, lanes, sums.positions);
    load_latent(run, lanes, place(kLatentPlace));
}

// Moments and inputs of some groups, and their sums, of which there are kRowSums.
void learned_observe(const LearnedRun& run, int64_t begin, int64_t end, double* sums) {
    LaneSums by_lane;
    for (int64_t group = begin; group < end; ++group)
        for (int lane = 0; lane < kGroup; lane += kLanes) observe_lanes(run, group, lane, by_lane);
    for (int i = 0; i < kPositionSums; ++i) sums[i] = add_lanes(by_lane.all[i]);
    for (int i = kPositionSums; i < kRowSums; ++i) sums[i] = by_lane.positions[i - kPositionSums];
}

// Finishes sixteen rows' inputs, now that the scene's means are known.
inline void relate_lanes(const LearnedRun& run, int64_t group, int lane) {
    const RowLanes lanes = lanes_of(run, group, lane);
    float* inputs = run.inputs + group * input_floats(*run.network) + lane;
    const auto place = [&](int i) { return inputs + i * kGroup; };
    const Vec half(0.5f), mean_log_scale(run.mean_log_scale);
    for (int i = 0; i < kTensors; ++i) {
        float* at = place(kSizePlace + i);
        (bounded(Vec::load(at) - Vec(run.mean_size[i]), -8.0f, 8.0f) * half).store(at);
    }
    constexpr int kLogScales[] = {kLogScalePlace, kLogScalePlace + 1, kLogScalePlace + 2, kMeanLogScalePlace};
    for (const int i : kLogScales) {
        float* at = place(i);
        (bounded(Vec::load(at) - mean_log_scale, -6.0f, 6.0f) * half).store(at);
    }
    Vec means[3], distance(0.0f);
    load_rows<3>(run.values.means, lanes, means);
    for (int c = 0; c < 3; ++c) {
        const Vec d = means[c] - Vec(run.middle[c]);
        distance = fmadd(d, d, distance);
    }
    const Vec relative = logarithm(distance * Vec(1.0f / run.typical) + Vec(kMinSquare));
    (bounded(relative, -6.0f, 6.0f) * Vec(0.25f)).store(place(kDistancePlace));
}
