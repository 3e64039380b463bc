// What kernels over rows share: four elements at once, sums over a block, pointwise functions.
#pragma once

#include "device.cuh"

__device__ inline float4 read_four(const float *p) { return *reinterpret_cast<const float4 *>(p); }

__device__ inline float4 read_four(const bf16 *p) {
    const uint2 words = *reinterpret_cast<const uint2 *>(p);
    return make_float4(low_float(words.x), high_float(words.x), low_float(words.y), high_float(words.y));
}

__device__ inline void write_four(float *p, float4 x) { *reinterpret_cast<float4 *>(p) = x; }

__device__ inline void write_four(bf16 *p, float4 x) {
    *reinterpret_cast<uint2 *>(p) = make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
}

__device__ inline float sum_of_squares(float4 x) { return x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w; }

__device__ inline float sigmoid(float x) { return 1 / (1 + __expf(-x)); }
__device__ inline float silu(float x) { return x / (1 + __expf(-x)); }

// Of all threads of a block of whole warps, in one order; `sums` is shared, one for each warp.
__device__ inline float block_sum(float x, float *sums) {
    const int warps = blockDim.x / kWarp;
    x = warp_sum(x);
    if (threadIdx.x % kWarp == 0)
        sums[threadIdx.x / kWarp] = x;
    __syncthreads();
    const int lane = threadIdx.x % kWarp;
    return warp_sum(lane < warps ? sums[lane] : 0);
}

// The next power of two of warps that gives a thread four elements, a block's most at the end.
inline int row_threads(int64_t n) {
    int threads = kWarp;
    while (threads < 1024 && threads * 4 < n)
        threads *= 2;
    return threads;
}

inline bool is_type(int type) { return type == KRASIS_FLOAT32 || type == KRASIS_BFLOAT16; }

inline bool in_fours(int64_t size, int64_t stride) { return size > 0 && size % 4 == 0 && stride % 4 == 0; }

template <class T> bool aligned_to(const T *p, int bytes) { return (uintptr_t)p % bytes == 0; }
