// The primitives of quantization on AVX-512 F and BW. What each means stands in quantize_scalar.cpp.
#include <immintrin.h>

#include "quantizers.h"

namespace krasis {
namespace avx512 {

struct Lanes {
    static constexpr int kLanes = 16;
    static constexpr int kAtOnce = 8;

    typedef int32_t Words __attribute__((vector_size(64)));
    typedef int16_t Shorts __attribute__((vector_size(64)));
    typedef float Floats __attribute__((vector_size(64)));

    static void transpose(Words *words) {
        __m512i a[16], b[16];
        for (int i = 0; i < 16; i += 2) {
            a[i] = _mm512_unpacklo_epi32((__m512i)words[i], (__m512i)words[i + 1]);
            a[i + 1] = _mm512_unpackhi_epi32((__m512i)words[i], (__m512i)words[i + 1]);
        }
        for (int i = 0; i < 16; i += 4)
            for (int j = 0; j < 2; j++) {
                b[i + 2 * j] = _mm512_unpacklo_epi64(a[i + j], a[i + j + 2]);
                b[i + 2 * j + 1] = _mm512_unpackhi_epi64(a[i + j], a[i + j + 2]);
            }
        // Now lane q of b[4r + j] holds rows 4r to 4r + 3 of column 4q + j.
        for (int j = 0; j < 4; j++) {
            const __m512i low_even = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88);
            const __m512i low_odd = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xdd);
            const __m512i high_even = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88);
            const __m512i high_odd = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xdd);
            words[j] = (Words)_mm512_shuffle_i32x4(low_even, high_even, 0x88);
            words[4 + j] = (Words)_mm512_shuffle_i32x4(low_odd, high_odd, 0x88);
            words[8 + j] = (Words)_mm512_shuffle_i32x4(low_even, high_even, 0xdd);
            words[12 + j] = (Words)_mm512_shuffle_i32x4(low_odd, high_odd, 0xdd);
        }
    }

    static void interleave(Words *to, Words a, Words b) {
        const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
        to[0] = (Words)_mm512_permutex2var_epi32((__m512i)a, low, (__m512i)b);
        to[1] = (Words)_mm512_permutex2var_epi32((__m512i)a, high, (__m512i)b);
    }

    static Words max(Words a, Words b) { return (Words)_mm512_max_epi32((__m512i)a, (__m512i)b); }

    static Words max_unsigned(Words a, Words b) { return (Words)_mm512_max_epu32((__m512i)a, (__m512i)b); }

    static bool any(Words condition) { return _mm512_test_epi32_mask((__m512i)condition, (__m512i)condition); }

    static Words rounded(Floats a) { return (Words)_mm512_cvtps_epi32((__m512)a); }

    // Adding 1.5 * 2^23 rounds the exact product to an integer, which the lowest bits then are.
    static Words rounded_product(Floats a, Floats b) {
        const __m512 large = _mm512_set1_ps(0x1.8p23f);
        return (Words)_mm512_fmadd_ps((__m512)a, (__m512)b, large) - (Words)large;
    }

    static Floats to_floats(Words a) { return (Floats)_mm512_cvtepi32_ps((__m512i)a); }

    static Floats within(Floats a, float limit) {
        return (Floats)_mm512_max_ps(_mm512_min_ps((__m512)a, _mm512_set1_ps(limit)), _mm512_set1_ps(-limit));
    }

    static Words set16(int16_t value) { return (Words)_mm512_set1_epi16(value); }

    static Words add16(Words a, Words b) { return (Words)((Shorts)a + (Shorts)b); }

    static Words mul16(Words a, Words b) { return (Words)_mm512_mullo_epi16((__m512i)a, (__m512i)b); }

    static Words min16(Words a, Words b) { return (Words)_mm512_min_epi16((__m512i)a, (__m512i)b); }

    static Words max16(Words a, Words b) { return (Words)_mm512_max_epi16((__m512i)a, (__m512i)b); }

    static Words mulhrs(Words a, Words b) { return (Words)_mm512_mulhrs_epi16((__m512i)a, (__m512i)b); }

    static Words madd(Words a, Words b) { return (Words)_mm512_madd_epi16((__m512i)a, (__m512i)b); }

    static Words pair16(Words low, Words high) {
        const __m512i order = _mm512_broadcast_i32x4(
            _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
        return (Words)_mm512_shuffle_epi8(_mm512_packs_epi32((__m512i)low, (__m512i)high), order);
    }
};

} // namespace avx512

const Quantizers &avx512_quantizers() { return kQuantizers<avx512::Lanes>; }

} // namespace krasis
