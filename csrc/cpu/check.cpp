#include "check.h"

#include <algorithm>
#include <cstdint>

namespace krasis {
namespace {

constexpr int32_t kMultiple = 64;
constexpr int64_t kMostExperts = 1 << 20;

krasis_status check_plain(const krasis_matrix &matrix) {
    if (matrix.layout != KRASIS_LAYOUT_PLAIN)
        return KRASIS_ERROR_LAYOUT;
    if (matrix.group_size != 0)
        return KRASIS_ERROR_GROUP;
    return aligned(matrix.codes, sizeof(uint16_t)) ? KRASIS_OK : KRASIS_ERROR_ALIGNMENT;
}

bool takes_group(int32_t codec, int32_t size) {
    return size == 32 || (codec != KRASIS_MXFP4 && (size == 64 || size == 128));
}

krasis_status check_quantized(const krasis_matrix &matrix) {
    if (matrix.layout != KRASIS_LAYOUT_CPU && matrix.layout != KRASIS_LAYOUT_MARLIN)
        return KRASIS_ERROR_LAYOUT;
    if (!matrix.scales)
        return KRASIS_ERROR_NULL;
    if (matrix.k % kMultiple || matrix.n % kMultiple)
        return KRASIS_ERROR_SHAPE;
    if (!takes_group(matrix.codec, matrix.group_size) || matrix.k % matrix.group_size)
        return KRASIS_ERROR_GROUP;
    const bool byte_scales = matrix.codec == KRASIS_MXFP4;
    return byte_scales || aligned(matrix.scales, sizeof(uint16_t)) ? KRASIS_OK : KRASIS_ERROR_ALIGNMENT;
}

} // namespace

krasis_status check(const krasis_matrix &matrix) {
    if (!matrix.codes)
        return KRASIS_ERROR_NULL;
    if (matrix.k < 1 || matrix.n < 1)
        return KRASIS_ERROR_SHAPE;
    switch (matrix.codec) {
    case KRASIS_INT4:
    case KRASIS_INT8:
    case KRASIS_MXFP4: return check_quantized(matrix);
    case KRASIS_BF16: return check_plain(matrix);
    default: return KRASIS_ERROR_CODEC;
    }
}

namespace {

bool rows_fit(int64_t m, int64_t stride, int64_t length) { return m <= 1 || stride >= length; }

} // namespace

krasis_status check(const krasis_job &job) {
    if (!job.matrix || (job.m != 0 && (!job.x || !job.y)))
        return KRASIS_ERROR_NULL;
    if (const krasis_status status = check(*job.matrix))
        return status;
    const bool in_range = job.m >= 0 && job.m <= kMost / job.matrix->k && job.k_in >= 1 && job.k_in <= job.matrix->k &&
                          job.n_out >= 1 && job.n_out <= job.matrix->n;
    if (!in_range || !rows_fit(job.m, job.ldx, job.k_in) || !rows_fit(job.m, job.ldy, job.n_out))
        return KRASIS_ERROR_SHAPE;
    return aligned(job.x, sizeof(float)) && aligned(job.y, sizeof(float)) ? KRASIS_OK : KRASIS_ERROR_ALIGNMENT;
}

namespace {

krasis_status check_expert_matrix(const krasis_matrix &matrix) {
    if (matrix.codec == KRASIS_BF16)
        return KRASIS_ERROR_CODEC;
    return check(matrix);
}

} // namespace

krasis_status check(const krasis_experts &experts) {
    for (const krasis_matrix *matrix : {&experts.w13, &experts.w2})
        if (const krasis_status status = check_expert_matrix(*matrix))
            return status;
    if (experts.activation != KRASIS_SWIGLU && experts.activation != KRASIS_CLAMPED_SWIGLU)
        return KRASIS_ERROR_TYPE;
    if (experts.bias_type != KRASIS_FLOAT32 && experts.bias_type != KRASIS_BFLOAT16)
        return KRASIS_ERROR_TYPE;
    const size_t bytes = experts.bias_type == KRASIS_FLOAT32 ? sizeof(float) : sizeof(uint16_t);
    const bool in_range = experts.count >= 1 && experts.count <= kMostExperts && experts.stride >= 0 &&
                          experts.stride <= kMost && experts.hidden >= 1 && experts.size >= 1 &&
                          experts.hidden <= experts.w13.k && experts.hidden <= experts.w2.n &&
                          experts.size <= experts.w13.n / 2 && experts.size <= experts.w2.k;
    if (!in_range)
        return KRASIS_ERROR_SHAPE;
    const bool fits = aligned(experts.b13, bytes) && aligned(experts.b2, bytes) && experts.stride % sizeof(float) == 0;
    return fits ? KRASIS_OK : KRASIS_ERROR_ALIGNMENT;
}

krasis_status check(const MoeCall &call) {
    if (call.m != 0 && (!call.x || !call.y || !call.ids || !call.weights))
        return KRASIS_ERROR_NULL;
    if (const krasis_status status = check(call.experts))
        return status;
    const krasis_experts &experts = call.experts;
    const int64_t widest = std::max({experts.w13.k, experts.w13.n, experts.w2.k, experts.w2.n});
    const bool in_range = call.m >= 0 && call.m <= kMost / widest && call.chosen >= 1 &&
                          call.chosen <= experts.count;
    if (!in_range || !rows_fit(call.m, call.ldx, experts.hidden) || !rows_fit(call.m, call.ldy, experts.hidden))
        return KRASIS_ERROR_SHAPE;
    const auto no_expert = [&](int64_t id) { return id < 0 || id >= experts.count; };
    if (std::any_of(call.ids, call.ids + call.m * call.chosen, no_expert))
        return KRASIS_ERROR_SHAPE;
    const bool fits = aligned(call.x, sizeof(float)) && aligned(call.y, sizeof(float)) &&
                      aligned(call.ids, sizeof(int64_t)) && aligned(call.weights, sizeof(float));
    return fits ? KRASIS_OK : KRASIS_ERROR_ALIGNMENT;
}

} // namespace krasis
