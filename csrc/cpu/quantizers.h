// The quantizers of one instruction set.
#pragma once

#include "encode_int4.h"
#include "encode_int8.h"
#include "encode_mxfp4.h"

namespace krasis {

template <class Isa>
constexpr Quantizers kQuantizers = {
    {quantize_blocks<Isa, EncodeInt4<Isa>>, quantize_blocks<Isa, EncodeInt8<Isa>>, nullptr,
     quantize_blocks<Isa, EncodeMxfp4<Isa>>},
    {pack_blocks<Isa, EncodeInt4<Isa>>, pack_blocks<Isa, EncodeInt8<Isa>>, nullptr, pack_blocks<Isa, EncodeMxfp4<Isa>>},
};

} // namespace krasis
