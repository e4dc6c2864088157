// What the kernels of the learned optimizer's step know: its network, what one step is told, and the buffers.
//
// Rows that the views saw are packed, thirty-two to a group; within a group numbers lie channel by channel, so that a
// lane is a Gaussian and weights are broadcast. Unseen rows cost nothing, and those too old for the
// network Adam's step.
#pragma once

#include <cstdint>

#include "types.h"

namespace splatopt {

constexpr int kGroup = 32;            // rows that pass through the network together
constexpr int kOwn = kBlockRows;      // numbers of a Gaussian but for the colour's higher bands
constexpr int kDirections = kOwn - 1;  // numbers of a direction along a Gaussian's own axes: a turn has three
constexpr int kSizes = kTensors + 1;   // logarithms of the gates, and the size of the correction
constexpr int kPowers = kTensors + kShRest;  // mean squares of normalised gradients: six tensors, and five slow ones

// What a task of the first pass adds up, in this order.
enum RowSum {
    kPowerSums = 0,
    kSizeSums = kPowers,
    kLogScaleSum = kSizeSums + kTensors,
    kPositionSums,
    kSquareSum = kPositionSums + 3,
    kRowSums
};

// Where a row's numbers lie in its group's inputs: the features of meta/features.py, then the latent state.
enum InputPlace {
    kFastPlace = 0,
    kSlowPlace = kFastPlace + kDirections,
    kNowPlace = kSlowPlace + kDirections,
    kWholePlace = kNowPlace + kDirections,
    kPowerPlace = kWholePlace + kDirections,
    kSizePlace = kPowerPlace + kPowers,
    kLogScalePlace = kSizePlace + kTensors,
    kLogitPlace = kLogScalePlace + 3,
    kColorPlace,
    kBandsPlace = kColorPlace + 3,
    kMeanLogScalePlace,
    kDistancePlace,
    kPacePlace,
    kAgePlace,
    kLatentPlace = kAgePlace + sizeof(kAges) / sizeof(float)
};
static_assert(kLatentPlace == kRowFeatures);

// Static, as all functions here: an inline one that was compiled with AVX-512 switches could be the copy that the
// linker keeps for machines without it.
static constexpr int64_t tiled(int64_t outputs) { return (outputs + kTileOutputs - 1) / kTileOutputs * kTileOutputs; }

// A linear layer y = W x + b, packed: for each tile of eight outputs their biases, then their weights input by input.
struct Layer {
    const float* packed = nullptr;
    int inputs = 0;
    int outputs = 0;  // a multiple of eight
};

struct Norm {
    const float *weight = nullptr, *bias = nullptr;
};

struct NetworkBlock {
    Norm attention_norm, norm;
    Layer query_key_value, mixed, widen, narrow;
};

// The shape that Python names; see meta/network.py.
struct NetworkShape {
    int width, blocks, latent, attention, scene;
    bool attends, scales;
};

struct Network {
    NetworkShape shape;
    int inputs;            // features and latent state
    int heads;             // floats of a query, a key or a value: attention in whole vectors
    float score_scale;     // 1/√attention
    Layer enter;
    Layer scale;           // the state scale's hidden layer
    const float* scale_out = nullptr;  // its output's weights, then the bias
    const float *pool_in = nullptr, *pool_out = nullptr;  // (outputs, inputs) row by row, then biases
    const NetworkBlock* blocks = nullptr;
    Layer gate, fresh;     // of the latent state
    Norm norm;
    Layer head, sizes;     // sizes and directions
};

// Adam's decays and rates, as the passes use them; logarithms are taken in double by the caller.
struct LearnedRule {
    float decay1, beta2, decay2, decay_slow, epsilon;
    float log_beta1, log_beta2, log_beta_slow;
    float rates[kTensors];
    double patience, fall;  // rates fall like (1 + (t-1)/patience)^-fall, t counted for each row
    float handover;         // the network's share like 1/(1 + (t-1)/handover); 0: it has none
    float min_share;      // below which a share is none
};

// One step. Buffers hold a group after the other.
struct LearnedRun {
    const Network* network;
    LearnedRule rule;
    CloudTensors values, gradient, exp_avg, exp_avg_sq, slow;
    float *latent, *age;         // (N, C), (N,)
    const int64_t* near;         // (N, neighbours)
    int neighbours, rest;
    const int32_t* rows;         // rows that the network is asked about, padded with the last one to whole groups
    const int32_t* place;        // of each row among them, -1 for others
    int64_t count;               // of them
    const int32_t* aged;        // rows that were seen and are too old for the network, padded likewise
    int64_t aged_count;
    float *inputs, *adam, *state, *scale, *query, *keys_values, *next_keys_values;
    float mean_size[kTensors], mean_log_scale, middle[3], typical;
    const float* pooled;         // what the scene adds to each state
};

// Floats a group takes in each buffer, and a thread in its scratch.
static constexpr int64_t input_floats(const Network& n) { return int64_t{kGroup} * n.inputs; }
static constexpr int64_t state_floats(const Network& n) { return kGroup * tiled(n.shape.width); }
static constexpr int64_t scratch_floats(const Network& n, int neighbours) {
    const int64_t states = 2 * tiled(n.shape.width) + tiled(2 * n.shape.width), latent = 2 * tiled(n.shape.latent);
    return kGroup * (states + latent + 3 * kTileOutputs + 4 * int64_t{n.heads} + neighbours);
}

}  // namespace splatopt
