// The bare read of memory that products are measured against.
#pragma once

#include "kernels.h"

namespace krasis {

// The sum, modulo 2^32, of the 32-bit words of `lines` lines of 64 bytes.
template <class Isa> uint32_t read_lines(const uint8_t *line, int64_t lines) {
    constexpr int kStreams = 4;
    constexpr int64_t kAhead = 4096;
    typename Isa::Ints sums[kStreams];
    for (auto &sum : sums)
        sum = Isa::ints(0);
    int64_t i = 0;
    for (; i + kStreams <= lines; i += kStreams)
        for (int s = 0; s < kStreams; s++) {
            const uint8_t *at = line + (i + s) * 64;
            Isa::prefetch(at + kAhead);
            sums[s] = Isa::add(sums[s], Isa::load_ints(at));
        }
    for (; i < lines; i++)
        sums[0] = Isa::add(sums[0], Isa::load_ints(line + i * 64));
    const auto total = Isa::add(Isa::add(sums[0], sums[1]), Isa::add(sums[2], sums[3]));
    return (uint32_t)Isa::sum(total);
}

} // namespace krasis
