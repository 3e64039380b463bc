// INT4: search over divisors of the peak, all in whole numbers, so that no order of summation changes a bit.
//
// A group becomes v = rint(-w / peak * 2^15 / 2.75) in 16 bits, so that codes against the step peak / (m / 2.75) are
// v * m / 2^15 with a small whole m, the same for every group. Of each m only A = sum h v q and B = sum h q q are kept:
// the least squared error over all steps is that of the step A / B, and it falls as A^2 / B grows.
#pragma once

#include "encode.h"

namespace krasis {

template <class Isa> struct EncodeInt4 : Encoding<Isa> {
    using Words = typename Isa::Words;
    using Floats = typename Isa::Floats;
    using Scale = uint16_t;
    static constexpr int kBits = 4, kZero = 8;

    static constexpr int kLeast = 20, kCandidates = 8;
    static constexpr float kPeak = (float)(0x1p15 / 2.75); // of v
    static constexpr float kOne = 0x1p24f;                 // divided by a step: the multiplier for quotients in 2^-9
    static constexpr int kCoarse = 1024;                   // times 2^-15: v with five bits less

    // Against peak / 7.27 no number is beyond 7, and the peak's own side needs no clamp below 8.5.
    static constexpr bool beyond_most(int m) { return m > 7.4 * 2.75; }
    static constexpr bool beyond_least(int m) { return m > 8.4 * 2.75; }

    static Words numbers(Words v, int m) {
        Words q = Isa::mulhrs(v, Isa::set16((int16_t)m));
        if (beyond_most(m))
            q = Isa::min16(q, Isa::set16(7));
        return beyond_least(m) ? Isa::max16(q, Isa::set16(-8)) : q;
    }

    static Words numbers(Words v, Words multiplier) {
        const Words q = Isa::mulhrs(Isa::mulhrs(v, multiplier), Isa::set16(64));
        return Isa::max16(Isa::min16(q, Isa::set16(7)), Isa::set16(-8));
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
        constexpr int kFit = 4; // pairs whose squares fit 31 bits
        for (int first = 0; first < group.size / 2; first += kFit) {
            Words squares{};
            for (int p = first; p < first + kFit; p++) {
                const Words even = Isa::rounded(group.weights[2 * p] * factor);
                const Words odd = Isa::rounded(group.weights[2 * p + 1] * factor);
                in.v[p] = Isa::pair16(even, odd);
                squares += Isa::madd(in.v[p], in.v[p]);
                if (Weighted) {
                    in.coarse[p] = Isa::mulhrs(in.v[p], Isa::set16(kCoarse));
                    memcpy(in.importance + p, group.importance->parts + 2 * p, sizeof in.importance[p]);
                }
            }
            in.low += squares & 0xffff;
            in.high += squares >> 16;
        }
    }

    // Candidates First and those beside it that fit the registers.
    template <bool Weighted, int First> static void search(Best &best, const Integers &in, int pairs) {
        if constexpr (First < kCandidates) {
            constexpr int kCount = Isa::kAtOnce;
            Fit fit[kCount] = {};
            for (int p = 0; p < pairs; p++) {
                const Words v = in.v[p];
#pragma GCC unroll 8
                for (int c = 0; c < kCount; c++)
                    accumulate<Weighted>(fit[c], Weighted ? in.coarse[p] : v, numbers(v, kLeast + First + c),
                                         in.importance[p]);
            }
            for (int c = 0; c < kCount; c++)
                best.keep(fit[c]);
            search<Weighted, First + kCount>(best, in, pairs);
        }
    }

    template <bool Weighted> static void encode(const Group<Isa> &group, Encoded<Isa> &encoded) {
        const int pairs = group.size / 2;
        const Words used = (Words)group.unit >= kLeastPeak;
        const Floats factor = -kPeak / (Floats)(used ? (Words)group.peak : (Words)(Floats{} + 1));
        Integers in;
        fill<Weighted>(in, group, factor);
        Best best;
        search<Weighted, 0>(best, in, pairs);
        const Floats found = best.a / best.b * (Weighted ? 32768.0f / kCoarse : 1.0f);
        const Floats scale = Encoding<Isa>::to_bfloat16(found / factor);
        const Floats step = scale * factor;

        const Words multiplier = Isa::rounded(Isa::within(kOne / step, 32767)) & 0xffff;
        Fit fit{};
        for (int p = 0; p < pairs; p++) {
            const Words q = numbers(in.v[p], multiplier | multiplier << 16);
            accumulate<false>(fit, in.v[p], q, 0);
            encoded.pairs[p] = Isa::add16(q, Isa::set16(kZero));
        }
        encoded.scales = Encoding<Isa>::bfloat16_bits(scale);
        store(encoded, in, fit, step, factor);
        if (Weighted)
            store_weighted(encoded, in, step, factor, group);
    }

    static void store(Encoded<Isa> &encoded, const Integers &in, Fit fit, Floats step, Floats factor) {
        for (int i = 0; i < Isa::kLanes; i++) {
            const double s = step[i], unit = 1 / ((double)factor[i] * factor[i]);
            const double energy = in.high[i] * 65536.0 + in.low[i];
            const double error = energy - 2 * s * fit.a[i] + s * s * fit.b[i];
            encoded.energy[i] = energy * unit;
            // An error of nothing may be rounded to less.
            encoded.error[i] = error > 0 ? error * unit : 0;
        }
    }

    static void store_weighted(Encoded<Isa> &encoded, const Integers &in, Floats step, Floats factor,
                               const Group<Isa> &group) {
        typename Encoding<Isa>::Sum error, energy;
        const Importance &importance = *group.importance;
        for (int p = 0; p < group.size / 2; p++) {
            const Words q = Isa::add16(encoded.pairs[p], Isa::set16(-kZero));
            add(error.even, energy.even, in.v[p] << 16 >> 16, q << 16 >> 16, step, importance.relative[2 * p]);
            add(error.odd, energy.odd, in.v[p] >> 16, q >> 16, step, importance.relative[2 * p + 1]);
        }
        for (int i = 0; i < Isa::kLanes; i++) {
            const double unit = 1 / ((double)factor[i] * factor[i]);
            encoded.weighted_error[i] = error.total()[i] * unit * importance.largest;
            encoded.weighted_energy[i] = energy.total()[i] * unit * importance.largest;
        }
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
