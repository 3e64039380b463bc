// Whether a matrix or a job is one that the kernels can run.
#pragma once

#include "krasis.h"

namespace krasis {

krasis_status check(const krasis_matrix &matrix);
krasis_status check(const krasis_job &job);

} // namespace krasis
