// Pointwise operations, the embedding, and the choice of the likeliest token.
#include "krasis_cuda_ops.h"
#include "rows.cuh"

namespace {

constexpr int kThreads = 256;

// y = x sigmoid(gate); four elements a thread.
__global__ void gate(const bf16 *x, int64_t x_stride, const bf16 *gate, int64_t gate_stride, int64_t fours, int n,
                     bf16 *y) {
    follow_previous();
    const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    if (i >= fours)
        return;
    const int64_t token = 4 * i / n, column = 4 * i % n;
    const float4 one = read_four(x + token * x_stride + column), by = read_four(gate + token * gate_stride + column);
    write_four(y + 4 * i, make_float4(one.x * sigmoid(by.x), one.y * sigmoid(by.y), one.z * sigmoid(by.z),
                                      one.w * sigmoid(by.w)));
}

struct Door {
    const void *weights; // [n] or null: always open
    bool bf16s;
    const bf16 *x;
    int64_t x_stride;
    int n;
};

// sigmoid(x . weights) of a token. All threads must call.
__device__ float opened(const Door &door, int64_t token, float *sums) {
    if (!door.weights)
        return 1;
    float sum = 0;
    for (int i = 4 * threadIdx.x; i < door.n; i += 4 * kThreads) {
        const float4 x = read_four(door.x + token * door.x_stride + i);
        const float4 w = door.bf16s ? read_four((const bf16 *)door.weights + i) : read_four((const float *)door.weights + i);
        sum += (x.x * w.x + x.y * w.y) + (x.z * w.z + x.w * w.w);
    }
    return sigmoid(block_sum(sum, sums));
}

// y = silu(a) b as far as the door is open; a token a row of blocks, four elements a thread.
__global__ void swiglu(const bf16 *a, const bf16 *b, int64_t stride, int n, Door door, bf16 *y) {
    follow_previous();
    __shared__ float sums[kWarp];
    const int64_t token = blockIdx.x;
    const float open = opened(door, token, sums);
    const int column = 4 * (blockIdx.y * kThreads + threadIdx.x);
    if (column >= n)
        return;
    const float4 one = read_four(a + token * stride + column), two = read_four(b + token * stride + column);
    write_four(y + token * n + column, make_float4(silu(one.x) * two.x * open, silu(one.y) * two.y * open,
                                                   silu(one.z) * two.z * open, silu(one.w) * two.w * open));
}

// A row a block. An id out of range counts as the nearest one within: it can't be refused here.
__global__ void embed(const bf16 *table, int rows, int n, const int *ids, float *out) {
    follow_previous();
    const int id = min(max(ids[blockIdx.x], 0), rows - 1);
    for (int i = 4 * threadIdx.x; i < n; i += 4 * blockDim.x)
        write_four(out + (int64_t)blockIdx.x * n + i, read_four(table + (int64_t)id * n + i));
}

struct Best {
    float value;
    int at;
};

__device__ Best better(Best a, Best b) { return b.value > a.value || (b.value == a.value && b.at < a.at) ? b : a; }

__device__ Best block_best(Best mine, Best *shared) {
#pragma unroll
    for (int step = kWarp / 2; step; step /= 2)
        mine = better(mine, {__shfl_xor_sync(~0u, mine.value, step), __shfl_xor_sync(~0u, mine.at, step)});
    if (threadIdx.x % kWarp == 0)
        shared[threadIdx.x / kWarp] = mine;
    __syncthreads();
    for (int i = 0; i < kThreads / kWarp; i++)
        mine = better(mine, shared[i]);
    return mine;
}

__global__ void best_of_parts(const float *logits, int n, Best *parts) {
    follow_previous();
    __shared__ float memory[2 * kThreads / kWarp];
    Best mine{-INFINITY, 0};
    for (int i = blockIdx.x * kThreads + threadIdx.x; i < n; i += gridDim.x * kThreads)
        mine = better(mine, {logits[i], i});
    mine = block_best(mine, (Best *)memory);
    if (threadIdx.x == 0)
        parts[blockIdx.x] = mine;
}

__global__ void best_part(const Best *parts, int count, int *token, int *position, int tokens) {
    follow_previous();
    __shared__ float memory[2 * kThreads / kWarp];
    Best mine{-INFINITY, 0};
    for (int i = threadIdx.x; i < count; i += kThreads)
        mine = better(mine, parts[i]);
    mine = block_best(mine, (Best *)memory);
    if (threadIdx.x == 0) {
        *token = mine.at;
        if (position)
            *position += tokens;
    }
}

unsigned blocks_of(int64_t items) { return (items + kThreads - 1) / kThreads; }

} // namespace

extern "C" int krasis_cuda_gate(const uint16_t *x, int64_t x_stride, const uint16_t *by, int64_t by_stride,
                                int64_t tokens, int n, uint16_t *y, void *stream) {
    if (!x || !by || !y)
        return KRASIS_ERROR_NULL;
    if (tokens < 1 || !in_fours(n, x_stride) || !in_fours(n, by_stride))
        return KRASIS_ERROR_SHAPE;
    if (!aligned_to(x, 8) || !aligned_to(by, 8) || !aligned_to(y, 8))
        return KRASIS_ERROR_ALIGNMENT;
    const int64_t fours = tokens * n / 4;
    return launch(gate, blocks_of(fours), kThreads, 0, stream, (const bf16 *)x, x_stride, (const bf16 *)by, by_stride,
                  fours, n, (bf16 *)y);
}

extern "C" int krasis_cuda_swiglu(const uint16_t *gate_up, int64_t stride, int64_t tokens, int n, const uint16_t *x,
                                  int64_t x_stride, int k, const void *door, int door_type, uint16_t *y, void *stream) {
    if (!gate_up || !y || (door && !x))
        return KRASIS_ERROR_NULL;
    if (tokens < 1 || !in_fours(n, stride) || (door && !in_fours(k, x_stride)))
        return KRASIS_ERROR_SHAPE;
    if (door && !is_type(door_type))
        return KRASIS_ERROR_TYPE;
    const bool wide = door_type == KRASIS_FLOAT32;
    if (!aligned_to(gate_up, 8) || !aligned_to(y, 8) || !aligned_to(x, 8) ||
        !aligned_to((const char *)door, wide ? 16 : 8))
        return KRASIS_ERROR_ALIGNMENT;
    const dim3 grid(tokens, blocks_of(n / 4));
    const bf16 *const both = (const bf16 *)gate_up;
    return launch(swiglu, grid, kThreads, 0, stream, both, both + n, stride, n,
                  Door{door, !wide, (const bf16 *)x, x_stride, k}, (bf16 *)y);
}

extern "C" int krasis_cuda_embed(const uint16_t *table, int rows, int n, const int32_t *ids, int64_t tokens,
                                 float *out, void *stream) {
    if (!table || !ids || !out)
        return KRASIS_ERROR_NULL;
    if (tokens < 1 || rows < 1 || !in_fours(n, n))
        return KRASIS_ERROR_SHAPE;
    if (!aligned_to(table, 8) || !aligned_to(out, 16))
        return KRASIS_ERROR_ALIGNMENT;
    return launch(embed, tokens, row_threads(n), 0, stream, (const bf16 *)table, rows, n, ids, out);
}

extern "C" int krasis_cuda_greatest(const float *logits, int n, void *parts, int32_t *token, int32_t *position,
                                    int tokens, void *stream) {
    if (!logits || !parts || !token)
        return KRASIS_ERROR_NULL;
    if (n < 1)
        return KRASIS_ERROR_SHAPE;
    if (!aligned_to(parts, 8))
        return KRASIS_ERROR_ALIGNMENT;
    const unsigned blocks = min(blocks_of(n), (unsigned)KRASIS_CUDA_PARTS);
    if (const int status = launch(best_of_parts, blocks, kThreads, 0, stream, logits, n, (Best *)parts))
        return status;
    return launch(best_part, 1, kThreads, 0, stream, (const Best *)parts, (int)blocks, token, position, tokens);
}
