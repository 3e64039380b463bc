// Operations whose rows do not depend on each other.
#pragma once

#include <math.h>
#include <string.h>

#include "functions.h"
#include "kernels.h"
#include "ops.h"

namespace krasis {

// Of column i of each 64, in four sums of 16.
template <class Isa> float sum_of_squares(const float *x, int64_t n) {
    using Floats = typename Isa::Floats;
    Floats sums[4] = {Isa::floats(0), Isa::floats(0), Isa::floats(0), Isa::floats(0)};
    int64_t i = 0;
    for (; i + 4 * kUnit <= n; i += 4 * kUnit)
        for (int j = 0; j < 4; j++) {
            const Floats v = Isa::load_floats(x + i + j * kUnit);
            sums[j] = Isa::fma(v, v, sums[j]);
        }
    for (int j = 0; i < n; i += kUnit, j++) {
        const Floats v = load_up_to<Isa>(x + i, n - i);
        sums[j] = Isa::fma(v, v, sums[j]);
    }
    return Isa::sum(Isa::add(Isa::add(sums[0], sums[1]), Isa::add(sums[2], sums[3])));
}

template <class Isa> void norm_row(const float *x, const float *weight, int64_t n, float eps, float *y) {
    const float scale = 1 / sqrtf(sum_of_squares<Isa>(x, n) / (float)n + eps);
    for (int64_t i = 0; i < n; i += kUnit) {
        const auto value = Isa::mul(load_up_to<Isa>(x + i, n - i), scale);
        store_up_to<Isa>(y + i, n - i, Isa::mul(value, load_up_to<Isa>(weight + i, n - i)));
    }
}

template <class Isa> void norm(const Norm &call, int64_t first, int64_t last) {
    const int64_t n = call.n;
    for (int64_t row = first; row < last; row++) {
        const float *x = call.x + row * n;
        if (call.add) {
            float *const sum = call.sum + row * n;
            const float *const add = call.add + row * n;
            for (int64_t i = 0; i < n; i += kUnit)
                store_up_to<Isa>(sum + i, n - i,
                                 Isa::add(load_up_to<Isa>(x + i, n - i), load_up_to<Isa>(add + i, n - i)));
            x = sum;
        }
        norm_row<Isa>(x, call.weight, n, call.eps, call.y + row * n);
    }
}

template <class Isa> void turn_head(float *x, const float *cos, const float *sin, int64_t half, bool interleaved) {
    float pairs[2 * kMostHeadDim];
    const float *from = x;
    if (interleaved) {
        for (int64_t i = 0; i < half; i++) {
            pairs[i] = x[2 * i];
            pairs[half + i] = x[2 * i + 1];
        }
        from = pairs;
    }
    for (int64_t i = 0; i < half; i += kUnit) {
        const int64_t left = half - i;
        const auto a = load_up_to<Isa>(from + i, left), b = load_up_to<Isa>(from + half + i, left);
        const auto c = load_up_to<Isa>(cos + i, left), s = load_up_to<Isa>(sin + i, left);
        store_up_to<Isa>(x + i, left, Isa::sub(Isa::mul(a, c), Isa::mul(b, s)));
        store_up_to<Isa>(x + half + i, left, Isa::add(Isa::mul(b, c), Isa::mul(a, s)));
    }
}

template <class Isa> void turn(const Turn &call, int64_t first, int64_t last) {
    for (int64_t token = first; token < last; token++)
        for (int32_t head = 0; head < call.heads; head++) {
            float *const x = call.x + token * call.stride + (int64_t)head * call.dim;
            if (call.norm)
                norm_row<Isa>(x, call.norm, call.norm_size, call.eps, x);
            const int64_t angles = token * call.half;
            turn_head<Isa>(x + call.first, call.cos + angles, call.sin + angles, call.half, call.interleaved);
        }
}

template <class Isa> void gate(const Gate &call, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
        const float *const x = call.x + row * call.x_stride, *const gate = call.gate + row * call.gate_stride;
        float *const y = call.y + row * call.n;
        for (int64_t i = 0; i < call.n; i += kUnit) {
            const int64_t left = call.n - i;
            const auto open = call.kind == KRASIS_GATE_ROWS ? Isa::floats(*gate) : load_up_to<Isa>(gate + i, left);
            const auto factor = call.kind == KRASIS_GATE_SILU ? silu<Isa>(open) : sigmoid<Isa>(open);
            store_up_to<Isa>(y + i, left, Isa::mul(factor, load_up_to<Isa>(x + i, left)));
        }
    }
}

template <class Isa> void add(const Add &call, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
        const float *const x = call.x + row * call.x_stride;
        float *const y = call.y + row * call.n;
        for (int64_t i = 0; i < call.n; i += kUnit) {
            const int64_t left = call.n - i;
            store_up_to<Isa>(y + i, left, Isa::add(load_up_to<Isa>(y + i, left), load_up_to<Isa>(x + i, left)));
        }
    }
}

// Channels [16 * first, 16 * last).
template <class Isa> void conv(const Conv &call, int64_t first, int64_t last) {
    const int64_t past = call.width - 1;
    for (int64_t unit = first; unit < last; unit++) {
        const int64_t channel = unit * kUnit, left = call.channels - channel;
        const auto input = [&](int64_t i) {
            const float *const p =
                i < past ? call.state + i * call.channels : call.x + (i - past) * call.x_stride;
            return load_up_to<Isa>(p + channel, left);
        };
        for (int64_t token = 0; token < call.tokens; token++) {
            auto sum = Isa::floats(0);
            for (int64_t i = 0; i < call.width; i++)
                sum = Isa::fma(load_up_to<Isa>(call.weight + i * call.channels + channel, left), input(token + i), sum);
            store_up_to<Isa>(call.y + token * call.channels + channel, left, silu<Isa>(sum));
        }
        for (int64_t i = 0; i < past; i++)
            store_up_to<Isa>(call.state + i * call.channels + channel, left, input(call.tokens + i));
    }
}

// Softmax in place, of n values.
template <class Isa> void softmax(float *values, int64_t n) {
    float most = values[0];
    for (int64_t i = 1; i < n; i++)
        most = values[i] > most ? values[i] : most;
    auto sums = Isa::floats(0);
    for (int64_t i = 0; i < n; i += kUnit) {
        store_up_to<Isa>(values + i, n - i, exp<Isa>(Isa::sub(load_up_to<Isa>(values + i, n - i), Isa::floats(most))));
        sums = Isa::add(sums, load_up_to<Isa>(values + i, n - i));
    }
    const auto sum = Isa::floats(Isa::sum(sums));
    for (int64_t i = 0; i < n; i += kUnit)
        store_up_to<Isa>(values + i, n - i, Isa::div(load_up_to<Isa>(values + i, n - i), sum));
}

// The indices of the k greatest of n values, greatest first; of equals the first. Some k where there are NaN.
static inline void greatest(const float *values, int64_t n, int64_t k, int64_t *ids) {
    int64_t found = 0;
    for (int64_t i = 0; i < n; i++) {
        if (found == k && !(values[i] > values[ids[k - 1]]))
            continue;
        int64_t at = found < k ? found++ : k - 1;
        for (; at > 0 && values[i] > values[ids[at - 1]]; at--)
            ids[at] = ids[at - 1];
        ids[at] = i;
    }
}

template <class Isa> void route(const Route &call, int64_t first, int64_t last) {
    constexpr int kMost = KRASIS_MOST_ROUTED;
    float scores[kMost], choice[kMost];
    const int64_t n = call.experts, k = call.chosen;
    for (int64_t token = first; token < last; token++) {
        memcpy(scores, call.logits + token * n, (size_t)n * sizeof *scores);
        int64_t *const ids = call.ids + token * k;
        float *const weights = call.weights + token * k;
        if (call.scores == KRASIS_SCORES_SIGMOID)
            for (int64_t i = 0; i < n; i += kUnit)
                store_up_to<Isa>(scores + i, n - i, sigmoid<Isa>(load_up_to<Isa>(scores + i, n - i)));
        else if (call.scores == KRASIS_SCORES_SOFTMAX)
            softmax<Isa>(scores, n);
        for (int64_t i = 0; i < n; i++)
            choice[i] = call.bias ? scores[i] + call.bias[i] : scores[i];
        greatest(choice, n, k, ids);
        const bool logits = call.scores == KRASIS_SCORES_LOGITS;
        for (int64_t i = 0; i < k; i++)
            weights[i] = logits ? choice[ids[i]] : scores[ids[i]];
        if (logits)
            softmax<Isa>(weights, k);
        float sum = 0;
        for (int64_t i = 0; i < k; i++)
            sum += weights[i];
        for (int64_t i = 0; i < k; i++)
            weights[i] = (call.normalize ? weights[i] / sum : weights[i]) * call.scale;
    }
}

} // namespace krasis
