#include "feedback.h"

#include <algorithm>
#include <vector>

#include "check.h"
#include "isa.h"

namespace {

constexpr int64_t kMultiple = 16, kLargest = INT32_MAX;

bool fits(int64_t size) { return size > 0 && size <= kLargest && size % kMultiple == 0; }

} // namespace

using krasis::aligned;

int krasis_int4_feedback(int isa, const float *weight, const float *shares, const uint16_t *scales,
                         const float *importance, int64_t k, int64_t n, int64_t group_size, uint8_t *codes,
                         double *errors) {
    if (!weight || !shares || !scales || !importance || !codes || !errors)
        return KRASIS_ERROR_NULL;
    if (!fits(k) || !fits(n))
        return KRASIS_ERROR_SHAPE;
    if (group_size < 1 || k % group_size)
        return KRASIS_ERROR_GROUP;
    if (!aligned(weight, sizeof *weight) || !aligned(shares, sizeof *shares) || !aligned(scales, sizeof *scales) ||
        !aligned(importance, sizeof *importance) || !aligned(errors, sizeof *errors))
        return KRASIS_ERROR_ALIGNMENT;
    const krasis::Kernels *kernels = krasis::kernels_of(isa == KRASIS_ISA_AUTO ? krasis::best_isa() : isa);
    if (!kernels)
        return KRASIS_ERROR_ISA;
    try {
        std::vector<float> scratch(krasis::kFeedbackUnits * krasis::kUnit * k);
        std::fill(errors, errors + 4 * n, 0.0);
        kernels->feed_back({weight, shares, scales, importance, n, k, group_size, codes, errors}, scratch.data());
        return KRASIS_OK;
    } catch (...) {
        return KRASIS_ERROR_MEMORY;
    }
}
