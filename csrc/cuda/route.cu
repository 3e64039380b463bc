// From router logits to experts and their weights: a warp a token.
#include "krasis_cuda_ops.h"
#include "rows.cuh"

namespace {

constexpr int kThreads = 128, kTokens = kThreads / kWarp, kMostExperts = 512, kMostChosen = 16;

// Orders as the value does, then lower ids first; never 0.
__device__ uint64_t ranked(float value, int id) {
    const uint32_t bits = __float_as_uint(value + 0.f); // -0 ties with 0
    const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (uint64_t)ordered << 32 | (uint32_t)~id;
}

__device__ uint64_t warp_greatest(uint64_t x) {
#pragma unroll
    for (int step = kWarp / 2; step; step /= 2)
        x = max(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

// kHeld: logits a lane holds, of experts lane, lane + 32, ..
template <int kHeld>
__global__ void route(const float *logits, const float *bias, int64_t tokens, int experts, int chosen, int kind,
                      bool normalize, float scale, int *ids, float *weights) {
    follow_previous();
    const int64_t token = (int64_t)blockIdx.x * kTokens + threadIdx.x / kWarp;
    const int lane = threadIdx.x % kWarp;
    if (token >= tokens)
        return;
    float score[kHeld];
    float greatest = -INFINITY;
#pragma unroll
    for (int i = 0; i < kHeld; i++) {
        const int expert = i * kWarp + lane;
        score[i] = expert < experts ? logits[token * experts + expert] : -INFINITY;
        greatest = fmaxf(greatest, score[i]);
    }
    if (kind == KRASIS_SCORES_SOFTMAX) {
        greatest = warp_max(greatest);
        float sum = 0;
#pragma unroll
        for (int i = 0; i < kHeld; i++)
            sum += score[i] = expf(score[i] - greatest);
        sum = warp_sum(sum);
#pragma unroll
        for (int i = 0; i < kHeld; i++)
            score[i] /= sum;
    } else if (kind == KRASIS_SCORES_SIGMOID) {
#pragma unroll
        for (int i = 0; i < kHeld; i++)
            score[i] = 1 / (1 + expf(-score[i]));
    }
    uint64_t rank[kHeld];
#pragma unroll
    for (int i = 0; i < kHeld; i++) {
        const int expert = i * kWarp + lane;
        rank[i] = expert < experts ? ranked(bias ? score[i] + bias[expert] : score[i], expert) : 0;
    }

    // Lane j keeps the j-th choice.
    int id = 0;
    float weight = 0;
    for (int j = 0; j < chosen; j++) {
        uint64_t best = 0;
#pragma unroll
        for (int i = 0; i < kHeld; i++)
            best = max(best, rank[i]);
        best = warp_greatest(best);
        const int expert = (int)~(uint32_t)best;
        float mine = 0;
#pragma unroll
        for (int i = 0; i < kHeld; i++)
            if (i * kWarp + lane == expert) {
                mine = kind == KRASIS_SCORES_LOGITS && bias ? score[i] + bias[expert] : score[i];
                rank[i] = 0;
            }
        const float found = __shfl_sync(0xffffffffu, mine, expert % kWarp);
        if (lane == j)
            id = expert, weight = found;
    }
    const bool keeps = lane < chosen;
    if (kind == KRASIS_SCORES_LOGITS) {
        const float most = warp_max(keeps ? weight : -INFINITY);
        weight = keeps ? expf(weight - most) : 0;
        weight /= warp_sum(weight);
    }
    const float sum = warp_sum(keeps ? weight : 0);
    if (keeps) {
        ids[token * chosen + lane] = id;
        weights[token * chosen + lane] = (normalize ? weight / sum : weight) * scale;
    }
}

} // namespace

extern "C" int krasis_cuda_route(const float *logits, const float *bias, int64_t tokens, int experts, int chosen,
                                 int scores, int normalize, float scale, int32_t *ids, float *weights, void *stream) {
    if (!logits || !ids || !weights)
        return KRASIS_ERROR_NULL;
    const bool known = scores >= KRASIS_SCORES_SOFTMAX && scores <= KRASIS_SCORES_LOGITS;
    if (!known || tokens < 1 || experts < 1 || experts > kMostExperts || chosen < 1 || chosen > experts ||
        chosen > kMostChosen)
        return KRASIS_ERROR_SHAPE;
    const auto kernel = experts <= 64 ? route<2> : experts <= 128 ? route<4> : experts <= 256 ? route<8> : route<16>;
    return launch(kernel, (tokens + kTokens - 1) / kTokens, kThreads, 0, stream, logits, bias, tokens, experts, chosen,
                  scores, normalize != 0, scale, ids, weights);
}
