// Groups of a block of rows: staged, turned so that a lane is a row, and handed to a codec.
#pragma once

#include "order.h"

namespace krasis {

// Bytes of a row that are staged at once: a whole number of groups. Rows lie a line further apart, as else lines of all of
// them would meet in one set of the first-level cache.
constexpr int kStage = 1024, kPitch = kStage + 64;

// A group of Isa::kLanes rows, as weights [k][lane].
template <class Isa> struct Group {
    typename Isa::Floats weights[kMostWeights];
    typename Isa::Floats peak; // the weight of largest magnitude, the positive one of equals; 1 in a group of zeros
    typename Isa::Floats unit; // the power of two at or below it, at least 2^-126
    typename Isa::Words used;  // all ones where there is a weight that counts, else 0
    int size;
    const Importance *importance; // or null
};

// What a codec makes of a group.
template <class Isa> struct Encoded {
    typename Isa::Words pairs[kMostWeights / 2];
    typename Isa::Words scales;
    double error[Isa::kLanes], energy[Isa::kLanes];                   // sums of squares
    double weighted_error[Isa::kLanes], weighted_energy[Isa::kLanes]; // with importance
};

template <class Isa> struct Reader {
    using Words = typename Isa::Words;
    using Floats = typename Isa::Floats;
    static constexpr int kLanes = Isa::kLanes;

    static void turn(Words *words, const char *row) {
        for (int i = 0; i < kLanes; i++, row += kPitch)
            memcpy(words + i, row, sizeof *words);
        Isa::transpose(words);
    }

    static void read_float32(Floats *x, const char *rows, int size) {
        for (int k = 0; k < size; k += kLanes)
            turn((Words *)(x + k), rows + k * sizeof(float));
    }

    static void read_bfloat16(Floats *x, const char *rows, int size) {
        for (int k = 0; k < size; k += 2 * kLanes) {
            Words pairs[kLanes];
            turn(pairs, rows + k * sizeof(uint16_t));
            for (int p = 0; p < kLanes; p++) {
                x[k + 2 * p] = (Floats)(pairs[p] << 16);
                x[k + 2 * p + 1] = (Floats)(pairs[p] & (int32_t)0xffff0000);
            }
        }
    }

    // Halves scaled so that the exponent fits: subnormals come right, infinity and NaN are put back.
    static Floats widen(Words halves) {
        const Words magnitude = halves & 0x7fff, sign = (halves & 0x8000) << 16;
        const Words finite = (Words)((Floats)(magnitude << 13) * 0x1p112f);
        return (Floats)(sign | (magnitude >= 0x7c00 ? Words{} + 0x7f800000 : finite));
    }

    static void read_float16(Floats *x, const char *rows, int size) {
        for (int k = 0; k < size; k += 2 * kLanes) {
            Words pairs[kLanes];
            turn(pairs, rows + k * sizeof(uint16_t));
            for (int p = 0; p < kLanes; p++) {
                x[k + 2 * p] = widen(pairs[p] & 0xffff);
                x[k + 2 * p + 1] = widen(pairs[p] >> 16 & 0xffff);
            }
        }
    }

    static void read(Floats *x, const char *rows, int size, int type) {
        switch (type) {
        case KRASIS_FLOAT32: return read_float32(x, rows, size);
        case KRASIS_BFLOAT16: return read_bfloat16(x, rows, size);
        default: return read_float16(x, rows, size);
        }
    }

    // False where a weight is NaN, infinite or beyond 2^127. Bits of floats of one sign are ordered as their magnitudes,
    // and taken as unsigned, negative ones are above the others.
    static bool find_peak(Group<Isa> &group) {
        const Words sign_off = Words{} + 0x7fffffff;
        Words positive{}, negative{};
        for (int k = 0; k < group.size; k++) {
            positive = Isa::max(positive, (Words)group.weights[k]);
            negative = Isa::max_unsigned(negative, (Words)group.weights[k]);
        }
        const Words magnitude = Isa::max(positive, negative & sign_off);
        const Words unit = Isa::max(magnitude & 0x7f800000, Words{} + 0x00800000);
        group.used = magnitude >= unit;
        group.unit = (Floats)unit;
        group.peak = (Floats)(group.used ? (magnitude == positive ? magnitude : magnitude | INT32_MIN) : unit);
        return !Isa::any(magnitude >= 0x7f000000);
    }
};

template <class Isa, class Codec> struct Block {
    static constexpr int kLanes = Isa::kLanes;

    const Quantize &work;
    int64_t block;
    const char *rows[kBlock]; // null for pads
    alignas(64) char stage[kBlock][kPitch];
    alignas(64) Pairs pairs;
    uint32_t scales[kBlock];
    double sums[kBlock][4] = {};

    Block(const Quantize &work, int64_t block) : work(work), block(block) {
        const int64_t rows_of_part = work.packing.n / work.weights.count;
        for (int i = 0; i < kBlock; i++) {
            const int64_t n = block * kBlock + i, row = n % rows_of_part;
            const krasis_part &part = work.weights.parts[n / rows_of_part];
            rows[i] = row < part.rows ? (const char *)part.values + row * part.stride * bytes() : nullptr;
        }
    }

    int64_t bytes() const { return work.weights.type == KRASIS_FLOAT32 ? 4 : 2; }

    Place place(int64_t group) const {
        return {block, work.packing.n / kBlock, group, work.packing.k / work.packing.group_size};
    }

    void prepare(Importance &importance, int64_t first) const {
        const float *given = work.weights.importance + first;
        const int size = work.packing.group_size;
        const int64_t left = work.weights.columns - first, have = left < 0 ? 0 : left < size ? left : size;
        importance.largest = 0;
        for (int k = 0; k < have; k++)
            importance.largest = given[k] > importance.largest ? given[k] : importance.largest;
        for (int k = 0; k < size; k++) {
            // Without any importance all are equal.
            const float share = importance.largest == 0 ? 1 : k < have ? given[k] / importance.largest : 0;
            const int parts = (int)__builtin_rintf(share * 4095);
            importance.relative[k] = share;
            importance.parts[k] = (int16_t)(parts > 1 ? parts : 1);
        }
    }

    // Brings bytes [first, first + kStage) of every row near, in order as memory likes it, with zeros beside the weights.
    void fill_stage(int64_t first) {
        const int64_t left = work.weights.columns * bytes() - first;
        const int64_t have = left < 0 ? 0 : left < kStage ? left : kStage;
        for (int i = 0; i < kBlock; i++) {
            if (rows[i] && have == kStage) {
                copy_stage(stage[i], rows[i] + first);
                continue;
            }
            memset(stage[i], 0, kStage);
            for (int64_t byte = 0; rows[i] && byte < have; byte++)
                stage[i][byte] = rows[i][first + byte];
        }
    }

    // While what comes next in the row is fetched.
    static void copy_stage(char *to, const char *row) {
        for (int byte = 0; byte < kStage; byte += 64) {
            __builtin_prefetch(row + kStage + byte, 0, 2);
            memcpy(to + byte, row + byte, 64);
        }
    }

    void keep(const Encoded<Isa> &encoded, int size, int unit, bool weighted) {
        for (int p = 0; p < size / 2; p++)
            memcpy(pairs[p] + unit * kLanes, encoded.pairs + p, sizeof encoded.pairs[p]);
        memcpy(scales + unit * kLanes, &encoded.scales, sizeof encoded.scales);
        for (int i = 0; i < kLanes; i++) {
            double *sum = sums[unit * kLanes + i];
            sum[0] += encoded.error[i];
            sum[1] += encoded.energy[i];
            if (weighted) {
                sum[2] += encoded.weighted_error[i];
                sum[3] += encoded.weighted_energy[i];
            }
        }
    }

    bool run(double *errors) {
        const int size = work.packing.group_size;
        Group<Isa> group;
        Encoded<Isa> encoded;
        Importance importance;
        group.size = size;
        group.importance = work.weights.importance ? &importance : nullptr;
        for (int64_t g = 0; g < work.packing.k / size; g++) {
            const int64_t first = g * size * bytes(), offset = first % kStage;
            if (offset == 0)
                fill_stage(first);
            if (group.importance)
                prepare(importance, g * size);
            for (int unit = 0; unit < kBlock / kLanes; unit++) {
                Reader<Isa>::read(group.weights, stage[unit * kLanes] + offset, size, work.weights.type);
                if (!Reader<Isa>::find_peak(group))
                    return false;
                Codec::encode(group, encoded);
                keep(encoded, size, unit, group.importance);
            }
            Order<Isa>::template write<Codec>(work.packing, pairs, scales, place(g));
        }
        for (int i = 0; i < (group.importance ? 4 : 2); i++) {
            errors[i] = 0;
            for (int n = 0; n < kBlock; n++)
                errors[i] += sums[n][i];
        }
        return true;
    }
};

template <class Isa, class Codec> bool quantize_blocks(const Quantize &work, int64_t first, int64_t last) {
    double *errors = work.errors;
    for (int64_t b = first; b < last; b++, errors += work.weights.importance ? 4 : 2)
        if (!Block<Isa, Codec>(work, b).run(errors))
            return false;
    return true;
}

// Codes and scales that are kept as they are.
template <class Isa, class Codec> bool pack_blocks(const Quantize &work, int64_t first, int64_t last) {
    const krasis_packing &packing = work.packing;
    const int size = packing.group_size;
    const int64_t groups = packing.k / size, rows_of_part = packing.n / work.weights.count;
    for (int64_t block = first; block < last; block++)
        for (int64_t g = 0; g < groups; g++) {
            alignas(64) Pairs pairs;
            uint32_t scales[kBlock];
            for (int i = 0; i < kBlock; i++) {
                const int64_t n = block * kBlock + i, row = n % rows_of_part;
                const krasis_codes &part = work.kept[n / rows_of_part];
                const int64_t left = row < part.rows ? part.columns - g * size : 0;
                const uint8_t *codes = part.codes + row * part.codes_stride + g * size;
                const auto *from = (const typename Codec::Scale *)part.scales + row * part.scales_stride + g;
                scales[i] = left > 0 ? *from : 0;
                for (int p = 0; p < size / 2; p++) {
                    const uint32_t even = 2 * p < left ? codes[2 * p] : Codec::kZero;
                    const uint32_t odd = 2 * p + 1 < left ? codes[2 * p + 1] : Codec::kZero;
                    pairs[p][i] = even | odd << 16;
                }
            }
            Order<Isa>::template write<Codec>(packing, pairs, scales, {block, packing.n / kBlock, g, groups});
        }
    return true;
}

} // namespace krasis
