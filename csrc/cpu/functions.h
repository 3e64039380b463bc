// Functions of sixteen floats, the same bit for bit on every instruction set.
#pragma once

#include <stdint.h>
#include <string.h>

#include "kernels.h"

namespace krasis {

// e^x to about one unit in the last place for x = -87 to 88, and within that range for any other; NaN of NaN.
// x = n ln 2 + r; ln 2 is split so that n times its upper part is exact, e^r is Taylor's series up to r^7.
template <class Isa> typename Isa::Floats exp(typename Isa::Floats x) {
    x = Isa::max(Isa::floats(-87.0f), Isa::min(Isa::floats(88.0f), x));
    const auto whole = Isa::rounded(Isa::mul(x, 0x1.715476p+0f));
    const auto n = Isa::to_floats(whole);
    const auto r = Isa::fma(n, Isa::floats(-0x1.7f7d1cp-20f), Isa::fma(n, Isa::floats(-0x1.62e4p-1f), x));
    constexpr float kOver[] = {1 / 720.0f, 1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 0.5f, 1, 1};
    auto y = Isa::floats(1 / 5040.0f);
    for (float c : kOver)
        y = Isa::fma(y, r, Isa::floats(c));
    return Isa::mul(y, Isa::power_of_two(whole));
}

template <class Isa> typename Isa::Floats sigmoid(typename Isa::Floats x) {
    const auto one = Isa::floats(1);
    return Isa::div(one, Isa::add(one, exp<Isa>(Isa::sub(Isa::floats(0), x))));
}

template <class Isa> typename Isa::Floats silu(typename Isa::Floats x) { return Isa::mul(x, sigmoid<Isa>(x)); }

// The first 16 of n floats, zeros from n on.
template <class Isa> typename Isa::Floats load_up_to(const float *p, int64_t n) {
    if (n >= kUnit)
        return Isa::load_floats(p);
    float part[kUnit] = {};
    memcpy(part, p, (size_t)n * sizeof *part);
    return Isa::load_floats(part);
}

template <class Isa> void store_up_to(float *p, int64_t n, typename Isa::Floats x) {
    if (n >= kUnit)
        return Isa::store_floats(p, x);
    float part[kUnit];
    Isa::store_floats(part, x);
    memcpy(p, part, (size_t)n * sizeof *part);
}

} // namespace krasis
