// Room that one thread keeps for the tile it is working on.
#pragma once

#include <cstddef>
#include <cstdint>

#include "types.h"

namespace splatopt {

// Everything here is out of line on purpose: an inline function compiled with AVX-512 switches could be the
// copy that the linker keeps for machines without it.
struct TileScratch {
    LocalSplat* splats = nullptr;  // of each list position
    uint32_t* blocks = nullptr;    // of each list position, padded to whole vectors
    uint32_t* list = nullptr;      // positions that touch one block
    size_t capacity = 0;
    alignas(64) float transmittance[kTilePixels], behind[kTilePixels], gradient[4][kTilePixels], error[kTilePixels];
    alignas(64) int32_t last[kTilePixels];

    TileScratch();
    ~TileScratch();
    TileScratch(const TileScratch&) = delete;
    TileScratch& operator=(const TileScratch&) = delete;
    void reserve(int64_t count);
};

}  // namespace splatopt
