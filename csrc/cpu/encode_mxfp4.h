// MXFP4: the better of two exponents.
#pragma once

#include "encode.h"

namespace krasis {

template <class Isa> struct EncodeMxfp4 : Encoding<Isa> {
    using Words = typename Isa::Words;
    using Floats = typename Isa::Floats;
    using Scale = uint8_t;
    static constexpr int kBits = 4, kZero = 0;

    // The nearest of 0, 0.5, 1, 1.5, 2, 3, 4 and 6, ties to the even code. Adding a number whose last bit is as large as
    // the steps around x rounds x to them.
    static Floats nearest(Floats magnitude) {
        const Words exponent = Isa::max((Words)magnitude, Words{} + 0x3f800000) & 0x7f800000;
        const Floats large = (Floats)(exponent + (22 << 23 | 0x400000));
        const Floats rounded = (magnitude + large) - large;
        return (Floats)(rounded > 6 ? (Words)(Floats{} + 6) : (Words)rounded);
    }

    static Words codes(Floats value, Words sign) {
        const Words bits = (Words)value;
        // 0 and 0.5 are 0 and 1; from 1 on the exponent and the first bit of the mantissa count up.
        const Words magnitude = bits >= 0x3f800000 ? (bits >> 22) - 252 : (Words)(value == 0.5f) & 1;
        return magnitude | ((sign >> 28 & 8) & (magnitude > 0));
    }

    static Floats squared_error(const Group<Isa> &group, Floats to_unit, float step) {
        typename Encoding<Isa>::Sum sum;
        for (int k = 0; k < group.size; k += 2) {
            sum.even += weighted_square(group, k, to_unit, step);
            sum.odd += weighted_square(group, k + 1, to_unit, step);
        }
        return sum.total();
    }

    static Floats weighted_square(const Group<Isa> &group, int k, Floats to_unit, float step) {
        const Floats magnitude = (Floats)((Words)(group.weights[k] * to_unit) & 0x7fffffff) * (1 / step);
        const Floats residual = (magnitude - nearest(magnitude)) * step;
        const Floats square = residual * residual;
        return group.importance ? square * group.importance->relative[k] : square;
    }

    static void encode(const Group<Isa> &group, Encoded<Isa> &encoded) {
        const Floats to_unit = 1 / group.unit;
        const Floats low = squared_error(group, to_unit, 0.25f);
        const Floats high = squared_error(group, to_unit, 0.5f);
        const Words coarser = high < low;
        const Floats step = (Floats)(coarser ? (Words)(Floats{} + 0.5f) : (Words)(Floats{} + 0.25f));
        const Words exponent = ((Words)group.unit >> 23) - 2 - coarser; // a true lane is -1
        const Words usable = (exponent > 0) & group.used;
        typename Encoding<Isa>::Sums sums;
        Words any{};
        for (int k = 0; k < group.size; k += 2) {
            Floats x[2], residual[2];
            Words code[2];
            for (int i = 0; i < 2; i++) {
                x[i] = group.weights[k + i] * to_unit;
                const Words sign = (Words)x[i] & INT32_MIN;
                const Floats value = nearest((Floats)((Words)x[i] & 0x7fffffff) / step);
                code[i] = codes(value, sign) & usable;
                residual[i] = x[i] - (Floats)(((Words)(value * step) | sign) & usable);
                any |= code[i];
            }
            encoded.pairs[k / 2] = code[0] | code[1] << 16;
            sums.add_pair(x[0], residual[0], x[1], residual[1], group.importance, k);
        }
        encoded.scales = exponent & usable & (any != 0);
        sums.store(encoded, group.unit, group.importance);
    }
};

} // namespace krasis
