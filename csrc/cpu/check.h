// Whether a matrix or a job is one that the kernels can run.
#pragma once

#include <cstddef>
#include <cstdint>

#include "krasis.h"
#include "moe.h"

namespace krasis {

constexpr int64_t kMost = int64_t(1) << 40; // keeps every size far inside 64 bits

// Whether rows of n elements, `stride` apart, are of a size that can be.
inline bool sized(int64_t rows, int64_t n) { return rows >= 0 && n >= 1 && n <= kMost && rows <= kMost / n; }
inline bool strided(int64_t rows, int64_t stride, int64_t n) {
    return rows <= 1 || (stride >= n && stride <= kMost / rows);
}

inline bool aligned(const void *p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

krasis_status check(const krasis_matrix &matrix);
krasis_status check(const krasis_job &job);
krasis_status check(const krasis_experts &experts);
krasis_status check(const MoeCall &call);

} // namespace krasis
