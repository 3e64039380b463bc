#include "avx2.h"
#include "table.h"

namespace krasis {

const Kernels &avx2_kernels() { return kTable<avx2::Isa>; }

} // namespace krasis
