#include "isa.h"

#ifdef KRASIS_X86
#include <cpuid.h>
#endif

namespace krasis {

#ifdef KRASIS_X86
namespace {

constexpr unsigned kOsSavesState = 1u << 27, kFma = 1u << 12; // leaf 1, ecx
constexpr unsigned kAvx2 = 1u << 5;                           // leaf 7, ebx
constexpr unsigned kVectorState = 6;                          // XCR0: xmm and ymm

// Written out because the intrinsic needs a special flag.
unsigned saved_state() {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

bool has_avx2() {
    unsigned a, b, c, d;
    constexpr unsigned needed = kOsSavesState | kFma;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & needed) != needed)
        return false;
    if ((saved_state() & kVectorState) != kVectorState)
        return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & kAvx2);
}

} // namespace

int best_isa() { return has_avx2() ? KRASIS_ISA_AVX2 : KRASIS_ISA_SCALAR; }
#else
int best_isa() { return KRASIS_ISA_SCALAR; }
#endif

const Kernels *kernels_of(int isa) {
    if (isa > best_isa())
        return nullptr;
    switch (isa) {
    case KRASIS_ISA_SCALAR: return &scalar_kernels();
#ifdef KRASIS_X86
    case KRASIS_ISA_AVX2: return &avx2_kernels();
#endif
    default: return nullptr;
    }
}

} // namespace krasis
