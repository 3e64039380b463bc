// Quantized codecs in the `cpu` layout: a tile of 16 columns is one run of 64-byte lines, four bytes a column.
#pragma once

#include "kernels.h"
#include "numbers.h"
#include "tokens.h"

namespace krasis {

// Byte j of a column holds k = j in its low and k = 4 + j in its high half.
template <class Number> struct InterleavedNibbles : Number {
    static constexpr int kDepth = 8;
    template <class Isa> static constexpr int kBias = Number::kZero;

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

    template <class Isa, int T>
    static void dot(typename Isa::Ints *sum, const uint8_t *line, const int8_t *q, int64_t row) {
        const auto codes = Isa::load(line);
        for (int t = 0; t < T; t++, q += row)
            sum[t] = Isa::dot_bytes(sum[t], codes, Isa::repeat4(q));
    }
};

template <class Isa, class Codec> struct Interleaved {
    const Work &work;
    int64_t unit;

    // One tile, T tokens.
    template <int T> void run(int64_t token) const {
        constexpr int kChains = T == 1 ? 4 : 1; // sums that do not wait for each other
        constexpr int kAhead = 2048; // bytes: far enough to hide DRAM, near enough to stay in the first-level cache
        const krasis_matrix &matrix = *work.job.matrix;
        const int64_t k = matrix.k, size = matrix.group_size, groups = k / size, lines = size / Codec::kDepth;
        const uint8_t *line = (const uint8_t *)matrix.codes + unit * (k / Codec::kDepth) * 64;
        const auto *scales = (const typename Codec::Scale *)matrix.scales + unit * groups * kUnit;
        const int8_t *q = work.activations.q + token * k;
        typename Isa::Floats y[T];
        for (int t = 0; t < T; t++)
            y[t] = Isa::floats(0);
        for (int64_t g = 0; g < groups; g++, scales += kUnit) {
            typename Isa::Ints sum[kChains][T];
            for (int c = 0; c < kChains; c++)
                for (int t = 0; t < T; t++)
                    sum[c][t] = Isa::ints(0);
            for (int64_t i = 0; i < lines; i += kChains)
                for (int c = 0; c < kChains; c++, line += 64, q += Codec::kDepth) {
                    Isa::prefetch(line + kAhead);
                    Codec::template dot<Isa, T>(sum[c], line, q, k);
                }
            const auto scale = Isa::widen(scales);
            for (int t = 0; t < T; t++) {
                const int32_t bias = Codec::template kBias<Isa> * work.activations.sum[(token + t) * groups + g];
                auto dot = Isa::add(sum[0][t], Isa::ints(-bias));
                for (int c = 1; c < kChains; c++)
                    dot = Isa::add(dot, sum[c][t]);
                const auto both = Isa::mul(scale, Codec::kStep * work.activations.scale[(token + t) * groups + g]);
                y[t] = Isa::fma(Isa::to_floats(dot), both, y[t]);
            }
        }
        for (int t = 0; t < T; t++)
            write(token + t, y[t]);
    }

    void write(int64_t token, typename Isa::Floats y) const {
        float columns[kUnit];
        Isa::store_floats(columns, y);
        float *out = work.job.y + token * work.job.ldy + unit * kUnit;
        const int64_t left = work.job.n_out - unit * kUnit;
        for (int i = 0; i < kUnit && i < left; i++)
            out[i] = columns[i];
    }
};

template <class Isa, class Codec> void multiply_interleaved(const Work &work, int64_t first, int64_t last) {
    for (int64_t unit = first; unit < last; unit++)
        for_blocks_of_tokens(work.job.m, Interleaved<Isa, Codec>{work, unit});
}

} // namespace krasis
