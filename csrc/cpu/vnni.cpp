#include <immintrin.h>

#define KRASIS_VNNI vnni
#include "table.h"
#include "vnni.h"

namespace krasis {

const Kernels &vnni_kernels() { return kTable<vnni::Isa>; }

} // namespace krasis
