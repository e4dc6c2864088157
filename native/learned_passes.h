// The passes of a learned step in order, and the buffers that they share.
#pragma once

#include <cstdint>
#include <vector>

#include "learned.h"
#include "rasterizer.h"

namespace splatopt {

// The passes and what they share. The packed weights are copied.
class LearnedPasses {
public:
    // Throws std::invalid_argument where `packed` does not hold as many floats as the shape takes.
    LearnedPasses(const NetworkShape& shape, const float* packed, int64_t floats);
    LearnedPasses(const LearnedPasses&) = delete;
    LearnedPasses& operator=(const LearnedPasses&) = delete;

    const NetworkShape& shape() const { return network_.shape; }
    // Takes one step in place. `run` holds what the caller knows; `scene` the scene's inputs after the powers.
    void step(Workers& workers, LearnedRun run, int64_t total, const uint8_t* seen, const float* scene);

private:
    void unpack(const NetworkShape& shape);
    void lay_out(LearnedRun& run, int64_t total, const uint8_t* seen, int threads);
    void relate(LearnedRun& run, const double* sums) const;
    void pool_scene(const double* states, const double* powers, const float* scene, int64_t count);

    Network network_;
    std::vector<NetworkBlock> blocks_;
    Buffer<float> packed_;
    Buffer<float> inputs_, adam_, state_, scale_, query_, keys_values_, next_keys_values_, pooled_;
    std::vector<Buffer<float>> scratch_;
    Buffer<int32_t> rows_, place_, aged_;
    Buffer<double> sums_;
};

}  // namespace splatopt
