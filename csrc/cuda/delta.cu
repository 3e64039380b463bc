// The gated delta rule (Yang et al. 2024, eq. 10), token by token. A block holds 32 columns of a head's memory in
// registers, four lanes a column; what tokens bring is read a chunk ahead and made ready in shared memory.
#include "krasis_cuda_ops.h"
#include "rows.cuh"

namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp, kColumns = 32, kLanes = kThreads / kColumns, kChunk = 16;
constexpr int kTokens = kChunk / kWarps; // of a chunk that a warp makes ready
constexpr float kUnitEps = 1e-6f;

struct Call {
    const bf16 *qkv;
    int64_t qkv_stride;
    const void *beta_step;
    int64_t beta_stride, tokens;
    int key_heads, value_heads, key_dim, value_dim;
    bool beta_bf16;
    const float *rate, *dt_bias;
    float *memory, *out;
};

__device__ float softplus(float x) { return x > 20 ? x : log1pf(expf(x)); }

// Ready for use: keys of length 1, queries shorter by the root of their dimensions.
template <int kDim> struct alignas(16) Chunk {
    float q[kChunk][kDim], k[kChunk][kDim], v[kChunk][kColumns], qk[kChunk], kept[kChunk], beta[kChunk];
};

// As it is stored: a warp's own tokens of q and k, all threads' words of v, the betas of the first threads.
template <int kDim> struct Raw {
    static constexpr int kWords = kDim / 2 / kWarp, kValues = kChunk * kColumns / 2 / kThreads;
    uint32_t q[kTokens][kWords], k[kTokens][kWords], v[kValues];
    float beta = 0, step = 0;

    __device__ void read(const Call &call, int head, int column, int64_t first) {
        const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
        const int key_head = head / (call.value_heads / call.key_heads), keys = call.key_heads * call.key_dim;
#pragma unroll
        for (int t = 0; t < kTokens; t++) {
            const int64_t token = first + warp * kTokens + t;
            const bf16 *const at = call.qkv + token * call.qkv_stride + key_head * call.key_dim;
#pragma unroll
            for (int i = 0; i < kWords; i++) {
                const int word = lane + i * kWarp;
                const bool valid = token < call.tokens && 2 * word < call.key_dim;
                q[t][i] = valid ? ((const uint32_t *)at)[word] : 0;
                k[t][i] = valid ? ((const uint32_t *)(at + keys))[word] : 0;
            }
        }
#pragma unroll
        for (int i = 0; i < kValues; i++) {
            const int word = threadIdx.x + i * kThreads, at = column + word % (kColumns / 2) * 2;
            const int64_t token = first + word / (kColumns / 2);
            const bool valid = token < call.tokens && at < call.value_dim;
            const bf16 *const from = call.qkv + token * call.qkv_stride + 2 * keys + head * call.value_dim + at;
            v[i] = valid ? *(const uint32_t *)from : 0;
        }
        const int64_t token = first + threadIdx.x;
        if (threadIdx.x < kChunk && token < call.tokens) {
            const int64_t at = token * call.beta_stride + head;
            if (call.beta_bf16) {
                beta = to_float(((const bf16 *)call.beta_step)[at]);
                step = to_float(((const bf16 *)call.beta_step)[at + call.value_heads]);
            } else {
                beta = ((const float *)call.beta_step)[at];
                step = ((const float *)call.beta_step)[at + call.value_heads];
            }
        }
    }

    __device__ void prepare(Chunk<kDim> &chunk, float q_scale, float rate, float dt_bias) const {
        const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
        for (int t = 0; t < kTokens; t++) {
            float qq = 0, kk = 0, qk = 0;
#pragma unroll
            for (int i = 0; i < kWords; i++) {
                const float q0 = low_float(q[t][i]), q1 = high_float(q[t][i]);
                const float k0 = low_float(k[t][i]), k1 = high_float(k[t][i]);
                qq += q0 * q0 + q1 * q1, kk += k0 * k0 + k1 * k1, qk += q0 * k0 + q1 * k1;
            }
            const float by_q = rsqrtf(warp_sum(qq) + kUnitEps) * q_scale, by_k = rsqrtf(warp_sum(kk) + kUnitEps);
            qk = warp_sum(qk) * by_q * by_k;
            const int token = warp * kTokens + t;
#pragma unroll
            for (int i = 0; i < kWords; i++) {
                const int at = 2 * (lane + i * kWarp);
                *(float2 *)&chunk.q[token][at] = make_float2(low_float(q[t][i]) * by_q, high_float(q[t][i]) * by_q);
                *(float2 *)&chunk.k[token][at] = make_float2(low_float(k[t][i]) * by_k, high_float(k[t][i]) * by_k);
            }
            if (lane == 0)
                chunk.qk[token] = qk;
        }
#pragma unroll
        for (int i = 0; i < kValues; i++) {
            const int word = threadIdx.x + i * kThreads;
            *(float2 *)&chunk.v[word / (kColumns / 2)][word % (kColumns / 2) * 2] =
                make_float2(low_float(v[i]), high_float(v[i]));
        }
        if (threadIdx.x < kChunk) {
            chunk.beta[threadIdx.x] = 1 / (1 + expf(-beta));
            chunk.kept[threadIdx.x] = expf(rate * softplus(step + dt_bias));
        }
    }
};

__device__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

template <int kDim> __global__ void __launch_bounds__(kThreads) delta(Call call) {
    follow_previous();
    constexpr int kRows = kDim / kLanes;
    __shared__ Chunk<kDim> chunk;
    const int head = blockIdx.x, part = threadIdx.x % kLanes, own = threadIdx.x / kLanes;
    const int first_column = blockIdx.y * kColumns, column = first_column + own;
    const bool inside = column < call.value_dim;
    const auto row = [part](int j) { return j / 4 * 4 * kLanes + 4 * part + j % 4; };
    float *const memory = call.memory + (int64_t)head * call.key_dim * call.value_dim + column;
    float *out = call.out + head * call.value_dim + column;

    Raw<kDim> raw;
    raw.read(call, head, first_column, 0);
    float s[kRows];
#pragma unroll
    for (int j = 0; j < kRows; j++)
        s[j] = inside && row(j) < call.key_dim ? memory[(int64_t)row(j) * call.value_dim] : 0;
    const float q_scale = rsqrtf((float)call.key_dim), rate = call.rate[head], dt_bias = call.dt_bias[head];

    for (int64_t first = 0; first < call.tokens; first += kChunk) {
        __syncthreads();
        raw.prepare(chunk, q_scale, rate, dt_bias);
        __syncthreads();
        raw.read(call, head, first_column, first + kChunk);
        const int count = (int)min((int64_t)kChunk, call.tokens - first);
#pragma unroll 2
        for (int t = 0; t < count; t++) {
            float held[4] = {}, asked[4] = {};
#pragma unroll
            for (int j = 0; j < kRows; j += 4) {
                const float4 k = read_four(&chunk.k[t][row(j)]), q = read_four(&chunk.q[t][row(j)]);
                held[0] += k.x * s[j], held[1] += k.y * s[j + 1];
                held[2] += k.z * s[j + 2], held[3] += k.w * s[j + 3];
                asked[0] += q.x * s[j], asked[1] += q.y * s[j + 1];
                asked[2] += q.z * s[j + 2], asked[3] += q.w * s[j + 3];
            }
            const float kept = chunk.kept[t];
            const float found = quad_sum((held[0] + held[1]) + (held[2] + held[3]));
            const float moved = chunk.beta[t] * (chunk.v[t][own] - kept * found);
            // S^T q after the update, from S before it: only `found` is in the way of the next token.
            const float answer = kept * quad_sum((asked[0] + asked[1]) + (asked[2] + asked[3])) + chunk.qk[t] * moved;
#pragma unroll
            for (int j = 0; j < kRows; j += 4) {
                const float4 k = read_four(&chunk.k[t][row(j)]);
                s[j] = kept * s[j] + k.x * moved, s[j + 1] = kept * s[j + 1] + k.y * moved;
                s[j + 2] = kept * s[j + 2] + k.z * moved, s[j + 3] = kept * s[j + 3] + k.w * moved;
            }
            if (part == 0 && inside)
                *out = answer;
            out += call.value_heads * call.value_dim;
        }
    }
#pragma unroll
    for (int j = 0; j < kRows; j++)
        if (inside && row(j) < call.key_dim)
            memory[(int64_t)row(j) * call.value_dim] = s[j];
}

} // namespace

extern "C" int krasis_cuda_delta(const uint16_t *qkv, int64_t qkv_stride, const void *beta_step, int beta_type,
                                 int64_t beta_stride, int64_t tokens, int key_heads, int value_heads, int key_dim,
                                 int value_dim, const float *rate, const float *dt_bias, float *memory, float *out,
                                 void *stream) {
    if (!qkv || !beta_step || !rate || !dt_bias || !memory || !out)
        return KRASIS_ERROR_NULL;
    if (tokens < 1 || key_heads < 1 || value_heads < 1 || value_heads % key_heads || key_dim < 2 || key_dim > 128 ||
        key_dim % 2 || value_dim < 2 || value_dim % 2 || qkv_stride % 2)
        return KRASIS_ERROR_SHAPE;
    if (!is_type(beta_type))
        return KRASIS_ERROR_TYPE;
    if (!aligned_to(qkv, 4))
        return KRASIS_ERROR_ALIGNMENT;
    const Call call{(const bf16 *)qkv, qkv_stride, beta_step, beta_stride, tokens, key_heads, value_heads, key_dim,
                    value_dim, beta_type == KRASIS_BFLOAT16, rate, dt_bias, memory, out};
    const auto kernel = key_dim <= 64 ? delta<64> : delta<128>;
    return launch(kernel, dim3(value_heads, (value_dim + kColumns - 1) / kColumns), kThreads, 0, stream, call);
}
