// A k-d tree: halves at the median of the longest side, down to sixteen points or fewer, which are compared at once.
// What lies side by side asks side by side, so that a task's queries find the tree in the cache.

#include "neighbours.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace splatopt {

namespace {

constexpr int kLeaf = 16;          // points that are not halved any more
constexpr int64_t kQueries = 256;  // of one task
constexpr int kSerialLevels = 3;   // halved before the rest is built side by side
constexpr float kNone = std::numeric_limits<float>::infinity();
constexpr int32_t kNoRow = std::numeric_limits<int32_t>::max();

struct Point {
    float at[3];
    int32_t row;
};

struct Leaf {
    float at[3][kLeaf];
    int32_t rows[kLeaf];
};

struct Node {
    float split = 0;
    int32_t min_row = kNoRow;  // smallest row
    int32_t leaf = -1;
    int8_t axis = -1;  // none: a leaf
};

int64_t middle(int64_t begin, int64_t end) { return begin + (end - begin) / 2; }

// Node 1 is the root, 2i and 2i + 1 are the halves of i. A node's range of the sorted points follows from the way
// to it.
struct Tree {
    std::vector<Point> points;
    std::vector<Node> nodes;
    std::vector<Leaf> leaves;

    void build(Pool& pool) {
        const int64_t n = static_cast<int64_t>(points.size());
        int64_t halves = 1;
        for (int64_t left = n; left > kLeaf; left = (left + 1) / 2) halves *= 2;
        nodes.resize(2 * halves);
        halve(1, 0, n, kSerialLevels);
        // Below, no two subtrees share anything.
        pool.run(int64_t{1} << kSerialLevels, [&](int64_t task, int) {
            int64_t node = 1, begin = 0, end = n;
            for (int level = kSerialLevels - 1; level >= 0; --level) {
                if (end - begin <= kLeaf) return;
                const int64_t half = middle(begin, end);
                const bool upper = task >> level & 1;
                (upper ? begin : end) = half;
                node = 2 * node + upper;
            }
            halve(node, begin, end, -1);
        });
        leaves.reserve(halves);
        collect(1, 0, n);
    }

    // Halves `levels` times, or down to the leaves where it is negative.
    void halve(int64_t node, int64_t begin, int64_t end, int levels) {
        if (end - begin <= kLeaf || levels == 0) return;
        float low[3] = {kNone, kNone, kNone}, high[3] = {-kNone, -kNone, -kNone};
        for (int64_t i = begin; i < end; ++i)
            for (int c = 0; c < 3; ++c) {
                low[c] = std::min(low[c], points[i].at[c]);
                high[c] = std::max(high[c], points[i].at[c]);
            }
        int axis = 0;
        for (int c = 1; c < 3; ++c)
            if (high[c] - low[c] > high[axis] - low[axis]) axis = c;
        const int64_t half = middle(begin, end);
        // Rows break ties, so that the tree does not depend on how the library partitions.
        std::nth_element(points.begin() + begin, points.begin() + half, points.begin() + end,
                         [axis](const Point& a, const Point& b) {
                             return a.at[axis] != b.at[axis] ? a.at[axis] < b.at[axis] : a.row < b.row;
                         });
        nodes[node].axis = static_cast<int8_t>(axis);
        nodes[node].split = points[half].at[axis];
        halve(2 * node, begin, half, levels - 1);
        halve(2 * node + 1, half, end, levels - 1);
    }

    // Lays out the leaves; returns the node's smallest row.
    int32_t collect(int64_t node, int64_t begin, int64_t end) {
        Node& here = nodes[node];
        if (here.axis >= 0) {
            const int64_t half = middle(begin, end);
            return here.min_row = std::min(collect(2 * node, begin, half), collect(2 * node + 1, half, end));
        }
        here.leaf = static_cast<int32_t>(leaves.size());
        Leaf& leaf = leaves.emplace_back();
        for (int lane = 0; lane < kLeaf; ++lane) {
            const bool used = lane < end - begin;
            for (int c = 0; c < 3; ++c)
                leaf.at[c][lane] = used ? points[begin + lane].at[c] : std::numeric_limits<float>::quiet_NaN();
            leaf.rows[lane] = used ? points[begin + lane].row : kNoRow;
            here.min_row = std::min(here.min_row, leaf.rows[lane]);
        }
        return here.min_row;
    }
};

// The k nearest so far, nearest first.
struct Nearest {
    const Kernels& kernels;
    const Tree& tree;
    int k;
    std::vector<float> squared;
    std::vector<int32_t> rows;
    Point from;

    Nearest(const Kernels& kernels, const Tree& tree, int k)
        : kernels(kernels), tree(tree), k(k), squared(k), rows(k) {}

    void find(const Point& point) {
        from = point;
        std::fill(squared.begin(), squared.end(), kNone);
        std::fill(rows.begin(), rows.end(), kNoRow);
        float away[3] = {0, 0, 0};
        visit(1, away);
    }

    bool nearer(float distance, int32_t row, int i) const {
        return distance < squared[i] || (distance == squared[i] && row < rows[i]);
    }

    void meet(float distance, int32_t row) {
        if (row == from.row || !nearer(distance, row, k - 1)) return;
        int i = k - 1;
        for (; i > 0 && nearer(distance, row, i - 1); --i) {
            squared[i] = squared[i - 1];
            rows[i] = rows[i - 1];
        }
        squared[i] = distance;
        rows[i] = row;
    }

    // `away` is how far the node lies off along each axis. Squared and summed as distances are, so that rounding never
    // makes it farther than a point in it.
    void visit(int64_t node, float (&away)[3]) {
        const Node& here = tree.nodes[node];
        if (!nearer(away[0] * away[0] + away[1] * away[1] + away[2] * away[2], here.min_row, k - 1)) return;
        if (here.axis < 0) {
            const Leaf& leaf = tree.leaves[here.leaf];
            float distances[kLeaf];
            for (uint32_t bits = kernels.leaf_distances(leaf.at[0], from.at, squared[k - 1], distances); bits;
                 bits &= bits - 1) {
                const int lane = __builtin_ctz(bits);
                meet(distances[lane], leaf.rows[lane]);
            }
            return;
        }
        const float off = from.at[here.axis] - here.split, before = away[here.axis];
        const bool upper = off > 0;  // of points at one place the smallest rows come first
        visit(2 * node + upper, away);
        away[here.axis] = off;
        visit(2 * node + !upper, away);
        away[here.axis] = before;
    }
};

}  // namespace

void nearest_others(Pool& pool, const Kernels& kernels, const float* points, int64_t n, int k, int64_t* rows) {
    Tree tree;
    tree.points.resize(n);
    // NaN would break the partitions' order, and with it the bounds of memory: looked at here, whoever calls.
    for (int64_t i = 0; i < n; ++i) {
        tree.points[i].row = static_cast<int32_t>(i);
        for (int c = 0; c < 3; ++c) {
            const float at = points[3 * i + c];
            tree.points[i].at[c] = std::isfinite(at) ? std::clamp(at, -kMaxCoordinate, kMaxCoordinate) : 0.0f;
        }
    }
    tree.build(pool);
    pool.run((n + kQueries - 1) / kQueries, [&](int64_t task, int) {
        Nearest nearest(kernels, tree, k);
        for (int64_t i = task * kQueries; i < std::min(n, (task + 1) * kQueries); ++i) {
            nearest.find(tree.points[i]);
            std::copy(nearest.rows.begin(), nearest.rows.end(), rows + k * tree.points[i].row);
        }
    });
}

}  // namespace splatopt
