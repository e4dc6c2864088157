// The network of the learned step, group by group, and the step that it corrects: see meta/network.py and meta/step.py.

// A thread's room for one group.
struct GroupScratch {
    float *normed, *hidden, *sums, *heads, *latent, *scores, *sizes;

    GroupScratch(const Network& net, int neighbours, float* at) {
        const int64_t width = tiled(net.shape.width), twice = tiled(2 * net.shape.width);
        const auto take = [&](int64_t channels) {
            float* here = at;
            at += kGroup * channels;
            return here;
        };
        normed = take(width);
        hidden = take(twice);
        sums = take(width);
        heads = take(3 * net.heads);
        latent = take(2 * tiled(net.shape.latent));
        sizes = take(3 * kTileOutputs);
        scores = take(neighbours + net.heads);
    }
};

// First state of each row, and their relu's sum over the rows, channel by channel.
void learned_enter(const LearnedRun& run, int64_t begin, int64_t end, float* scratch, double* sums) {
    const Network& net = *run.network;
    const GroupScratch room(net, run.neighbours, scratch);
    const int width = net.shape.width;
    for (int c = 0; c < width; ++c) Vec(0.0f).store(room.sums + c * kLanes);
    for (int64_t group = begin; group < end; ++group) {
        float* inputs = run.inputs + group * input_floats(net);
        float* state = run.state + group * state_floats(net);
        for (int lane = 0; lane < kGroup; lane += kLanes) relate_lanes(run, group, lane);
        apply(net.enter, inputs, state, Keep{});
        for (int lane = 0; lane < kGroup; lane += kLanes) {
            const Mask some = first_lanes(lanes_of(run, group, lane).valid);
            for (int c = 0; c < width; ++c) {
                float* sum = room.sums + c * kLanes;
                (Vec::load(sum) + keep(some, relu(Vec::load(state + c * kGroup + lane)))).store(sum);
            }
        }
        if (!net.shape.scales) continue;
        apply(net.scale, inputs, room.hidden, Rectify{});
        for (int lane = 0; lane < kGroup; lane += kLanes) {
            Vec sum(1.0f + net.scale_out[net.scale.outputs]);
            for (int c = 0; c < net.scale.outputs; ++c)
                sum = fmadd(Vec(net.scale_out[c]), Vec::load(room.hidden + c * kGroup + lane), sum);
            relu(sum).store(run.scale + group * kGroup + lane);
        }
    }
    for (int c = 0; c < width; ++c) sums[c] = add_lanes(Vec::load(room.sums + c * kLanes));
}

// Queries of a group, and what it has to say to others.
inline void queries_of(const LearnedRun& run, int block, int64_t group, const GroupScratch& room, float* keys_values) {
    const Network& net = *run.network;
    const NetworkBlock& weights = net.blocks[block];
    const int heads = net.heads;
    normalise(weights.attention_norm, net.shape.width, run.state + group * state_floats(net), room.normed);
    apply(weights.query_key_value, room.normed, room.heads, Keep{});
    to_rows(room.heads, heads, run.query + group * kGroup * heads, heads);
    to_rows(room.heads + kGroup * heads, 2 * heads, keys_values + group * kGroup * 2 * heads, 2 * heads);
}

// Adds what the scene says to each state; asks the first block's questions.
void learned_queries(const LearnedRun& run, int64_t begin, int64_t end, float* scratch) {
    const Network& net = *run.network;
    const GroupScratch room(net, run.neighbours, scratch);
    for (int64_t group = begin; group < end; ++group) {
        float* state = run.state + group * state_floats(net);
        for (int c = 0; c < net.shape.width; ++c)
            for (int lane = 0; lane < kGroup; lane += kLanes) {
                float* at = state + c * kGroup + lane;
                (Vec::load(at) + Vec(run.pooled[c])).store(at);
            }
        if (net.shape.attends) queries_of(run, 0, group, room, run.keys_values);
    }
}

// The new latent state of a group, into the scratch; marks what is not finite.
inline void remember(const LearnedRun& run, int64_t group, const GroupScratch& room, Vec* marks) {
    const Network& net = *run.network;
    const float* state = run.state + group * state_floats(net);
    float* fresh = room.latent + kGroup * tiled(net.shape.latent);
    apply(net.gate, state, room.latent, Keep{});
    apply(net.fresh, state, fresh, Keep{});
    const float* kept = run.inputs + group * input_floats(net) + kLatentPlace * kGroup;
    for (int at = 0; at < kGroup * net.shape.latent; at += kLanes) {
        const Vec old = Vec::load(kept + at);
        const Vec latent = fmadd(sigmoid(Vec::load(room.latent + at)), tanh(Vec::load(fresh + at)) - old, old);
        latent.store(room.latent + at);
        marks[at / kLanes % 2] = marked(marks[at / kLanes % 2], latent);
    }
}

// Adam's step of the higher bands of one row each, times `factors`.
inline void step_rest(const LearnedRun& run, const RowLanes& lanes, Vec factors) {
    const LearnedRule& rule = run.rule;
    Vec age;
    load_rows<1>(run.age, lanes, &age);
    alignas(64) float sizes[kLanes], roots[kLanes];
    (factors * Vec(-rule.rates[kShRest]) / correction(rule.log_beta1, age)).store(sizes);
    (Vec(1.0f) / sqrt(correction(rule.log_beta2, age))).store(roots);
    const int64_t width = 3 * run.rest;
    const Vec epsilon(rule.epsilon);
    const float *means = run.exp_avg.sh_rest, *squares = run.exp_avg_sq.sh_rest;
    float* values = run.values.sh_rest;
    for (int lane = 0; lane < lanes.valid; ++lane) {
        const int64_t at = width * lanes.rows[lane];
        const Vec size(sizes[lane]), root(roots[lane]);
        for (int64_t c = 0; c < width; c += kLanes) {
            const Mask some = first_lanes(static_cast<int>(width - c));
            const Vec m = load_part(means + at + c, some), v = load_part(squares + at + c, some);
            const Vec value = load_part(values + at + c, some);
            const Vec inverse = reciprocal(bounded(fmadd(sqrt(v), root, epsilon), 1e-37f, 8e37f));
            store_part(values + at + c, some, fmadd(size * m, inverse, value));
        }
    }
}

// Adam's whole step of some groups of rows that are too old for the network.
void learned_aged(const LearnedRun& run, int64_t begin, int64_t end) {
    for (int64_t at = begin * kGroup; at < end * kGroup; at += kLanes) {
        const RowLanes lanes = lanes_among(run.aged, run.aged_count, at);
        if (lanes.valid == 0) continue;
        const Observed observed = observe_own(run, lanes);
        observe_rest(run, lanes, observed.first, observed.root);
        const Vec fallen = fallen_of(run.rule, observed.age);
        Own values = load_own(run.values, lanes);
        for (int group = 0; group < kShRest; ++group)
            for (int c = kOwnStart[group]; c < kOwnStart[group + 1]; ++c)
                values.v[c] = fnmadd(fallen * Vec(run.rule.rates[group]), observed.m.v[c], values.v[c]);
        save_own(values, lanes, run.values);
        step_rest(run, lanes, fallen);
    }
}

// What the network adds to Adam's step, in units of the rates: R mean, log-scales, quat ∘ turn, opacity, colour.
inline Own to_world(const Axes& a, const Vec* along) {
    Own own;
    const Vec *mean = along + kAxesMean, *t = along + kAxesTurn;
    for (int c = 0; c < 3; ++c) {
        own.v[kMean + c] = fmadd(a.r[c][2], mean[2], fmadd(a.r[c][1], mean[1], a.r[c][0] * mean[0]));
        own.v[kLogScale + c] = along[kAxesLogScale + c];
        own.v[kColor + c] = along[kAxesColor + c];
    }
    own.v[kQuat] = -(a.x * t[0] + a.y * t[1] + a.z * t[2]);
    own.v[kQuat + 1] = a.w * t[0] + (a.y * t[2] - a.z * t[1]);
    own.v[kQuat + 2] = a.w * t[1] + (a.z * t[0] - a.x * t[2]);
    own.v[kQuat + 3] = a.w * t[2] + (a.x * t[1] - a.y * t[0]);
    own.v[kLogit] = along[kAxesLogit];
    return own;
}

// Moves sixteen rows, by Adam's step alone where a number is not finite.
inline void move_lanes(const LearnedRun& run, int64_t group, int lane, const GroupScratch& room, Vec mark) {
    const RowLanes lanes = lanes_of(run, group, lane);
    Vec gates[kTensors], along[kDirections], length(1e-12f), size, age;
    load_rows<1>(run.age, lanes, &age);
    const Vec fallen = fallen_of(run.rule, age);
    const Vec share = share_of(run.rule, age);
    for (int i = 0; i < kSizes; ++i) {
        size = share * Vec(kMaxLogGate) * tanh(Vec::load(room.sizes + i * kGroup + lane) * Vec(1.0f / kMaxLogGate));
        if (i < kTensors) gates[i] = power_of_e(size);
    }
    for (int i = 0; i < kDirections; ++i) {
        along[i] = Vec::load(room.sizes + (kSizes + i) * kGroup + lane);
        length = fmadd(along[i], along[i], length);
    }
    const Vec factor = size * (Vec(__builtin_sqrtf(kDirections)) / sqrt(length));
    for (Vec& entry : along) entry *= factor;

    Own values = load_own(run.values, lanes);
    const Own corrections = to_world(axes_of(values.v + kQuat), along);
    Own adam, change;
    for (int tensor = 0; tensor < kShRest; ++tensor) {
        const Vec rate = fallen * Vec(run.rule.rates[tensor]);
        for (int c = kOwnStart[tensor]; c < kOwnStart[tensor + 1]; ++c) {
            adam.v[c] = -rate * Vec::load(run.adam + (group * kOwn + c) * kGroup + lane);
            change.v[c] = gates[tensor] * fmadd(rate, corrections.v[c], adam.v[c]);
            mark = marked(mark, change.v[c]);
        }
    }
    mark = marked(mark, gates[kShRest]);
    const Mask whole = mark >= Vec(0.0f);
    for (int c = 0; c < kOwn; ++c) values.v[c] += select(whole, change.v[c], adam.v[c]);
    save_own(values, lanes, run.values);
    step_rest(run, lanes, fallen * select(whole, gates[kShRest], Vec(1.0f)));
    save_latent(run, lanes, whole, room.latent + lane);
}

inline void take_step(const LearnedRun& run, int64_t group, const GroupScratch& room) {
    const Network& net = *run.network;
    const float* state = run.state + group * state_floats(net);
    Vec marks[2] = {Vec(0.0f), Vec(0.0f)};
    remember(run, group, room, marks);
    normalise(net.norm, net.shape.width, state, room.normed);
    if (net.shape.scales)
        for (int at = 0; at < kGroup * net.shape.width; at += kLanes)
            (Vec::load(room.normed + at) * Vec::load(run.scale + group * kGroup + at % kGroup)).store(room.normed + at);
    apply(net.head, room.normed, room.hidden, Rectify{});
    apply(net.sizes, room.hidden, room.sizes, Keep{});
    for (int lane = 0; lane < kGroup; lane += kLanes) move_lanes(run, group, lane, room, marks[lane / kLanes]);
}

// One block of the network; after the last one the step is taken.
void learned_block(const LearnedRun& run, int block, int64_t begin, int64_t end, float* scratch) {
    const Network& net = *run.network;
    const GroupScratch room(net, run.neighbours, scratch);
    const NetworkBlock& weights = net.blocks[block];
    const bool last = block + 1 == net.shape.blocks;
    for (int64_t group = begin; group < end; ++group) {
        float* state = run.state + group * state_floats(net);
        if (net.shape.attends) {
            attend(run, group, run.query + group * kGroup * net.heads, run.keys_values, room.scores, room.heads);
            apply(weights.mixed, room.heads, state, Add{});
        }
        normalise(weights.norm, net.shape.width, state, room.normed);
        apply(weights.widen, room.normed, room.hidden, Rectify{});
        apply(weights.narrow, room.hidden, state, Add{});
        if (last)
            take_step(run, group, room);
        else if (net.shape.attends)
            queries_of(run, block + 1, group, room, run.next_keys_values);
    }
}
