/* What kernels are written in: CUDA under nvcc, and under any C++ compiler an emulation of it on the CPU, so that the
 * same sources are tested where there is no GPU.
 *
 * Both sides have __global__, __device__, __shared__, __launch_bounds__, threadIdx, blockIdx, blockDim, gridDim,
 * __syncthreads, __syncwarp, __shfl_sync, __shfl_xor_sync, __shfl_down_sync and __ballot_sync (whole warps only),
 * __threadfence, __ldcg, atomicAdd(int *, int), float2, float4, uint2, uint4, int4, min, max and C's mathematics. What
 * they spell differently:
 *
 *     launch(kernel, grid, block, shared_bytes, stream, arguments...)   a krasis_status
 *     dynamic_shared()                                                  char *, aligned to 128 bytes
 *     bf16, to_float(bf16), to_bf16(float)                              rounded to nearest even
 *     pack_bf16(low, high), low_float(word), high_float(word)           two of them in 32 bits
 *     mul_bf16x2, sub_bf16x2, fma_bf16x2                                on such words, rounded once, with subnormals
 *     fast_exp2(float)                                                  2^x, 0 for denormal results
 *     e4m3_to_float(byte), to_e4m3(float)                               nearest even, saturating at 448
 *     and_or(a, b, c) = (a & b) | c, permute(a, b, selector)            one instruction each: lop3, prmt
 *     mma_bf16(d, a, b)                                                 m16n8k16: d[4] += a[4] b[2], float32 sums
 *     load_matrix_x4(r, row), load_matrix_x4_turned(r, row)             ldmatrix of four 8 x 8 matrices of 16 bits
 *     copy_async(shared, global, valid), copy_async_commit(),           16 bytes, zeros where not valid
 *     copy_async_wait<n>()                                              until at most n commits are under way
 *     load_fixed(p)                                                      16 bytes that no kernel under way writes
 *     fence_system(), load_acquire(p), store_release(p, v)              seen by the host and by other devices; 32 bits,
 *                                                                       load_acquire also 64
 *     pause_polling()                                                   between two looks at what the host writes
 *     let_next_begin()                                                  the next kernel may begin, once all blocks say so
 *     wait_for_previous()                                               until the previous kernel has ended: see below
 *     nanoseconds()                                                     of the device's clock
 *
 * From sm_90 on a kernel begins while the one before still runs (programmatic dependent launch). So every thread of every
 * kernel waits for the previous one before it reads what kernels write, writes anything, or ends: then all kernels before
 * have ended too. Only what no kernel and no copy ever changes may be read earlier.
 */
#pragma once

#include <cstdint>

#include "krasis.h"

#ifdef __CUDACC__
#include "device_nvcc.cuh"
#else
#include "emulated/device.h"
#endif

constexpr int kWarp = 32;

// How a kernel begins that does nothing before the previous one has ended.
__device__ inline void follow_previous() {
    let_next_begin();
    wait_for_previous();
}

__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int step = kWarp / 2; step; step /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

__device__ inline float warp_max(float x) {
#pragma unroll
    for (int step = kWarp / 2; step; step /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}
