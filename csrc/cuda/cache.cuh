// Rows kept of a sequence: position p lies in row p % capacity, so that what a window leaves is overwritten.
#pragma once

#include "krasis_cuda_ops.h"
#include "rows.cuh"

constexpr float kMostE4m3 = 448, kLeastRow = 1e-12f;

struct Cache {
    void *values;  // [capacity][heads][dim], bf16 or, with scales, e4m3; null where nothing is kept
    float *scales; // [capacity][heads] or null
    int capacity, heads, dim;
};

// A warp puts a row's dim / 2 words of two bf16 there, which `words(i)` gives. A scale is greatest / 448.
template <class Words> __device__ void store_row(const Cache &cache, int position, int head, Words words) {
    const int lane = threadIdx.x % kWarp;
    const int64_t row = (int64_t)(position % cache.capacity) * cache.heads + head;
    if (!cache.scales) {
        uint32_t *const to = (uint32_t *)cache.values + row * (cache.dim / 2);
        for (int i = lane; i < cache.dim / 2; i += kWarp)
            to[i] = words(i);
        return;
    }
    float greatest = kLeastRow;
    for (int i = lane; i < cache.dim / 2; i += kWarp)
        greatest = fmaxf(greatest, fmaxf(fabsf(low_float(words(i))), fabsf(high_float(words(i)))));
    const float scale = warp_max(greatest) / kMostE4m3;
    uint16_t *const to = (uint16_t *)cache.values + row * (cache.dim / 2);
    for (int i = lane; i < cache.dim / 2; i += kWarp)
        to[i] = to_e4m3(low_float(words(i)) / scale) | to_e4m3(high_float(words(i)) / scale) << 8;
    if (lane == 0)
        cache.scales[row] = scale;
}
