// How many 16-bit vector operations a core issues: independent chains of what INT4's search does, in registers.
// Compiled by bench/quantize.py, once for AVX2 and once for AVX-512.
#include <immintrin.h>
#include <stdint.h>

#ifdef __AVX512BW__
typedef __m512i Vector;
#define OP(name) _mm512_##name##_epi16
#define ADD _mm512_add_epi32
#else
typedef __m256i Vector;
#define OP(name) _mm256_##name##_epi16
#define ADD _mm256_add_epi32
#endif

constexpr int kChains = 10, kOperations = 6;

// Runs about `operations` of them and returns how many it was.
extern "C" int64_t run(int64_t operations) {
    Vector chains[kChains], other = {};
    for (Vector &chain : chains)
        chain = other;
    const int64_t rounds = operations / (kChains * kOperations);
    __asm__ volatile("" : "+v"(other));
    for (int64_t i = 0; i < rounds; i++) {
#pragma GCC unroll 10
        for (Vector &chain : chains) {
            chain = OP(mulhrs)(chain, other);
            chain = OP(min)(chain, other);
            chain = OP(madd)(chain, other);
            chain = ADD(chain, other);
            chain = OP(madd)(chain, other);
            chain = ADD(chain, other);
            __asm__ volatile("" : "+v"(chain));
        }
    }
    return rounds * kChains * kOperations;
}
