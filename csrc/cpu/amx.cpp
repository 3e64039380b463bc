#include <immintrin.h>

#define KRASIS_VNNI amx
#include "table.h"
#include "tiles.h"
#include "vnni.h"

namespace krasis {

const Kernels &amx_kernels() {
    static constexpr Kernels kKernels = with_tiles<amx::Isa>(kTable<amx::Isa>);
    return kKernels;
}

} // namespace krasis
