// The obvious reading of the marlin layout on the GPU: one thread a weight. The reference of the faster kernels.
#include "device.cuh"
#include "krasis_cuda.h"

namespace {

constexpr int kThreads = 256;

struct Place {
    int64_t word;
    int shift;
};

// Index formulas: formats/layouts.md.
__device__ Place int4_place(int k, int n, int columns) {
    const int r = k % 16, c = n % 64, lane = 4 * (c % 8) + r % 8 / 2, nibble = 2 * (c % 16 / 8) + r / 8 + 4 * (r % 2);
    return {(int64_t)(k / 16) * columns * 2 + 128 * (n / 64) + 4 * lane + c / 16, 4 * nibble};
}

__device__ Place int8_place(int k, int n, int columns) {
    const int r = k % 16, c = n % 64, lane = 4 * (c % 8) + r % 8 / 2, byte = r / 8 + 2 * (r % 2);
    return {(int64_t)(k / 16) * columns * 4 + 256 * (n / 64) + 8 * lane + 2 * (c / 16) + c % 16 / 8, 8 * byte};
}

__device__ int scale_column(int n, bool one_group) {
    if (!one_group)
        return n / 64 * 64 + n % 8 * 8 + n % 64 / 8;
    return n / 32 * 32 + n % 8 / 2 * 8 + n % 32 / 8 * 2 + n % 2;
}

template <int Bits>
__global__ void dequantize(const uint32_t *codes, const bf16 *scales, int k, int n, int group_size, bf16 *out) {
    follow_previous();
    const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    if (i >= (int64_t)n * k)
        return;
    const int column = i / k, row = i % k;
    const Place place = Bits == 4 ? int4_place(row, column, n) : int8_place(row, column, n);
    const int code = codes[place.word] >> place.shift & ((1 << Bits) - 1);
    const int at = scale_column(column, group_size == k);
    const float scale = to_float(scales[(int64_t)(row / group_size) * n + at]);
    out[i] = to_bf16((code - (1 << (Bits - 1))) * scale);
}

bool tiled(int k, int n) {
    return k > 0 && n > 0 && ((k % 64 == 0 && n % 128 == 0) || (k % 128 == 0 && n % 64 == 0));
}

} // namespace

extern "C" int krasis_cuda_abi_version(void) { return KRASIS_ABI_VERSION; }

extern "C" int krasis_cuda_dequantize(const void *codes, const uint16_t *scales, int codec, int k, int n,
                                      int group_size, uint16_t *out, void *stream) {
    if (!codes || !scales || !out)
        return KRASIS_ERROR_NULL;
    if (codec != KRASIS_INT4 && codec != KRASIS_INT8)
        return KRASIS_ERROR_CODEC;
    if (!tiled(k, n))
        return KRASIS_ERROR_SHAPE;
    if ((group_size != 32 && group_size != 64 && group_size != 128) || k % group_size)
        return KRASIS_ERROR_GROUP;
    const auto kernel = codec == KRASIS_INT4 ? dequantize<4> : dequantize<8>;
    const unsigned blocks = ((int64_t)n * k + kThreads - 1) / kThreads;
    return launch(kernel, blocks, kThreads, 0, stream, (const uint32_t *)codes, (const bf16 *)scales, k, n, group_size,
                  (bf16 *)out);
}
