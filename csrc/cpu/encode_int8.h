// INT8: the scale from the largest magnitude.
#pragma once

#include "encode.h"

namespace krasis {

template <class Isa> struct EncodeInt8 : Encoding<Isa> {
    using Words = typename Isa::Words;
    using Floats = typename Isa::Floats;
    using Scale = uint16_t;
    static constexpr int kBits = 8, kZero = 128;

    static void encode(const Group<Isa> &group, Encoded<Isa> &encoded) {
        const Words used = (Words)group.unit >= kLeastPeak;
        const Floats to_unit = 1 / group.unit;
        const Floats magnitude = (Floats)((Words)(group.peak * to_unit) & 0x7fffffff);
        const Floats scale = Encoding<Isa>::to_bfloat16(magnitude / 127);
        const Floats inverse = (Floats)((Words)(1 / scale) & used);
        const Floats step = (Floats)((Words)scale & used);
        typename Encoding<Isa>::Sums sums;
        for (int k = 0; k < group.size; k += 2) {
            const Floats even = group.weights[k] * to_unit, odd = group.weights[k + 1] * to_unit;
            const Words q_even = Isa::rounded_product(even, inverse), q_odd = Isa::rounded_product(odd, inverse);
            encoded.pairs[k / 2] = (q_even + kZero) | (q_odd + kZero) << 16;
            sums.add_pair(even, even - Isa::to_floats(q_even) * step, odd, odd - Isa::to_floats(q_odd) * step,
                          group.importance, k);
        }
        encoded.scales = Encoding<Isa>::bfloat16_bits(step * group.unit);
        sums.store(encoded, group.unit, group.importance);
    }
};

} // namespace krasis
