// Root mean square norms of rows: a block a row.
#include "krasis_cuda_ops.h"
#include "rows.cuh"

namespace {

// y = x / rms(x) weight; with `add`, x += add before.
template <class X, class Add>
__global__ void norm(X *x, int64_t x_stride, const Add *add, int64_t add_stride, int n, const float *weight, float eps,
                     bf16 *y) {
    follow_previous();
    __shared__ float sums[kWarp];
    x += blockIdx.x * x_stride;
    y += (int64_t)blockIdx.x * n;
    float squares = 0;
    for (int i = 4 * threadIdx.x; i < n; i += 4 * blockDim.x) {
        float4 value = read_four(x + i);
        if (add) {
            const float4 more = read_four(add + blockIdx.x * add_stride + i);
            value = make_float4(value.x + more.x, value.y + more.y, value.z + more.z, value.w + more.w);
            write_four(x + i, value);
        }
        squares += sum_of_squares(value);
    }
    const float scale = rsqrtf(block_sum(squares, sums) / n + eps);
    for (int i = 4 * threadIdx.x; i < n; i += 4 * blockDim.x) {
        const float4 value = read_four(x + i), by = read_four(weight + i);
        write_four(y + i, make_float4(value.x * scale * by.x, value.y * scale * by.y, value.z * scale * by.z,
                                      value.w * scale * by.w));
    }
}

// y = x / rms(x) weight silu(z), a warp a head.
__global__ void gated_norm(const float *x, const bf16 *z, int64_t z_stride, int64_t rows, int heads, int dim,
                           const float *weight, float eps, bf16 *y) {
    follow_previous();
    const int64_t row = (int64_t)blockIdx.x * (blockDim.x / kWarp) + threadIdx.x / kWarp;
    const int lane = threadIdx.x % kWarp;
    if (row >= rows)
        return;
    x += row * dim;
    y += row * dim;
    z += row / heads * z_stride + row % heads * dim;
    float squares = 0;
    for (int i = 4 * lane; i < dim; i += 4 * kWarp)
        squares += sum_of_squares(read_four(x + i));
    const float scale = rsqrtf(warp_sum(squares) / dim + eps);
    for (int i = 4 * lane; i < dim; i += 4 * kWarp) {
        const float4 value = read_four(x + i), by = read_four(weight + i), gate = read_four(z + i);
        write_four(y + i, make_float4(value.x * scale * by.x * silu(gate.x), value.y * scale * by.y * silu(gate.y),
                                      value.z * scale * by.z * silu(gate.z), value.w * scale * by.w * silu(gate.w)));
    }
}

template <class X, class Add>
int launch_norm(void *x, int64_t x_stride, const void *add, int64_t add_stride, int64_t tokens, int n,
                const float *weight, float eps, uint16_t *y, void *stream) {
    return launch(norm<X, Add>, tokens, row_threads(n), 0, stream, (X *)x, x_stride, (const Add *)add, add_stride, n,
                  weight, eps, (bf16 *)y);
}

} // namespace

extern "C" int krasis_cuda_norm(void *x, int x_type, int64_t x_stride, const void *add, int add_type,
                                int64_t add_stride, int64_t tokens, int n, const float *weight, float eps, uint16_t *y,
                                void *stream) {
    if (!x || !weight || !y)
        return KRASIS_ERROR_NULL;
    if (tokens < 1 || !in_fours(n, x_stride) || (add && !in_fours(n, add_stride)))
        return KRASIS_ERROR_SHAPE;
    if (!aligned_to(x, 16) || !aligned_to(add, 16) || !aligned_to(weight, 16) || !aligned_to(y, 8))
        return KRASIS_ERROR_ALIGNMENT;
    if (!is_type(x_type) || (add && (!is_type(add_type) || x_type == KRASIS_BFLOAT16)))
        return KRASIS_ERROR_TYPE;
    const auto kernel = x_type == KRASIS_BFLOAT16     ? launch_norm<bf16, bf16>
                        : add_type == KRASIS_BFLOAT16 ? launch_norm<float, bf16>
                                                      : launch_norm<float, float>;
    return kernel(x, x_stride, add, add_stride, tokens, n, weight, eps, y, stream);
}

extern "C" int krasis_cuda_gated_norm(const float *x, const uint16_t *z, int64_t z_stride, int64_t tokens, int heads,
                                      int dim, const float *weight, float eps, uint16_t *y, void *stream) {
    if (!x || !z || !weight || !y)
        return KRASIS_ERROR_NULL;
    if (tokens < 1 || heads < 1 || !in_fours(dim, z_stride))
        return KRASIS_ERROR_SHAPE;
    if (!aligned_to(x, 16) || !aligned_to(z, 8) || !aligned_to(weight, 16) || !aligned_to(y, 8))
        return KRASIS_ERROR_ALIGNMENT;
    constexpr int kThreads = 128, kRows = kThreads / kWarp;
    const int64_t rows = tokens * heads;
    return launch(gated_norm, (rows + kRows - 1) / kRows, kThreads, 0, stream, x, (const bf16 *)z, z_stride, rows,
                  heads, dim, weight, eps, (bf16 *)y);
}
