// Every primitive in plain C++: the instruction set of machines without AVX2, and what the others are checked against.
#pragma once

#include <math.h>
#include <string.h>

#include "kernels.h"

namespace krasis {
namespace scalar {

struct Isa {
    // What dot_bytes leaves to be subtracted from every code.
    static constexpr int kByteZero = 128;

    static constexpr int kTokensAtOnce = 4, kPanelsAtOnce = 1; // in registers

    struct Line {
        uint8_t v[64];
    };
    struct Shorts {
        int16_t v[32];
    };
    struct Ints {
        int32_t v[16];
    };
    struct Floats {
        float v[16];
    };

    static void prefetch(const void *p) { __builtin_prefetch(p); }

    static Line load(const void *p) {
        Line line;
        memcpy(line.v, p, sizeof line.v);
        return line;
    }

    static void store(uint8_t *p, Line line) { memcpy(p, line.v, sizeof line.v); }

    static void store_halves(uint8_t *first, uint8_t *second, Line line) {
        memcpy(first, line.v, 32);
        memcpy(second, line.v + 32, 32);
    }

    // Of 32 shorts: those of the first and second sixteen bytes in turn, then those of the third and fourth.
    static Line weave_blocks(Line a) {
        Line line;
        for (int i = 0; i < 64; i++)
            line.v[i] = a.v[i / 32 * 32 + i / 2 % 2 * 16 + i % 32 / 4 * 2 + i % 2];
        return line;
    }

    // Of 16 words in two halves: the lower shorts of the two halves in turn, then the upper ones.
    static Line weave_halves(Line a) {
        Line line;
        for (int i = 0; i < 64; i++)
            line.v[i] = a.v[i / 2 % 2 * 32 + i % 32 / 4 * 4 + i / 32 * 2 + i % 2];
        return line;
    }

    // 8 x 8 words.
    static void transpose(Line *lines) {
        int32_t words[64], turned[64];
        memcpy(words, lines, sizeof words);
        for (int i = 0; i < 64; i++)
            turned[i] = words[i % 8 * 8 + i / 8];
        memcpy(lines, turned, sizeof turned);
    }

    static Line repeat4(const int8_t *p) {
        Line line;
        for (int i = 0; i < 64; i++)
            line.v[i] = p[i % 4];
        return line;
    }

    static Line repeat16(const int8_t *p) {
        Line line;
        for (int i = 0; i < 64; i++)
            line.v[i] = p[i % 16];
        return line;
    }

    static Line repeat_byte(uint8_t value) {
        Line line;
        memset(line.v, value, sizeof line.v);
        return line;
    }

    // Within each 16 bytes.
    static Line shuffle(Line a, Line index) {
        Line line;
        for (int i = 0; i < 64; i++)
            line.v[i] = a.v[i / 16 * 16 + index.v[i]];
        return line;
    }

    static Line low_nibbles(Line a) {
        for (uint8_t &byte : a.v)
            byte &= 15;
        return a;
    }

    static Line high_nibbles(Line a) {
        for (uint8_t &byte : a.v)
            byte >>= 4;
        return a;
    }

    static int product(Line codes, Line q, int i) { return codes.v[i] * (int8_t)q.v[i]; }

    // Unsigned times signed bytes, neighbours added; exact where the codes are at most 24.
    static Shorts mul_pairs(Line codes, Line q) {
        Shorts sums;
        for (int i = 0; i < 32; i++)
            sums.v[i] = (int16_t)(product(codes, q, 2 * i) + product(codes, q, 2 * i + 1));
        return sums;
    }

    // Adds, to the sum of every four bytes, codes times q.
    static Ints dot_bytes(Ints sum, Line codes, Line q) {
        for (int i = 0; i < 64; i++)
            sum.v[i / 4] += product(codes, q, i);
        return sum;
    }

    static Ints dot_nibbles(Ints sum, Line low, Line high, Line q_low, Line q_high) {
        return dot_bytes(dot_bytes(sum, low, q_low), high, q_high);
    }

    static Shorts shorts(int16_t value) {
        Shorts a;
        for (int16_t &lane : a.v)
            lane = value;
        return a;
    }

    // 16-bit sums wrap.
    static Shorts add(Shorts a, Shorts b) {
        for (int i = 0; i < 32; i++)
            a.v[i] = (int16_t)(a.v[i] + b.v[i]);
        return a;
    }

    static Shorts subtract(Shorts a, Shorts b) {
        for (int i = 0; i < 32; i++)
            a.v[i] = (int16_t)(a.v[i] - b.v[i]);
        return a;
    }

    static Ints ints(int32_t value) {
        Ints a;
        for (int32_t &lane : a.v)
            lane = value;
        return a;
    }

    static Ints load_ints(const void *p) {
        Ints a;
        memcpy(a.v, p, sizeof a.v);
        return a;
    }

    // Wraps.
    static Ints add(Ints a, Ints b) {
        for (int i = 0; i < 16; i++)
            a.v[i] = (int32_t)((uint32_t)a.v[i] + (uint32_t)b.v[i]);
        return a;
    }

    static Ints max(Ints a, Ints b) {
        for (int i = 0; i < 16; i++)
            a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
        return a;
    }

    static int32_t largest(Ints a) {
        int32_t result = a.v[0];
        for (int32_t lane : a.v)
            result = lane > result ? lane : result;
        return result;
    }

    static int32_t sum(Ints a) {
        uint32_t result = 0;
        for (int32_t lane : a.v)
            result += (uint32_t)lane;
        return (int32_t)result;
    }

    // Lane i of the first, then of the second, eight lanes: the sum of all lanes i mod 8 of that argument.
    static Ints fold(Shorts first, Shorts second) {
        Ints sums = ints(0);
        for (int i = 0; i < 32; i++) {
            sums.v[i % 8] += first.v[i];
            sums.v[8 + i % 8] += second.v[i];
        }
        return sums;
    }

    static Ints fold(Ints first, Ints second) {
        for (int i = 0; i < 8; i++) {
            first.v[i] += first.v[8 + i];
            first.v[8 + i] = second.v[i] + second.v[8 + i];
        }
        return first;
    }

    static Floats floats(float value) {
        Floats a;
        for (float &lane : a.v)
            lane = value;
        return a;
    }

    static Floats load_floats(const float *p) {
        Floats a;
        memcpy(a.v, p, sizeof a.v);
        return a;
    }

    static void store_floats(float *p, Floats a) { memcpy(p, a.v, sizeof a.v); }

    // 16 bf16 to float32.
    static Floats widen(const uint16_t *p) {
        uint32_t bits[16];
        for (int i = 0; i < 16; i++)
            bits[i] = (uint32_t)p[i] << 16;
        Floats a;
        memcpy(a.v, bits, sizeof a.v);
        return a;
    }

    // 16 e8m0 to float32; 0 to zero.
    static Floats widen(const uint8_t *p) {
        uint32_t bits[16];
        for (int i = 0; i < 16; i++)
            bits[i] = (uint32_t)p[i] << 23;
        Floats a;
        memcpy(a.v, bits, sizeof a.v);
        return a;
    }

    // Of every four.
    static Floats swap_middles(Floats a) {
        for (int i = 0; i < 16; i += 4) {
            const float second = a.v[i + 1];
            a.v[i + 1] = a.v[i + 2];
            a.v[i + 2] = second;
        }
        return a;
    }

    static Floats to_floats(Ints a) {
        Floats floats;
        for (int i = 0; i < 16; i++)
            floats.v[i] = (float)a.v[i];
        return floats;
    }

    static Floats add(Floats a, Floats b) {
        for (int i = 0; i < 16; i++)
            a.v[i] += b.v[i];
        return a;
    }

    static Floats sub(Floats a, Floats b) {
        for (int i = 0; i < 16; i++)
            a.v[i] -= b.v[i];
        return a;
    }

    static Floats mul(Floats a, Floats b) {
        for (int i = 0; i < 16; i++)
            a.v[i] *= b.v[i];
        return a;
    }

    static Floats mul(Floats a, float b) { return mul(a, floats(b)); }

    static Floats div(Floats a, Floats b) {
        for (int i = 0; i < 16; i++)
            a.v[i] /= b.v[i];
        return a;
    }

    // The second where either is NaN.
    static Floats max(Floats a, Floats b) {
        for (int i = 0; i < 16; i++)
            a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
        return a;
    }

    static Floats min(Floats a, Floats b) {
        for (int i = 0; i < 16; i++)
            a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
        return a;
    }

    // 2^n for n = -126 to 127.
    static Floats power_of_two(Ints n) {
        for (int32_t &lane : n.v)
            lane = (int32_t)((uint32_t)(lane + 127) << 23);
        Floats a;
        memcpy(a.v, n.v, sizeof a.v);
        return a;
    }

    static Floats fma(Floats a, Floats b, Floats c) {
        for (int i = 0; i < 16; i++)
            c.v[i] = fmaf(a.v[i], b.v[i], c.v[i]);
        return c;
    }

    // The largest lane; there must be no NaN.
    static float largest(Floats a) {
        float result = a.v[0];
        for (float lane : a.v)
            result = lane > result ? lane : result;
        return result;
    }

    // Halves added onto each other until one lane is left.
    static float sum(Floats a) {
        for (int half = 8; half; half /= 2)
            for (int i = 0; i < half; i++)
                a.v[i] += a.v[half + i];
        return a.v[0];
    }

    // The bits of |p[i]|.
    static Ints magnitude_bits(const float *p) {
        Ints a;
        memcpy(a.v, p, sizeof a.v);
        for (int32_t &lane : a.v)
            lane &= 0x7fffffff;
        return a;
    }

    // To the nearest integer, ties to even.
    static Ints rounded(Floats a) {
        Ints result;
        for (int i = 0; i < 16; i++)
            result.v[i] = (int32_t)lrintf(a.v[i]);
        return result;
    }

    static void store_bytes(int8_t *p, Ints a) {
        for (int i = 0; i < 16; i++)
            p[i] = (int8_t)a.v[i];
    }

    // 16 unsigned bytes.
    static Ints load_bytes(const uint8_t *p) {
        Ints a;
        for (int i = 0; i < 16; i++)
            a.v[i] = p[i];
        return a;
    }

    static Ints masked(Ints a, int32_t mask) {
        for (int32_t &lane : a.v)
            lane &= mask;
        return a;
    }

    // To the left.
    template <int kBits> static Ints shifted(Ints a) {
        for (int32_t &lane : a.v)
            lane = (int32_t)((uint32_t)lane << kBits);
        return a;
    }

    // The floats of these bits.
    static Floats as_floats(Ints a) {
        Floats floats;
        memcpy(floats.v, a.v, sizeof floats.v);
        return floats;
    }
};

} // namespace scalar

} // namespace krasis
