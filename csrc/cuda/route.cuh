// From a token's router logits to its experts and their weights, by a warp.
#pragma once

#include "krasis_cuda_ops.h"
#include "rows.cuh"

constexpr int kMostExperts = 512, kMostChosen = 16;

struct Way {
    const float *bias; // [experts] or null
    int experts, chosen, scores, normalize;
    float scale;
};

inline bool known_way(const Way &way) {
    return way.scores >= KRASIS_SCORES_SOFTMAX && way.scores <= KRASIS_SCORES_LOGITS && way.experts >= 1 &&
           way.experts <= kMostExperts && way.chosen >= 1 && way.chosen <= way.experts && way.chosen <= kMostChosen;
}

// Orders as the value does, then lower ids first; never 0.
__device__ inline uint64_t ranked(float value, int id) {
    const uint32_t bits = __float_as_uint(value + 0.f); // -0 ties with 0
    const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (uint64_t)ordered << 32 | (uint32_t)~id;
}

__device__ inline uint64_t warp_greatest(uint64_t x) {
#pragma unroll
    for (int step = kWarp / 2; step; step /= 2)
        x = max(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

// kHeld: logits a lane holds, of experts lane, lane + 32, .. All of logits, ids and weights are the token's.
template <int kHeld>
__device__ inline void route_token(const Way &way, const float *logits, int *ids, float *weights) {
    const int lane = threadIdx.x % kWarp, experts = way.experts, chosen = way.chosen, kind = way.scores;
    const float *const bias = way.bias;
    float score[kHeld];
    float greatest = -INFINITY;
#pragma unroll
    for (int i = 0; i < kHeld; i++) {
        const int expert = i * kWarp + lane;
        score[i] = expert < experts ? __ldcg(logits + expert) : -INFINITY;
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
        ids[lane] = id;
        weights[lane] = (way.normalize ? weight / sum : weight) * way.scale;
    }
}
