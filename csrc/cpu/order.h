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

    // A tile is [c][p][w] words, with h inside the word, or after w. Of rows (p, w) and columns (h, c), squares are turned
    // into rows c, and those of both h handed to `store`(words of h = 0, of h = 1, c, first of p and w).
    template <int Bits, class Store> static void marlin_tile(const Pairs &pairs, int k, const Store &store) {
        using Words = typename Isa::Words;
        constexpr int kLanes = Isa::kLanes, kColumns = kLanes < 8 ? kLanes : 8;
        for (int first = 0; first < 16; first += kLanes)
            for (int column = 0; column < 8; column += kColumns) {
                Words square[2 * kColumns];
                for (int half = 0; half < 2 * kColumns / kLanes; half++) {
                    for (int i = 0; i < kLanes; i++) {
                        const int p = k / 2 + (first + i) / 4, n = (first + i) % 4 * 16 + 8 * half + column;
                        Words low, high;
                        memcpy(&low, pairs[p] + n, sizeof low);
                        memcpy(&high, pairs[p + 4] + n, sizeof high);
                        square[half * kLanes + i] = low | high << Bits;
                    }
                    Isa::transpose(square + half * kLanes);
                }
                for (int i = 0; i < kColumns; i++)
                    store(square[i], square[kColumns + i], column + i, first);
            }
    }

    static void marlin4(uint32_t *codes, const Pairs &pairs, int size, const Place &at) {
        for (int k = 0; k < size; k += 16) {
            uint32_t *tile = codes + ((at.group * size + k) / 16 * at.blocks + at.block) * 128;
            marlin_tile<4>(pairs, k, [tile](const auto &even, const auto &odd, int c, int first) {
                const auto words = even | odd << 8;
                memcpy(tile + 16 * c + first, &words, sizeof words);
            });
        }
    }

    static void marlin8(uint32_t *codes, const Pairs &pairs, int size, const Place &at) {
        for (int k = 0; k < size; k += 16) {
            uint32_t *tile = codes + ((at.group * size + k) / 16 * at.blocks + at.block) * 256;
            marlin_tile<8>(pairs, k, [tile](const auto &even, const auto &odd, int c, int first) {
                typename Isa::Words words[2];
                Isa::interleave(words, even, odd);
                memcpy(tile + 2 * (16 * c + first), words, sizeof words);
            });
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
