// What happens between the products of an expert: activation, and the weighted sum.
#pragma once

#include "functions.h"
#include "prepare.h"

namespace krasis {

template <class Isa> typename Isa::Floats bias_at(const void *bias, int type, int64_t at) {
    return type == KRASIS_FLOAT32 ? Isa::load_floats((const float *)bias + at) : Isa::widen((const uint16_t *)bias + at);
}

// See krasis_activation.
template <class Isa>
typename Isa::Floats activated(const krasis_experts &experts, typename Isa::Floats gate, typename Isa::Floats up) {
    if (experts.activation == KRASIS_SWIGLU)
        return Isa::mul(silu<Isa>(gate), up);
    const auto limit = Isa::floats(experts.limit);
    gate = Isa::min(limit, gate);
    up = Isa::max(Isa::floats(-experts.limit), Isa::min(limit, up));
    const auto share = sigmoid<Isa>(Isa::mul(gate, experts.alpha));
    return Isa::mul(Isa::mul(Isa::add(up, Isa::floats(1)), gate), share);
}

// Quantizes groups [first, last) of w2's activations from gate and up, `half` apart.
template <class Isa>
void activate(const krasis_experts &experts, int64_t expert, const float *gate_up, int64_t first, int64_t last,
              int8_t *q, float *scale, int32_t *sum) {
    const int64_t half = experts.w13.n / 2;
    const int group = experts.w2.group_size;
    const void *bias = experts.b13 ? (const char *)experts.b13 + expert * experts.stride : nullptr;
    for (int64_t g = first; g < last; g++) {
        float values[kMaxGroup] = {};
        for (int64_t i = g * group, j = 0; j < group && i < experts.size; i += kUnit, j += kUnit) {
            auto gate = Isa::load_floats(gate_up + i), up = Isa::load_floats(gate_up + half + i);
            if (bias) {
                gate = Isa::add(gate, bias_at<Isa>(bias, experts.bias_type, i));
                up = Isa::add(up, bias_at<Isa>(bias, experts.bias_type, half + i));
            }
            Isa::store_floats(values + j, activated<Isa>(experts, gate, up));
        }
        for (int64_t i = experts.size - g * group < 0 ? 0 : experts.size - g * group; i < group; i++)
            values[i] = 0;
        quantize_group<Isa>(values, group, q + g * group, scale + g, sum + g);
    }
}

// y += weight * (x + bias) for columns [first, last), multiples of kUnit; `last` may go past the end of y.
template <class Isa>
void add_weighted(const krasis_experts &experts, int64_t expert, float weight, const float *x, float *y, int64_t first,
                  int64_t last) {
    const void *bias = experts.b2 ? (const char *)experts.b2 + expert * experts.stride : nullptr;
    for (int64_t i = first; i < last; i += kUnit) {
        auto value = Isa::load_floats(x + i);
        if (bias)
            value = Isa::add(value, bias_at<Isa>(bias, experts.bias_type, i));
        const int64_t left = experts.hidden - i;
        store_up_to<Isa>(y + i, left, Isa::fma(Isa::floats(weight), value, load_up_to<Isa>(y + i, left)));
    }
}

} // namespace krasis
