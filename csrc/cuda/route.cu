// From router logits to experts and their weights: a warp a token.
#include "route.cuh"

namespace {

constexpr int kThreads = 128, kTokens = kThreads / kWarp;

template <int kHeld> __global__ void route(const float *logits, int64_t tokens, Way way, int *ids, float *weights) {
    follow_previous();
    const int64_t token = (int64_t)blockIdx.x * kTokens + threadIdx.x / kWarp;
    if (token < tokens)
        route_token<kHeld>(way, logits + token * way.experts, ids + token * way.chosen, weights + token * way.chosen);
}

} // namespace

extern "C" int krasis_cuda_route(const float *logits, const float *bias, int64_t tokens, int experts, int chosen,
                                 int scores, int normalize, float scale, int32_t *ids, float *weights, void *stream) {
    if (!logits || !ids || !weights)
        return KRASIS_ERROR_NULL;
    const Way way{bias, experts, chosen, scores, normalize, scale};
    if (tokens < 1 || !known_way(way))
        return KRASIS_ERROR_SHAPE;
    const auto kernel = experts <= 64 ? route<2> : experts <= 128 ? route<4> : experts <= 256 ? route<8> : route<16>;
    return launch(kernel, (tokens + kTokens - 1) / kTokens, kThreads, 0, stream, logits, tokens, way, ids, weights);
}
