// Quantized codecs in the `cpu` layout: a tile of 16 columns is one run of 64-byte lines, four bytes a column.
#pragma once

#include "functions.h"
#include "kernels.h"
#include "numbers.h"
#include "tokens.h"

namespace krasis {

// Byte j of a column holds k = j in its low and k = 4 + j in its high half.
template <class Number> struct InterleavedNibbles : Number {
    static constexpr int kDepth = 8;
    template <class Isa> static constexpr int kBias = Number::kZero;

    // Of eight k, four in each line of numbers.
    template <class Isa>
    static typename Isa::Ints dot_lines(typename Isa::Ints sum, typename Isa::Line first, typename Isa::Line second,
                                        const int8_t *q) {
        return Isa::dot_nibbles(sum, first, second, Isa::repeat4(q), Isa::repeat4(q + 4));
    }

    template <class Isa, int T>
    static void dot(typename Isa::Ints *sum, const uint8_t *line, const int8_t *q, int64_t row) {
        const auto codes = Isa::load(line);
        const auto low = Number::template numbers<Isa>(Isa::low_nibbles(codes));
        const auto high = Number::template numbers<Isa>(Isa::high_nibbles(codes));
        for (int t = 0; t < T; t++, q += row)
            sum[t] = Isa::dot_nibbles(sum[t], low, high, Isa::repeat4(q), Isa::repeat4(q + 4));
    }
};

struct InterleavedInt8 : Int8 {
    static constexpr int kDepth = 4;
    template <class Isa> static constexpr int kBias = Isa::kByteZero;

    template <class Isa>
    static typename Isa::Ints dot_lines(typename Isa::Ints sum, typename Isa::Line first, typename Isa::Line second,
                                        const int8_t *q) {
        return Isa::dot_bytes(Isa::dot_bytes(sum, first, Isa::repeat4(q)), second, Isa::repeat4(q + 4));
    }

    template <class Isa, int T>
    static void dot(typename Isa::Ints *sum, const uint8_t *line, const int8_t *q, int64_t row) {
        const auto codes = Isa::load(line);
        for (int t = 0; t < T; t++, q += row)
            sum[t] = Isa::dot_bytes(sum[t], codes, Isa::repeat4(q));
    }
};

template <class Isa> void write_columns(const krasis_job &job, int64_t token, int64_t column, typename Isa::Floats y) {
    if (column < job.n_out)
        store_up_to<Isa>(job.y + token * job.ldy + column, job.n_out - column, y);
}

// Side by side they keep more reads under way than one alone.
constexpr int kTiles = 4;

template <class Isa, class Codec> struct Interleaved {
    const Work &work;
    int64_t unit;
    int tiles; // from `unit` on, at most kTiles
    Next next; // tiles

    template <int T> void run(int64_t token) const {
        if (tiles == kTiles && T == 1)
            return run_tiles<T, kTiles>(token);
        for (int tile = 0; tile < tiles; tile++)
            Interleaved{work, unit + tile, 1, next}.template run_tiles<T, 1>(token);
    }

    // S tiles, T tokens.
    template <int T, int S> void run_tiles(int64_t token) const {
        constexpr int kChains = T * S < kTiles ? 2 : 1; // sums that do not wait for each other
        constexpr int64_t kAhead = 4096 / S;            // bytes: far enough to hide DRAM, near enough to stay in cache
        const krasis_matrix &matrix = *work.job.matrix;
        const int64_t k = matrix.k, size = matrix.group_size, groups = k / size, lines = size / Codec::kDepth;
        const int64_t tile_bytes = k / Codec::kDepth * 64, tile_scales = groups * kUnit, last = groups_in(work.job);
        const uint8_t *line = (const uint8_t *)matrix.codes + unit * tile_bytes;
        const auto *scales = (const typename Codec::Scale *)matrix.scales + unit * tile_scales;
        const auto *next_scales = next.scales ? (const typename Codec::Scale *)next.scales : scales;
        const auto *next_line = (const uint8_t *)(next.codes ? next.codes : line);
        const int64_t group_bytes = lines * 64, wished = (kAhead + group_bytes - 1) / group_bytes;
        const int64_t ahead = wished < last ? wished : last; // groups
        const int8_t *q = work.activations.q + token * k;
        typename Isa::Floats y[S][T];
        for (int s = 0; s < S; s++)
            for (int t = 0; t < T; t++)
                y[s][t] = Isa::floats(0);
        for (int64_t g = 0; g < last; g++, scales += kUnit, next_scales += kUnit) {
            for (int s = 0; s < S; s++)
                Isa::prefetch(next_scales + s * tile_scales);
            typename Isa::Ints sum[S][kChains][T];
            for (int s = 0; s < S; s++)
                for (int c = 0; c < kChains; c++)
                    for (int t = 0; t < T; t++)
                        sum[s][c][t] = Isa::ints(0);
            const int64_t beyond = g + ahead - last;
            const int64_t far = beyond < 0 ? ahead * group_bytes : next_line + beyond * group_bytes - line;
            for (int64_t i = 0; i < lines; i += kChains)
                for (int c = 0; c < kChains; c++, line += 64, q += Codec::kDepth)
                    for (int s = 0; s < S; s++) {
                        Isa::prefetch(line + far + s * tile_bytes);
                        Codec::template dot<Isa, T>(sum[s][c], line + s * tile_bytes, q, k);
                    }
            for (int t = 0; t < T; t++) {
                const int64_t at = (token + t) * groups + g;
                const auto bias = Isa::ints(-Codec::template kBias<Isa> * work.activations.sum[at]);
                const float step = Codec::kStep * work.activations.scale[at];
                for (int s = 0; s < S; s++) {
                    auto dot = Isa::add(sum[s][0][t], bias);
                    for (int c = 1; c < kChains; c++)
                        dot = Isa::add(dot, sum[s][c][t]);
                    const auto both = Isa::mul(Isa::widen(scales + s * tile_scales), step);
                    y[s][t] = Isa::fma(Isa::to_floats(dot), both, y[s][t]);
                }
            }
        }
        for (int s = 0; s < S; s++)
            for (int t = 0; t < T; t++)
                write_columns<Isa>(work.job, token + t, (unit + s) * kUnit, y[s][t]);
    }

};

template <class Isa, class Codec> void multiply_interleaved(const Work &work, int64_t first, int64_t last) {
    const krasis_matrix &matrix = *work.job.matrix;
    const int64_t tile_bytes = matrix.k / Codec::kDepth * 64, tile_scales = matrix.k / matrix.group_size * kUnit;
    for (int64_t unit = first; unit < last; unit += kTiles) {
        const int tiles = last - unit < kTiles ? (int)(last - unit) : kTiles;
        const int64_t then = unit + kTiles;
        const Next next = then < last ? Next{(const uint8_t *)matrix.codes + then * tile_bytes,
                                             (const typename Codec::Scale *)matrix.scales + then * tile_scales}
                                      : work.next;
        for_blocks_of_tokens(work.job.m, Interleaved<Isa, Codec>{work, unit, tiles, next});
    }
}

} // namespace krasis
