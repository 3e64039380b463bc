// The primitives of quantization in plain C++, and what each means. A word is 32 bits, or two of 16 bits.
#include <math.h>

#include "quantizers.h"

namespace krasis {
namespace scalar {

struct Lanes {
    static constexpr int kLanes = 4;
    static constexpr int kAtOnce = 2; // candidate scales whose sums fit the registers

    typedef int32_t Words __attribute__((vector_size(16)));
    typedef int16_t Shorts __attribute__((vector_size(16)));
    typedef float Floats __attribute__((vector_size(16)));

    // Rows to columns, of kLanes words.
    static void transpose(Words *words) {
        for (int i = 0; i < kLanes; i++)
            for (int j = 0; j < i; j++) {
                const int32_t word = words[i][j];
                words[i][j] = words[j][i];
                words[j][i] = word;
            }
    }

    // Words of a and b in turn.
    static void interleave(Words *to, Words a, Words b) {
        to[0] = Words{a[0], b[0], a[1], b[1]};
        to[1] = Words{a[2], b[2], a[3], b[3]};
    }

    static Words max(Words a, Words b) { return a > b ? a : b; }

    static Words max_unsigned(Words a, Words b) {
        const Words low = Words{} + INT32_MIN;
        return max(a ^ low, b ^ low) ^ low;
    }

    static bool any(Words condition) {
        int32_t bits = 0;
        for (int i = 0; i < kLanes; i++)
            bits |= condition[i];
        return bits;
    }

    // To the nearest integer, ties to even.
    static Words rounded(Floats a) {
        Words result;
        for (int i = 0; i < kLanes; i++)
            result[i] = (int32_t)lrintf(a[i]);
        return result;
    }

    // The exact product rounded to the nearest integer, ties to even; it is below 2^22.
    static Words rounded_product(Floats a, Floats b) {
        Words result;
        for (int i = 0; i < kLanes; i++)
            result[i] = (int32_t)lrint((double)a[i] * b[i]);
        return result;
    }

    static Floats to_floats(Words a) { return __builtin_convertvector(a, Floats); }

    static Floats within(Floats a, float limit) {
        a = a < limit ? a : Floats{} + limit;
        return a > -limit ? a : Floats{} - limit;
    }

    static Words set16(int16_t value) { return (Words)(Shorts{} + value); }

    static Words add16(Words a, Words b) { return (Words)((Shorts)a + (Shorts)b); }

    static Words mul16(Words a, Words b) { return (Words)((Shorts)a * (Shorts)b); }

    static Words min16(Words a, Words b) {
        const Shorts x = (Shorts)a, y = (Shorts)b;
        return (Words)(x < y ? x : y);
    }

    static Words max16(Words a, Words b) {
        const Shorts x = (Shorts)a, y = (Shorts)b;
        return (Words)(x > y ? x : y);
    }

    // Products times 2^-15, to the nearest integer, ties upwards.
    static Words mulhrs(Words a, Words b) {
        const Words low = (a << 16 >> 16) * (b << 16 >> 16), high = (a >> 16) * (b >> 16);
        return ((low + 0x4000) >> 15 & 0xffff) | (high + 0x4000) >> 15 << 16;
    }

    // The sum of both products; it wraps.
    static Words madd(Words a, Words b) {
        typedef uint32_t Wrapping __attribute__((vector_size(16)));
        return (Words)((Wrapping)((a << 16 >> 16) * (b << 16 >> 16)) + (Wrapping)((a >> 16) * (b >> 16)));
    }

    // Two words as one, clamped to 16 bits.
    static Words pair16(Words low, Words high) { return (clamp(low) & 0xffff) | clamp(high) << 16; }

    static Words clamp(Words a) {
        a = a < 32767 ? a : Words{} + 32767;
        return a > -32768 ? a : Words{} - 32768;
    }
};

} // namespace scalar

const Quantizers &scalar_quantizers() { return kQuantizers<scalar::Lanes>; }

} // namespace krasis
