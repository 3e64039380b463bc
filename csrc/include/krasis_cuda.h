/* The C ABI of libkrasis_cuda.so, there where it was built, and of libkrasis_cuda_emulated.so, which does the same on the
 * CPU for tests.
 *
 * Pointers are to memory that the device reaches: its own, or the host's where it is registered. Work goes to `stream`, is
 * not awaited, allocates nothing, and may be captured. Results do not depend on timing. Every function that can fail
 * returns a krasis_status.
 */
#ifndef KRASIS_CUDA_H
#define KRASIS_CUDA_H

#include "krasis.h"

#ifdef __cplusplus
extern "C" {
#endif

KRASIS_API int krasis_cuda_abi_version(void);

/* out bf16 [n][k] = (code - zero) * scale of an INT4 or INT8 matrix in the marlin layout, rounded to nearest even. */
KRASIS_API int krasis_cuda_dequantize(const void *codes, const uint16_t *scales, int codec, int k, int n,
                                      int group_size, uint16_t *out, void *stream);

#ifdef __cplusplus
}
#endif

#endif
