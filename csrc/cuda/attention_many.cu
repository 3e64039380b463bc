// Attention of many queries (FlashAttention-2, Dao 2023): a block 64 queries of a head, a warp 16 of them, over tiles
// of keys and values that are copied while the one before is worked on.
#include "attention.cuh"
#include "krasis_cuda_ops.h"

namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp, kRows = 16 * kWarps;

struct Call {
    const bf16 *q; // [tokens][heads][dim], tokens q_stride apart
    int64_t q_stride;
    int tokens, heads, shared, dim, v_dim, window;
    float scale; // times log2(e)
    KeyRows k, v;
    const float *sinks;
    const int *position;
    bf16 *out; // [tokens][heads][v_dim]
};

// kDim and kVDim are at least the dimensions. Queries of up to 192 stay in registers, and are lent the second stage on
// their way there.
template <int kDim, int kVDim> struct Shape {
    static constexpr int kKeys = kDim <= 192 ? 64 : 32, kKStride = kDim + 8, kVStride = kVDim + 8;
    static constexpr bool kHeld = kDim <= 192;
    static constexpr int kQ = kRows * kKStride * 2, kStage = kKeys * (kKStride + kVStride) * 2;
    static constexpr int kShared = 2 * kStage + (kHeld ? 0 : kQ);
    static_assert((!kHeld || kQ <= kStage) && kShared <= kLeastShared);
};

template <int kDim, int kVDim> __device__ void copy_tile(char *stage, const Call &call, int head, int first, int end) {
    using S = Shape<kDim, kVDim>;
    copy_rows<S::kKeys, kDim * 2, kThreads>(stage, S::kKStride * 2, call.k, head, first, end);
    char *const values = stage + S::kKeys * S::kKStride * 2;
    copy_rows<S::kKeys, kVDim * 2, kThreads>(values, S::kVStride * 2, call.v, head, first, end);
    copy_async_commit();
}

template <int kDim, int kVDim> __global__ void __launch_bounds__(kThreads, kDim <= 128 ? 3 : 2) attend(Call call) {
    follow_previous();
    using S = Shape<kDim, kVDim>;
    constexpr int kKeys = S::kKeys;
    char *const stages = dynamic_shared();
    bf16 *const q = (bf16 *)(stages + (S::kHeld ? 1 : 2) * S::kStage);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
    // The last queries see most: they begin first.
    const int first_token = (gridDim.x - 1 - blockIdx.x) * kRows, head = blockIdx.y, kv_head = head / call.shared;
    const int position = *call.position;
    const Seen seen = seen_by(position, first_token, min(first_token + kRows, call.tokens) - 1, call.window, kKeys, 1);

    if (call.dim < kDim)
        clear<S::kShared, kThreads>(stages);
    for (int i = threadIdx.x; i < kRows * kDim / 8; i += kThreads) {
        const int token = min(first_token + i / (kDim / 8), call.tokens - 1), at = i % (kDim / 8) * 8;
        if (at < call.dim)
            copy_async(q + i / (kDim / 8) * S::kKStride + at,
                       call.q + token * call.q_stride + (int64_t)head * call.dim + at);
    }
    copy_tile<kDim, kVDim>(stages, call, kv_head, seen.first, seen.end);
    const bf16 *const own_q = q + warp * 16 * S::kKStride;
    uint32_t held[S::kHeld ? kDim / 16 : 1][4];
    if constexpr (S::kHeld) {
        copy_async_wait<0>();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kDim / 16; i++)
            load_a(held[i], own_q + 16 * i, S::kKStride);
    }

    // Of rows g and g + 8; the greatest score is not scaled yet, the sum is of this lane's keys.
    float greatest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, o[kVDim / 8][4] = {};
    const int query[2] = {position + first_token + warp * 16 + g, position + first_token + warp * 16 + g + 8};
    for (int tile = 0; tile < seen.tiles; tile++) {
        const int first = seen.first + tile * kKeys;
        copy_async_wait<0>();
        __syncthreads();
        const bf16 *const keys = (const bf16 *)(stages + tile % 2 * S::kStage);
        const bf16 *const values = keys + kKeys * S::kKStride;
        if (tile + 1 < seen.tiles)
            copy_tile<kDim, kVDim>(stages + (tile + 1) % 2 * S::kStage, call, kv_head, first + kKeys, seen.end);

        float s[kKeys / 8][4] = {};
#pragma unroll
        for (int d = 0; d < kDim; d += 32) {
            uint32_t a[2][4], b[4];
            if constexpr (!S::kHeld) {
                load_a(a[0], own_q + d, S::kKStride);
                load_a(a[1], own_q + d + 16, S::kKStride);
            }
#pragma unroll
            for (int i = 0; i < kKeys / 8; i++) {
                load_keys(b, keys + 8 * i * S::kKStride + d, S::kKStride);
                multiply_first(s[i], S::kHeld ? held[S::kHeld ? d / 16 : 0] : a[0], b);
                multiply_second(s[i], S::kHeld ? held[S::kHeld ? d / 16 + 1 : 0] : a[1], b);
            }
        }
        // Only tiles at the ends of what the warp's queries see hold keys that one of them does not.
        const int low = position + first_token + warp * 16;
        if (!all_see(low, low + 15, first, kKeys, call.window)) {
#pragma unroll
            for (int i = 0; i < kKeys / 8; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    s[i][j] = sees(query[j / 2], first + 8 * i + 2 * t + j % 2, call.window) ? s[i][j] : -INFINITY;
        }
        float most[2] = {-INFINITY, -INFINITY}, base[2], faded[2];
#pragma unroll
        for (int i = 0; i < kKeys / 8; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                most[j / 2] = fmaxf(most[j / 2], s[i][j]);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float next = fmaxf(greatest[r], quad_max(most[r]));
            base[r] = next == -INFINITY ? 0 : next * call.scale;
            faded[r] = fast_exp2(greatest[r] * call.scale - base[r]);
            greatest[r] = next;
            sum[r] *= faded[r];
        }
        // The further on, the rarer is a greater score.
        if (__ballot_sync(0xffffffffu, faded[0] < 1 || faded[1] < 1)) {
#pragma unroll
            for (int i = 0; i < kVDim / 8; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    o[i][j] *= faded[j / 2];
        }
#pragma unroll
        for (int key = 0; key < kKeys; key += 16) {
            uint32_t a[4], b[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float *const two = &s[key / 8 + i / 2][i % 2 * 2];
                two[0] = fast_exp2(two[0] * call.scale - base[i % 2]);
                two[1] = fast_exp2(two[1] * call.scale - base[i % 2]);
                sum[i % 2] += two[0] + two[1];
                a[i] = pack_bf16(two[0], two[1]);
            }
#pragma unroll
            for (int i = 0; i < kVDim / 16; i++) {
                load_values(b, values + key * S::kVStride + 16 * i, S::kVStride);
                multiply_first(o[2 * i], a, b);
                multiply_second(o[2 * i + 1], a, b);
            }
        }
    }

#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int token = first_token + warp * 16 + g + 8 * r;
        float total = quad_sum(sum[r]);
        if (token >= call.tokens)
            continue;
        if (call.sinks)
            total += fast_exp2(call.sinks[head] * kLog2E - greatest[r] * call.scale);
        const float by = 1 / total;
        uint32_t *const out = (uint32_t *)(call.out + ((int64_t)token * call.heads + head) * call.v_dim);
#pragma unroll
        for (int i = 0; i < kVDim / 8; i++)
            if (8 * i < call.v_dim)
                out[4 * i + t] = pack_bf16(o[i][2 * r] * by, o[i][2 * r + 1] * by);
    }
}

template <int kDim, int kVDim> int launch_many(const Call &call, void *stream) {
    const dim3 grid((call.tokens + kRows - 1) / kRows, call.heads);
    return launch(attend<kDim, kVDim>, grid, kThreads, Shape<kDim, kVDim>::kShared, stream, call);
}

} // namespace

extern "C" int krasis_cuda_attention_many(const uint16_t *q, int64_t q_stride, int64_t tokens, int heads, int kv_heads,
                                          int dim, int v_dim, const uint16_t *k, int64_t k_stride,
                                          int64_t k_head_stride, const uint16_t *v, int64_t v_stride,
                                          int64_t v_head_stride, int capacity, int window, float scale,
                                          const float *sinks, const int32_t *position, uint16_t *out, void *stream) {
    if (!q || !k || !v || !position || !out)
        return KRASIS_ERROR_NULL;
    const bool in_eights = dim % 8 == 0 && v_dim % 8 == 0 && q_stride % 8 == 0 && k_stride % 8 == 0 &&
                           k_head_stride % 8 == 0 && v_stride % 8 == 0 && v_head_stride % 8 == 0;
    if (tokens < 1 || kv_heads < 1 || heads < 1 || heads > 65535 || heads % kv_heads || capacity < 1 || window < 0 ||
        !in_eights || !(scale > 0) || dim < 1 || dim > 256 || v_dim < 1 || v_dim > 256)
        return KRASIS_ERROR_SHAPE;
    if (!aligned_to(q, 16) || !aligned_to(k, 16) || !aligned_to(v, 16) || !aligned_to(out, 4))
        return KRASIS_ERROR_ALIGNMENT;
    const Call call{(const bf16 *)q, q_stride, (int)tokens, heads, heads / kv_heads, dim, v_dim,
                    window ? window : kNoWindow, scale * kLog2E,
                    {(const char *)k, 2 * k_stride, 2 * k_head_stride, nullptr, 0, capacity, 2 * dim},
                    {(const char *)v, 2 * v_stride, 2 * v_head_stride, nullptr, 0, capacity, 2 * v_dim},
                    sinks, position, (bf16 *)out};
    const int most = max(dim, v_dim);
    return (most <= 64                    ? launch_many<64, 64>
            : most <= 128                 ? launch_many<128, 128>
            : dim <= 192 && v_dim <= 128 ? launch_many<192, 128>
                                          : launch_many<256, 256>)(call, stream);
}
