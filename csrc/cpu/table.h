// The kernels of one instruction set.
#pragma once

#include "expert.h"
#include "feedback.h"
#include "interleaved.h"
#include "marlin.h"
#include "ops_table.h"
#include "panel.h"
#include "plain.h"
#include "prepare.h"
#include "read.h"

namespace krasis {

template <class Isa>
constexpr Kernels kTable = {
    {quantize<Isa>, quantize<Isa>, pad<Isa>, quantize<Isa>},
    {
        {multiply_interleaved<Isa, InterleavedNibbles<Int4>>, multiply_marlin<Isa, MarlinNibbles<Int4>>, nullptr},
        {multiply_interleaved<Isa, InterleavedInt8>, multiply_marlin<Isa, MarlinInt8>, nullptr},
        {nullptr, nullptr, multiply_plain<Isa>},
        {multiply_interleaved<Isa, InterleavedNibbles<Mxfp4>>, multiply_marlin<Isa, MarlinNibbles<Mxfp4>>, nullptr},
    },
    {
        {multiply_panels<Isa, InterleavedNibbles<Int4>, UnpackInterleavedNibbles<Isa, Int4>>,
         multiply_panels<Isa, InterleavedNibbles<Int4>, UnpackMarlin<Isa, MarlinNibbles<Int4>>>, nullptr},
        {multiply_panels<Isa, InterleavedInt8, UnpackInterleavedInt8<Isa>>,
         multiply_panels<Isa, InterleavedInt8, UnpackMarlin<Isa, MarlinInt8>>, nullptr},
        {nullptr, nullptr, nullptr},
        {multiply_panels<Isa, InterleavedNibbles<Mxfp4>, UnpackInterleavedNibbles<Isa, Mxfp4>>,
         multiply_panels<Isa, InterleavedNibbles<Mxfp4>, UnpackMarlin<Isa, MarlinNibbles<Mxfp4>>>, nullptr},
    },
    activate<Isa>,
    add_weighted<Isa>,
    read_lines<Isa>,
    feed_back<Isa>,
    &kOps<Isa>,
};

} // namespace krasis
