// Codes and scales of one group of a block of rows, put where their layouts want them.
//
// Plain loops over a row a lane, which compilers turn into vectors. Templates, so that each instruction set has its own.
#pragma once

#include <string.h>

#include "quantize.h"

namespace krasis {

// Where a group lies in the matrix.
struct Place {
    int64_t block, blocks; // of kBlock rows
    int64_t group, groups; // along k
};

template <class Isa> struct Order {
    static constexpr int kTile = 16;

    // [0, c1, 0, c0] of two words to [d1, d0, c1, c0].
    static uint32_t bytes(uint32_t low, uint32_t high) {
        return (low & 0xff) | (low >> 8 & 0xff00) | (high & 0xff) << 16 | (high & 0xff0000) << 8;
    }

    static void cpu4(uint32_t *codes, const Pairs &pairs, int size, Place at) {
        for (int t = 0; t < kBlock / kTile; t++) {
            const int64_t first = (at.block * (kBlock / kTile) + t) * at.groups + at.group;
            uint32_t *line = codes + first * (size / 8 * kTile);
            for (int p = 0; p < size / 2; p += 4, line += kTile)
                for (int i = 0; i < kTile; i++) {
                    const int n = t * kTile + i;
                    line[i] = bytes(pairs[p][n] | pairs[p + 2][n] << 4, pairs[p + 1][n] | pairs[p + 3][n] << 4);
                }
        }
    }

    static void cpu8(uint32_t *codes, const Pairs &pairs, int size, Place at) {
        for (int t = 0; t < kBlock / kTile; t++) {
            const int64_t first = (at.block * (kBlock / kTile) + t) * at.groups + at.group;
            uint32_t *line = codes + first * (size / 4 * kTile);
            for (int p = 0; p < size / 2; p += 2, line += kTile)
                for (int i = 0; i < kTile; i++)
                    line[i] = bytes(pairs[p][t * kTile + i], pairs[p + 1][t * kTile + i]);
        }
    }

    // Words in the order of computing, [p][w][c] or [p][w][h][c], to [c][p][w] or [c][p][w][h].
    template <int Words> static void scatter(uint32_t *tile, const uint32_t *words) {
        for (int c = 0; c < 8; c++)
            for (int i = 0; i < Words; i++)
                tile[c * Words + i] = words[i * 8 + c];
    }

    static void marlin4(uint32_t *codes, const Pairs &pairs, int size, Place at) {
        for (int k = 0; k < size; k += 16) {
            uint32_t words[128];
            for (int p = 0; p < 4; p++)
                for (int w = 0; w < 4; w++)
                    for (int c = 0; c < 8; c++) {
                        const uint32_t *low = pairs[k / 2 + p] + 16 * w + c, *high = pairs[k / 2 + p + 4] + 16 * w + c;
                        words[(p * 4 + w) * 8 + c] = low[0] | high[0] << 4 | low[8] << 8 | high[8] << 12;
                    }
            scatter<16>(codes + ((at.group * size + k) / 16 * at.blocks + at.block) * 128, words);
        }
    }

    static void marlin8(uint32_t *codes, const Pairs &pairs, int size, Place at) {
        for (int k = 0; k < size; k += 16) {
            uint32_t words[256];
            for (int p = 0; p < 4; p++)
                for (int n = 0; n < kBlock; n++)
                    words[p * kBlock + n] = pairs[k / 2 + p][n] | pairs[k / 2 + p + 4][n] << 8;
            scatter<32>(codes + ((at.group * size + k) / 16 * at.blocks + at.block) * 256, words);
        }
    }

    // The row of the block whose scale stands at `i`.
    static int marlin_row(int i, bool bytes, bool one_group) {
        constexpr int kSwapped[8] = {0, 2, 1, 3, 4, 6, 5, 7};
        if (bytes)
            return i / 8 + 8 * kSwapped[i % 8];
        if (one_group)
            return i / 32 * 32 + 2 * (i % 32 / 8) + i % 2 + 8 * (i % 8 / 2);
        return i / 8 + 8 * (i % 8);
    }

    template <class Scale> static void scales(Scale *out, const uint32_t *scales, int layout, Place at) {
        if (layout == KRASIS_LAYOUT_CPU) {
            for (int n = 0; n < kBlock; n++) {
                const int64_t tile = at.block * (kBlock / kTile) + n / kTile;
                out[(tile * at.groups + at.group) * kTile + n % kTile] = (Scale)scales[n];
            }
            return;
        }
        out += (at.group * at.blocks + at.block) * kBlock;
        for (int i = 0; i < kBlock; i++)
            out[i] = (Scale)scales[marlin_row(i, sizeof(Scale) == 1, at.groups == 1)];
    }

    template <class Codec>
    static void write(const krasis_packing &packing, const Pairs &pairs, const uint32_t *group_scales, Place at) {
        for (int i = 0; i < packing.target_count; i++) {
            const krasis_target &target = packing.targets[i];
            uint32_t *codes = (uint32_t *)target.codes;
            const bool cpu = target.layout == KRASIS_LAYOUT_CPU;
            if constexpr (Codec::kBits == 4)
                (cpu ? cpu4 : marlin4)(codes, pairs, packing.group_size, at);
            else
                (cpu ? cpu8 : marlin8)(codes, pairs, packing.group_size, at);
            scales((typename Codec::Scale *)target.scales, group_scales, target.layout, at);
        }
    }
};

} // namespace krasis
