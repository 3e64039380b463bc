// Functions of sixteen floats, the same bit for bit on every instruction set.
#pragma once

#include <stdint.h>

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

} // namespace krasis
