#include <immintrin.h>

#define KRASIS_VNNI vnni
#include "ops_table.h"
#include "table.h"
#include "vnni.h"

namespace krasis {

const Kernels &vnni_kernels() { return kTable<vnni::Isa>; }

const Ops &vnni_ops() { return kOps<vnni::Isa>; }

} // namespace krasis
