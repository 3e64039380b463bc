/* Strips of 64 columns of a packed matrix times at most eight rows, as fast as the weights come.
 *
 * Weights are the first operand of mma and rows of x the eight columns of its second: codes go from memory straight to
 * registers and become bf16 exactly; a group's sum is scaled in float32. Warps take batches of k in turn, a batch being 8
 * loads of 16 bytes a lane, and load the next one while they multiply. Sums of warps, and of blocks that split k, are
 * added in a fixed order.
 */
#pragma once

#include "weights.cuh"

constexpr int kFewRows = 8, kMostWarps = 8;
constexpr int kLoads = 8; // of 16 bytes a lane in a batch

/* A tile's columns through all of k. */
template <class Codec> struct Strip {
    static constexpr int kTileBytes = 512 * Codec::kVectors, kTileScales = kTileColumns * Codec::kScaleBytes;
    static constexpr int kLevels = kLoads / Codec::kVectors, kBatch = kLevels * kTileDepth;
    static constexpr int kRowBytes = kBatch * 2 + 16; // of x in shared memory: 16 more, for eight rows in all banks

    const char *codes, *scales;
    int64_t pitch, scale_pitch; // bytes of a row of tiles
    int k, group_bits;
    bool one_group;

    __device__ Strip(const void *codes, const void *scales, int k, int n, int group, int tile)
        : codes((const char *)codes + (int64_t)tile * kTileBytes),
          scales((const char *)scales + (int64_t)tile * kTileScales), pitch((int64_t)n / kTileColumns * kTileBytes),
          scale_pitch((int64_t)n / kTileColumns * kTileScales), k(k), group_bits(log2_group(group)),
          one_group(group == k) {}

    /* Without the first `features` of k, whole groups. */
    __device__ Strip from(int features) const {
        Strip rest = *this;
        rest.codes += features / kTileDepth * pitch, rest.scales += (features >> group_bits) * scale_pitch;
        rest.k -= features;
        return rest;
    }

    __device__ int batches() const { return (k + kBatch - 1) / kBatch; }
};

struct Rows {
    const bf16 *x;
    int64_t ldx;
    int m, k_in;
};

/* The rows' share of a batch, into shared memory of the warp. */
template <class Codec> __device__ inline void load_rows(const Rows &rows, int number, char *x) {
    using S = Strip<Codec>;
    constexpr int kChunks = S::kBatch / 8;
    const int lane = threadIdx.x % kWarp, k = number * S::kBatch;
    for (int i = lane; i < rows.m * kChunks; i += kWarp) {
        const int row_of_x = i / kChunks, at = k + i % kChunks * 8;
        const bool inside = at < rows.k_in;
        copy_async(x + row_of_x * S::kRowBytes + i % kChunks * 16, rows.x + row_of_x * rows.ldx + (inside ? at : 0),
                   inside);
    }
    copy_async_commit();
}

template <class Codec> struct Batch {
    uint4 codes[Strip<Codec>::kLevels][Codec::kVectors];
    uint4 scales; // lane 4 g + t: those of the batch's group t

    __device__ void load(const Strip<Codec> &strip, int number) {
        using S = Strip<Codec>;
        const int lane = threadIdx.x % kWarp, k = number * S::kBatch;
        const char *at = strip.codes + number * S::kLevels * strip.pitch + lane * Codec::kVectors * 16;
#pragma unroll
        for (int level = 0; level < S::kLevels; level++)
#pragma unroll
            for (int v = 0; v < Codec::kVectors; v++)
                codes[level][v] =
                    k + level * kTileDepth < strip.k ? load_fixed(at + level * strip.pitch + v * 16) : uint4{};
        const int row = min((k >> strip.group_bits) + lane % 4, (strip.k >> strip.group_bits) - 1);
        scales = Codec::scales(strip.scales + row * strip.scale_pitch, lane / 4, strip.one_group);
    }

    __device__ void multiply(const Strip<Codec> &strip, const Rows &rows, const char *x, float (&sums)[4][4]) const {
        using S = Strip<Codec>;
        const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4, group_bits = strip.group_bits - 4;
        const Scaling<Codec> exact;
        float group[4][4] = {};
#pragma unroll
        for (int level = 0; level < S::kLevels; level++) {
            uint32_t b[2] = {};
            if (g < rows.m) {
                const char *at = x + g * S::kRowBytes + level * 32 + t * 4;
                b[0] = *reinterpret_cast<const uint32_t *>(at), b[1] = *reinterpret_cast<const uint32_t *>(at + 16);
            }
#pragma unroll
            for (int w = 0; w < 4; w++) {
                uint32_t a[4];
                Codec::fragment(codes[level], w, a);
#pragma unroll
                for (uint32_t &pair : a)
                    pair = exact.weights(pair);
                mma_bf16(group[w], a, b);
            }
            if (level == S::kLevels - 1 || (level % 2 && ((level + 1) & ((1 << group_bits) - 1)) == 0))
                add_group(level >> group_bits, group, sums);
        }
    }

    __device__ void add_group(int number, float (&group)[4][4], float (&sums)[4][4]) const {
        const int source = threadIdx.x % kWarp / 4 * 4 + number;
        const uint4 mine = {__shfl_sync(~0u, scales.x, source), __shfl_sync(~0u, scales.y, source),
                            __shfl_sync(~0u, scales.z, source), __shfl_sync(~0u, scales.w, source)};
#pragma unroll
        for (int w = 0; w < 4; w++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                sums[w][c] += scale_of(mine, 2 * w + c / 2) * group[w][c];
                group[w][c] = 0;
            }
    }
};

/* Batches first, first + step, ... before last, by one warp. x: its own shared memory, 2 x m rows. The first weights are
 * read before the previous kernel has ended, unless the caller has waited for it; x never is. */
template <class Codec>
__device__ inline void sum_batches(const Strip<Codec> &strip, const Rows &rows, int first, int last, int step, char *x,
                                   float (&sums)[4][4]) {
    char *here = x, *there = x + rows.m * Strip<Codec>::kRowBytes;
    Batch<Codec> now, next;
    if (first < last)
        now.load(strip, first);
    wait_for_previous();
    if (first < last)
        load_rows<Codec>(rows, first, here);
    for (int batch = first; batch < last; batch += step) {
        if (batch + step < last) {
            next.load(strip, batch + step);
            load_rows<Codec>(rows, batch + step, there);
            copy_async_wait<1>();
        } else {
            copy_async_wait<0>();
        }
        __syncwarp();
        now.multiply(strip, rows, here, sums);
        __syncwarp();
        now = next;
        char *other = here;
        here = there, there = other;
    }
}

template <class Codec> constexpr int shared_few(int m, int warps) {
    const int x = 2 * m * Strip<Codec>::kRowBytes * warps, sums = (warps + 1) * m * kTileColumns * 4;
    return x > sums ? x : sums;
}

/* Adds what the block's warps have, times 2^shift, in order of warps: m x 64 sums for each of `parts` equal runs of warps,
 * in shared memory behind those of the warps. All threads must call. */
__device__ inline float *add_warps(const float (&sums)[4][4], int shift, int m, int parts) {
    const int warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const int each = warps / parts, count = m * kTileColumns;
    float *shared = (float *)dynamic_shared(), *all = shared + warps * count;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < 4; w++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int row = lane % 4 * 2 + c % 2, column = 16 * w + lane / 4 + c / 2 * 8;
            if (row < m)
                shared[warp * count + row * kTileColumns + column] = sums[w][c] * (1 << shift);
        }
    __syncthreads();
    for (int i = threadIdx.x; i < parts * count; i += blockDim.x) {
        float sum = 0;
        for (int other = 0; other < each; other++)
            sum += shared[(i / count * each + other) * count + i % count];
        all[i] = sum;
    }
    __syncthreads();
    return all;
}

/* Adds `count` sums of `splits` blocks of a unit, in order of blocks, in the block that comes last: true there. */
__device__ inline bool add_splits(float *sums, int count, int64_t unit, int split, int splits, float *partials,
                                  int32_t *counters) {
    if (splits == 1)
        return true;
    __shared__ bool last;
    float *mine = partials + unit * splits * count;
    for (int i = threadIdx.x; i < count; i += blockDim.x)
        mine[split * count + i] = sums[i];
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        last = atomicAdd(counters + unit, 1) == splits - 1;
    __syncthreads();
    if (!last)
        return false;
    __threadfence();
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        float sum = 0;
        for (int other = 0; other < splits; other++)
            sum += __ldcg(mine + other * count + i);
        sums[i] = sum;
    }
    if (threadIdx.x == 0)
        counters[unit] = 0;
    __syncthreads();
    return true;
}
