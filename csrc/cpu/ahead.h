// What a thread will read, brought nearer before it needs it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels.h"

namespace krasis {

// Where weights of a matrix lie: `rows` runs of memory.
struct Place {
    const char *codes, *scales;
    int64_t row_bytes, stride, rows; // of codes

    // Of units [first, last), to be multiplied with k_in of x.
    Place(const krasis_matrix &matrix, int64_t k_in, int64_t first, int64_t last) {
        const bool marlin = matrix.layout == KRASIS_LAYOUT_MARLIN;
        const int64_t depth = marlin ? 16 : matrix.k; // of a row
        const int64_t unit_bytes = depth * (matrix.codec == KRASIS_INT8 ? kUnit : kUnit / 2);
        const int64_t scale_bytes = matrix.codec == KRASIS_MXFP4 ? 1 : sizeof(uint16_t);
        const int64_t unit_scales = kUnit * (marlin ? 1 : matrix.k / matrix.group_size);
        codes = static_cast<const char *>(matrix.codes) + first * unit_bytes;
        scales = static_cast<const char *>(matrix.scales) + first * unit_scales * scale_bytes;
        row_bytes = (last - first) * unit_bytes;
        stride = matrix.n / kUnit * unit_bytes;
        rows = marlin ? (k_in + depth - 1) / depth : 1;
    }
};

// Fetches the first codes of a place into the second-level cache, some lines a call; false once there are no more.
class Warmer {
public:
    Warmer() = default;
    explicit Warmer(const Place &place)
        : row_(place.codes), row_bytes_(place.row_bytes), stride_(place.stride),
          left_(std::min(kWarm, place.rows * place.row_bytes)) {}

    bool operator()() {
        for (int line = 0; line < 4; line++) {
            if (left_ <= 0)
                return false;
            __builtin_prefetch(row_ + at_, 0, 2);
            at_ += kLineBytes;
            left_ -= kLineBytes;
            if (at_ >= row_bytes_) {
                at_ = 0;
                row_ += stride_;
            }
        }
        return true;
    }

private:
    static constexpr int64_t kWarm = 64 << 10, kLineBytes = 64;

    const char *row_ = nullptr;
    int64_t row_bytes_ = 0, stride_ = 0, at_ = 0, left_ = 0;
};

} // namespace krasis
