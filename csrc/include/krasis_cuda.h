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

/* Makes `bytes` of host memory readable by the device where they lie; `device` receives the address it has there. A
 * mapping that this process may not write needs `read_only`. Takes about 50 ms a GiB. KRASIS_ERROR_DEVICE where the
 * system or the GPU refuses. */
KRASIS_API int krasis_cuda_register(const void *host, int64_t bytes, int read_only, void **device, void *stream);
KRASIS_API int krasis_cuda_unregister(const void *host, void *stream);
/* Between memory of any kind; asynchronous where the host's is registered. */
KRASIS_API int krasis_cuda_copy(void *to, const void *from, int64_t bytes, void *stream);

/* out bf16 [n][k] = (code - zero) * scale of an INT4 or INT8 matrix in the marlin layout, rounded to nearest even. */
KRASIS_API int krasis_cuda_dequantize(const void *codes, const uint16_t *scales, int codec, int k, int n,
                                      int group_size, uint16_t *out, void *stream);

#ifdef __cplusplus
}
#endif

#endif
