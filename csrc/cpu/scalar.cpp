#include "scalar.h"
#include "ops_table.h"
#include "table.h"

namespace krasis {

const Kernels &scalar_kernels() { return kTable<scalar::Isa>; }

const Ops &scalar_ops() { return kOps<scalar::Isa>; }

} // namespace krasis
