#include "isa.h"

#ifdef KRASIS_X86
#include <cpuid.h>
#endif

namespace krasis {

#ifdef KRASIS_X86
namespace {

constexpr unsigned kOsSavesState = 1u << 27, kFma = 1u << 12;          // leaf 1, ecx
constexpr unsigned kAvx2 = 1u << 5;                                    // leaf 7, ebx
constexpr unsigned kAvx512 = 1u << 16 | 1u << 30 | 1u << 31;           // leaf 7, ebx: F, BW and VL
constexpr unsigned kAvxState = 6, kAvx512State = kAvxState | 7u << 5;  // XCR0: xmm, ymm; masks, zmm

// Written out because the intrinsic needs a special flag.
unsigned saved_state() {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

int detect() {
    unsigned a, b, c, d;
    constexpr unsigned needed = kOsSavesState | kFma;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & needed) != needed)
        return KRASIS_ISA_SCALAR;
    const unsigned state = saved_state();
    if ((state & kAvxState) != kAvxState || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & kAvx2))
        return KRASIS_ISA_SCALAR;
    const bool wide = (state & kAvx512State) == kAvx512State && (b & kAvx512) == kAvx512;
    return wide ? KRASIS_ISA_AVX512 : KRASIS_ISA_AVX2;
}

} // namespace

int best_isa() {
    // Asking a virtual processor takes tens of microseconds.
    static const int best = detect();
    return best;
}
#else
int best_isa() { return KRASIS_ISA_SCALAR; }
#endif

const Kernels *kernels_of(int isa) {
    if (isa > best_isa())
        return nullptr;
    switch (isa) {
    case KRASIS_ISA_SCALAR: return &scalar_kernels();
#ifdef KRASIS_X86
    case KRASIS_ISA_AVX2:
    case KRASIS_ISA_AVX512: return &avx2_kernels();
#endif
    default: return nullptr;
    }
}

const Quantizers *quantizers_of(int isa) {
    if (isa > best_isa())
        return nullptr;
    switch (isa) {
    case KRASIS_ISA_SCALAR: return &scalar_quantizers();
#ifdef KRASIS_X86
    case KRASIS_ISA_AVX2: return &avx2_quantizers();
    case KRASIS_ISA_AVX512: return &avx512_quantizers();
#endif
    default: return nullptr;
    }
}

} // namespace krasis
