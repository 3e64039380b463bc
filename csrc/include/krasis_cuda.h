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

/* Matrices of INT4, INT8 or MXFP4 in the marlin layout, as the pack pads them. bf16 arrays of x have rows ldx elements
 * apart, of which the first k_in count; k_in and ldx are multiples of 8, x is aligned to 16 bytes. Products sum in float32.
 * Those of many rows round every weight to bf16, those of few rows do not. */

/* One of several products whose results lie side by side: n_out logical columns in `parts` equal parts (1 or 2), each
 * padded at its end in the matrix; bias float32 [n_out] or null. */
typedef struct krasis_cuda_product {
    krasis_matrix matrix;
    const float *bias;
    int32_t n_out, parts;
} krasis_cuda_product;

#define KRASIS_CUDA_MOST_PRODUCTS 8

/* How blocks of many rows are cut. */
typedef enum krasis_cuda_tile {
    KRASIS_TILE_32X256 = 0, /* rows x columns of the matrix */
    KRASIS_TILE_64X256 = 1,
    KRASIS_TILE_128X256 = 2
} krasis_cuda_tile;

/* y[m][all n_out], of y_type (a krasis_type: float32 or bfloat16), rows ldy elements apart. */
KRASIS_API int krasis_cuda_linear(const krasis_cuda_product *products, int count, const uint16_t *x, int m, int64_t ldx,
                                  int k_in, void *y, int y_type, int64_t ldy, int tile, void *stream);

#define KRASIS_CUDA_MOST_FEW 8

/* Kernels for few rows pass sums from block to block in `partials`, float32 [KRASIS_CUDA_PARTIALS], and `counters`, int32
 * [KRASIS_CUDA_COUNTERS] that are 0 before and after. They split sums until there are `blocks` blocks, at most 1024: those
 * of the device's multiprocessors, say. */
#define KRASIS_CUDA_PARTIALS (1 << 20)
#define KRASIS_CUDA_COUNTERS (1 << 14)

/* The same for at most KRASIS_CUDA_MOST_FEW rows. `add`: to what y holds. `fixed`: nothing ever changes the matrices once a
 * kernel reads them, so that they are read while what makes x still runs. */
KRASIS_API int krasis_cuda_linear_few(const krasis_cuda_product *products, int count, const uint16_t *x, int m,
                                      int64_t ldx, int k_in, void *y, int y_type, int64_t ldy, int add, int fixed,
                                      float *partials, int32_t *counters, int blocks, void *stream);

/* The experts of a layer, whose records are alike: w13 [hidden -> 2 * size] is gate over up, w2 [size -> hidden]. */
typedef struct krasis_cuda_experts {
    int32_t hidden, size;            /* logical, a multiple of 8; with padding: half the columns of w13, the k of w2 */
    int32_t codec13, k13, group13;   /* k13: padded hidden */
    int32_t codec2, n2, group2;      /* n2: padded hidden */
    int64_t w13_codes, w13_scales, w2_codes, w2_scales, b13, b2; /* bytes into the record; -1: no bias */
    int32_t bias_type;               /* krasis_type; biases are padded as the columns of their matrices */
    float alpha, limit;              /* of clamped SwiGLU; limit 0: SwiGLU */
} krasis_cuda_experts;

/* Pairs token * slots + slot of ids[tokens][slots] by expert, ascending in each: those of expert e are pairs[offsets[e]] to
 * pairs[offsets[e + 1] - 1]. Ids of -1 are no expert's. offsets int32 [experts + 1], pairs [tokens * slots], scratch
 * [experts * (2 + tokens * slots / 256)]. */
KRASIS_API int krasis_cuda_sort(const int32_t *ids, int tokens, int slots, int experts, int32_t *offsets, int32_t *pairs,
                                int32_t *scratch, void *stream);

/* Tiles of rows of `count` listed experts, of whom none is twice: int32 [4 * (1 + tokens * slots / rows + count)], `rows`
 * being those of `tile`. */
KRASIS_API int krasis_cuda_tiles(const int32_t *offsets, const int32_t *list, int count, int tile, int32_t *tiles,
                                 void *stream);

/* h[position in pairs][size], bf16, = activation(x[token] @ w13^T + b13), for the experts that `tiles` has. records: the
 * addresses of all experts' records. */
KRASIS_API int krasis_cuda_experts_up(const krasis_cuda_experts *experts, const int64_t *records, const int32_t *tiles,
                                      const int32_t *pairs, int tokens, int slots, int count, const uint16_t *x,
                                      int64_t ldx, uint16_t *h, int tile, void *stream);

/* y[pair][hidden], bf16, = h[position] @ w2^T + b2. */
KRASIS_API int krasis_cuda_experts_down(const krasis_cuda_experts *experts, const int64_t *records, const int32_t *tiles,
                                        const int32_t *pairs, int tokens, int slots, int count, const uint16_t *h,
                                        uint16_t *y, int tile, void *stream);

/* out[token][hidden] (+)= sum over slots, ascending, of weights[token][slot] * y[token * slots + slot] where ids are not -1
 * and `records`, if given, has an address for the expert. `add`: to what `out` holds. */
KRASIS_API int krasis_cuda_combine(const uint16_t *y, const int32_t *ids, const float *weights, const int64_t *records,
                                   int tokens, int slots, int hidden, void *out, int out_type, int add, void *stream);

/* The whole of it for at most KRASIS_CUDA_MOST_FEW tokens; experts whose record is 0 or id is -1 add nothing. h is scratch,
 * bf16 [tokens * slots][size]. tokens * slots * n2 floats of partials must do.
 *
 * `first`, if not null, is for every record the feature between w13 and w2, a multiple of 64, from which on the expert is
 * computed: what those before add is someone else's, and so is b2 where there are any. */
KRASIS_API int krasis_cuda_experts_few(const krasis_cuda_experts *experts, const int64_t *records, const int32_t *first,
                                       const int32_t *ids, const float *weights, int tokens, int slots, const uint16_t *x,
                                       int64_t ldx, uint16_t *h, void *out, int out_type, int add, float *partials,
                                       int32_t *counters, int blocks, void *stream);

/* Of a mailbox, in device memory, zeroed at first: what its kernels tell each other. */
typedef struct krasis_mailbox_state {
    uint32_t number; /* of the last post */
    uint32_t waits;  /* whether the last call posted anything */
    uint32_t failed; /* once a wait was in vain: nothing is posted any more, nor waited for */
    uint32_t missed; /* cold pairs of all calls so far, modulo 2^32 */
    uint64_t waited; /* nanoseconds that all waits so far took */
} krasis_mailbox_state;

/* How cold pairs are divided: of n of them the CPU gets the first cut[n] features between w13 and w2, and the device itself
 * reads what the others take, from the records at `host`, `stride` bytes apart. records[pair] and first[pair] receive what
 * krasis_cuda_experts_few is to be given: the address, 0 for none, which is in table[expert] where a pair's expert is
 * resident, and cut[n] where it is cold, else 0. Without `cut` all are the CPU's, and nothing is written. */
typedef struct krasis_cuda_split {
    const int32_t *cut; /* [pairs + 1] */
    const int64_t *table;
    int64_t host, stride;
    int64_t *records; /* [pairs] */
    int32_t *first;   /* [pairs] */
} krasis_cuda_split;

/* Posts the pairs of x[tokens][hidden] (float32 or bf16), ids and weights [tokens][chosen] whose expert is cold:
 * `where`[experts] is negative for those. Ids of -1 are nobody's. Nothing is posted where nothing is left to the CPU.
 * `split` may be null. The sizes but `tokens` are the mailbox's, whose memory is the device's address of it. x is aligned to
 * four elements. uses[experts] counts all pairs, cold or not, unless it is null. */
KRASIS_API int krasis_cuda_post(const krasis_mailbox *mailbox, krasis_mailbox_state *state, int layer, int tokens,
                                const void *x, int x_type, const int32_t *ids, const float *weights,
                                const int32_t *where, const krasis_cuda_split *split, int32_t *uses, void *stream);

/* out[tokens][hidden] += y of the post before, which had as many tokens, once the CPU has answered; at once and nothing
 * where none was made. out is float32, or bf16 rounded once, aligned to four elements. A reply that is an error, or that
 * has not come after `timeout` ns, is left in the mailbox's krasis_trouble, which the host is to look at; out then stays. */
KRASIS_API int krasis_cuda_wait_add(const krasis_mailbox *mailbox, krasis_mailbox_state *state, int tokens, void *out,
                                    int out_type, int64_t timeout, void *stream);

#ifdef __cplusplus
}
#endif

#endif
