// Blocks of tokens: weights are decoded once for up to four.
#pragma once

#include <stdint.h>

namespace krasis {

constexpr int kTokens = 4;

// Calls body.run<T>(token) for T tokens from `token` on until all m are done.
template <class Body> void for_blocks_of_tokens(int64_t m, const Body &body) {
    int64_t token = 0;
    for (; token + kTokens <= m; token += kTokens)
        body.template run<kTokens>(token);
    switch (m - token) {
    case 3: return body.template run<3>(token);
    case 2: return body.template run<2>(token);
    case 1: return body.template run<1>(token);
    }
}

} // namespace krasis
