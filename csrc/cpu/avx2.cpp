#include "avx2.h"
#include "ops_table.h"
#include "table.h"

namespace krasis {

const Kernels &avx2_kernels() { return kTable<avx2::Isa>; }

const Ops &avx2_ops() { return kOps<avx2::Isa>; }

} // namespace krasis
