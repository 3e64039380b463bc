// Heads of queries, keys and values: norms, rotary positions, and the caches, a warp a head.
#include "cache.cuh"

namespace {

constexpr int kWarps = 4, kMostDim = 1024;

struct Angles {
    const float *cos, *sin; // [positions][half]
    int half;
    bool paired; // dimensions that turn lie in pairs (0, 1), (2, 3), .. and become halves
};

// Heads that lie side by side and are treated alike.
struct Heads {
    bf16 *x;
    int64_t stride; // of tokens
    int count, dim;
    const float *norm; // of the first norm_size dimensions, or null
    int norm_size;
    int first; // of the dimensions that turn; -1 where none do
    Cache cache;
};

struct Three {
    Heads of[3];
};

__device__ void turn_head(const Heads &heads, int token, int head, int position, float eps, const Angles &angles,
                          float *row) {
    const int lane = threadIdx.x % kWarp, words = heads.dim / 2;
    uint32_t *const x = (uint32_t *)(heads.x + token * heads.stride + (int64_t)head * heads.dim);
    if (heads.first < 0 && !heads.norm) {
        if (heads.cache.values)
            store_row(heads.cache, position, head, [x](int i) { return x[i]; });
        return;
    }
    float squares = 0;
    for (int i = lane; i < words; i += kWarp) {
        const uint32_t word = x[i];
        row[2 * i] = low_float(word), row[2 * i + 1] = high_float(word);
        if (2 * i < heads.norm_size)
            squares += row[2 * i] * row[2 * i] + row[2 * i + 1] * row[2 * i + 1];
    }
    if (heads.norm) {
        const float scale = rsqrtf(warp_sum(squares) / heads.norm_size + eps);
        for (int i = lane; i < heads.norm_size / 2; i += kWarp) {
            row[2 * i] *= scale * heads.norm[2 * i];
            row[2 * i + 1] *= scale * heads.norm[2 * i + 1];
        }
    }
    __syncwarp();
    const int half = heads.first < 0 ? 0 : angles.half;
    const auto turned = [&](int i) { // dimension i after the turn
        const int at = i - heads.first;
        if (at < 0 || at >= 2 * half)
            return row[i];
        const int angle = at < half ? at : at - half;
        const int one = heads.first + (angles.paired ? 2 * angle : angle);
        const float a = row[one], b = row[angles.paired ? one + 1 : one + half];
        const int64_t where = (int64_t)position * half + angle;
        const float cos = angles.cos[where], sin = angles.sin[where];
        return at < half ? a * cos - b * sin : b * cos + a * sin;
    };
    for (int i = lane; i < words; i += kWarp)
        x[i] = pack_bf16(turned(2 * i), turned(2 * i + 1));
    // Each lane reads the words that it wrote.
    if (heads.cache.values)
        store_row(heads.cache, position, head, [x](int i) { return x[i]; });
}

__global__ void turn(Three all, float eps, Angles angles, const int *position) {
    follow_previous();
    __shared__ float rows[kWarps][kMostDim];
    const int warp = threadIdx.x / kWarp;
    int head = blockIdx.x * kWarps + warp;
#pragma unroll
    for (int i = 0; i < 3; i++) {
        if (head >= 0 && head < all.of[i].count)
            turn_head(all.of[i], blockIdx.y, head, *position + blockIdx.y, eps, angles, rows[warp]);
        head -= all.of[i].count;
    }
}

int launch_turn(const Three &all, int64_t tokens, float eps, const Angles &angles, const int *position, void *stream) {
    if (!position || (angles.half && (!angles.cos || !angles.sin)))
        return KRASIS_ERROR_NULL;
    int count = 0;
    for (const Heads &heads : all.of) {
        count += heads.count;
        if (heads.count == 0)
            continue;
        if (heads.count < 0 || heads.dim < 2 || heads.dim % 2 || heads.dim > kMostDim || heads.stride % 2 ||
            heads.norm_size % 2 || (heads.first >= 0 && heads.first + 2 * angles.half > heads.dim))
            return KRASIS_ERROR_SHAPE;
        if (!heads.x)
            return KRASIS_ERROR_NULL;
        if (!aligned_to(heads.x, 4))
            return KRASIS_ERROR_ALIGNMENT;
        if (heads.cache.values && tokens > heads.cache.capacity)
            return KRASIS_ERROR_SHAPE;
    }
    if (tokens < 1 || tokens > 65535 || count < 1 || angles.half < 0)
        return KRASIS_ERROR_SHAPE;
    return launch(turn, dim3((count + kWarps - 1) / kWarps, tokens), kWarps * kWarp, 0, stream, all, eps, angles,
                  position);
}

} // namespace

extern "C" int krasis_cuda_turn_heads(uint16_t *x, int64_t tokens, int64_t stride, int q_heads, int kv_heads, int dim,
                                      const float *q_norm, const float *k_norm, float eps, const float *cos,
                                      const float *sin, int half, const int32_t *position, void *k_values,
                                      float *k_scales, void *v_values, float *v_scales, int capacity, void *stream) {
    bf16 *const q = (bf16 *)x, *const k = q + (int64_t)q_heads * dim, *const v = k + (int64_t)kv_heads * dim;
    const Cache keys{k_values, k_scales, capacity, kv_heads, dim}, values{v_values, v_scales, capacity, kv_heads, dim};
    const Three all{{
        {q, stride, q_heads, dim, q_norm, q_norm ? dim : 0, 0, {}},
        {k, stride, kv_heads, dim, k_norm, k_norm ? dim : 0, 0, keys},
        {v, stride, v_values ? kv_heads : 0, dim, nullptr, 0, -1, values},
    }};
    return launch_turn(all, tokens, eps, {cos, sin, half, false}, position, stream);
}

extern "C" int krasis_cuda_turn_latent(uint16_t *q, int64_t q_stride, uint16_t *kv, int64_t kv_stride, int64_t tokens,
                                       int heads, int nope, int rank, const float *norm, float eps, const float *cos,
                                       const float *sin, int half, const int32_t *position, void *values,
                                       float *scales, int capacity, void *stream) {
    const int dim = rank + 2 * half;
    const Three all{{
        {(bf16 *)q, q_stride, heads, nope + 2 * half, nullptr, 0, nope, {}},
        {(bf16 *)kv, kv_stride, 1, dim, norm, norm ? rank : 0, rank, {values, scales, capacity, 1, dim}},
        {},
    }};
    return launch_turn(all, tokens, eps, {cos, sin, half, true}, position, stream);
}

extern "C" int krasis_cuda_store(const uint16_t *x, int64_t tokens, int64_t stride, int heads, int dim,
                                 const int32_t *position, void *values, float *scales, int capacity, void *stream) {
    if (!values)
        return KRASIS_ERROR_NULL;
    const Three all{{
        {(bf16 *)x, stride, heads, dim, nullptr, 0, -1, {values, scales, capacity, heads, dim}},
        {},
        {},
    }};
    return launch_turn(all, tokens, 0, {nullptr, nullptr, 0, false}, position, stream);
}
