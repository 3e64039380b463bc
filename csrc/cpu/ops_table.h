// The operations of one instruction set.
#pragma once

#include "ops_attention.h"
#include "ops_delta.h"
#include "ops_rows.h"

namespace krasis {

template <class Isa>
constexpr Ops kOps = {norm<Isa>,  turn<Isa>,      gate<Isa>,   add<Isa>,    conv<Isa>,
                      route<Isa>, delta_net<Isa>, attend<Isa>, combine<Isa>};

} // namespace krasis
