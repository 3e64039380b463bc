// What lies around products of routed experts: pairs of token and slot by expert, tiles of rows, the weighted sum.
#include "checks.cuh"

namespace {

constexpr int kThreads = 256; // and pairs of a chunk

/* Turns counts in shared memory into sums of those before; returns the sum of all. One block, kThreads. */
__device__ int scan(int *counts, int size) {
    __shared__ int sums[kThreads];
    const int each = (size + kThreads - 1) / kThreads, first = threadIdx.x * each;
    int mine = 0;
    for (int i = first; i < min(first + each, size); i++)
        mine += counts[i];
    sums[threadIdx.x] = mine;
    __syncthreads();
    for (int step = 1; step < kThreads; step *= 2) {
        const int before = (int)threadIdx.x >= step ? sums[threadIdx.x - step] : 0;
        __syncthreads();
        sums[threadIdx.x] += before;
        __syncthreads();
    }
    int sum = sums[threadIdx.x] - mine;
    for (int i = first; i < min(first + each, size); i++) {
        const int count = counts[i];
        counts[i] = sum;
        sum += count;
    }
    __syncthreads();
    return sums[kThreads - 1];
}

/* counts[expert][chunk] of every chunk of pairs. */
__global__ void count_pairs(const int32_t *ids, int total, int experts, int chunks, int32_t *counts) {
    follow_previous();
    int *mine = (int *)dynamic_shared();
    for (int e = threadIdx.x; e < experts; e += kThreads)
        mine[e] = 0;
    __syncthreads();
    const int pair = blockIdx.x * kThreads + threadIdx.x;
    if (pair < total && ids[pair] >= 0 && ids[pair] < experts)
        atomicAdd(mine + ids[pair], 1);
    __syncthreads();
    for (int e = threadIdx.x; e < experts; e += kThreads)
        counts[(int64_t)e * chunks + blockIdx.x] = mine[e];
}

/* A warp an expert: its counts become those of the chunks before, totals[expert] their sum. */
__global__ void sum_chunks(int experts, int chunks, int32_t *counts, int32_t *totals) {
    follow_previous();
    const int expert = blockIdx.x * (kThreads / kWarp) + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    if (expert >= experts)
        return;
    int32_t *mine = counts + (int64_t)expert * chunks;
    int before = 0;
    for (int first = 0; first < chunks; first += kWarp) {
        const int chunk = first + lane, count = chunk < chunks ? mine[chunk] : 0;
        int sum = count;
        for (int step = 1; step < kWarp; step *= 2) {
            const int other = __shfl_sync(~0u, sum, max(lane - step, 0));
            sum += lane >= step ? other : 0;
        }
        if (chunk < chunks)
            mine[chunk] = before + sum - count;
        before += __shfl_sync(~0u, sum, kWarp - 1);
    }
    if (lane == 0)
        totals[expert] = before;
}

__global__ void place_pairs(const int32_t *ids, int total, int experts, int chunks, const int32_t *counts,
                            const int32_t *totals, int32_t *offsets, int32_t *pairs) {
    follow_previous();
    __shared__ int chunk_ids[kThreads];
    int *starts = (int *)dynamic_shared();
    for (int e = threadIdx.x; e < experts; e += kThreads)
        starts[e] = totals[e];
    const int pair = blockIdx.x * kThreads + threadIdx.x, id = pair < total ? ids[pair] : -1;
    chunk_ids[threadIdx.x] = id;
    __syncthreads();
    const int all = scan(starts, experts);
    if (blockIdx.x == 0) {
        for (int e = threadIdx.x; e < experts; e += kThreads)
            offsets[e] = starts[e];
        if (threadIdx.x == 0)
            offsets[experts] = all;
    }
    int before = 0;
    for (int i = 0; i < (int)threadIdx.x; i++)
        before += chunk_ids[i] == id;
    if (id >= 0 && id < experts)
        pairs[starts[id] + counts[(int64_t)id * chunks + blockIdx.x] + before] = pair;
}

/* One block. tiles[0]: their number; then {expert, first row, rows} of each. */
__global__ void make_tiles(const int32_t *offsets, const int32_t *list, int count, int rows, int4 *tiles) {
    follow_previous();
    int *starts = (int *)dynamic_shared();
    for (int i = threadIdx.x; i < count; i += kThreads)
        starts[i] = (offsets[list[i] + 1] - offsets[list[i]] + rows - 1) / rows;
    __syncthreads();
    const int all = scan(starts, count);
    if (threadIdx.x == 0)
        tiles[0] = {all, 0, 0, 0};
    for (int i = threadIdx.x; i < count; i += kThreads) {
        const int expert = list[i], first = offsets[expert], last = offsets[expert + 1];
        int4 *to = tiles + 1 + starts[i];
        for (int row = first; row < last; row += rows)
            *to++ = {expert, row, min(rows, last - row), 0};
    }
}

template <class T> __device__ float read(const T *p);
template <> __device__ float read(const float *p) { return *p; }
template <> __device__ float read(const bf16 *p) { return to_float(*p); }
__device__ void write(float *p, float value) { *p = value; }
__device__ void write(bf16 *p, float value) { *p = to_bf16(value); }

/* Four columns a thread, a token a row of blocks. */
template <class T>
__global__ void combine(const bf16 *y, const int32_t *ids, const float *weights, const int64_t *records, int slots,
                        int hidden, T *out, int add) {
    follow_previous();
    const int column = 4 * (blockIdx.x * kThreads + threadIdx.x);
    const int64_t token = blockIdx.y;
    if (column >= hidden)
        return;
    float sum[4] = {};
    for (int slot = 0; slot < slots; slot++) {
        const int64_t pair = token * slots + slot;
        const int id = ids[pair];
        if (id < 0 || (records && !records[id]))
            continue;
        const uint2 values = *reinterpret_cast<const uint2 *>(y + pair * hidden + column);
        const float weight = weights[pair];
        sum[0] += weight * low_float(values.x), sum[1] += weight * high_float(values.x);
        sum[2] += weight * low_float(values.y), sum[3] += weight * high_float(values.y);
    }
    T *to = out + token * hidden + column;
    for (int i = 0; i < 4; i++)
        write(to + i, add ? read(to + i) + sum[i] : sum[i]);
}

} // namespace

extern "C" int krasis_cuda_sort(const int32_t *ids, int tokens, int slots, int experts, int32_t *offsets, int32_t *pairs,
                                int32_t *scratch, void *stream) {
    if (!ids || !offsets || !pairs || !scratch)
        return KRASIS_ERROR_NULL;
    if (tokens < 1 || slots < 1 || experts < 1 || experts > 8192 || (int64_t)tokens * slots >= 1 << 30)
        return KRASIS_ERROR_SHAPE;
    const int total = tokens * slots, chunks = (total + kThreads - 1) / kThreads, shared = experts * 4;
    int32_t *counts = scratch + experts;
    if (const int status = launch(count_pairs, chunks, kThreads, shared, stream, ids, total, experts, chunks, counts))
        return status;
    const int warps = kThreads / kWarp;
    if (const int status =
            launch(sum_chunks, (experts + warps - 1) / warps, kThreads, 0, stream, experts, chunks, counts, scratch))
        return status;
    return launch(place_pairs, chunks, kThreads, shared, stream, ids, total, experts, chunks, counts, scratch, offsets,
                  pairs);
}

extern "C" int krasis_cuda_tiles(const int32_t *offsets, const int32_t *list, int count, int tile, int32_t *tiles,
                                 void *stream) {
    if (!offsets || !list || !tiles)
        return KRASIS_ERROR_NULL;
    if (count < 1 || count > 8192 || !known_tile(tile))
        return KRASIS_ERROR_SHAPE;
    return launch(make_tiles, 1, kThreads, count * 4, stream, offsets, list, count, rows_of_tile(tile), (int4 *)tiles);
}

extern "C" int krasis_cuda_combine(const uint16_t *y, const int32_t *ids, const float *weights, const int64_t *records,
                                   int tokens, int slots, int hidden, void *out, int out_type, int add, void *stream) {
    if (!y || !ids || !weights)
        return KRASIS_ERROR_NULL;
    if (const int status = check_output(out, out_type))
        return status;
    if (tokens < 1 || slots < 1 || hidden < 8 || hidden % 8)
        return KRASIS_ERROR_SHAPE;
    const dim3 grid((hidden / 4 + kThreads - 1) / kThreads, tokens);
    if (out_type == KRASIS_FLOAT32)
        return launch(combine<float>, grid, kThreads, 0, stream, (const bf16 *)y, ids, weights, records, slots, hidden,
                      (float *)out, add);
    return launch(combine<bf16>, grid, kThreads, 0, stream, (const bf16 *)y, ids, weights, records, slots, hidden,
                  (bf16 *)out, add);
}
