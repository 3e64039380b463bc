// What the codes and scales of a quantized codec stand for: weight = (unsigned number - kZero) * kStep * scale.
// kStep is a power of two, so products round the same whichever factor it is multiplied into.
#pragma once

#include <stdint.h>

namespace krasis {

struct Int4 {
    using Scale = uint16_t; // bf16
    static constexpr int kZero = 8;
    static constexpr float kStep = 1;

    // Codes, one a byte, to unsigned numbers.
    template <class Isa> static typename Isa::Line numbers(typename Isa::Line codes) { return codes; }
};

struct Int8 {
    using Scale = uint16_t;
    static constexpr float kStep = 1;
};

// Twice the e2m1 values are whole numbers.
struct Mxfp4 {
    using Scale = uint8_t; // e8m0
    static constexpr int kZero = 12;
    static constexpr float kStep = 0.5f;

    template <class Isa> static typename Isa::Line numbers(typename Isa::Line codes) {
        static constexpr int8_t kNumbers[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
        return Isa::shuffle(Isa::repeat16(kNumbers), codes);
    }
};

} // namespace krasis
