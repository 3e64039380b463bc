// The primitives on AVX2 and FMA: a line of 64 bytes is a pair of registers. What each means stands in scalar.h.
#pragma once

#include <immintrin.h>
#include <string.h>

#include "kernels.h"

namespace krasis {
namespace avx2 {

struct Isa {
    static constexpr int kByteZero = 0;

    static constexpr int kTokensAtOnce = 2, kPanelsAtOnce = 1; // in registers

    struct Line {
        __m256i a, b;
    };
    struct Shorts {
        __m256i a, b;
    };
    struct Ints {
        __m256i a, b;
    };
    struct Floats {
        __m256 a, b;
    };

    static void prefetch(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T0); }

    static __m256i load32(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

    static Line load(const void *p) { return {load32(p), load32((const char *)p + 32)}; }

    static void store(uint8_t *p, Line x) { store_halves(p, p + 32, x); }

    static void store_halves(uint8_t *first, uint8_t *second, Line x) {
        _mm256_storeu_si256((__m256i *)first, x.a);
        _mm256_storeu_si256((__m256i *)second, x.b);
    }

    static __m256i weave_blocks(__m256i x) {
        const __m256i swapped = _mm256_permute2x128_si256(x, x, 1);
        return _mm256_blend_epi32(_mm256_unpacklo_epi16(x, swapped), _mm256_unpackhi_epi16(swapped, x), 0xf0);
    }

    static Line weave_blocks(Line x) { return {weave_blocks(x.a), weave_blocks(x.b)}; }

    static Line weave_halves(Line x) {
        return {_mm256_blend_epi16(x.a, _mm256_slli_epi32(x.b, 16), 0xaa),
                _mm256_blend_epi16(_mm256_srli_epi32(x.a, 16), x.b, 0xaa)};
    }

    static void transpose(Line *lines) {
        __m256i *rows = &lines->a, pairs[8], fours[8];
        for (int i = 0; i < 8; i += 2) {
            pairs[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
            pairs[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
        }
        for (int i = 0; i < 8; i += 4)
            for (int j = 0; j < 2; j++) {
                fours[i + 2 * j] = _mm256_unpacklo_epi64(pairs[i + j], pairs[i + j + 2]);
                fours[i + 2 * j + 1] = _mm256_unpackhi_epi64(pairs[i + j], pairs[i + j + 2]);
            }
        for (int i = 0; i < 4; i++) {
            rows[i] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x20);
            rows[i + 4] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x31);
        }
    }

    static Line repeat4(const int8_t *p) {
        int32_t word;
        memcpy(&word, p, sizeof word);
        const __m256i half = _mm256_set1_epi32(word);
        return {half, half};
    }

    static Line repeat16(const int8_t *p) {
        const __m256i half = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
        return {half, half};
    }

    static Line repeat_byte(uint8_t value) { return {_mm256_set1_epi8((char)value), _mm256_set1_epi8((char)value)}; }

    static Line shuffle(Line x, Line index) {
        return {_mm256_shuffle_epi8(x.a, index.a), _mm256_shuffle_epi8(x.b, index.b)};
    }

    static Line low_nibbles(Line x) {
        const __m256i mask = _mm256_set1_epi8(15);
        return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
    }

    static Line high_nibbles(Line x) { return low_nibbles({_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)}); }

    static Shorts mul_pairs(Line codes, Line q) {
        return {_mm256_maddubs_epi16(codes.a, q.a), _mm256_maddubs_epi16(codes.b, q.b)};
    }

    static __m256i add_neighbours(__m256i sum, __m256i shorts) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(shorts, _mm256_set1_epi16(1)));
    }

    static Ints add_neighbours(Ints sum, Shorts x) { return {add_neighbours(sum.a, x.a), add_neighbours(sum.b, x.b)}; }

    // Four products of at most 24 * 127 fit 16 bits.
    static Ints dot_nibbles(Ints sum, Line low, Line high, Line q_low, Line q_high) {
        const Shorts lows = mul_pairs(low, q_low), highs = mul_pairs(high, q_high);
        return add_neighbours(sum, {_mm256_add_epi16(lows.a, highs.a), _mm256_add_epi16(lows.b, highs.b)});
    }

    // vpmaddubsw saturates two products of unsigned codes; with |code - 128| <= 128 they are at most 32512. q is never
    // -128, so its sign can be changed.
    static __m256i dot_bytes(__m256i sum, __m256i codes, __m256i q) {
        const __m256i w = _mm256_xor_si256(codes, _mm256_set1_epi8((char)0x80));
        return add_neighbours(sum, _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(q, w)));
    }

    static Ints dot_bytes(Ints sum, Line codes, Line q) {
        return {dot_bytes(sum.a, codes.a, q.a), dot_bytes(sum.b, codes.b, q.b)};
    }

    static Shorts shorts(int16_t value) { return {_mm256_set1_epi16(value), _mm256_set1_epi16(value)}; }

    static Shorts add(Shorts x, Shorts y) { return {_mm256_add_epi16(x.a, y.a), _mm256_add_epi16(x.b, y.b)}; }

    static Shorts subtract(Shorts x, Shorts y) { return {_mm256_sub_epi16(x.a, y.a), _mm256_sub_epi16(x.b, y.b)}; }

    static Ints ints(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }

    static Ints load_ints(const void *p) { return {load32(p), load32((const char *)p + 32)}; }

    static Ints add(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }

    static Ints max(Ints x, Ints y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }

    static int32_t largest(Ints x) {
        const __m256i eight = _mm256_max_epi32(x.a, x.b);
        __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
        four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
        return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
    }

    static int32_t sum(Ints x) {
        const __m256i eight = _mm256_add_epi32(x.a, x.b);
        __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
        four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
        return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
    }

    static __m256i fold_halves(__m256i shorts) {
        return _mm256_add_epi32(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(shorts)),
                                _mm256_cvtepi16_epi32(_mm256_extracti128_si256(shorts, 1)));
    }

    static __m256i fold(Shorts x) { return _mm256_add_epi32(fold_halves(x.a), fold_halves(x.b)); }

    static Ints fold(Shorts first, Shorts second) { return {fold(first), fold(second)}; }

    static Ints fold(Ints first, Ints second) {
        return {_mm256_add_epi32(first.a, first.b), _mm256_add_epi32(second.a, second.b)};
    }

    static Floats floats(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }

    static Floats load_floats(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }

    static void store_floats(float *p, Floats x) {
        _mm256_storeu_ps(p, x.a);
        _mm256_storeu_ps(p + 8, x.b);
    }

    static __m256 widen8(const uint16_t *p) {
        const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
    }

    static Floats widen(const uint16_t *p) { return {widen8(p), widen8(p + 8)}; }

    static __m256 widen8(const uint8_t *p) {
        const __m256i exponents = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(exponents, 23));
    }

    static Floats widen(const uint8_t *p) { return {widen8(p), widen8(p + 8)}; }

    static Floats swap_middles(Floats x) { return {_mm256_permute_ps(x.a, 0xd8), _mm256_permute_ps(x.b, 0xd8)}; }

    static Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }

    static Floats add(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }

    static Floats sub(Floats x, Floats y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }

    static Floats mul(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }

    static Floats mul(Floats x, float y) { return mul(x, floats(y)); }

    static Floats div(Floats x, Floats y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }

    static Floats max(Floats x, Floats y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }

    static Floats min(Floats x, Floats y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }

    static __m256 power_of_two(__m256i n) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
    }

    static Floats power_of_two(Ints n) { return {power_of_two(n.a), power_of_two(n.b)}; }

    static float largest(Floats x) {
        const __m256 eight = _mm256_max_ps(x.a, x.b);
        __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        four = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
    }

    static Floats fma(Floats x, Floats y, Floats z) {
        return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
    }

    static float sum(Floats x) {
        const __m256 eight = _mm256_add_ps(x.a, x.b);
        __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        four = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
    }

    static Ints magnitude_bits(const float *p) {
        const __m256i mask = _mm256_set1_epi32(0x7fffffff);
        return {_mm256_and_si256(load32(p), mask), _mm256_and_si256(load32(p + 8), mask)};
    }

    static Ints rounded(Floats x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }

    static void store_bytes(int8_t *p, Ints x) {
        const __m256i shorts = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
        const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(shorts), _mm256_extracti128_si256(shorts, 1));
        _mm_storeu_si128((__m128i *)p, bytes);
    }

    static __m256i load_bytes8(const uint8_t *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)); }

    static Ints load_bytes(const uint8_t *p) { return {load_bytes8(p), load_bytes8(p + 8)}; }

    static Ints masked(Ints x, int32_t mask) {
        return {_mm256_and_si256(x.a, _mm256_set1_epi32(mask)), _mm256_and_si256(x.b, _mm256_set1_epi32(mask))};
    }

    template <int kBits> static Ints shifted(Ints x) {
        return {_mm256_slli_epi32(x.a, kBits), _mm256_slli_epi32(x.b, kBits)};
    }

    static Floats as_floats(Ints x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
};

} // namespace avx2

} // namespace krasis
