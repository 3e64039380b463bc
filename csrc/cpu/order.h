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

    static void cpu4(uint32_t *codes, const Pairs &pairs, int size, const Place &at) {
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

    static void cpu8(uint32_t *codes, const Pairs &pairs, int size, const Place &at) {
        for (int t = 0; t < kBlock / kTile; t++) {
            const int64_t first = (at.block * (kBlock / kTile) + t) * at.groups + at.group;
            uint32_t *line = codes + first * (size / 4 * kTile);
            for (int p = 0; p < size / 2; p += 2, line += kTile)
                for (int i = 0; i < kTile; i++)
                    line[i] = bytes(pairs[p][t * kTile + i], pairs[p + 1][t * kTile + i]);
        }
    }

    // 32 k at once, two tiles deep. `words` are [Words][2][8], the last 8 columns c; a tile is [8][Words].
    template <int Words>
    static void turn(uint32_t *codes, const uint32_t (&words)[Words][16], int64_t k, const Place &at) {
        constexpr int kLanes = Isa::kLanes;
        for (int first = 0; first < Words; first += kLanes)
            for (int column = 0; column < 16; column += kLanes) {
                typename Isa::Words square[kLanes];
                for (int i = 0; i < kLanes; i++)
                    memcpy(square + i, words[first + i] + column, sizeof square[i]);
                Isa::transpose(square);
                for (int i = 0; i < kLanes; i++) {
                    const int64_t tile = (k / 16 + (column + i) / 8) * at.blocks + at.block;
                    memcpy(codes + (tile * 8 + (column + i) % 8) * Words + first, square + i, sizeof square[i]);
                }
            }
    }

    static void marlin4(uint32_t *codes, const Pairs &pairs, int size, const Place &at) {
        for (int k = 0; k < size; k += 32) {
            alignas(64) uint32_t words[16][16]; // [p][w]
            for (int t = 0; t < 2; t++)
                for (int p = 0; p < 4; p++) {
                    const uint32_t *low = pairs[k / 2 + 8 * t + p], *high = pairs[k / 2 + 8 * t + p + 4];
                    for (int w = 0; w < 4; w++, low += 16, high += 16)
                        for (int c = 0; c < 8; c++)
                            words[4 * p + w][8 * t + c] = low[c] | high[c] << 4 | low[8 + c] << 8 | high[8 + c] << 12;
                }
            turn(codes, words, at.group * size + k, at);
        }
    }

    static void marlin8(uint32_t *codes, const Pairs &pairs, int size, const Place &at) {
        for (int k = 0; k < size; k += 32) {
            alignas(64) uint32_t words[32][16]; // [p][w][h]
            for (int t = 0; t < 2; t++)
                for (int p = 0; p < 4; p++) {
                    const uint32_t *low = pairs[k / 2 + 8 * t + p], *high = pairs[k / 2 + 8 * t + p + 4];
                    for (int w = 0; w < 8; w++, low += 8, high += 8)
                        for (int c = 0; c < 8; c++)
                            words[8 * p + w][8 * t + c] = low[c] | high[c] << 8;
                }
            turn(codes, words, at.group * size + k, at);
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

    template <class Scale> static void scales(Scale *out, const uint32_t *scales, int layout, const Place &at) {
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
    static void write(const krasis_packing &packing, const Pairs &pairs, const uint32_t *group_scales, const Place &at) {
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
