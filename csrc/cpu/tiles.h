// Products with many tokens on AMX: tiles of 16 tokens x 64 k by 64 k x 16 columns, 32 tokens and 32 columns at once.
#pragma once

#include "panel.h"

namespace krasis {

// The operand of ldtilecfg: palette 1, sums in tiles 0 to 3, activations in 4 and 5, numbers in 6 and 7.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    explicit TileConfig(int depth) {
        for (int i = 0; i < 8; i++) {
            const bool activations = i == 4 || i == 5, numbers = i >= 6;
            row_bytes[i] = activations ? depth : 64;
            rows[i] = numbers ? depth / 4 : kTileTokens;
        }
    }
};

// All columns of two panels for R x 16 tokens, of which `tokens` are real: rows of activations go on that far.
template <class Isa, class Codec, int R>
void multiply_tile_block(const Work &work, const Panels &panels, int64_t token, int tokens, int panel, int64_t unit) {
    const krasis_matrix &matrix = *work.job.matrix;
    const int64_t k = matrix.k, size = matrix.group_size, groups = k / size, depth = size < 64 ? size : 64;
    const int64_t last = groups_in(work.job);
    const uint8_t *line = panels.lines + panel * k * kUnit;
    const float *scales = panels.scales + panel * groups * kUnit;
    const int8_t *q = work.activations.q + token * k;
    alignas(64) float y[R * kTileTokens][2][kUnit] = {};
    alignas(64) int32_t sum[R][2][kTileTokens][kUnit];
    for (int64_t g = 0; g < last; g++, scales += kUnit) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t i = 0; i < size; i += depth, line += depth * kUnit, q += depth) {
            _tile_loadd(6, line, 64);
            _tile_loadd(7, line + k * kUnit, 64);
            _tile_loadd(4, q, k);
            _tile_dpbsud(0, 4, 6);
            _tile_dpbsud(1, 4, 7);
            if (R == 2) {
                _tile_loadd(5, q + kTileTokens * k, k);
                _tile_dpbsud(2, 5, 6);
                _tile_dpbsud(3, 5, 7);
            }
        }
        _tile_stored(0, sum[0][0], 64);
        _tile_stored(1, sum[0][1], 64);
        if (R == 2) {
            _tile_stored(2, sum[R - 1][0], 64);
            _tile_stored(3, sum[R - 1][1], 64);
        }
        const typename Isa::Floats scale[2] = {Isa::load_floats(scales), Isa::load_floats(scales + groups * kUnit)};
        for (int t = 0; t < tokens; t++) {
            const int64_t at = (token + t) * groups + g;
            const auto bias = Isa::ints(-Codec::template kBias<Isa> * work.activations.sum[at]);
            const float step = Codec::kStep * work.activations.scale[at];
            for (int u = 0; u < 2; u++) {
                const auto dot = Isa::add(Isa::load_ints(sum[t / kTileTokens][u][t % kTileTokens]), bias);
                const auto so_far = Isa::load_floats(y[t][u]);
                Isa::store_floats(y[t][u], Isa::fma(Isa::to_floats(dot), Isa::mul(scale[u], step), so_far));
            }
        }
    }
    for (int t = 0; t < tokens; t++)
        for (int u = 0; u < 2; u++)
            write_columns<Isa>(work.job, token + t, (unit + panel + u) * kUnit, Isa::load_floats(y[t][u]));
}

template <class Isa, class Codec, class Unpack> void multiply_tiles(const Work &work, int64_t first, int64_t last) {
    const krasis_matrix &matrix = *work.job.matrix;
    const Panels panels = panels_of(work);
    const TileConfig config(matrix.group_size < 64 ? matrix.group_size : 64);
    _tile_loadconfig(&config);
    for (int64_t unit = first; unit < last; unit += kPanelUnits) {
        Unpack::run(matrix, unit, kPanelUnits, panels);
        for (int panel = 0; panel < kPanelUnits && unit + panel < last; panel += 2)
            for (int64_t token = 0; token < work.job.m; token += 2 * kTileTokens) {
                const int64_t left = work.job.m - token;
                if (left > kTileTokens)
                    multiply_tile_block<Isa, Codec, 2>(work, panels, token, left < 32 ? (int)left : 32, panel, unit);
                else
                    multiply_tile_block<Isa, Codec, 1>(work, panels, token, (int)left, panel, unit);
            }
    }
    _tile_release();
}

template <class Isa> constexpr Kernels with_tiles(Kernels kernels) {
    using Int4Codec = InterleavedNibbles<Int4>;
    using Mxfp4Codec = InterleavedNibbles<Mxfp4>;
    constexpr int kCpu = KRASIS_LAYOUT_CPU, kMarlin = KRASIS_LAYOUT_MARLIN;
    auto &many = kernels.multiply_many;
    many[KRASIS_INT4][kCpu] = multiply_tiles<Isa, Int4Codec, UnpackInterleavedNibbles<Isa, Int4>>;
    many[KRASIS_INT4][kMarlin] = multiply_tiles<Isa, Int4Codec, UnpackMarlin<Isa, MarlinNibbles<Int4>>>;
    many[KRASIS_INT8][kCpu] = multiply_tiles<Isa, InterleavedInt8, UnpackInterleavedInt8<Isa>>;
    many[KRASIS_INT8][kMarlin] = multiply_tiles<Isa, InterleavedInt8, UnpackMarlin<Isa, MarlinInt8>>;
    many[KRASIS_MXFP4][kCpu] = multiply_tiles<Isa, Mxfp4Codec, UnpackInterleavedNibbles<Isa, Mxfp4>>;
    many[KRASIS_MXFP4][kMarlin] = multiply_tiles<Isa, Mxfp4Codec, UnpackMarlin<Isa, MarlinNibbles<Mxfp4>>>;
    return kernels;
}

} // namespace krasis
