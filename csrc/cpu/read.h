// The bare read of memory that products are measured against.
#pragma once

#include "kernels.h"

namespace krasis {

// The sum, modulo 2^32, of the 32-bit words of `lines` lines of 64 bytes. Streams side by side: a core that follows one
// alone waits longer for memory.
template <class Isa> uint32_t read_lines(const uint8_t *line, int64_t lines) {
    constexpr int kStreams = 8;
    constexpr int64_t kRun = 65; // lines of a stream in a block: 4 KiB apart all would share one set of the cache
    constexpr int64_t kNear = 16; // lines to prefetch
    typename Isa::Ints sums[kStreams];
    for (auto &sum : sums)
        sum = Isa::ints(0);
    int64_t i = 0;
    for (; i + kStreams * kRun <= lines; i += kStreams * kRun)
        for (int64_t j = 0; j < kRun; j++) {
            const int64_t ahead = j + kNear < kRun ? kNear : kNear + (kStreams - 1) * kRun; // then in the next block
            for (int s = 0; s < kStreams; s++) {
                const uint8_t *at = line + (i + s * kRun + j) * 64;
                Isa::prefetch(at + ahead * 64);
                sums[s] = Isa::add(sums[s], Isa::load_ints(at));
            }
        }
    for (; i < lines; i++)
        sums[0] = Isa::add(sums[0], Isa::load_ints(line + i * 64));
    for (int s = 1; s < kStreams; s++)
        sums[0] = Isa::add(sums[0], sums[s]);
    return (uint32_t)Isa::sum(sums[0]);
}

} // namespace krasis
