// Distances from one point to the sixteen of a leaf of the k-d tree in neighbours.cpp.

// Writes their squares and returns, as bits, which are no farther than `max_squared`. Lanes without a point hold NaN.
uint32_t leaf_distances(const float* leaf, const float* from, float max_squared, float* squared) {
    const Vec x = Vec::load(leaf) - Vec(from[0]), y = Vec::load(leaf + kLanes) - Vec(from[1]),
              z = Vec::load(leaf + 2 * kLanes) - Vec(from[2]);
    const Vec sum = x * x + y * y + z * z;
    sum.store(squared);
    return to_bits(sum <= Vec(max_squared));
}
