// Rows of an e4m3 cache as bfloat16, for products of many queries: a warp a row and head.
#include "attention.cuh"
#include "cache.cuh"

namespace {

constexpr int kThreads = 256, kMostBlocks = 2048;

__global__ void widen(Cache cache, const int *position, int tokens, int window, bf16 *out) {
    follow_previous();
    const int end = *position + tokens, lane = threadIdx.x % kWarp;
    const int first = max(end - cache.capacity, window ? max(*position - window + 1, 0) : 0);
    const int64_t rows = (int64_t)(end - first) * cache.heads, step = gridDim.x * (kThreads / kWarp);
    for (int64_t i = blockIdx.x * (kThreads / kWarp) + threadIdx.x / kWarp; i < rows; i += step) {
        const int64_t row = (first + i / cache.heads) % cache.capacity * cache.heads + i % cache.heads;
        const float scale = cache.scales[row];
        const uint32_t *const from = (const uint32_t *)((const char *)cache.values + row * cache.dim);
        for (int j = lane; j < cache.dim / 4; j += kWarp) {
            const uint2 four = widen_four(from[j]);
            write_four(out + row * cache.dim + 4 * j,
                       make_float4(low_float(four.x) * scale, high_float(four.x) * scale, low_float(four.y) * scale,
                                   high_float(four.y) * scale));
        }
    }
}

} // namespace

extern "C" int krasis_cuda_widen(const krasis_cuda_cache *cache, const int32_t *position, int64_t tokens, int window,
                                 uint16_t *out, void *stream) {
    if (!cache || !cache->values || !cache->scales || !position || !out)
        return KRASIS_ERROR_NULL;
    if (tokens < 1 || tokens > cache->capacity || cache->heads < 1 || cache->dim < 4 || cache->dim % 4 || window < 0)
        return KRASIS_ERROR_SHAPE;
    if (!aligned_to((char *)cache->values, 4) || !aligned_to(out, 8))
        return KRASIS_ERROR_ALIGNMENT;
    const int64_t blocks = ((int64_t)cache->capacity * cache->heads * kWarp + kThreads - 1) / kThreads;
    const Cache rows{cache->values, cache->scales, cache->capacity, cache->heads, cache->dim};
    return launch(widen, min(blocks, (int64_t)kMostBlocks), kThreads, 0, stream, rows, position, (int)tokens, window,
                  (bf16 *)out);
}
