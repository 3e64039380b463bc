// The primitives of quantization on AVX2 and FMA. What each means stands in quantize_scalar.cpp.
#include <immintrin.h>

#include "quantizers.h"

namespace krasis {
namespace avx2 {

struct Lanes {
    static constexpr int kLanes = 8;
    static constexpr int kAtOnce = 2;

    typedef int32_t Words __attribute__((vector_size(32)));
    typedef int16_t Shorts __attribute__((vector_size(32)));
    typedef float Floats __attribute__((vector_size(32)));

    static void transpose(Words *words) {
        __m256i a[8], b[8];
        for (int i = 0; i < 8; i += 2) {
            a[i] = _mm256_unpacklo_epi32((__m256i)words[i], (__m256i)words[i + 1]);
            a[i + 1] = _mm256_unpackhi_epi32((__m256i)words[i], (__m256i)words[i + 1]);
        }
        for (int i = 0; i < 8; i += 4)
            for (int j = 0; j < 2; j++) {
                b[i + 2 * j] = _mm256_unpacklo_epi64(a[i + j], a[i + j + 2]);
                b[i + 2 * j + 1] = _mm256_unpackhi_epi64(a[i + j], a[i + j + 2]);
            }
        for (int i = 0; i < 4; i++) {
            words[i] = (Words)_mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
            words[i + 4] = (Words)_mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
        }
    }

    static void interleave(Words *to, Words a, Words b) {
        const __m256i low = _mm256_unpacklo_epi32((__m256i)a, (__m256i)b);
        const __m256i high = _mm256_unpackhi_epi32((__m256i)a, (__m256i)b);
        to[0] = (Words)_mm256_permute2x128_si256(low, high, 0x20);
        to[1] = (Words)_mm256_permute2x128_si256(low, high, 0x31);
    }

    static Words max(Words a, Words b) { return (Words)_mm256_max_epi32((__m256i)a, (__m256i)b); }

    static Words max_unsigned(Words a, Words b) { return (Words)_mm256_max_epu32((__m256i)a, (__m256i)b); }

    static bool any(Words condition) { return !_mm256_testz_si256((__m256i)condition, (__m256i)condition); }

    static Words rounded(Floats a) { return (Words)_mm256_cvtps_epi32((__m256)a); }

    // Adding 1.5 * 2^23 rounds the exact product to an integer, which the lowest bits then are.
    static Words rounded_product(Floats a, Floats b) {
        const __m256 large = _mm256_set1_ps(0x1.8p23f);
        return (Words)_mm256_fmadd_ps((__m256)a, (__m256)b, large) - (Words)large;
    }

    static Floats to_floats(Words a) { return (Floats)_mm256_cvtepi32_ps((__m256i)a); }

    static Floats within(Floats a, float limit) {
        return (Floats)_mm256_max_ps(_mm256_min_ps((__m256)a, _mm256_set1_ps(limit)), _mm256_set1_ps(-limit));
    }

    static Words set16(int16_t value) { return (Words)_mm256_set1_epi16(value); }

    static Words add16(Words a, Words b) { return (Words)((Shorts)a + (Shorts)b); }

    static Words mul16(Words a, Words b) { return (Words)_mm256_mullo_epi16((__m256i)a, (__m256i)b); }

    static Words min16(Words a, Words b) { return (Words)_mm256_min_epi16((__m256i)a, (__m256i)b); }

    static Words max16(Words a, Words b) { return (Words)_mm256_max_epi16((__m256i)a, (__m256i)b); }

    static Words mulhrs(Words a, Words b) { return (Words)_mm256_mulhrs_epi16((__m256i)a, (__m256i)b); }

    static Words madd(Words a, Words b) { return (Words)_mm256_madd_epi16((__m256i)a, (__m256i)b); }

    static Words pair16(Words low, Words high) {
        const __m256i order = _mm256_broadcastsi128_si256(
            _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
        return (Words)_mm256_shuffle_epi8(_mm256_packs_epi32((__m256i)low, (__m256i)high), order);
    }
};

} // namespace avx2

const Quantizers &avx2_quantizers() { return kQuantizers<avx2::Lanes>; }

} // namespace krasis
