// The kernels of VNNI and AMX on instructions in plain C++: for tests, at a hundredth of the speed.
#include "emulated.h"

#define KRASIS_VNNI emulated
#include "table.h"
#include "tiles.h"
#include "vnni.h"

namespace krasis {

const Kernels &emulated_vnni_kernels() { return kTable<emulated::Isa>; }

const Kernels &emulated_amx_kernels() {
    static constexpr Kernels kKernels = with_tiles<emulated::Isa>(kTable<emulated::Isa>);
    return kKernels;
}

} // namespace krasis
