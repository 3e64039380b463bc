// Quantizing a block of rows at a time: what its kernels are given. No STL here; see kernels.h.
#pragma once

#include <stdint.h>

#include "krasis.h"

namespace krasis {

// Rows quantized at once: the width of Marlin's tiles.
constexpr int kBlock = 64;
constexpr int kMostWeights = 128; // of a group

// Words of two codes of one row, even k in the low and odd k in the high half: [group_size / 2][kBlock].
using Pairs = uint32_t[kMostWeights / 2][kBlock];

// The importance of the k of one group, prepared for every row.
struct Importance {
    float relative[kMostWeights];  // to the group's largest
    int16_t parts[kMostWeights];   // of 4095 of it, 1 to 4095
    float largest;
};

struct Quantize {
    krasis_weights weights;
    krasis_packing packing;
    const krasis_codes *kept; // codes that are laid out as they are, in place of weights
    double *errors;           // [blocks][2], or 4 with importance; null for kept codes
};

struct Quantizers {
    // Blocks [first, last) of kBlock rows. False, with targets half-written, where a weight is not usable.
    using Run = bool (*)(const Quantize &, int64_t first, int64_t last);

    Run quantize[4]; // by codec, null where it does not quantize
    Run pack[4];
};

const Quantizers &scalar_quantizers();
#ifdef KRASIS_X86
const Quantizers &avx2_quantizers();
const Quantizers &avx512_quantizers();
#endif

} // namespace krasis
