// What codecs of float groups share: rounding to bfloat16, and sums of squared errors.
#pragma once

#include "groups.h"

namespace krasis {

constexpr int32_t kLeastPeak = 0x0d800000; // bits of 2^-100: smaller groups of int4 and int8 become zero

template <class Isa> struct Encoding {
    using Words = typename Isa::Words;
    using Floats = typename Isa::Floats;

    // To nearest, ties to even, as float32.
    static Floats to_bfloat16(Floats x) {
        const Words bits = (Words)x;
        return (Floats)((bits + 0x7fff + (bits >> 16 & 1)) & (int32_t)0xffff0000);
    }

    // The bfloat16 bits of floats that are exact in it.
    static Words bfloat16_bits(Floats x) { return (Words)x >> 16 & 0xffff; }

    // Sums of even and of odd k apart, each by ascending k.
    struct Sum {
        Floats even{}, odd{};

        Floats total() const { return even + odd; }
    };

    struct Sums {
        Sum error, energy, weighted_error, weighted_energy;

        static void add(Floats x, Floats residual, const Importance *importance, int k, Floats &e, Floats &n, Floats &we,
                        Floats &wn) {
            const Floats error = residual * residual, energy = x * x;
            e += error;
            n += energy;
            if (importance) {
                we += error * importance->relative[k];
                wn += energy * importance->relative[k];
            }
        }

        void add_pair(Floats x_even, Floats even, Floats x_odd, Floats odd, const Importance *importance, int k) {
            add(x_even, even, importance, k, error.even, energy.even, weighted_error.even, weighted_energy.even);
            add(x_odd, odd, importance, k + 1, error.odd, energy.odd, weighted_error.odd, weighted_energy.odd);
        }

        // `unit`: what 1 stands for.
        void store(Encoded<Isa> &encoded, Floats unit, const Importance *importance) const {
            store(encoded.error, error.total(), unit, 1);
            store(encoded.energy, energy.total(), unit, 1);
            if (importance) {
                store(encoded.weighted_error, weighted_error.total(), unit, importance->largest);
                store(encoded.weighted_energy, weighted_energy.total(), unit, importance->largest);
            }
        }

        static void store(double *to, Floats sum, Floats unit, double importance) {
            for (int i = 0; i < Isa::kLanes; i++)
                to[i] = sum[i] * ((double)unit[i] * unit[i]) * importance;
        }
    };
};

} // namespace krasis
