// INT4: search over divisors of the peak, all in whole numbers, so that no order of summation changes a bit.
//
// A group becomes 16-bit v = rint(w * 2^14 / unit). Against a step S its codes are round(v / S) with the quotient in
// units of 2^-10 first. Of every candidate only A = sum h v q and B = sum h q q are kept: the least squared error over
// all steps is that of S = A / B, and it falls as A^2 / B grows.
#pragma once

#include "encode.h"

namespace krasis {

template <class Isa> struct EncodeInt4 : Encoding<Isa> {
    using Words = typename Isa::Words;
    using Floats = typename Isa::Floats;
    using Scale = uint16_t;
    static constexpr int kBits = 4, kZero = 8;

    static constexpr int kCandidates = 8;
    static constexpr float kUnit = 0x1p14f; // of v
    static constexpr float kOne = 0x1p25f;  // divided by a step: the multiplier that gives quotients in 2^-10
    static constexpr int kCoarse = 512;     // times 2^-15: v with six bits less, where importance takes twelve

    static constexpr float divisor(int candidate) { return (float)(7.25 + 0.35 * candidate); }

    static Words both(Words a) { return (a & 0xffff) | a << 16; }

    template <bool Clamp> static Words numbers(Words v, Words multiplier) {
        const Words q = Isa::min16(Isa::mulhrs(Isa::mulhrs(v, multiplier), Isa::set16(32)), Isa::set16(7));
        return Clamp ? Isa::max16(q, Isa::set16(-8)) : q;
    }

    struct Fit {
        Words a, b;
    };

    template <bool Weighted> static void accumulate(Fit &fit, Words v, Words q, int32_t importance) {
        const Words weighted = Weighted ? Isa::mul16(q, Words{} + importance) : q;
        fit.a += Isa::madd(v, weighted);
        fit.b += Isa::madd(q, weighted);
    }

    struct Best {
        Floats a{}, square{}, b = Floats{} + 1;

        void keep(Fit fit) {
            const Floats a_new = Isa::to_floats(fit.a), b_new = Isa::to_floats(fit.b), square_new = a_new * a_new;
            const Words better = square_new * b > square * b_new;
            a = (Floats)(better ? (Words)a_new : (Words)a);
            b = (Floats)(better ? (Words)b_new : (Words)b);
            square = (Floats)(better ? (Words)square_new : (Words)square);
        }
    };

    struct Integers {
        Words v[kMostWeights / 2], coarse[kMostWeights / 2];
        int32_t importance[kMostWeights / 2]; // pairs
        Words low{}, high{};                  // sum of squares, in parts of 2^16
    };

    template <bool Weighted> static void fill(Integers &in, const Group<Isa> &group, Floats factor) {
        for (int p = 0; p < group.size / 2; p++) {
            const Words even = Isa::rounded(group.weights[2 * p] * factor);
            const Words odd = Isa::rounded(group.weights[2 * p + 1] * factor);
            in.v[p] = Isa::pair16(even, odd);
            const Words squares = Isa::madd(in.v[p], in.v[p]);
            in.low += squares & 0xffff;
            in.high += squares >> 16 & 0xffff;
            if (Weighted) {
                in.coarse[p] = Isa::mulhrs(in.v[p], Isa::set16(kCoarse));
                memcpy(in.importance + p, group.importance->parts + 2 * p, sizeof in.importance[p]);
            }
        }
    }

    // Candidates First and those beside it that fit the registers.
    template <bool Weighted, int First>
    static void search(Best &best, const Integers &in, int pairs, const Words *multipliers) {
        if constexpr (First < kCandidates) {
            constexpr int kCount = Isa::kAtOnce;
            Fit fit[kCount] = {};
            for (int p = 0; p < pairs; p++) {
                const Words v = in.v[p];
#pragma GCC unroll 8
                for (int c = 0; c < kCount; c++) {
                    // Below 8.5 steps the peak's own side needs no clamp.
                    const Words q = divisor(First + c) < 8.4f ? numbers<false>(v, multipliers[First + c])
                                                              : numbers<true>(v, multipliers[First + c]);
                    accumulate<Weighted>(fit[c], Weighted ? in.coarse[p] : v, q, in.importance[p]);
                }
            }
            for (int c = 0; c < kCount; c++)
                best.keep(fit[c]);
            search<Weighted, First + kCount>(best, in, pairs, multipliers);
        }
    }

    template <bool Weighted> static void encode(const Group<Isa> &group, Encoded<Isa> &encoded) {
        const int pairs = group.size / 2;
        const Words used = (Words)group.unit >= kLeastPeak;
        const Floats factor = (Floats)((Words)(kUnit / group.unit) & used);
        const Floats peak = (Floats)(used ? (Words)(group.peak * factor) : (Words)(Floats{} + 1));
        Integers in;
        fill<Weighted>(in, group, factor);

        const Floats base = -kOne / peak;
        Words multipliers[kCandidates];
        for (int c = 0; c < kCandidates; c++)
            multipliers[c] = both(Isa::rounded(base * divisor(c)));
        Best best;
        search<Weighted, 0>(best, in, pairs, multipliers);
        const Floats step = Encoding<Isa>::to_bfloat16(best.a / best.b * (Weighted ? 32768.0f / kCoarse : 1.0f));

        const Words multiplier = both(Isa::rounded(Isa::within(kOne / step, 32767)));
        Fit fit{};
        for (int p = 0; p < pairs; p++) {
            const Words q = numbers<true>(in.v[p], multiplier);
            accumulate<false>(fit, in.v[p], q, 0);
            encoded.pairs[p] = Isa::add16(q, Isa::set16(kZero));
        }
        const Floats unit = group.unit * (1 / kUnit);
        encoded.scales = Encoding<Isa>::bfloat16_bits(step * unit);
        store(encoded, in, fit, step, unit);
        if (Weighted)
            store_weighted(encoded, in, step, unit, group);
    }

    // Exact: every number is whole and below 2^53.
    static void store(Encoded<Isa> &encoded, const Integers &in, Fit fit, Floats step, Floats unit) {
        for (int i = 0; i < Isa::kLanes; i++) {
            const double s = step[i], square = (double)unit[i] * unit[i];
            const double energy = in.high[i] * 65536.0 + in.low[i];
            encoded.energy[i] = energy * square;
            encoded.error[i] = (energy - 2 * s * fit.a[i] + s * s * fit.b[i]) * square;
        }
    }

    static void store_weighted(Encoded<Isa> &encoded, const Integers &in, Floats step, Floats unit, const Group<Isa> &group) {
        typename Encoding<Isa>::Sum error, energy;
        const Importance &importance = *group.importance;
        for (int p = 0; p < group.size / 2; p++) {
            const Words q = Isa::add16(encoded.pairs[p], Isa::set16(-kZero));
            add(error.even, energy.even, in.v[p] << 16 >> 16, q << 16 >> 16, step, importance.relative[2 * p]);
            add(error.odd, energy.odd, in.v[p] >> 16, q >> 16, step, importance.relative[2 * p + 1]);
        }
        Encoding<Isa>::Sums::store(encoded.weighted_error, error.total(), unit, importance.largest);
        Encoding<Isa>::Sums::store(encoded.weighted_energy, energy.total(), unit, importance.largest);
    }

    static void add(Floats &error, Floats &energy, Words v, Words q, Floats step, float importance) {
        const Floats x = Isa::to_floats(v), residual = x - Isa::to_floats(q) * step;
        error += residual * residual * importance;
        energy += x * x * importance;
    }

    static void encode(const Group<Isa> &group, Encoded<Isa> &encoded) {
        group.importance ? encode<true>(group, encoded) : encode<false>(group, encoded);
    }
};

} // namespace krasis
