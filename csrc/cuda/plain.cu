// Products of few rows with matrices of bf16 or float32 as they are: some lanes of a warp a feature, whose weights come at
// once. A router's choice is made by the block that comes last.
#include "checks.cuh"
#include "route.cuh"

namespace {

constexpr int kThreads = 128, kFewRows = KRASIS_CUDA_MOST_FEW, kLoads = 8; // of 16 bytes a lane

struct Plain {
    const void *weights; // [heads][n][k]
    int64_t weight_head;
    int n, k, rest, fixed; // rest: elements of x behind k that follow the n features as they are
    const bf16 *x;         // [m][heads][k + rest]
    int64_t x_row, x_head;
    int m;
    void *y; // [m][heads][n + rest]
    int64_t y_row, y_head;
    int floats;
};

// 8 neighbouring weights.
template <class W> struct Eight {
    static constexpr int kVectors = sizeof(W) / 2;
    uint4 vectors[kVectors];

    __device__ void load(const W *at) {
#pragma unroll
        for (int v = 0; v < kVectors; v++)
            vectors[v] = load_fixed((const char *)at + 16 * v);
    }

    __device__ float times(uint4 x) const {
        const uint32_t words[4] = {x.x, x.y, x.z, x.w};
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 4; i++)
            sum += low_float(words[i]) * weight(2 * i) + high_float(words[i]) * weight(2 * i + 1);
        return sum;
    }

    __device__ float weight(int i) const {
        const uint4 &vector = vectors[kVectors == 2 ? i / 4 : 0];
        const int word = kVectors == 2 ? i % 4 : i / 2;
        const uint32_t bits = word == 0 ? vector.x : word == 1 ? vector.y : word == 2 ? vector.z : vector.w;
        return kVectors == 2 ? __uint_as_float(bits) : i % 2 ? high_float(bits) : low_float(bits);
    }
};

// One feature by kLanes lanes, for all rows.
template <class W, int kLanes> __device__ void multiply(const Plain &p) {
    constexpr int kHeld = kLoads / Eight<W>::kVectors, kStep = kHeld * kLanes * 8;
    const int lane = threadIdx.x % kLanes, feature = blockIdx.x * (kThreads / kLanes) + threadIdx.x / kLanes;
    const W *const weights =
        (const W *)p.weights + blockIdx.y * p.weight_head + (int64_t)min(feature, p.n - 1) * p.k;
    const bf16 *const x = p.x + blockIdx.y * p.x_head;
    Eight<W> held[kHeld];
    float sums[kFewRows] = {};
    for (int first = 0; first < p.k; first += kStep) {
#pragma unroll
        for (int i = 0; i < kHeld; i++)
            if (first + (i * kLanes + lane) * 8 < p.k)
                held[i].load(weights + first + (i * kLanes + lane) * 8);
        if (first == 0)
            wait_for_previous();
#pragma unroll
        for (int row = 0; row < kFewRows; row++)
#pragma unroll
            for (int i = 0; i < kHeld; i++) {
                const int at = first + (i * kLanes + lane) * 8;
                if (row < p.m && at < p.k)
                    sums[row] += held[i].times(*reinterpret_cast<const uint4 *>(x + row * p.x_row + at));
            }
    }
    float mine = 0; // of row `lane`
#pragma unroll
    for (int row = 0; row < kFewRows; row++)
        if (row < p.m) {
#pragma unroll
            for (int step = kLanes / 2; step; step /= 2)
                sums[row] += __shfl_xor_sync(~0u, sums[row], step);
            mine = lane == row ? sums[row] : mine;
        }
    if (lane >= p.m || feature >= p.n + p.rest)
        return;
    if (feature >= p.n)
        mine = to_float(x[lane * p.x_row + p.k + feature - p.n]);
    const int64_t at = lane * p.y_row + blockIdx.y * p.y_head + feature;
    if (p.floats)
        ((float *)p.y)[at] = mine;
    else
        ((bf16 *)p.y)[at] = to_bf16(mine);
}

template <class W, int kLanes> __global__ void __launch_bounds__(kThreads) product(const Plain p) {
    let_next_begin();
    if (!p.fixed)
        wait_for_previous();
    multiply<W, kLanes>(p);
}

template <class W, int kHeld>
__global__ void __launch_bounds__(kThreads) choose(const Plain p, const Way way, int32_t *counter, int *ids,
                                                   float *weights) {
    let_next_begin();
    if (!p.fixed)
        wait_for_previous();
    multiply<W, kWarp>(p);
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        last = atomicAdd(counter, 1) == (int)gridDim.x - 1;
    __syncthreads();
    if (!last)
        return;
    __threadfence();
    if (threadIdx.x == 0)
        *counter = 0;
    for (int row = threadIdx.x / kWarp; row < p.m; row += kThreads / kWarp)
        route_token<kHeld>(way, (const float *)p.y + row * p.y_row, ids + row * way.chosen, weights + row * way.chosen);
}

int check_plain(const Plain &p, int type) {
    if (!p.weights || !p.x || !p.y)
        return KRASIS_ERROR_NULL;
    if (!is_type(type))
        return KRASIS_ERROR_TYPE;
    if (p.n < 1 || p.k < 8 || p.k % 8 || p.rest < 0 || p.m < 1 || p.m > kFewRows || p.x_row % 8 || p.x_head % 8 ||
        p.weight_head % 8)
        return KRASIS_ERROR_SHAPE;
    return aligned(p.weights) && aligned(p.x) ? KRASIS_OK : KRASIS_ERROR_ALIGNMENT;
}

unsigned blocks_of(int features, int lanes) { return (features * lanes + kThreads - 1) / kThreads; }

template <class W> int run_product(const Plain &p, int heads, void *stream) {
    // Few lanes where they hold all of a feature's weights.
    const int lanes = p.k * (int)sizeof(W) <= kThreads * 2 ? 8 : p.k * (int)sizeof(W) <= kThreads * 4 ? 16 : kWarp;
    const auto kernel = lanes == 8 ? product<W, 8> : lanes == 16 ? product<W, 16> : product<W, kWarp>;
    return launch(kernel, dim3(blocks_of(p.n + p.rest, lanes), heads), kThreads, 0, stream, p);
}

template <class W>
int run_choose(const Plain &p, const Way &way, int32_t *counter, int *ids, float *weights, void *stream) {
    const auto kernel = p.n <= 64 ? choose<W, 2> : p.n <= 128 ? choose<W, 4> : p.n <= 256 ? choose<W, 8> : choose<W, 16>;
    return launch(kernel, blocks_of(p.n, kWarp), kThreads, 0, stream, p, way, counter, ids, weights);
}

} // namespace

extern "C" int krasis_cuda_plain(const void *weights, int type, int heads, int64_t weight_head, int n, int k, int rest,
                                 const uint16_t *x, int m, int64_t x_row, int64_t x_head, void *y, int y_type,
                                 int64_t y_row, int64_t y_head, int fixed, void *stream) {
    const Plain p{weights, weight_head, n, k, rest, fixed, (const bf16 *)x, x_row, x_head, m, y, y_row, y_head,
                  y_type == KRASIS_FLOAT32};
    if (const int status = check_plain(p, type))
        return status;
    if (!is_type(y_type))
        return KRASIS_ERROR_TYPE;
    if (heads < 1 || heads > 65535)
        return KRASIS_ERROR_SHAPE;
    return type == KRASIS_FLOAT32 ? run_product<float>(p, heads, stream) : run_product<bf16>(p, heads, stream);
}

extern "C" int krasis_cuda_choose(const void *router, int type, int experts, int k, const uint16_t *x, int m,
                                  int64_t x_row, const float *bias, int chosen, int scores, int normalize, float scale,
                                  float *logits, int32_t *counter, int32_t *ids, float *weights, int fixed,
                                  void *stream) {
    if (!counter || !ids || !weights)
        return KRASIS_ERROR_NULL;
    const Plain p{router, 0, experts, k, 0, fixed, (const bf16 *)x, x_row, 0, m, logits, experts, 0, 1};
    if (const int status = check_plain(p, type))
        return status;
    const Way way{bias, experts, chosen, scores, normalize, scale};
    if (!known_way(way))
        return KRASIS_ERROR_SHAPE;
    return type == KRASIS_FLOAT32 ? run_choose<float>(p, way, counter, ids, weights, stream)
                                  : run_choose<bf16>(p, way, counter, ids, weights, stream);
}
