// Activations: quantized group by group for quantized codecs, padded for BF16.
#pragma once

#include <string.h>

#include "kernels.h"

namespace krasis {

constexpr float kSmallest = 0x1p-100f; // below, 127 / a and products with it could leave the range of float32
constexpr int kMaxGroup = 128;
constexpr int32_t kInfinityBits = 0x7f800000;

// The bits of non-negative floats are ordered as the floats are, with NaN above infinity: no case for NaN is needed.
template <class Isa> int32_t largest_magnitude_bits(const float *x, int size) {
    auto largest = Isa::magnitude_bits(x);
    for (int i = kUnit; i < size; i += kUnit)
        largest = Isa::max(largest, Isa::magnitude_bits(x + i));
    return Isa::largest(largest);
}

template <class Isa> void quantize_group(const float *x, int size, int8_t *q, float *scale, int32_t *sum) {
    const int32_t bits = largest_magnitude_bits<Isa>(x, size);
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    *sum = 0;
    if (bits >= kInfinityBits || largest < kSmallest) {
        *scale = bits >= kInfinityBits ? __builtin_nanf("") : 0.0f;
        memset(q, 0, size);
        return;
    }
    *scale = largest / 127;
    const float inverse = 127 / largest;
    auto total = Isa::ints(0);
    for (int i = 0; i < size; i += kUnit) {
        const auto rounded = Isa::rounded(Isa::mul(Isa::load_floats(x + i), inverse));
        Isa::store_bytes(q + i, rounded);
        total = Isa::add(total, rounded);
    }
    *sum = Isa::sum(total);
}

template <class Isa> void quantize_token(const Work &work, int64_t token) {
    const krasis_job &job = work.job;
    const int k = job.matrix->k, size = job.matrix->group_size, groups = k / size;
    const float *x = job.x + token * job.ldx;
    int8_t *q = work.activations.q + token * k;
    float *scale = work.activations.scale + token * groups;
    int32_t *sum = work.activations.sum + token * groups;
    for (int g = 0; g < groups; g++) {
        const int64_t have = job.k_in - (int64_t)g * size;
        float padded[kMaxGroup] = {};
        const float *group = x + (int64_t)g * size;
        if (have < size) {
            if (have > 0)
                memcpy(padded, group, have * sizeof *padded);
            group = padded;
        }
        quantize_group<Isa>(group, size, q + (int64_t)g * size, scale + g, sum + g);
    }
}

template <class Isa> void quantize(const Work &work, int64_t first, int64_t last) {
    for (int64_t token = first; token < last; token++)
        quantize_token<Isa>(work, token);
}

template <class Isa> void pad(const Work &work, int64_t first, int64_t last) {
    const krasis_job &job = work.job;
    for (int64_t token = first; token < last; token++) {
        float *row = work.activations.values + token * work.activations.padded_k;
        memcpy(row, job.x + token * job.ldx, job.k_in * sizeof *row);
        memset(row + job.k_in, 0, (work.activations.padded_k - job.k_in) * sizeof *row);
    }
}

} // namespace krasis
