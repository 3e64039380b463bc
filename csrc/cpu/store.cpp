// Keys and values on their way into a cache.
#include <cmath>
#include <cstring>

#include "check.h"
#include "ops.h"

namespace krasis {
namespace {

constexpr float kLeast = 1e-12f, kGreatest = 448; // of a row's magnitude, and of e4m3

uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

uint8_t to_e4m3(float x) {
    constexpr uint32_t kNan = 0x7f, kBias = (127 - 7) << 23;
    const uint32_t bits = bits_of(x), sign = bits >> 24 & 0x80;
    const float size = std::fabs(x);
    uint32_t code;
    if (size < 0x1p-6f)
        code = static_cast<uint32_t>(std::lrint(size * 0x1p9f)); // what has no exponent
    else if (size < 480)
        code = ((bits & 0x7fffffff) - kBias + 0x7ffff + (bits >> 20 & 1)) >> 20;
    else
        code = kNan;
    return static_cast<uint8_t>(code | sign);
}

// NaN where there is one.
float scale_of(const float *x, int32_t n) {
    float most = kLeast;
    for (int32_t i = 0; i < n; i++) {
        if (std::isnan(x[i]))
            return x[i];
        most = std::fabs(x[i]) > most ? std::fabs(x[i]) : most;
    }
    return most / kGreatest;
}

void store_row(const float *x, int32_t n, uint8_t *values, float *scale) {
    *scale = scale_of(x, n);
    for (int32_t i = 0; i < n; i++)
        values[i] = to_e4m3(x[i] / *scale);
}

} // namespace
} // namespace krasis

int krasis_store_e4m3(const float *x, int64_t tokens, int64_t x_stride, int32_t heads, int32_t dim, uint8_t *values,
                      float *scales) {
    using namespace krasis;
    if (!x || !values || !scales)
        return KRASIS_ERROR_NULL;
    const int64_t width = int64_t(heads) * dim;
    const bool in_range = heads >= 1 && heads <= KRASIS_MOST_HEADS && dim >= 1 && sized(tokens, width) &&
                          strided(tokens, x_stride, width);
    if (!in_range)
        return KRASIS_ERROR_SHAPE;
    if (!aligned(x, sizeof *x) || !aligned(scales, sizeof *scales))
        return KRASIS_ERROR_ALIGNMENT;
    for (int64_t token = 0; token < tokens; token++)
        for (int32_t head = 0; head < heads; head++) {
            const int64_t row = token * heads + head;
            store_row(x + token * x_stride + int64_t(head) * dim, dim, values + row * dim, scales + row);
        }
    return KRASIS_OK;
}
