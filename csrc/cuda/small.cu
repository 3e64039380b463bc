// Pointwise operations, the embedding, and the choice of the likeliest token.
#include "krasis_cuda_ops.h"
#include "rows.cuh"

namespace {

constexpr int kThreads = 256;

enum class Form { kGate, kSwiglu };

// y = a sigmoid(b), or silu(a) b; four elements a thread.
template <Form form>
__global__ void pointwise(const bf16 *a, int64_t a_stride, const bf16 *b, int64_t b_stride, int64_t fours, int n,
                          bf16 *y) {
    follow_previous();
    const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    if (i >= fours)
        return;
    const int64_t token = 4 * i / n, column = 4 * i % n;
    const float4 one = read_four(a + token * a_stride + column), two = read_four(b + token * b_stride + column);
    const auto of = [](float x, float y) { return form == Form::kGate ? x * sigmoid(y) : silu(x) * y; };
    write_four(y + 4 * i, make_float4(of(one.x, two.x), of(one.y, two.y), of(one.z, two.z), of(one.w, two.w)));
}

// out += sigmoid(gate) y; where there is no gate, out += y.
template <class Gate>
__global__ void add_gated(float *out, const bf16 *y, int64_t y_stride, const Gate *gate, int64_t gate_stride,
                          int64_t fours, int n) {
    follow_previous();
    const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    if (i >= fours)
        return;
    const int64_t token = 4 * i / n, column = 4 * i % n;
    float open = 1;
    if constexpr (sizeof(Gate) == sizeof(float))
        open = gate ? sigmoid(gate[token * gate_stride]) : 1;
    else
        open = gate ? sigmoid(to_float(gate[token * gate_stride])) : 1;
    const float4 sum = read_four(out + 4 * i), more = read_four(y + token * y_stride + column);
    write_four(out + 4 * i, make_float4(sum.x + open * more.x, sum.y + open * more.y, sum.z + open * more.z,
                                        sum.w + open * more.w));
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

int launch_pointwise(Form form, const uint16_t *a, int64_t a_stride, const uint16_t *b, int64_t b_stride,
                     int64_t tokens, int n, uint16_t *y, void *stream) {
    if (!a || !b || !y)
        return KRASIS_ERROR_NULL;
    if (tokens < 1 || !in_fours(n, a_stride) || !in_fours(n, b_stride))
        return KRASIS_ERROR_SHAPE;
    if (!aligned_to(a, 8) || !aligned_to(b, 8) || !aligned_to(y, 8))
        return KRASIS_ERROR_ALIGNMENT;
    const int64_t fours = tokens * n / 4;
    const auto kernel = form == Form::kGate ? pointwise<Form::kGate> : pointwise<Form::kSwiglu>;
    return launch(kernel, blocks_of(fours), kThreads, 0, stream, (const bf16 *)a, a_stride, (const bf16 *)b, b_stride,
                  fours, n, (bf16 *)y);
}

} // namespace

extern "C" int krasis_cuda_gate(const uint16_t *x, int64_t x_stride, const uint16_t *gate, int64_t gate_stride,
                                int64_t tokens, int n, uint16_t *y, void *stream) {
    return launch_pointwise(Form::kGate, x, x_stride, gate, gate_stride, tokens, n, y, stream);
}

extern "C" int krasis_cuda_swiglu(const uint16_t *gate_up, int64_t stride, int64_t tokens, int n, uint16_t *y,
                                  void *stream) {
    return launch_pointwise(Form::kSwiglu, gate_up, stride, gate_up + n, stride, tokens, n, y, stream);
}

extern "C" int krasis_cuda_add_gated(float *out, const uint16_t *y, int64_t y_stride, const void *gate, int gate_type,
                                     int64_t gate_stride, int64_t tokens, int n, void *stream) {
    if (!out || !y)
        return KRASIS_ERROR_NULL;
    if (tokens < 1 || !in_fours(n, y_stride))
        return KRASIS_ERROR_SHAPE;
    if (!aligned_to(out, 16) || !aligned_to(y, 8))
        return KRASIS_ERROR_ALIGNMENT;
    const int64_t fours = tokens * n / 4;
    if (gate && !is_type(gate_type))
        return KRASIS_ERROR_TYPE;
    if (gate_type == KRASIS_BFLOAT16)
        return launch(add_gated<bf16>, blocks_of(fours), kThreads, 0, stream, out, (const bf16 *)y, y_stride,
                      (const bf16 *)gate, gate_stride, fours, n);
    return launch(add_gated<float>, blocks_of(fours), kThreads, 0, stream, out, (const bf16 *)y, y_stride,
                  (const float *)gate, gate_stride, fours, n);
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
