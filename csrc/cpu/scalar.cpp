#include "scalar.h"
#include "table.h"

namespace krasis {

const Kernels &scalar_kernels() { return kTable<scalar::Isa>; }

} // namespace krasis
