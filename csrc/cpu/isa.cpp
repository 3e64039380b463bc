#include "isa.h"

#ifdef KRASIS_X86
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace krasis {

#ifdef KRASIS_X86
namespace {

constexpr unsigned kOsSavesState = 1u << 27, kFma = 1u << 12;          // leaf 1, ecx
constexpr unsigned kAvx2 = 1u << 5;                                    // leaf 7, ebx
constexpr unsigned kAvx512 = 1u << 16 | 1u << 30 | 1u << 31;           // leaf 7, ebx: F, BW and VL
constexpr unsigned kVnni = 1u << 11;                                   // leaf 7, ecx
constexpr unsigned kAmx = 1u << 24 | 1u << 25;                         // leaf 7, edx: tiles, int8
constexpr unsigned kAvxState = 6, kAvx512State = kAvxState | 7u << 5;  // XCR0: xmm, ymm; masks, zmm
constexpr unsigned kTileState = 3u << 17;                              // XCR0: configuration, tiles
constexpr int kRequestState = 0x1023, kTileData = 18;                  // arch_prctl(2): ARCH_REQ_XCOMP_PERM

// Written out because the intrinsic needs a special flag.
unsigned saved_state() {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

// Linux gives tiles to processes that ask.
bool may_use_tiles() {
#ifdef __linux__
    return syscall(SYS_arch_prctl, kRequestState, kTileData) == 0;
#else
    return false;
#endif
}

int detect() {
    unsigned a, b, c, d;
    constexpr unsigned needed = kOsSavesState | kFma;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & needed) != needed)
        return KRASIS_ISA_SCALAR;
    const unsigned state = saved_state();
    if ((state & kAvxState) != kAvxState || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & kAvx2))
        return KRASIS_ISA_SCALAR;
    if ((state & kAvx512State) != kAvx512State || (b & kAvx512) != kAvx512)
        return KRASIS_ISA_AVX2;
    if (!(c & kVnni))
        return KRASIS_ISA_AVX512;
    const bool tiles = (state & kTileState) == kTileState && (d & kAmx) == kAmx;
    return tiles && may_use_tiles() ? KRASIS_ISA_AMX : KRASIS_ISA_VNNI;
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
    if (isa == KRASIS_ISA_EMULATED_VNNI)
        return &emulated_vnni_kernels();
    if (isa == KRASIS_ISA_EMULATED_AMX)
        return &emulated_amx_kernels();
    if (isa > best_isa())
        return nullptr;
    switch (isa) {
    case KRASIS_ISA_SCALAR: return &scalar_kernels();
#ifdef KRASIS_X86
    case KRASIS_ISA_AVX2:
    case KRASIS_ISA_AVX512: return &avx2_kernels();
    case KRASIS_ISA_VNNI: return &vnni_kernels();
    case KRASIS_ISA_AMX: return &amx_kernels();
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
    case KRASIS_ISA_AVX512:
    case KRASIS_ISA_VNNI:
    case KRASIS_ISA_AMX: return &avx512_quantizers();
#endif
    default: return nullptr;
    }
}

} // namespace krasis
