// The C ABI of what lies between products: checks, and rows split over the threads where there are enough.
#include "ops.h"

#include <cstring>

#include "check.h"
#include "team.h"

namespace krasis {
namespace {

// Floats that take about as long as waking the pool.
constexpr int64_t kWorthSharing = 1 << 17;

// Runs task(call, first, last) over all rows: on the calling thread, or on the pool. Results don't depend on which.
template <class Call>
krasis_status split(krasis_pool &pool, void (*task)(const Call &, int64_t, int64_t), const Call &call, int64_t rows,
                    int64_t floats) {
    if (rows < 2 || floats < kWorthSharing || pool.pool.threads() == 1) {
        task(call, 0, rows);
        return KRASIS_OK;
    }
    struct Context {
        decltype(task) run;
        const Call &call;
        int64_t rows, threads;
    } context{task, call, rows, pool.pool.threads()};
    const std::lock_guard<std::mutex> lock(pool.mutex);
    pool.pool.run(
        [](void *p, int thread) {
            const auto &all = *static_cast<Context *>(p);
            all.run(all.call, all.rows * thread / all.threads, all.rows * (thread + 1) / all.threads);
        },
        &context);
    return KRASIS_OK;
}

template <class... Pointers> bool any_null(const Pointers *...pointers) { return ((pointers == nullptr) || ...); }

template <class... Pointers> bool all_aligned(const Pointers *...pointers) {
    return (aligned(pointers, sizeof(float)) && ...);
}

bool is_head(int32_t dim) { return dim >= 1 && dim <= kMostHeadDim; }

krasis_status check_turn(const Turn &turn, int64_t tokens) {
    const bool in_range = turn.heads >= 1 && turn.heads <= KRASIS_MOST_HEADS && is_head(turn.dim) && turn.half >= 0 &&
                          turn.first >= 0 && turn.first + 2 * int64_t(turn.half) <= turn.dim &&
                          (!turn.norm || (turn.norm_size >= 1 && turn.norm_size <= turn.dim)) &&
                          strided(tokens, turn.stride, int64_t(turn.heads) * turn.dim) && sized(tokens, turn.stride);
    return in_range ? KRASIS_OK : KRASIS_ERROR_SHAPE;
}

// Queries and keys that lie apart, or one behind the other.
krasis_status turn_both(krasis_pool *pool, const Turn &q, const Turn &k, int64_t tokens) {
    if (!pool || any_null(q.x, k.x) || ((q.half || k.half) && any_null(q.cos, q.sin)))
        return KRASIS_ERROR_NULL;
    for (const Turn *turn : {&q, &k})
        if (const krasis_status status = check_turn(*turn, tokens))
            return status;
    if (!all_aligned(q.x, k.x, q.cos, q.sin, q.norm, k.norm))
        return KRASIS_ERROR_ALIGNMENT;
    for (const Turn *turn : {&q, &k})
        split(*pool, pool->kernels.ops->turn, *turn, tokens, tokens * turn->heads * turn->dim);
    return KRASIS_OK;
}

} // namespace
} // namespace krasis

using namespace krasis;

int krasis_norm(krasis_pool *pool, const float *x, const float *add, int64_t rows, int64_t n, const float *weight,
                float eps, float *sum, float *y) {
    if (!pool || any_null(x, weight, y) || (add && !sum))
        return KRASIS_ERROR_NULL;
    if (!sized(rows, n))
        return KRASIS_ERROR_SHAPE;
    if (!all_aligned(x, add, weight, sum, y))
        return KRASIS_ERROR_ALIGNMENT;
    return split(*pool, pool->kernels.ops->norm, Norm{x, add, weight, n, eps, sum, y}, rows, rows * n);
}

int krasis_turn_heads(krasis_pool *pool, float *x, int64_t tokens, int64_t stride, int32_t q_heads, int32_t k_heads,
                      int32_t dim, const float *q_norm, const float *k_norm, float eps, const float *cos,
                      const float *sin, int32_t half) {
    if (q_heads < 1 || q_heads > KRASIS_MOST_HEADS || !is_head(dim))
        return KRASIS_ERROR_SHAPE;
    const int64_t queries = int64_t(q_heads) * dim;
    const Turn q{x, stride, q_heads, dim, q_norm, dim, eps, 0, half, false, cos, sin};
    const Turn k{x ? x + queries : nullptr, stride, k_heads, dim, k_norm, dim, eps, 0, half, false, cos, sin};
    if (k_heads < 1 || k_heads > KRASIS_MOST_HEADS || !strided(tokens, stride, queries + int64_t(k_heads) * dim))
        return KRASIS_ERROR_SHAPE;
    return turn_both(pool, q, k, tokens);
}

int krasis_turn_latent(krasis_pool *pool, float *q, int64_t q_stride, float *kv, int64_t kv_stride, int64_t tokens,
                       int32_t heads, int32_t nope, int32_t rank, const float *norm, float eps, const float *cos,
                       const float *sin, int32_t half) {
    if (nope < 0 || nope > kMostHeadDim || rank < 1 || rank > kMostHeadDim || half < 0 || half > kMostHeadDim)
        return KRASIS_ERROR_SHAPE;
    if (!norm)
        return KRASIS_ERROR_NULL;
    const Turn queries{q, q_stride, heads, nope + 2 * half, nullptr, 0, eps, nope, half, true, cos, sin};
    const Turn keys{kv, kv_stride, 1, rank + 2 * half, norm, rank, eps, rank, half, true, cos, sin};
    return turn_both(pool, queries, keys, tokens);
}

int krasis_gate(krasis_pool *pool, const float *x, int64_t x_stride, const float *gate, int64_t gate_stride,
                int64_t rows, int64_t n, int32_t kind, float *y) {
    if (!pool || any_null(x, gate, y))
        return KRASIS_ERROR_NULL;
    const bool known = kind >= KRASIS_GATE_SIGMOID && kind <= KRASIS_GATE_ROWS;
    const int64_t gates = kind == KRASIS_GATE_ROWS ? 1 : n;
    if (!known || !sized(rows, n) || !strided(rows, x_stride, n) || !strided(rows, gate_stride, gates))
        return KRASIS_ERROR_SHAPE;
    if (!all_aligned(x, gate, y))
        return KRASIS_ERROR_ALIGNMENT;
    return split(*pool, pool->kernels.ops->gate, Gate{x, gate, x_stride, gate_stride, n, kind, y}, rows, rows * n);
}

int krasis_add(krasis_pool *pool, const float *x, int64_t x_stride, int64_t rows, int64_t n, float *y) {
    if (!pool || any_null(x, y))
        return KRASIS_ERROR_NULL;
    if (!sized(rows, n) || (x_stride != 0 && !strided(rows, x_stride, n)))
        return KRASIS_ERROR_SHAPE;
    if (!all_aligned(x, y))
        return KRASIS_ERROR_ALIGNMENT;
    return split(*pool, pool->kernels.ops->add, Add{x, x_stride, n, y}, rows, rows * n);
}

int krasis_copy(krasis_pool *pool, const float *x, int64_t x_stride, int64_t rows, int64_t n, float *y,
                int64_t y_stride) {
    if (!pool || any_null(x, y))
        return KRASIS_ERROR_NULL;
    if (!sized(rows, n) || !strided(rows, x_stride, n) || !strided(rows, y_stride, n))
        return KRASIS_ERROR_SHAPE;
    if (!all_aligned(x, y))
        return KRASIS_ERROR_ALIGNMENT;
    for (int64_t row = 0; row < rows; row++)
        std::memcpy(y + row * y_stride, x + row * x_stride, n * sizeof *x);
    return KRASIS_OK;
}

int krasis_conv(krasis_pool *pool, const float *x, int64_t tokens, int64_t x_stride, int64_t channels,
                const float *weight, int64_t width, float *state, float *y) {
    if (!pool || any_null(x, weight, y) || (width > 1 && !state))
        return KRASIS_ERROR_NULL;
    if (width < 1 || !sized(tokens, channels) || !sized(width, channels) || !strided(tokens, x_stride, channels))
        return KRASIS_ERROR_SHAPE;
    if (!all_aligned(x, weight, state, y))
        return KRASIS_ERROR_ALIGNMENT;
    const Conv call{x, weight, tokens, x_stride, channels, width, state, y};
    return split(*pool, pool->kernels.ops->conv, call, (channels + kUnit - 1) / kUnit, tokens * channels);
}

int krasis_route(krasis_pool *pool, const float *logits, const float *bias, int64_t tokens, int64_t experts,
                 int64_t chosen, int32_t scores, int32_t normalize, float scale, int64_t *ids, float *weights) {
    if (!pool || any_null(logits, weights) || !ids)
        return KRASIS_ERROR_NULL;
    const bool known = scores >= KRASIS_SCORES_SOFTMAX && scores <= KRASIS_SCORES_LOGITS;
    if (!known || !sized(tokens, experts) || experts > KRASIS_MOST_ROUTED || chosen < 1 || chosen > experts)
        return KRASIS_ERROR_SHAPE;
    if (!all_aligned(logits, bias, weights) || !aligned(ids, sizeof *ids))
        return KRASIS_ERROR_ALIGNMENT;
    const Route call{logits, bias, experts, chosen, scores, normalize != 0, scale, ids, weights};
    return split(*pool, pool->kernels.ops->route, call, tokens, tokens * experts);
}

int krasis_delta_net_step(krasis_pool *pool, const krasis_delta_net *form, const float *qkv, int64_t qkv_stride,
                          const float *z, int64_t z_stride, const float *beta_step, int64_t beta_step_stride,
                          int64_t tokens, float *memory, float *out) {
    if (!pool || !form || any_null(qkv, z, beta_step, memory, out, form->rate, form->dt_bias, form->norm))
        return KRASIS_ERROR_NULL;
    const bool heads = form->key_heads >= 1 && form->value_heads >= form->key_heads &&
                       form->value_heads <= KRASIS_MOST_HEADS && form->value_heads % form->key_heads == 0 &&
                       is_head(form->key_dim) && is_head(form->value_dim);
    if (!heads)
        return KRASIS_ERROR_SHAPE;
    const int64_t values = int64_t(form->value_heads) * form->value_dim;
    const int64_t channels = 2 * int64_t(form->key_heads) * form->key_dim + values;
    if (!sized(tokens, channels) || !strided(tokens, qkv_stride, channels) || !strided(tokens, z_stride, values) ||
        !strided(tokens, beta_step_stride, 2 * int64_t(form->value_heads)))
        return KRASIS_ERROR_SHAPE;
    if (!all_aligned(qkv, z, beta_step, memory, out, form->rate, form->dt_bias, form->norm))
        return KRASIS_ERROR_ALIGNMENT;
    const DeltaNet call{*form, qkv, z, tokens, qkv_stride, z_stride, beta_step, beta_step_stride, memory, out};
    return split(*pool, pool->kernels.ops->delta_net, call, form->value_heads, tokens * values * form->key_dim);
}
