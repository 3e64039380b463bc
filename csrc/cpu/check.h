// Whether a matrix or a job is one that the kernels can run.
#pragma once

#include <cstddef>
#include <cstdint>

#include "krasis.h"
#include "moe.h"

namespace krasis {

inline bool aligned(const void *p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

krasis_status check(const krasis_matrix &matrix);
krasis_status check(const krasis_job &job);
krasis_status check(const MoeCall &call);

} // namespace krasis
