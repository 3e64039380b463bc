// Causal depthwise convolution and silu: a thread two channels over a run of tokens.
#include "krasis_cuda_ops.h"
#include "rows.cuh"

namespace {

constexpr int kThreads = 128, kRun = 32;

template <int kWidth>
__global__ void conv(const bf16 *x, int64_t tokens, int64_t stride, int channels, const float *weight, float *state,
                     bf16 *y) {
    follow_previous();
    const int channel = 2 * (blockIdx.x * kThreads + threadIdx.x);
    if (channel >= channels)
        return;
    constexpr int kPast = kWidth - 1;
    const int64_t first = (int64_t)blockIdx.y * kRun;
    const auto input = [&](int64_t token) {
        const uint32_t word = *(const uint32_t *)(x + token * stride + channel);
        return make_float2(low_float(word), high_float(word));
    };
    float2 by[kWidth], past[kPast], seen[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; i++)
        by[i] = *(const float2 *)(weight + (int64_t)i * channels + channel);
#pragma unroll
    for (int i = 0; i < kPast; i++) {
        past[i] = first ? make_float2(0, 0) : *(const float2 *)(state + (int64_t)i * channels + channel);
        const int64_t token = first - kPast + i;
        seen[i] = token < 0 ? past[i] : input(token);
    }
    const int count = (int)min((int64_t)kRun, tokens - first);
#pragma unroll 4
    for (int t = 0; t < count; t++) {
        seen[kPast] = input(first + t);
        float2 sum = make_float2(0, 0);
#pragma unroll
        for (int i = 0; i < kWidth; i++)
            sum.x += by[i].x * seen[i].x, sum.y += by[i].y * seen[i].y;
        *(uint32_t *)(y + (first + t) * channels + channel) = pack_bf16(silu(sum.x), silu(sum.y));
#pragma unroll
        for (int i = 0; i < kPast; i++)
            seen[i] = seen[i + 1];
    }
    // The only block that reads the state also writes it.
    if (first)
        return;
#pragma unroll
    for (int i = 0; i < kPast; i++) {
        const int64_t token = tokens - kPast + i;
        float2 last = past[0];
#pragma unroll
        for (int j = 1; j < kPast; j++)
            if (token + kPast == j)
                last = past[j];
        *(float2 *)(state + (int64_t)i * channels + channel) = token < 0 ? last : input(token);
    }
}

} // namespace

extern "C" int krasis_cuda_conv(const uint16_t *x, int64_t tokens, int64_t stride, int channels, const float *weight,
                                int width, float *state, uint16_t *y, void *stream) {
    if (!x || !weight || !state || !y)
        return KRASIS_ERROR_NULL;
    if (tokens < 1 || channels < 2 || channels % 2 || stride % 2 || width < 2 || width > 4)
        return KRASIS_ERROR_SHAPE;
    if (!aligned_to(x, 4) || !aligned_to(weight, 8) || !aligned_to(state, 8) || !aligned_to(y, 4))
        return KRASIS_ERROR_ALIGNMENT;
    const auto kernel = width == 4 ? conv<4> : width == 3 ? conv<3> : conv<2>;
    const dim3 grid((channels / 2 + kThreads - 1) / kThreads, (tokens + kRun - 1) / kRun);
    return launch(kernel, grid, kThreads, 0, stream, (const bf16 *)x, tokens, stride, channels, weight, state,
                  (bf16 *)y);
}
