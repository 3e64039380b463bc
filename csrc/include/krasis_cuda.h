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
#include "krasis_mailbox.h"

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

/* Of a mailbox, in device memory, zeroed at first: what its kernels tell each other. */
typedef struct krasis_mailbox_state {
    uint32_t number; /* of the last post */
    uint32_t waits;  /* whether the last call posted anything */
    uint32_t failed; /* once a wait was in vain: nothing is posted any more, nor waited for */
} krasis_mailbox_state;

/* Posts the pairs of x[tokens][hidden] (float32 or bf16), ids and weights [tokens][chosen] whose expert is cold:
 * `where`[experts] is negative for those. Ids of -1 are nobody's. Nothing is posted where no pair is cold. The sizes but
 * `tokens` are the mailbox's, whose memory is the device's address of it. x is aligned to four elements. */
KRASIS_API int krasis_cuda_post(const krasis_mailbox *mailbox, krasis_mailbox_state *state, int layer, int tokens,
                                const void *x, int x_type, const int32_t *ids, const float *weights,
                                const int32_t *where, void *stream);

/* out[tokens][hidden] += y of the post before, which had as many tokens, once the CPU has answered; at once and nothing
 * where none was made. out is float32, or bf16 rounded once, aligned to four elements. A reply that is an error, or that
 * has not come after `timeout` ns, is left in the mailbox's krasis_trouble, which the host is to look at; out then stays. */
KRASIS_API int krasis_cuda_wait_add(const krasis_mailbox *mailbox, krasis_mailbox_state *state, int tokens, void *out,
                                    int out_type, int64_t timeout, void *stream);

#ifdef __cplusplus
}
#endif

#endif
