// Room that one thread keeps for the tile it is working on.
#pragma once

#include <cstddef>
#include <cstdint>

#include "types.h"

namespace splatopt {

// The sixteen rays of a block, and where their pixels are in the tile. A block's numbers lie side by side, an odd number
// of cache lines in all: where they are stored for one block and loaded for another, the addresses' low twelve bits
// seldom agree, which a processor would take for the same place at first.
struct alignas(64) BlockRays {
    float x[kLanes], y[kLanes];
    float transmittance[kLanes], behind[kLanes];
    float gradient[3][kLanes];
    float fourth[kLanes];  // ∂L/∂depth, or a pixel's error
    int32_t last[kLanes];
};

// Everything here is out of line on purpose: an inline function compiled with AVX-512 switches could be the
// copy that the linker keeps for machines without it.
struct TileScratch {
    LocalSplat* splats = nullptr;  // of each list position
    uint32_t* blocks = nullptr;    // of each list position, padded to whole vectors
    uint32_t* list = nullptr;      // positions that touch one block
    size_t capacity = 0;
    BlockRays rays[kBlocksPerTile];

    TileScratch();
    ~TileScratch();
    TileScratch(const TileScratch&) = delete;
    TileScratch& operator=(const TileScratch&) = delete;
    void reserve(int64_t count);
};

}  // namespace splatopt
