// Attention of few queries over a long cache (flash-decoding, Dao et al. 2023): blocks share out the positions, and a
// second kernel adds up what they found, in one order. 16 rows of a block are the query heads that share a key head,
// token after token; its warps share out a tile's keys for the scores, and the columns of the values for the sums.
#include "attention.cuh"
#include "krasis_cuda_ops.h"

namespace {

constexpr int kRows = 16, kWarps = 4, kThreads = kWarps * kWarp, kMostSplits = 256;
constexpr int kMergeThreads = 256, kMergeColumns = 32;

struct Call {
    const bf16 *q; // [tokens][heads][dim], tokens q_stride apart
    int64_t q_stride;
    int tokens, heads, shared, dim, v_dim, window;
    float scale; // times log2(e)
    KeyRows k, v;
    const int *position;
    int splits;
    float *sums;     // [splits][tokens * heads][v_dim]
    float2 *softmax; // [splits][tokens * heads]: greatest score in powers of 2, sum
};

// kDim and kVDim are at least the dimensions. kOne: values are the leading dimensions of keys. kBytes: of a stored
// value.
template <int kDim, int kVDim, bool kOne, int kBytes> struct Shape {
    static constexpr int kKeys = kDim <= 128 ? 64 : 32;
    static constexpr int kKStride = kDim + 8, kVStride = kOne ? kKStride : kVDim + 8, kPStride = kKeys + 8;
    static constexpr int kQ = kRows * kKStride * 2, kP = kRows * kPStride * 2;
    static constexpr int kSmall = 2 * kWarps * kRows * 4 + 2 * kKeys * 4;
    static constexpr int kTile = kKeys * (kKStride + (kOne ? 0 : kVStride)) * 2;
    static constexpr int kRaw = kKeys * (kDim + (kOne ? 0 : kVDim));
    static constexpr int kStage = kBytes == 2 ? kTile : kRaw;
    static constexpr int kShared = kQ + kP + kSmall + 2 * kStage + (kBytes == 2 ? 0 : kTile);
    static_assert(kShared <= kLeastShared);
};

template <class S, int kDim, int kVDim, bool kOne, int kBytes>
__device__ void copy_tile(char *stage, const Call &call, int head, int first, int end) {
    constexpr bool wide = kBytes == 2;
    copy_rows<S::kKeys, kDim * kBytes, kThreads>(stage, wide ? S::kKStride * 2 : kDim, call.k, head, first, end);
    if (!kOne)
        copy_rows<S::kKeys, kVDim * kBytes, kThreads>(stage + S::kKeys * (wide ? S::kKStride * 2 : kDim),
                                                      wide ? S::kVStride * 2 : kVDim, call.v, head, first, end);
    copy_async_commit();
}

template <int kKeys, int kDim> __device__ void widen_tile(bf16 *to, int stride, const char *from) {
    for (int i = threadIdx.x; i < kKeys * kDim / 4; i += kThreads)
        *(uint2 *)(to + i / (kDim / 4) * stride + i % (kDim / 4) * 4) = widen_four(((const uint32_t *)from)[i]);
}

__device__ float scale_of(const KeyRows &rows, int head, int position, int end) {
    return position < end ? rows.scales[(int64_t)(position % rows.capacity) * rows.scale_stride + head] : 0;
}

template <int kDim, int kVDim, bool kOne, int kBytes>
__global__ void __launch_bounds__(kThreads) attend_split(Call call) {
    follow_previous();
    using S = Shape<kDim, kVDim, kOne, kBytes>;
    constexpr int kKeys = S::kKeys, kOwnKeys = kKeys / kWarps, kTiles = kOwnKeys / 8, kColumns = kVDim / kWarps;
    char *const shared = dynamic_shared();
    bf16 *const q = (bf16 *)shared, *const p = (bf16 *)(shared + S::kQ);
    float *const greatest_of = (float *)(shared + S::kQ + S::kP), *const sums_of = greatest_of + kWarps * kRows;
    float *const k_scales = sums_of + kWarps * kRows, *const v_scales = k_scales + kKeys;
    char *const stages = shared + S::kQ + S::kP + S::kSmall, *const widened = stages + 2 * S::kStage;

    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
    const int head = blockIdx.z, first_row = blockIdx.y * kRows, rows = call.tokens * call.shared;
    const int position = *call.position;
    const Seen seen = seen_by(position, first_row / call.shared, (min(first_row + kRows, rows) - 1) / call.shared,
                              call.window, kKeys, call.splits);
    int tile = blockIdx.x * seen.per_split;
    const int last = min(tile + seen.per_split, seen.tiles);
    if (tile >= last)
        return;

    if (call.dim < kDim)
        clear<S::kShared, kThreads>(shared);
    for (int i = threadIdx.x; i < kRows * kDim / 8; i += kThreads) {
        const int row = min(first_row + i / (kDim / 8), rows - 1), at = i % (kDim / 8) * 8;
        const bf16 *const from = call.q + row / call.shared * call.q_stride +
                                 (int64_t)(head * call.shared + row % call.shared) * call.dim + at;
        if (at < call.dim)
            copy_async(q + i / (kDim / 8) * S::kKStride + at, from);
    }
    copy_tile<S, kDim, kVDim, kOne, kBytes>(stages, call, head, seen.first + tile * kKeys, seen.end);
    float k_scale = 0, v_scale = 0;
    const auto read_scales = [&](int first) {
        if (kBytes == 1 && (int)threadIdx.x < kKeys) {
            k_scale = scale_of(call.k, head, first + threadIdx.x, seen.end);
            v_scale = scale_of(call.v, head, first + threadIdx.x, seen.end);
        }
    };
    read_scales(seen.first + tile * kKeys);

    // Of rows g and g + 8; the sum is of this lane's keys.
    float greatest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, o[kColumns / 8][4] = {};
    const int query[2] = {position + (first_row + g) / call.shared, position + (first_row + g + 8) / call.shared};
    for (int stage = 0; tile < last; tile++, stage ^= 1) {
        const int first = seen.first + tile * kKeys;
        copy_async_wait<0>();
        __syncthreads();
        const char *const raw = stages + stage * S::kStage;
        const bf16 *keys = (const bf16 *)raw;
        if (kBytes == 1) {
            bf16 *const to = (bf16 *)widened;
            widen_tile<kKeys, kDim>(to, S::kKStride, raw);
            if (!kOne)
                widen_tile<kKeys, kVDim>(to + kKeys * S::kKStride, S::kVStride, raw + kKeys * kDim);
            if ((int)threadIdx.x < kKeys)
                k_scales[threadIdx.x] = k_scale, v_scales[threadIdx.x] = v_scale;
            keys = to;
        }
        const bf16 *const values = kOne ? keys : keys + kKeys * S::kKStride;
        if (tile + 1 < last) {
            char *const next = stages + (stage ^ 1) * S::kStage;
            copy_tile<S, kDim, kVDim, kOne, kBytes>(next, call, head, first + kKeys, seen.end);
            read_scales(first + kKeys);
        }
        if (kBytes == 1)
            __syncthreads();

        float s[kTiles][2][4] = {};
        const int own = warp * kOwnKeys;
#pragma unroll
        for (int d = 0; d < kDim; d += 32) {
            uint32_t a[2][4], b[4];
            load_a(a[0], q + d, S::kKStride);
            load_a(a[1], q + d + 16, S::kKStride);
#pragma unroll
            for (int i = 0; i < kTiles; i++) {
                load_keys(b, keys + (own + 8 * i) * S::kKStride + d, S::kKStride);
                multiply_first(s[i][0], a[0], b);
                multiply_second(s[i][1], a[1], b);
            }
        }
        const bool whole = all_see(position + first_row / call.shared, seen.end - 1, first, kKeys, call.window);
        float most[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (int i = 0; i < kTiles; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int key = own + 8 * i + 2 * t + j % 2;
                const float score = (s[i][0][j] + s[i][1][j]) * call.scale * (kBytes == 1 ? k_scales[key] : 1);
                s[i][0][j] = whole || sees(query[j / 2], first + key, call.window) ? score : -INFINITY;
                most[j / 2] = fmaxf(most[j / 2], s[i][0][j]);
            }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            most[r] = quad_max(most[r]);
            if (t == 0)
                greatest_of[warp * kRows + g + 8 * r] = most[r];
        }
        __syncthreads();
        float faded[2], base[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float next = greatest[r];
#pragma unroll
            for (int w = 0; w < kWarps; w++)
                next = fmaxf(next, greatest_of[w * kRows + g + 8 * r]);
            base[r] = next == -INFINITY ? 0 : next;
            faded[r] = fast_exp2(greatest[r] - base[r]);
            greatest[r] = next;
            sum[r] *= faded[r];
        }
#pragma unroll
        for (int i = 0; i < kTiles; i++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float x = fast_exp2(s[i][0][2 * r] - base[r]), y = fast_exp2(s[i][0][2 * r + 1] - base[r]);
                sum[r] += x + y;
                const int key = own + 8 * i + 2 * t;
                if (kBytes == 1)
                    x *= v_scales[key], y *= v_scales[key + 1];
                *(uint32_t *)(p + (g + 8 * r) * S::kPStride + key) = pack_bf16(x, y);
            }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kColumns / 8; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                o[i][j] *= faded[j / 2];
#pragma unroll
        for (int key = 0; key < kKeys; key += 16) {
            uint32_t a[4], b[4];
            load_a(a, p + key, S::kPStride);
#pragma unroll
            for (int i = 0; i < kColumns / 16; i++) {
                load_values(b, values + key * S::kVStride + warp * kColumns + 16 * i, S::kVStride);
                multiply_first(o[2 * i], a, b);
                multiply_second(o[2 * i + 1], a, b);
            }
        }
    }

#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] = quad_sum(sum[r]);
        if (t == 0)
            sums_of[warp * kRows + g + 8 * r] = sum[r];
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = first_row + g + 8 * r;
        if (row >= rows)
            continue;
        const int64_t at = ((int64_t)blockIdx.x * call.tokens + row / call.shared) * call.heads + head * call.shared +
                           row % call.shared;
        float total = 0;
        for (int w = 0; w < kWarps; w++)
            total += sums_of[w * kRows + g + 8 * r];
        if (warp == 0 && t == 0)
            call.softmax[at] = make_float2(greatest[r], total);
#pragma unroll
        for (int i = 0; i < kColumns / 8; i++) {
            const int column = warp * kColumns + 8 * i + 2 * t;
            if (column < call.v_dim)
                *(float2 *)(call.sums + at * call.v_dim + column) = make_float2(o[i][2 * r], o[i][2 * r + 1]);
        }
    }
}

// The weights of the splits in use of a token and head, by the first warp: the sink counts too.
__device__ void weigh_splits(const Call &call, int used, int64_t all, const float *sink, float *weights) {
    const int lane = threadIdx.x % kWarp;
    float2 part[kMostSplits / kWarp];
    float most = sink ? *sink * kLog2E : -INFINITY, sum = 0;
#pragma unroll
    for (int i = 0; i < kMostSplits / kWarp; i++) {
        const int split = i * kWarp + lane;
        part[i] = split < used ? call.softmax[split * all + blockIdx.x] : make_float2(-INFINITY, 0);
        most = fmaxf(most, part[i].x);
    }
    most = warp_max(most);
#pragma unroll
    for (int i = 0; i < kMostSplits / kWarp; i++) {
        part[i].x = fast_exp2(part[i].x - most);
        sum += part[i].y * part[i].x;
    }
    sum = warp_sum(sum) + (sink ? fast_exp2(*sink * kLog2E - most) : 0);
#pragma unroll
    for (int i = 0; i < kMostSplits / kWarp; i++)
        weights[i * kWarp + lane] = part[i].x / sum;
}

// A block a token, head and 32 columns: adds up its splits, and the sink. Eight threads share out the columns, and all
// others the splits, each of which a thread reads before any is weighed.
__global__ void __launch_bounds__(kMergeThreads) merge(Call call, int keys, const float *sinks, bf16 *out) {
    follow_previous();
    constexpr int kGroups = kMergeThreads / (kMergeColumns / 4), kEach = kMostSplits / kGroups;
    __shared__ float weights[kMostSplits];
    __shared__ float memory[kMergeThreads / kWarp * kMergeColumns];
    const int token = blockIdx.x / call.heads, head = blockIdx.x % call.heads;
    const int first_row = (token * call.shared + head % call.shared) / kRows * kRows, rows = call.tokens * call.shared;
    const Seen seen = seen_by(*call.position, first_row / call.shared, (min(first_row + kRows, rows) - 1) / call.shared,
                              call.window, keys, call.splits);
    const int used = (seen.tiles + seen.per_split - 1) / seen.per_split;
    const int64_t all = (int64_t)call.tokens * call.heads;
    const int group = threadIdx.x / (kMergeColumns / 4), lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int own = threadIdx.x % (kMergeColumns / 4) * 4, column = blockIdx.y * kMergeColumns + own;
    float4 parts[kEach];
#pragma unroll
    for (int i = 0; i < kEach; i++) {
        const int split = i * kGroups + group;
        parts[i] = split < used && column < call.v_dim
                       ? read_four(call.sums + (split * all + blockIdx.x) * call.v_dim + column)
                       : make_float4(0, 0, 0, 0);
    }
    if (warp == 0)
        weigh_splits(call, used, all, sinks ? sinks + head : nullptr, weights);
    __syncthreads();
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < kEach; i++) {
        const float w = weights[i * kGroups + group];
        sum = make_float4(sum.x + w * parts[i].x, sum.y + w * parts[i].y, sum.z + w * parts[i].z, sum.w + w * parts[i].w);
    }
#pragma unroll
    for (int step = kMergeColumns / 4; step < kWarp; step *= 2) {
        sum.x += __shfl_xor_sync(0xffffffffu, sum.x, step), sum.y += __shfl_xor_sync(0xffffffffu, sum.y, step);
        sum.z += __shfl_xor_sync(0xffffffffu, sum.z, step), sum.w += __shfl_xor_sync(0xffffffffu, sum.w, step);
    }
    if (lane < kMergeColumns / 4)
        write_four(memory + warp * kMergeColumns + own, sum);
    __syncthreads();
    if (threadIdx.x >= kMergeColumns / 4 || column >= call.v_dim)
        return;
    for (int i = 1; i < kMergeThreads / kWarp; i++) {
        const float4 more = read_four(memory + i * kMergeColumns + own);
        sum = make_float4(sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w);
    }
    write_four(out + (int64_t)blockIdx.x * call.v_dim + column, sum);
}

template <int kDim, int kVDim, bool kOne, int kBytes>
int launch_few(const Call &call, const float *sinks, bf16 *out, void *stream) {
    using S = Shape<kDim, kVDim, kOne, kBytes>;
    const dim3 grid(call.splits, (call.tokens * call.shared + kRows - 1) / kRows, call.heads / call.shared);
    if (const int status = launch(attend_split<kDim, kVDim, kOne, kBytes>, grid, kThreads, S::kShared, stream, call))
        return status;
    const dim3 merging(call.tokens * call.heads, (call.v_dim + kMergeColumns - 1) / kMergeColumns);
    return launch(merge, merging, kMergeThreads, 0, stream, call, S::kKeys, sinks, out);
}

template <int kBytes> int launch_sized(const Call &call, bool one, const float *sinks, bf16 *out, void *stream) {
    const int most = max(call.dim, call.v_dim);
    if (one)
        return launch_few<576, 512, true, kBytes>(call, sinks, out, stream);
    return (most <= 64    ? launch_few<64, 64, false, kBytes>
            : most <= 128 ? launch_few<128, 128, false, kBytes>
                          : launch_few<256, 256, false, kBytes>)(call, sinks, out, stream);
}

KeyRows rows_of(const krasis_cuda_cache *cache) {
    const int bytes = cache->dim * (cache->scales ? 1 : 2);
    return {(const char *)cache->values, (int64_t)cache->heads * bytes, bytes, cache->scales, cache->heads,
            cache->capacity, bytes};
}

} // namespace

extern "C" int krasis_cuda_attention_few(const uint16_t *q, int64_t q_stride, int64_t tokens, int heads,
                                         const krasis_cuda_cache *k, const krasis_cuda_cache *v, int v_dim, int window,
                                         float scale, const float *sinks, const int32_t *position, int splits,
                                         void *workspace, uint16_t *out, void *stream) {
    if (!q || !k || !v || !k->values || !v->values || !position || !workspace || !out)
        return KRASIS_ERROR_NULL;
    const bool one = v->values == k->values;
    const int dim = k->dim, most = one ? 576 : 256, most_v = one ? 512 : 256, fours = k->scales ? 16 : 8;
    if (tokens < 1 || heads < 1 || k->heads < 1 || heads % k->heads || v->heads != k->heads || k->capacity < 1 ||
        v->capacity != k->capacity || dim < 1 || dim > most || v_dim < 1 || v_dim > most_v || v_dim > v->dim ||
        dim % fours || v->dim % fours || v_dim % 8 || q_stride % 8 || window < 0 || splits < 1 ||
        splits > kMostSplits || !(scale > 0) || !k->scales != !v->scales)
        return KRASIS_ERROR_SHAPE;
    if (!aligned_to(q, 16) || !aligned_to((char *)k->values, 16) || !aligned_to((char *)v->values, 16) ||
        !aligned_to((char *)workspace, 16) || !aligned_to(out, 8))
        return KRASIS_ERROR_ALIGNMENT;
    float *const sums = (float *)workspace;
    const Call call{(const bf16 *)q, q_stride, (int)tokens, heads, heads / k->heads, dim, v_dim,
                    window ? window : kNoWindow, scale * kLog2E, rows_of(k), rows_of(v), position, splits, sums,
                    (float2 *)(sums + splits * tokens * heads * v_dim)};
    return k->scales ? launch_sized<1>(call, one, sinks, (bf16 *)out, stream)
                     : launch_sized<2>(call, one, sinks, (bf16 *)out, stream);
}
