// BF16, row-major [n][k], one row a unit.
#pragma once

#include <string.h>

#include "kernels.h"

namespace krasis {

constexpr int kPlainStep = 32; // k in one line of 64 bytes, each with an accumulator of its own

template <class Isa> float dot_plain(const uint16_t *w, const float *x, int64_t k) {
    constexpr int kAhead = 2048 / sizeof *w;
    auto even = Isa::floats(0), odd = even;
    const int64_t whole = k / kPlainStep * kPlainStep;
    for (int64_t i = 0; i < whole; i += kPlainStep) {
        Isa::prefetch(w + i + kAhead);
        even = Isa::fma(Isa::widen(w + i), Isa::load_floats(x + i), even);
        odd = Isa::fma(Isa::widen(w + i + kUnit), Isa::load_floats(x + i + kUnit), odd);
    }
    if (whole < k) {
        uint16_t tail[kPlainStep] = {};
        memcpy(tail, w + whole, (k - whole) * sizeof *w);
        even = Isa::fma(Isa::widen(tail), Isa::load_floats(x + whole), even);
        odd = Isa::fma(Isa::widen(tail + kUnit), Isa::load_floats(x + whole + kUnit), odd);
    }
    return Isa::sum(Isa::add(even, odd));
}

template <class Isa> void multiply_plain(const Work &work, int64_t first, int64_t last) {
    const krasis_job &job = work.job;
    const int64_t k = job.matrix->k;
    for (int64_t row = first; row < last; row++) {
        const uint16_t *w = (const uint16_t *)job.matrix->codes + row * k;
        for (int64_t token = 0; token < job.m; token++) {
            const float *x = work.activations.values + token * work.activations.padded_k;
            job.y[token * job.ldy + row] = dot_plain<Isa>(w, x, k);
        }
    }
}

} // namespace krasis
