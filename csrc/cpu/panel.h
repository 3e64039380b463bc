// Products with many tokens: 64 columns are decoded once, into panels of numbers that any layout gives alike.
//
// A panel is 16 columns; a line of it has four k of each, one a byte, as integer dot products want them. Scales follow, in
// float32.
#pragma once

#include "interleaved.h"
#include "marlin.h"

namespace krasis {

struct Panels {
    uint8_t *lines; // [kPanelUnits][k / 4][16][4]
    float *scales;  // [kPanelUnits][k / group_size][16]
};

static inline Panels panels_of(const Work &work) {
    return {work.panels, (float *)(work.panels + (int64_t)kPanelUnits * work.job.matrix->k * kUnit)};
}

template <class Isa, class Scale>
void unpack_interleaved_scales(const krasis_matrix &matrix, int64_t unit, int units, float *out) {
    const int64_t groups = matrix.k / matrix.group_size;
    const auto *scales = (const Scale *)matrix.scales + unit * groups * kUnit;
    for (int64_t i = 0; i < units * groups; i++)
        Isa::store_floats(out + i * kUnit, Isa::widen(scales + i * kUnit));
}

template <class Isa, class Number> struct UnpackInterleavedNibbles {
    using Codec = InterleavedNibbles<Number>;

    static void run(const krasis_matrix &matrix, int64_t unit, int units, const Panels &panels) {
        const int64_t lines = matrix.k / Codec::kDepth;
        const uint8_t *line = (const uint8_t *)matrix.codes + unit * lines * 64;
        uint8_t *out = panels.lines;
        for (int64_t i = 0; i < units * lines; i++, line += 64, out += 128) {
            Isa::prefetch(line + 4096);
            const auto codes = Isa::load(line);
            Isa::store(out, Number::template numbers<Isa>(Isa::low_nibbles(codes)));
            Isa::store(out + 64, Number::template numbers<Isa>(Isa::high_nibbles(codes)));
        }
        unpack_interleaved_scales<Isa, typename Number::Scale>(matrix, unit, units, panels.scales);
    }
};

template <class Isa> struct UnpackInterleavedInt8 {
    static void run(const krasis_matrix &matrix, int64_t unit, int units, const Panels &panels) {
        const int64_t size = (int64_t)matrix.k * kUnit;
        const uint8_t *codes = (const uint8_t *)matrix.codes + unit * size;
        for (int64_t i = 0; i < units * size; i += 64) {
            Isa::prefetch(codes + i + 4096);
            Isa::store(panels.lines + i, Isa::load(codes + i));
        }
        unpack_interleaved_scales<Isa, Int8::Scale>(matrix, unit, units, panels.scales);
    }
};

// Four lines of a row of tiles, before their words change places: [k / 4][column of eight][column's eighth][4].
using TileRow = uint8_t[4][8][32];

template <class Isa, class Codec> struct UnpackMarlin {
    static void run(const krasis_matrix &matrix, int64_t unit, int, const Panels &panels) {
        const int64_t rows = matrix.k / kTileDepth, row_bytes = (int64_t)matrix.n / kUnit * Codec::kUnitBytes;
        const uint8_t *row = (const uint8_t *)matrix.codes + unit * Codec::kUnitBytes;
        for (int64_t i = 0; i < rows; i++, row += row_bytes) {
            for (int j = 0; j < kPanelUnits * Codec::kUnitBytes; j += 64)
                Isa::prefetch(row + 4 * row_bytes + j);
            alignas(64) TileRow tile;
            for (int column = 0; column < 8; column++)
                Codec::template spread<Isa>(row + column * (Codec::kUnitBytes / 2), tile, column);
            for (int n = 0; n < 4; n++) {
                typename Isa::Line lines[kPanelUnits];
                for (int p = 0; p < kPanelUnits; p++)
                    lines[p] = Isa::load(tile[n][2 * p]);
                Isa::transpose(lines);
                for (int p = 0; p < kPanelUnits; p++)
                    Isa::store(panels.lines + ((p * rows + i) * 4 + n) * 64, lines[p]);
            }
        }
        unpack_scales(matrix, unit, panels.scales);
    }

    static void unpack_scales(const krasis_matrix &matrix, int64_t unit, float *out) {
        const int64_t groups = matrix.k / matrix.group_size;
        for (int64_t g = 0; g < groups; g++) {
            const auto *row = (const typename Codec::Scale *)matrix.scales + g * matrix.n;
            for (int u = 0; u < kPanelUnits; u++) {
                float scales[kUnit];
                Isa::store_floats(scales, marlin_scales<Isa>(row, unit + u, groups == 1));
                for (int lane = 0; lane < kUnit; lane++) {
                    const int64_t column = marlin_column(unit + u, lane) - unit * kUnit;
                    out[(column / kUnit * groups + g) * kUnit + column % kUnit] = scales[lane];
                }
            }
        }
    }
};

// T tokens, all columns of U panels.
template <class Isa, class Codec, int T, int U>
void multiply_block(const Work &work, const Panels &panels, int64_t token, int panel, int64_t unit) {
    const krasis_matrix &matrix = *work.job.matrix;
    const int64_t k = matrix.k, groups = k / matrix.group_size, last = groups_in(work.job);
    const uint8_t *line = panels.lines + panel * k * kUnit;
    const float *scales = panels.scales + panel * groups * kUnit;
    const int8_t *q = work.activations.q + token * k;
    typename Isa::Floats y[T][U];
    for (int t = 0; t < T; t++)
        for (int u = 0; u < U; u++)
            y[t][u] = Isa::floats(0);
    for (int64_t g = 0; g < last; g++, scales += kUnit) {
        typename Isa::Ints sum[T][U];
        for (int t = 0; t < T; t++)
            for (int u = 0; u < U; u++)
                sum[t][u] = Isa::ints(0);
        for (int64_t i = 0; i < matrix.group_size; i += 8, line += 128, q += 8)
            for (int u = 0; u < U; u++) {
                const auto first = Isa::load(line + u * k * kUnit), second = Isa::load(line + u * k * kUnit + 64);
                for (int t = 0; t < T; t++)
                    sum[t][u] = Codec::template dot_lines<Isa>(sum[t][u], first, second, q + t * k);
            }
        for (int t = 0; t < T; t++) {
            const int64_t at = (token + t) * groups + g;
            const auto bias = Isa::ints(-Codec::template kBias<Isa> * work.activations.sum[at]);
            const float step = Codec::kStep * work.activations.scale[at];
            for (int u = 0; u < U; u++) {
                const auto both = Isa::mul(Isa::load_floats(scales + u * groups * kUnit), step);
                y[t][u] = Isa::fma(Isa::to_floats(Isa::add(sum[t][u], bias)), both, y[t][u]);
            }
        }
    }
    for (int t = 0; t < T; t++)
        for (int u = 0; u < U; u++)
            write_columns<Isa>(work.job, token + t, (unit + panel + u) * kUnit, y[t][u]);
}

template <class Isa, class Codec, int T>
void multiply_tokens(const Work &work, const Panels &panels, int64_t unit, int units, int64_t token) {
    int panel = 0;
    for (; panel + Isa::kPanelsAtOnce <= units; panel += Isa::kPanelsAtOnce)
        multiply_block<Isa, Codec, T, Isa::kPanelsAtOnce>(work, panels, token, panel, unit);
    for (; panel < units; panel++)
        multiply_block<Isa, Codec, T, 1>(work, panels, token, panel, unit);
}

// Units [first, last) of columns and every token. The first is the first of a marlin tile.
template <class Isa, class Codec, class Unpack> void multiply_panels(const Work &work, int64_t first, int64_t last) {
    constexpr int kAtOnce = Isa::kTokensAtOnce;
    const krasis_matrix &matrix = *work.job.matrix;
    const Panels panels = panels_of(work);
    for (int64_t unit = first; unit < last; unit += kPanelUnits) {
        const int units = last - unit < kPanelUnits ? (int)(last - unit) : kPanelUnits;
        Unpack::run(matrix, unit, units, panels);
        int64_t token = 0;
        for (; token + kAtOnce <= work.job.m; token += kAtOnce)
            multiply_tokens<Isa, Codec, kAtOnce>(work, panels, unit, units, token);
        for (; token < work.job.m; token++)
            multiply_tokens<Isa, Codec, 1>(work, panels, unit, units, token);
    }
}

} // namespace krasis
