// What both kernels of attention do: tiles of keys and values in shared memory, products of them, what a query sees.
#pragma once

#include "rows.cuh"

constexpr float kLog2E = 1.44269504f;
constexpr int kNoWindow = 0x7fffffff; // what a window of 0 stands for
constexpr int kLeastShared = 99 << 10; // what a block may have on every GPU that kernels are built for

// Keys or values of a sequence; position p lies in row p % capacity.
struct KeyRows {
    const char *values;
    int64_t row_bytes, head_bytes;
    const float *scales; // [capacity][heads], of e4m3 values
    int scale_stride, capacity, bytes; // bytes: of a row and head
};

// Positions first to end, at most kKeys of them, into rows `stride` bytes apart. Rows behind the end repeat the last
// one, and what is behind a row's own bytes stays as it is: both cost less than zeros. What is seen fits into the
// capacity, so that a tile wraps at most once.
template <int kKeys, int kBytes, int kThreads>
__device__ void copy_rows(char *to, int stride, const KeyRows &from, int head, int first, int end) {
    constexpr int kChunks = kBytes / 16;
    static_assert(kKeys * kChunks % kThreads == 0);
    const char *const base = from.values + head * from.head_bytes;
    const int start = first % from.capacity, last = end - 1 - first;
#pragma unroll 2
    for (int i = 0; i < kKeys * kChunks / kThreads; i++) {
        const int chunk = i * kThreads + threadIdx.x, row = chunk / kChunks, at = chunk % kChunks * 16;
        int kept = start + min(row, last);
        kept = kept < from.capacity ? kept : kept - from.capacity;
        if (at < from.bytes)
            copy_async(to + row * stride + at, base + kept * from.row_bytes + at);
    }
}

// Zeros, so that dimensions behind those there are add nothing.
template <int kBytes, int kThreads> __device__ void clear(char *shared) {
    for (int i = 16 * threadIdx.x; i < kBytes; i += 16 * kThreads)
        *(uint4 *)(shared + i) = make_uint4(0, 0, 0, 0);
    __syncthreads();
}

// The positions that queries first_token to last_token see, in tiles of kKeys, dealt out to splits.
struct Seen {
    int first, end, tiles, per_split;
};

__device__ inline Seen seen_by(int position, int first_token, int last_token, int window, int keys, int splits) {
    Seen seen;
    seen.end = position + last_token + 1;
    seen.first = max(position + first_token - window + 1, 0);
    seen.tiles = (seen.end - seen.first + keys - 1) / keys;
    seen.per_split = (seen.tiles + splits - 1) / splits;
    return seen;
}

__device__ inline bool sees(int query, int key, int window) { return (unsigned)(query - key) < (unsigned)window; }

// Whether queries low to high all see the keys from first on.
__device__ inline bool all_see(int low, int high, int first, int keys, int window) {
    return first + keys - 1 <= low && first > high - window;
}

// A lane's share of an A fragment: 16 rows, 16 columns from `at`.
__device__ inline void load_a(uint32_t (&a)[4], const bf16 *rows, int stride) {
    const int lane = threadIdx.x % kWarp;
    load_matrix_x4(a, rows + lane % 16 * stride + lane / 16 * 8);
}

// Two B fragments of 8 keys: 32 dimensions.
__device__ inline void load_keys(uint32_t (&b)[4], const bf16 *rows, int stride) {
    const int lane = threadIdx.x % kWarp;
    load_matrix_x4(b, rows + lane % 8 * stride + lane / 8 * 8);
}

// B fragments of 16 keys for two times 8 columns.
__device__ inline void load_values(uint32_t (&b)[4], const bf16 *rows, int stride) {
    const int lane = threadIdx.x % kWarp;
    load_matrix_x4_turned(b, rows + lane % 16 * stride + lane / 16 * 8);
}

__device__ inline void multiply_first(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
    const uint32_t half[2] = {b[0], b[1]};
    mma_bf16(d, a, half);
}

__device__ inline void multiply_second(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
    const uint32_t half[2] = {b[2], b[3]};
    mma_bf16(d, a, half);
}

// Over the four lanes that share a row of a fragment.
__device__ inline float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ inline float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Two e4m3 in the low halves' upper bytes -> bf16, exactly: the exponent's bias is made up for by 2^120.
__device__ inline uint32_t widen_two(uint32_t t) {
    return mul_bf16x2(and_or(t >> 4, 0x07f007f0u, t & 0x80008000u), 0x7b807b80u);
}

// Four e4m3 -> four bf16.
__device__ inline uint2 widen_four(uint32_t bytes) {
    return make_uint2(widen_two(permute(bytes, 0, 0x1404)), widen_two(permute(bytes, 0, 0x3424)));
}
