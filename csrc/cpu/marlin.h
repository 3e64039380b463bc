// Quantized codecs in the `marlin` layout, read as a CPU likes it.
//
// A row of tiles holds 16 k of all columns. In it come, column tile by column tile, for c = 0..7 the eight columns
// c, 8 + c, .. 56 + c of the tile side by side (and so do their scales). A unit is two neighbouring c. Memory is walked
// group by group, with one accumulator a column in the first-level cache.
#pragma once

#include "kernels.h"
#include "numbers.h"
#include "tokens.h"

namespace krasis {

constexpr int kTileDepth = 16;
constexpr int kStripUnits = 256; // x 64 bytes of y
constexpr int64_t kAhead = 8192; // bytes to prefetch: into the next group at the end of a strip's part of this one

// Which of the 16 activations of a row of tiles meets each byte of a line.
struct alignas(64) BytePattern {
    uint8_t index[64];
};

// A line of nibbles is 4 pairs of k x 8 columns; a word is two columns, a pair of k each, and 8 k deeper in the high
// half.
template <class Number> struct MarlinNibbles : Number {
    static constexpr int kUnitBytes = 128;
    template <class Isa> using Sum = typename Isa::Shorts;

    static constexpr BytePattern pairs(int deeper) {
        BytePattern pattern{};
        for (int i = 0; i < 64; i++)
            pattern.index[i] = deeper + 2 * (i / 16) + i % 2;
        return pattern;
    }

    static constexpr BytePattern columns_apart() {
        constexpr uint8_t kOrder[4] = {0, 2, 1, 3};
        BytePattern pattern{};
        for (int i = 0; i < 64; i++)
            pattern.index[i] = i % 16 / 4 * 4 + kOrder[i % 4];
        return pattern;
    }

    // The activations of one row of tiles.
    template <class Isa> struct Row {
        typename Isa::Line low, high;
    };

    template <class Isa> static Row<Isa> row(const int8_t *q) {
        static constexpr BytePattern kLow = pairs(0), kHigh = pairs(8);
        const auto all = Isa::repeat16(q);
        return {Isa::shuffle(all, Isa::load(kLow.index)), Isa::shuffle(all, Isa::load(kHigh.index))};
    }

    // Signed sums fit 16 bits: of INT4, a group of 128 puts 32 products of at most 8 * 127 into each, 32512 in all; of
    // MXFP4, one of 32 puts 8 of at most 12 * 127. Starting from -zero times the activations, a sum of unsigned numbers
    // may wrap on the way and is right at the end.
    template <class Isa> static Sum<Isa> start(const int8_t *q, int64_t rows) {
        const auto zeros = Isa::repeat_byte(Number::kZero);
        auto sum = Isa::shorts(0);
        for (int64_t i = 0; i < rows; i++) {
            const auto x = row<Isa>(q + i * kTileDepth);
            sum = Isa::add(sum, Isa::add(Isa::mul_pairs(zeros, x.low), Isa::mul_pairs(zeros, x.high)));
        }
        return Isa::subtract(Isa::shorts(0), sum);
    }

    template <class Isa, int T> static void dot(Sum<Isa> (*sum)[2], const uint8_t *line, const Row<Isa> *rows) {
        static constexpr BytePattern kApart = columns_apart();
        for (int half = 0; half < 2; half++) {
            const auto codes = Isa::shuffle(Isa::load(line + 64 * half), Isa::load(kApart.index));
            const auto low = Number::template numbers<Isa>(Isa::low_nibbles(codes));
            const auto high = Number::template numbers<Isa>(Isa::high_nibbles(codes));
            for (int t = 0; t < T; t++) {
                const auto products = Isa::add(Isa::mul_pairs(low, rows[t].low), Isa::mul_pairs(high, rows[t].high));
                sum[t][half] = Isa::add(sum[t][half], products);
            }
        }
    }

    template <class Isa> static typename Isa::Ints finish(const Sum<Isa> *sum, int32_t) {
        return Isa::fold(sum[0], sum[1]);
    }

    // Numbers of one of the eight columns that lie side by side: of all 16 k, as four of each.
    template <class Isa> static void spread(const uint8_t *line, uint8_t (*tile)[8][32], int column) {
        static constexpr BytePattern kApart = columns_apart();
        const auto codes = Isa::shuffle(Isa::load(line), Isa::load(kApart.index));
        const auto low = Number::template numbers<Isa>(Isa::low_nibbles(codes));
        const auto high = Number::template numbers<Isa>(Isa::high_nibbles(codes));
        Isa::store_halves(tile[0][column], tile[1][column], Isa::weave_blocks(low));
        Isa::store_halves(tile[2][column], tile[3][column], Isa::weave_blocks(high));
    }
};

// A line of INT8 is 2 pairs of k x 8 columns; a word is one column, a pair of k and the pair 8 k deeper.
struct MarlinInt8 : Int8 {
    static constexpr int kUnitBytes = 256;
    template <class Isa> using Sum = typename Isa::Ints;

    static constexpr BytePattern words(int first_pair) {
        constexpr uint8_t kOrder[4] = {0, 8, 1, 9};
        BytePattern pattern{};
        for (int i = 0; i < 64; i++)
            pattern.index[i] = 2 * (first_pair + i / 32) + kOrder[i % 4];
        return pattern;
    }

    template <class Isa> struct Row {
        typename Isa::Line line[2];
    };

    template <class Isa> static Row<Isa> row(const int8_t *q) {
        static constexpr BytePattern kFirst = words(0), kSecond = words(2);
        const auto all = Isa::repeat16(q);
        return {{Isa::shuffle(all, Isa::load(kFirst.index)), Isa::shuffle(all, Isa::load(kSecond.index))}};
    }

    template <class Isa> static Sum<Isa> start(const int8_t *, int64_t) { return Isa::ints(0); }

    template <class Isa, int T> static void dot(Sum<Isa> (*sum)[2], const uint8_t *line, const Row<Isa> *rows) {
        for (int half = 0; half < 2; half++)
            for (int i = 0; i < 2; i++) {
                const auto codes = Isa::load(line + 128 * half + 64 * i);
                for (int t = 0; t < T; t++)
                    sum[t][half] = Isa::dot_bytes(sum[t][half], codes, rows[t].line[i]);
            }
    }

    template <class Isa> static typename Isa::Ints finish(const Sum<Isa> *sum, int32_t activations) {
        return Isa::add(Isa::fold(sum[0], sum[1]), Isa::ints(-Isa::kByteZero * activations));
    }

    template <class Isa> static void spread(const uint8_t *line, uint8_t (*tile)[8][32], int column) {
        static constexpr BytePattern kApart = MarlinNibbles<Int4>::columns_apart();
        for (int i = 0; i < 2; i++) {
            const auto codes = Isa::shuffle(Isa::load(line + 64 * i), Isa::load(kApart.index));
            Isa::store_halves(tile[i][column], tile[2 + i][column], Isa::weave_halves(codes));
        }
    }
};

// The column of y that a unit's lane holds. Internal linkage, as for everything here that is no template over an Isa.
static constexpr int64_t marlin_column(int64_t unit, int lane) {
    return unit / 4 * 64 + lane % 8 * 8 + unit % 4 * 2 + lane / 8;
}

template <class Isa> typename Isa::Floats marlin_scales(const uint16_t *row, int64_t unit, bool one_group) {
    if (!one_group)
        return Isa::widen(row + unit * kUnit);
    uint16_t scales[kUnit];
    for (int lane = 0; lane < kUnit; lane++)
        scales[lane] = row[unit / 4 * 64 + lane % 8 / 4 * 32 + unit % 4 * 8 + lane % 4 * 2 + lane / 8];
    return Isa::widen(scales);
}

// Groups of 32 are never the only one: K is at least 64.
template <class Isa> typename Isa::Floats marlin_scales(const uint8_t *row, int64_t unit, bool) {
    return Isa::swap_middles(Isa::widen(row + unit * kUnit));
}

template <class Isa, class Codec> struct MarlinStrip {
    using Sum = typename Codec::template Sum<Isa>;
    using Row = typename Codec::template Row<Isa>;

    const Work &work;
    int64_t unit; // the first
    int units;    // at most kStripUnits / tokens
    Next next;    // strip

    template <int T> void run(int64_t token) const {
        alignas(64) float y[kStripUnits / T][T][kUnit];
        for (int u = 0; u < units; u++)
            for (int t = 0; t < T; t++)
                Isa::store_floats(y[u][t], Isa::floats(0));
        const krasis_matrix &matrix = *work.job.matrix;
        const int64_t last = groups_in(work.job);
        for (int64_t g = 0; g < last; g++)
            switch (matrix.group_size / kTileDepth) {
            case 2: add_group<T, 2>(y, token, g); break;
            case 4: add_group<T, 4>(y, token, g); break;
            default: add_group<T, 8>(y, token, g);
            }
        write<T>(y, token);
    }

    // The R rows of tiles of a group are walked side by side.
    template <int T, int R> void add_group(float (*y)[T][kUnit], int64_t token, int64_t g) const {
        const krasis_matrix &matrix = *work.job.matrix;
        const int64_t groups = matrix.k / matrix.group_size, row_bytes = (int64_t)matrix.n / kUnit * Codec::kUnitBytes;
        const uint8_t *line = (const uint8_t *)matrix.codes + g * R * row_bytes + unit * Codec::kUnitBytes;
        const auto *scales = (const typename Codec::Scale *)matrix.scales + g * matrix.n;
        Row rows[R][T];
        Sum start[T];
        float step[T];
        int32_t total[T];
        for (int t = 0; t < T; t++) {
            const int8_t *q = work.activations.q + (token + t) * matrix.k + g * R * kTileDepth;
            start[t] = Codec::template start<Isa>(q, R);
            for (int r = 0; r < R; r++)
                rows[r][t] = Codec::template row<Isa>(q + r * kTileDepth);
            step[t] = Codec::kStep * work.activations.scale[(token + t) * groups + g];
            total[t] = work.activations.sum[(token + t) * groups + g];
        }
        const auto *next_line = line + R * row_bytes;
        const auto *near_scales = scales + unit * kUnit, *next_scales = near_scales + matrix.n;
        if (g + 1 == groups_in(work.job)) {
            next_line = (const uint8_t *)(next.codes ? next.codes : line);
            next_scales = (const typename Codec::Scale *)(next.scales ? next.scales : near_scales);
        }
        constexpr int kUnitsAhead = kAhead / R / Codec::kUnitBytes;
        const int ahead = units < kUnitsAhead ? units : kUnitsAhead;
        for (int u = 0; u < units; u++, line += Codec::kUnitBytes) {
            const int v = u + ahead < units ? u + ahead : u + ahead - units;
            const uint8_t *far = v > u ? line + ahead * Codec::kUnitBytes : next_line + v * Codec::kUnitBytes;
            Isa::prefetch((v > u ? near_scales : next_scales) + v * kUnit);
            Sum sum[T][2];
            for (int t = 0; t < T; t++)
                sum[t][0] = sum[t][1] = start[t];
            for (int r = 0; r < R; r++) {
                for (int i = 0; i < Codec::kUnitBytes; i += 64)
                    Isa::prefetch(far + r * row_bytes + i);
                Codec::template dot<Isa, T>(sum, line + r * row_bytes, rows[r]);
            }
            const auto scale = marlin_scales<Isa>(scales, unit + u, groups == 1);
            for (int t = 0; t < T; t++) {
                const auto dot = Isa::to_floats(Codec::template finish<Isa>(sum[t], total[t]));
                Isa::store_floats(y[u][t], Isa::fma(dot, Isa::mul(scale, step[t]), Isa::load_floats(y[u][t])));
            }
        }
    }

    template <int T> void write(const float (*y)[T][kUnit], int64_t token) const {
        for (int u = 0; u < units; u++)
            for (int t = 0; t < T; t++) {
                float *out = work.job.y + (token + t) * work.job.ldy;
                const int64_t first = marlin_column(unit + u, 0), last = marlin_column(unit + u, kUnit - 1);
                if (last < work.job.n_out)
                    for (int lane = 0; lane < kUnit; lane++)
                        out[first + lane % 8 * 8 + lane / 8] = y[u][t][lane];
                else
                    for (int lane = 0; lane < kUnit; lane++)
                        if (const int64_t column = marlin_column(unit + u, lane); column < work.job.n_out)
                            out[column] = y[u][t][lane];
            }
    }
};

template <class Isa, class Codec> void multiply_marlin(const Work &work, int64_t first, int64_t last) {
    const krasis_matrix &matrix = *work.job.matrix;
    const int64_t width = kStripUnits / (work.job.m < kTokens ? work.job.m : kTokens);
    for (int64_t unit = first; unit < last; unit += width) {
        const int units = last - unit < width ? last - unit : width;
        const int64_t then = unit + width;
        const Next next = then < last ? Next{(const uint8_t *)matrix.codes + then * Codec::kUnitBytes,
                                             (const typename Codec::Scale *)matrix.scales + then * kUnit}
                                      : work.next;
        for_blocks_of_tokens(work.job.m, MarlinStrip<Isa, Codec>{work, unit, units, next});
    }
}

} // namespace krasis
