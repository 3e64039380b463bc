// Which instruction sets this machine can run, and their kernels.
#pragma once

#include "kernels.h"
#include "quantize.h"

namespace krasis {

// The last krasis_isa that the processor and the operating system both have.
int best_isa();

// Null for an instruction set this machine, or this build, lacks. KRASIS_ISA_AUTO is not one.
const Kernels *kernels_of(int isa);
const Quantizers *quantizers_of(int isa);

} // namespace krasis
