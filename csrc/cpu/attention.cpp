#include "attention.h"

#include <algorithm>

#include "check.h"
#include "team.h"

namespace krasis {
namespace {

// Multiplications that take about as long as waking the pool.
constexpr double kWorthSharing = 1 << 17;

double multiplications(const Attention &call, int64_t runs) {
    const double seen = std::min<double>(static_cast<double>(call.length), static_cast<double>(runs * kRun));
    return seen * static_cast<double>(call.tokens) * call.heads * (call.dim + call.v_dim);
}

} // namespace

void AttentionRuns::run(const Attention &call) {
    call_ = call;
    if (call.tokens == 0)
        return;
    const int32_t shared = call.heads / call.kv_heads;
    groups_ = (shared + kHeads - 1) / kHeads;
    first_ = first_of(call, 0);
    runs_ = (call.length - 1 - first_) / kRun + 1;
    stride_ = padded(call.v_dim) + kUnit;
    const bool shared_work = runs_ * groups_ * call.kv_heads * call.tokens > 1 && multiplications(call, runs_) >= kWorthSharing;
    const int threads = shared_work ? pool_.threads() : 1;
    const auto lay_out = [&](Cursor cursor) {
        partial_ = cursor.take<float>(call.tokens * call.heads * runs_ * stride_);
        thread_scratch_ = cursor.take<float>(attention_scratch(call) * threads);
        return cursor.at();
    };
    lay_out(Cursor(scratch_.of(lay_out(Cursor(nullptr)))));
    if (threads == 1)
        return work(0, 1);
    pool_.run([](void *self, int thread) {
        auto &runs = *static_cast<AttentionRuns *>(self);
        runs.work(thread, runs.pool_.threads());
    }, this);
}

void AttentionRuns::work(int thread, int threads) {
    const int64_t pieces = call_.tokens * runs_ * call_.kv_heads * groups_, heads = call_.tokens * call_.heads;
    attend(pieces * thread / threads, pieces * (thread + 1) / threads, thread_scratch_ + thread * attention_scratch(call_));
    if (threads > 1)
        pool_.meet(thread);
    combine(heads * thread / threads, heads * (thread + 1) / threads);
}

// Pieces in the order of positions, so that a thread reads neighbouring rows.
void AttentionRuns::attend(int64_t first, int64_t last, float *scratch) {
    const int32_t shared = call_.heads / call_.kv_heads;
    for (int64_t piece = first; piece < last; piece++) {
        const int64_t group = piece % groups_, kv_head = piece / groups_ % call_.kv_heads;
        const int64_t run = piece / groups_ / call_.kv_heads % runs_, token = piece / groups_ / call_.kv_heads / runs_;
        const int64_t begin = first_ + run * kRun;
        if (begin >= end_of(call_, token) || begin + kRun <= first_of(call_, token))
            continue;
        const auto head = static_cast<int32_t>(kv_head * shared + group * kHeads);
        const int32_t heads = std::min<int32_t>(kHeads, shared - static_cast<int32_t>(group) * kHeads);
        float *const partial = partial_ + ((token * call_.heads + head) * runs_ + run) * stride_;
        ops_.attend(call_, {token, begin, head, heads, partial, runs_ * stride_, scratch});
    }
}

void AttentionRuns::combine(int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
        const int64_t token = i / call_.heads, skipped = (first_of(call_, token) - first_) / kRun;
        const int64_t runs = (end_of(call_, token) - 1 - first_) / kRun - skipped + 1;
        const auto head = static_cast<int32_t>(i % call_.heads);
        float *const partial = partial_ + (i * runs_ + skipped) * stride_;
        ops_.combine(call_, head, partial, stride_, runs, call_.out + i * call_.v_dim);
    }
}

namespace {

krasis_status check(const krasis_rows &rows, int64_t length, int32_t kv_heads, int32_t dim) {
    if (rows.type != KRASIS_FLOAT32 && rows.type != KRASIS_BFLOAT16 && rows.type != KRASIS_FLOAT8)
        return KRASIS_ERROR_TYPE;
    const bool scaled = rows.type == KRASIS_FLOAT8;
    if (!rows.values || (scaled && !rows.scales))
        return KRASIS_ERROR_NULL;
    const bool in_range = rows.head_stride >= (kv_heads > 1 ? dim : 0) && rows.head_stride <= kMost &&
                          rows.stride >= (length > 1 ? dim : 0) && rows.stride <= kMost && rows.scale_stride >= 0 &&
                          rows.scale_stride <= kMost;
    if (!in_range)
        return KRASIS_ERROR_SHAPE;
    const size_t bytes = rows.type == KRASIS_FLOAT32 ? 4 : scaled ? 1 : 2;
    return aligned(rows.values, bytes) && aligned(rows.scales, sizeof(float)) ? KRASIS_OK : KRASIS_ERROR_ALIGNMENT;
}

krasis_status check(const Attention &call) {
    if (call.tokens != 0 && (!call.q || !call.out))
        return KRASIS_ERROR_NULL;
    const auto one_head = [](int32_t dim) { return dim >= 1 && dim <= kMostHeadDim; };
    const bool in_range = call.tokens >= 0 && call.length >= call.tokens && call.length <= kMost && call.kv_heads >= 1 &&
                          call.heads >= call.kv_heads && call.heads <= KRASIS_MOST_HEADS &&
                          call.heads % call.kv_heads == 0 && one_head(call.dim) && one_head(call.v_dim) &&
                          call.window >= 0 && call.tokens <= kMost / (int64_t(call.heads) * kMostHeadDim) &&
                          (call.tokens <= 1 || call.q_stride >= int64_t(call.heads) * call.dim);
    if (!in_range)
        return KRASIS_ERROR_SHAPE;
    if (!aligned(call.q, sizeof(float)) || !aligned(call.out, sizeof(float)) || !aligned(call.sinks, sizeof(float)))
        return KRASIS_ERROR_ALIGNMENT;
    if (const krasis_status status = check(call.k, call.length, call.kv_heads, call.dim))
        return status;
    return check(call.v, call.length, call.kv_heads, call.v_dim);
}

} // namespace
} // namespace krasis

int krasis_attention(krasis_pool *pool, const float *q, int64_t tokens, int64_t q_stride, const krasis_rows *k,
                     const krasis_rows *v, int64_t length, int32_t heads, int32_t kv_heads, int32_t dim, int32_t v_dim,
                     int64_t window, float scale, const float *sinks, float *out) {
    using namespace krasis;
    if (!pool || !k || !v)
        return KRASIS_ERROR_NULL;
    const Attention call{q, tokens, q_stride, *k, *v, length, heads, kv_heads, dim, v_dim, window, scale, sinks, out};
    if (const krasis_status status = check(call))
        return status;
    return alone(*pool, [&] {
        pool->attention.run(call);
        return KRASIS_OK;
    });
}
