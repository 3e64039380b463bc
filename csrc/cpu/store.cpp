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

uint16_t to_bf16(float x) {
    constexpr uint16_t kNan = 0x7fc0;
    const uint32_t bits = bits_of(x);
    return std::isnan(x) ? kNan : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
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

// n floats as elements i and on of `values`.
void store_row(const float *x, int64_t n, int32_t type, void *values, int64_t i, float *scale) {
    if (type == KRASIS_FLOAT32) {
        std::memcpy(static_cast<float *>(values) + i, x, n * sizeof *x);
    } else if (type == KRASIS_BFLOAT16) {
        uint16_t *const y = static_cast<uint16_t *>(values) + i;
        for (int64_t j = 0; j < n; j++)
            y[j] = to_bf16(x[j]);
    } else {
        uint8_t *const y = static_cast<uint8_t *>(values) + i;
        *scale = scale_of(x, static_cast<int32_t>(n));
        for (int64_t j = 0; j < n; j++)
            y[j] = to_e4m3(x[j] / *scale);
    }
}

} // namespace
} // namespace krasis

int krasis_store(krasis_pool *pool, const float *x, int64_t tokens, int64_t x_stride, int32_t heads, int32_t dim,
                 int32_t type, int64_t at, void *values, float *scales) {
    using namespace krasis;
    const bool scaled = type == KRASIS_FLOAT8;
    if (!pool || !x || !values || (scaled && !scales))
        return KRASIS_ERROR_NULL;
    if (type != KRASIS_FLOAT32 && type != KRASIS_BFLOAT16 && !scaled)
        return KRASIS_ERROR_TYPE;
    const int64_t width = int64_t(heads) * dim;
    const bool in_range = heads >= 1 && heads <= KRASIS_MOST_HEADS && dim >= 1 && at >= 0 && at <= kMost &&
                          sized(tokens, width) && sized(at + tokens, width) && strided(tokens, x_stride, width);
    if (!in_range)
        return KRASIS_ERROR_SHAPE;
    const size_t bytes = type == KRASIS_FLOAT32 ? 4 : scaled ? 1 : 2;
    if (!aligned(x, sizeof *x) || !aligned(values, bytes) || !aligned(scales, sizeof *scales))
        return KRASIS_ERROR_ALIGNMENT;
    for (int64_t token = 0; token < tokens; token++)
        for (int32_t head = 0; head < heads; head++) {
            const int64_t row = (at + token) * heads + head;
            store_row(x + token * x_stride + int64_t(head) * dim, dim, type, values, row * dim, scaled ? scales + row : nullptr);
        }
    return KRASIS_OK;
}
