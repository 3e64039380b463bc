// The kernels of one instruction set.
#pragma once

#include "interleaved.h"
#include "marlin.h"
#include "plain.h"
#include "prepare.h"

namespace krasis {

template <class Isa>
constexpr Kernels kTable = {
    {quantize<Isa>, quantize<Isa>, pad<Isa>},
    {
        {multiply_interleaved<Isa, InterleavedInt4>, multiply_marlin<Isa, MarlinInt4>, nullptr},
        {multiply_interleaved<Isa, InterleavedInt8>, multiply_marlin<Isa, MarlinInt8>, nullptr},
        {nullptr, nullptr, multiply_plain<Isa>},
    },
};

} // namespace krasis
