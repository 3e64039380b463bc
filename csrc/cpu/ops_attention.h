// Attention of one token's heads over cached rows as they lie. A run of positions is attended to by itself; the results
// of all runs are then joined in order, so that no sum depends on how the work was split.
#pragma once

#include "ops_rows.h"

namespace krasis {

// e4m3 without its NaN, exactly: exponents of 7 less, and what has none is a multiple of 2^-9.
template <class Isa> typename Isa::Floats widen_e4m3(const uint8_t *p) {
    const auto bytes = Isa::load_bytes(p), magnitude = Isa::masked(bytes, 0x7f);
    const auto sign = Isa::as_floats(Isa::add(Isa::ints(0x3f800000), Isa::template shifted<24>(Isa::masked(bytes, 0x80))));
    const auto normal = Isa::as_floats(Isa::add(Isa::ints(120 << 23), Isa::template shifted<20>(magnitude)));
    const auto below = Isa::min(Isa::sub(Isa::to_floats(magnitude), Isa::floats(8)), Isa::floats(0));
    return Isa::mul(Isa::fma(below, Isa::floats(0x1p-10f), normal), sign);
}

// dim cached values of a position and head as floats, zeros up to a multiple of 16.
template <class Isa> void read_row(const krasis_rows &rows, int64_t position, int64_t head, int64_t dim, float *out) {
    const int64_t at = position * rows.stride + head * rows.head_stride;
    const int size = rows.type == KRASIS_FLOAT32 ? 4 : rows.type == KRASIS_BFLOAT16 ? 2 : 1;
    const char *const from = (const char *)rows.values + at * size;
    for (int64_t i = 0; i < dim; i += kUnit) {
        const void *p = from + i * size;
        char part[kUnit * sizeof(float)] = {};
        if (dim - i < kUnit)
            p = memcpy(part, p, (size_t)((dim - i) * size));
        if (rows.type == KRASIS_FLOAT32)
            Isa::store_floats(out + i, Isa::load_floats((const float *)p));
        else if (rows.type == KRASIS_BFLOAT16)
            Isa::store_floats(out + i, Isa::widen((const uint16_t *)p));
        else
            Isa::store_floats(out + i, Isa::mul(widen_e4m3<Isa>((const uint8_t *)p),
                                                rows.scales[position * rows.scale_stride + head]));
    }
}

// Keys of up to 16 positions as [dim][16], zeros where there are fewer. `tiles` is as large as keys.
template <class Isa>
void transpose_keys(const krasis_rows &rows, int64_t position, int64_t count, int64_t head, int64_t dim, float *row,
                    float *tiles, float *keys) {
    constexpr int kSide = 8, kTile = kSide * kUnit; // [16 positions][8 dimensions]
    for (int64_t p = 0; p < kUnit; p++) {
        if (p < count)
            read_row<Isa>(rows, position + p, head, dim, row);
        else
            memset(row, 0, (size_t)padded(dim) * sizeof *row);
        for (int64_t i = 0; i < dim; i += kSide)
            memcpy(tiles + i / kSide * kTile + p * kSide, row + i, kSide * sizeof *row);
    }
    for (int64_t i = 0; i < dim; i += kSide)
        for (int half = 0; half < 2; half++) {
            const float *const tile = tiles + i / kSide * kTile + half * kSide * kSide;
            typename Isa::Line lines[4];
            for (int l = 0; l < 4; l++)
                lines[l] = Isa::load(tile + l * kUnit);
            Isa::transpose(lines);
            for (int l = 0; l < 4; l++) {
                float *const at = keys + (i + 2 * l) * kUnit + half * kSide;
                Isa::store_halves((uint8_t *)at, (uint8_t *)(at + kUnit), lines[l]);
            }
        }
}

// scores[h][kRun] of kCount heads with the 16 keys of transpose_keys, 64 dimensions at a time: short sums are more exact.
template <class Isa, int kCount>
void score(const float *q, int64_t q_stride, const float *keys, int64_t dim, float *scores) {
    constexpr int64_t kPart = 64;
    for (int64_t first = 0; first < dim; first += kPart) {
        typename Isa::Floats sums[kCount];
        for (int h = 0; h < kCount; h++)
            sums[h] = Isa::floats(0);
        for (int64_t i = first; i < dim && i < first + kPart; i++) {
            const auto key = Isa::load_floats(keys + i * kUnit);
            for (int h = 0; h < kCount; h++)
                sums[h] = Isa::fma(Isa::floats(q[h * q_stride + i]), key, sums[h]);
        }
        for (int h = 0; h < kCount; h++) {
            float *const at = scores + h * kRun;
            Isa::store_floats(at, first ? Isa::add(Isa::load_floats(at), sums[h]) : sums[h]);
        }
    }
}

// Adds to sums[h] the values of `count` positions by their weights[h][kRun].
template <class Isa, int kCount>
void add_values(const float *weights, const float *values, int64_t dim, int64_t count, float *sums, int64_t stride) {
    for (int64_t i = 0; i < dim; i += kUnit) {
        typename Isa::Floats sum[kCount];
        for (int h = 0; h < kCount; h++)
            sum[h] = Isa::load_floats(sums + h * stride + i);
        for (int64_t t = 0; t < count; t++) {
            const auto value = Isa::load_floats(values + t * dim + i);
            for (int h = 0; h < kCount; h++)
                sum[h] = Isa::fma(Isa::floats(weights[h * kRun + t]), value, sum[h]);
        }
        for (int h = 0; h < kCount; h++)
            Isa::store_floats(sums + h * stride + i, sum[h]);
    }
}

// Scores of a run become weights; their greatest and the sum of the weights.
template <class Isa> void weigh(float *scores, int64_t count, float *greatest, float *total) {
    for (int64_t i = count; i < padded(count); i++)
        scores[i] = -INFINITY;
    auto most = Isa::load_floats(scores);
    for (int64_t i = kUnit; i < count; i += kUnit)
        most = Isa::max(most, Isa::load_floats(scores + i));
    *greatest = Isa::largest(most);
    auto sum = Isa::floats(0);
    for (int64_t i = 0; i < count; i += kUnit) {
        const auto weight = exp<Isa>(Isa::sub(Isa::load_floats(scores + i), Isa::floats(*greatest)));
        Isa::store_floats(scores + i, weight);
        sum = Isa::add(sum, weight);
    }
    *total = Isa::sum(sum);
}

// Calls action.template operator()<n>(first) for as many heads at once as registers hold, then for fewer.
template <class Isa, class Action> void in_registers(int heads, const Action &action) {
    constexpr int kMost = Isa::kTokensAtOnce < 4 ? 4 : Isa::kTokensAtOnce;
    int h = 0;
    for (; h + kMost <= heads; h += kMost)
        action.template operator()<kMost>(h);
    for (; h + 4 <= heads; h += 4)
        action.template operator()<4>(h);
    for (; h < heads; h++)
        action.template operator()<1>(h);
}

template <class Isa> void attend(const Attention &call, const AttentionPiece &piece) {
    const int64_t dim = padded(call.dim), v_dim = padded(call.v_dim);
    float *const q = piece.scratch, *const scores = q + kHeads * dim, *const rows = scores + kHeads * kRun;
    for (int h = 0; h < piece.heads; h++)
        for (int64_t i = 0; i < call.dim; i += kUnit) {
            const float *const from = call.q + piece.token * call.q_stride + (piece.head + h) * (int64_t)call.dim + i;
            Isa::store_floats(q + h * dim + i, Isa::mul(load_up_to<Isa>(from, call.dim - i), call.scale));
        }

    const int64_t kv_head = piece.head / (call.heads / call.kv_heads);
    int64_t first = piece.begin, end = first + kRun;
    first = first_of(call, piece.token) > first ? first_of(call, piece.token) : first;
    end = end_of(call, piece.token) < end ? end_of(call, piece.token) : end;
    float *const tiles = rows + padded(call.dim), *const keys = tiles + kUnit * dim;
    for (int64_t t = first; t < end; t += kUnit) {
        transpose_keys<Isa>(call.k, t, end - t, kv_head, call.dim, rows, tiles, keys);
        in_registers<Isa>(piece.heads, [&]<int kCount>(int h) {
            score<Isa, kCount>(q + h * dim, dim, keys, call.dim, scores + h * kRun + (t - first));
        });
    }

    for (int h = 0; h < piece.heads; h++) {
        float *const sums = piece.partial + h * piece.partial_stride;
        memset(sums, 0, (size_t)v_dim * sizeof *sums);
        weigh<Isa>(scores + h * kRun, end - first, sums + v_dim, sums + v_dim + 1);
    }
    for (int64_t t = first; t < end; t += kRowsAtOnce) {
        const int64_t count = end - t < kRowsAtOnce ? end - t : kRowsAtOnce;
        for (int64_t i = 0; i < count; i++)
            read_row<Isa>(call.v, t + i, kv_head, call.v_dim, rows + i * v_dim);
        in_registers<Isa>(piece.heads, [&]<int kCount>(int h) {
            add_values<Isa, kCount>(scores + h * kRun + (t - first), rows, v_dim, count,
                                    piece.partial + h * piece.partial_stride, piece.partial_stride);
        });
    }
}

template <class Isa> float first_lane(typename Isa::Floats x) {
    float lanes[kUnit];
    Isa::store_floats(lanes, x);
    return lanes[0];
}

template <class Isa>
void combine(const Attention &call, int32_t head, float *partial, int64_t stride, int64_t runs, float *out) {
    const int64_t v_dim = padded(call.v_dim);
    float most = partial[v_dim];
    for (int64_t r = 1; r < runs; r++)
        most = partial[r * stride + v_dim] > most ? partial[r * stride + v_dim] : most;
    auto total = Isa::floats(0);
    if (call.sinks) {
        most = call.sinks[head] > most ? call.sinks[head] : most;
        total = exp<Isa>(Isa::floats(call.sinks[head] - most));
    }
    for (int64_t r = 0; r < runs; r++) {
        float *const at = partial + r * stride + v_dim; // what was the greatest score becomes the weight of the run
        const auto weight = exp<Isa>(Isa::floats(at[0] - most));
        total = Isa::fma(weight, Isa::floats(at[1]), total);
        at[0] = first_lane<Isa>(weight);
    }
    for (int64_t i = 0; i < call.v_dim; i += kUnit) {
        auto sum = Isa::floats(0);
        for (int64_t r = 0; r < runs; r++) {
            const float *const at = partial + r * stride;
            sum = Isa::fma(Isa::floats(at[v_dim]), Isa::load_floats(at + i), sum);
        }
        store_up_to<Isa>(out + i, call.v_dim - i, Isa::div(sum, total));
    }
}

} // namespace krasis
