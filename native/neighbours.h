// The nearest others of each point.
#pragma once

#include <cstdint>

#include "pool.h"
#include "types.h"

namespace splatopt {

// Writes the rows of the k nearest other points of each of n points, (n, k), nearest first; of points that are equally
// far the one of the smaller row. points is (n, 3), where NaN and infinity count as 0, and 2^31 > n > k. The same for
// any number of threads.
void nearest_others(Pool& pool, const Kernels& kernels, const float* points, int64_t n, int k, int64_t* rows);

}  // namespace splatopt
