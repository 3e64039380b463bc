// The primitives on AVX-512 with VNNI: a line of 64 bytes is a register. What each means stands in scalar.h.
// KRASIS_VNNI is the namespace: emulated.cpp has the same code on instructions in plain C++.
#include <string.h>

#include "kernels.h"

namespace krasis {
namespace KRASIS_VNNI {

struct Isa {
    static constexpr int kByteZero = 128;

    static constexpr int kTokensAtOnce = 8, kPanelsAtOnce = 2; // in registers

    struct Line {
        __m512i v;
    };
    struct Shorts {
        __m512i v;
    };
    struct Ints {
        __m512i v;
    };
    struct Floats {
        __m512 v;
    };

    static void prefetch(const void *p) { __builtin_prefetch(p); }

    static Line load(const void *p) { return {_mm512_loadu_si512(p)}; }

    static void store(uint8_t *p, Line x) { _mm512_storeu_si512(p, x.v); }

    static void store_halves(uint8_t *first, uint8_t *second, Line x) {
        _mm256_storeu_si256((__m256i *)first, _mm512_castsi512_si256(x.v));
        _mm256_storeu_si256((__m256i *)second, _mm512_extracti64x4_epi64(x.v, 1));
    }

    struct alignas(64) Shuffle {
        uint16_t index[32];
    };

    static constexpr Shuffle blocks_in_turn() {
        Shuffle order{};
        for (int i = 0; i < 32; i++)
            order.index[i] = i / 16 * 16 + i % 2 * 8 + i % 16 / 2;
        return order;
    }

    static constexpr Shuffle halves_in_turn() {
        Shuffle order{};
        for (int i = 0; i < 32; i++)
            order.index[i] = i % 2 * 16 + i % 16 / 2 * 2 + i / 16;
        return order;
    }

    static Line permute_shorts(Line x, const Shuffle &order) {
        return {_mm512_permutexvar_epi16(_mm512_loadu_si512(order.index), x.v)};
    }

    static Line weave_blocks(Line x) {
        static constexpr Shuffle kOrder = blocks_in_turn();
        return permute_shorts(x, kOrder);
    }

    static Line weave_halves(Line x) {
        static constexpr Shuffle kOrder = halves_in_turn();
        return permute_shorts(x, kOrder);
    }

    // Lane m of result j is word m / 8 + 2 j of row m % 8; a line has two rows.
    static void transpose(Line *lines) {
        const __m512i first = _mm512_setr_epi32(0, 8, 16, 24, 0, 8, 16, 24, 1, 9, 17, 25, 1, 9, 17, 25);
        __m512i result[4];
        for (int j = 0; j < 4; j++) {
            const __m512i index = _mm512_add_epi32(first, _mm512_set1_epi32(2 * j));
            const __m512i upper = _mm512_permutex2var_epi32(lines[0].v, index, lines[1].v);
            const __m512i lower = _mm512_permutex2var_epi32(lines[2].v, index, lines[3].v);
            result[j] = _mm512_mask_blend_epi32(0xf0f0, upper, lower);
        }
        for (int j = 0; j < 4; j++)
            lines[j].v = result[j];
    }

    static Line repeat4(const int8_t *p) {
        int32_t word;
        memcpy(&word, p, sizeof word);
        return {_mm512_set1_epi32(word)};
    }

    static Line repeat16(const int8_t *p) { return {_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)p))}; }

    static Line repeat_byte(uint8_t value) { return {_mm512_set1_epi8((char)value)}; }

    static Line shuffle(Line x, Line index) { return {_mm512_shuffle_epi8(x.v, index.v)}; }

    static Line low_nibbles(Line x) { return {_mm512_and_si512(x.v, _mm512_set1_epi8(15))}; }

    static Line high_nibbles(Line x) { return low_nibbles({_mm512_srli_epi16(x.v, 4)}); }

    static Shorts mul_pairs(Line codes, Line q) { return {_mm512_maddubs_epi16(codes.v, q.v)}; }

    static Ints dot_bytes(Ints sum, Line codes, Line q) { return {_mm512_dpbusd_epi32(sum.v, codes.v, q.v)}; }

    static Ints dot_nibbles(Ints sum, Line low, Line high, Line q_low, Line q_high) {
        return dot_bytes(dot_bytes(sum, low, q_low), high, q_high);
    }

    static Shorts shorts(int16_t value) { return {_mm512_set1_epi16(value)}; }

    static Shorts add(Shorts x, Shorts y) { return {_mm512_add_epi16(x.v, y.v)}; }

    static Shorts subtract(Shorts x, Shorts y) { return {_mm512_sub_epi16(x.v, y.v)}; }

    static Ints ints(int32_t value) { return {_mm512_set1_epi32(value)}; }

    static Ints load_ints(const void *p) { return {_mm512_loadu_si512(p)}; }

    static Ints add(Ints x, Ints y) { return {_mm512_add_epi32(x.v, y.v)}; }

    static Ints max(Ints x, Ints y) { return {_mm512_max_epi32(x.v, y.v)}; }

    static int32_t largest(Ints x) { return _mm512_reduce_max_epi32(x.v); }

    static int32_t sum(Ints x) { return _mm512_reduce_add_epi32(x.v); }

    static __m256i halves(__m512i x) {
        return _mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    }

    static __m256i halves_of_shorts(__m512i x) {
        return halves(_mm512_add_epi32(_mm512_cvtepi16_epi32(_mm512_castsi512_si256(x)),
                                       _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(x, 1))));
    }

    static Ints join(__m256i first, __m256i second) {
        return {_mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1)};
    }

    static Ints fold(Shorts first, Shorts second) { return join(halves_of_shorts(first.v), halves_of_shorts(second.v)); }

    static Ints fold(Ints first, Ints second) { return join(halves(first.v), halves(second.v)); }

    static Floats floats(float value) { return {_mm512_set1_ps(value)}; }

    static Floats load_floats(const float *p) { return {_mm512_loadu_ps(p)}; }

    static void store_floats(float *p, Floats x) { _mm512_storeu_ps(p, x.v); }

    static Floats widen(const uint16_t *p) {
        const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16))};
    }

    static Floats widen(const uint8_t *p) {
        const __m512i exponents = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(exponents, 23))};
    }

    static Floats swap_middles(Floats x) { return {_mm512_permute_ps(x.v, 0xd8)}; }

    static Floats to_floats(Ints x) { return {_mm512_cvtepi32_ps(x.v)}; }

    static Floats add(Floats x, Floats y) { return {_mm512_add_ps(x.v, y.v)}; }

    static Floats sub(Floats x, Floats y) { return {_mm512_sub_ps(x.v, y.v)}; }

    static Floats mul(Floats x, Floats y) { return {_mm512_mul_ps(x.v, y.v)}; }

    static Floats mul(Floats x, float y) { return mul(x, floats(y)); }

    static Floats div(Floats x, Floats y) { return {_mm512_div_ps(x.v, y.v)}; }

    static Floats max(Floats x, Floats y) { return {_mm512_max_ps(x.v, y.v)}; }

    static Floats min(Floats x, Floats y) { return {_mm512_min_ps(x.v, y.v)}; }

    static Floats fma(Floats x, Floats y, Floats z) { return {_mm512_fmadd_ps(x.v, y.v, z.v)}; }

    static Floats power_of_two(Ints n) {
        return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n.v, _mm512_set1_epi32(127)), 23))};
    }

    static float largest(Floats x) { return _mm512_reduce_max_ps(x.v); }

    static float sum(Floats x) {
        const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x.v), 1));
        const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x.v), upper);
        __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        four = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
    }

    static Ints magnitude_bits(const float *p) {
        return {_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(0x7fffffff))};
    }

    static Ints rounded(Floats x) { return {_mm512_cvtps_epi32(x.v)}; }

    static void store_bytes(int8_t *p, Ints x) { _mm_storeu_si128((__m128i *)p, _mm512_cvtsepi32_epi8(x.v)); }

    static Ints load_bytes(const uint8_t *p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p))}; }

    static Ints masked(Ints x, int32_t mask) { return {_mm512_and_si512(x.v, _mm512_set1_epi32(mask))}; }

    template <int kBits> static Ints shifted(Ints x) { return {_mm512_slli_epi32(x.v, kBits)}; }

    static Floats as_floats(Ints x) { return {_mm512_castsi512_ps(x.v)}; }
};

} // namespace KRASIS_VNNI
} // namespace krasis
