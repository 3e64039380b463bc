/* The C ABI of krasis: products with packed matrices and quantization on the CPU.
 *
 * Every function that can fail returns a krasis_status. Nothing throws, prints or aborts, and no argument, null or
 * misshapen, crashes; the arrays behind the pointers must be as large as the shapes say.
 */
#ifndef KRASIS_H
#define KRASIS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KRASIS_API __attribute__((visibility("default")))
#define KRASIS_ABI_VERSION 6

typedef enum krasis_status {
    KRASIS_OK = 0,
    KRASIS_ERROR_NULL = 1,      /* a pointer that must be given is null */
    KRASIS_ERROR_CODEC = 2,     /* no such codec, or not for this operation */
    KRASIS_ERROR_LAYOUT = 3,    /* no such layout, or not for this codec */
    KRASIS_ERROR_SHAPE = 4,     /* k, n, m, k_in, n_out, ldx or ldy out of range */
    KRASIS_ERROR_GROUP = 5,     /* group size that the codec does not take, or no divisor of k */
    KRASIS_ERROR_ALIGNMENT = 6, /* a pointer is not aligned to its element */
    KRASIS_ERROR_ISA = 7,       /* no such instruction set, or this machine lacks it */
    KRASIS_ERROR_THREADS = 8,   /* thread count below 1 or above 4096, or the system refused threads */
    KRASIS_ERROR_MEMORY = 9,    /* out of memory */
    KRASIS_ERROR_DEVICE = 10,   /* the GPU or its driver refused */
    KRASIS_ERROR_TYPE = 11,     /* no such type of weights */
    KRASIS_ERROR_VALUE = 12,    /* a weight is NaN, infinite, or 2^127 or beyond */
    KRASIS_ERROR_TIMEOUT = 13   /* the CPU did not answer a post in time */
} krasis_status;

typedef enum krasis_isa {
    KRASIS_ISA_AUTO = -1,
    KRASIS_ISA_SCALAR = 0,
    KRASIS_ISA_AVX2 = 1,  /* AVX2 and FMA */
    KRASIS_ISA_AVX512 = 2, /* AVX-512 F, BW and VL; products are those of AVX2 */
    KRASIS_ISA_VNNI = 3,   /* with AVX-512 VNNI */
    KRASIS_ISA_AMX = 4,    /* with AMX int8, for many tokens */
    /* The kernels of VNNI and AMX on instructions in plain C++, on every machine: for tests. */
    KRASIS_ISA_EMULATED_VNNI = 19,
    KRASIS_ISA_EMULATED_AMX = 20
} krasis_isa;

typedef enum krasis_codec {
    KRASIS_INT4 = 0, /* weight = (code - 8) * scale */
    KRASIS_INT8 = 1, /* weight = (code - 128) * scale */
    KRASIS_BF16 = 2, /* weight as it is */
    KRASIS_MXFP4 = 3 /* weight = e2m1 value of code * 2^(e - 127); 0 where e is 0 */
} krasis_codec;

typedef enum krasis_layout {
    KRASIS_LAYOUT_CPU = 0,    /* quantized: 16 columns a tile, four bytes of each a line of 64 bytes */
    KRASIS_LAYOUT_MARLIN = 1, /* quantized: tensor-core tiles of 16 k x 64 columns */
    KRASIS_LAYOUT_PLAIN = 2   /* BF16: row-major [n][k] */
} krasis_layout;

/* A weight matrix of k input and n output features.
 * INT4, INT8, MXFP4: k % 64 == 0, n % 64 == 0, group_size 32, 64 or 128 (MXFP4: 32) dividing k; `scales` are bf16 bits
 * (MXFP4: e8m0 bytes 0 to 254), one for every group_size weights along k of a column, in the layout's order.
 * BF16: any k and n, `codes` are bf16 bits, `scales` null, group_size 0. */
typedef struct krasis_matrix {
    const void *codes;
    const void *scales;
    int32_t codec, layout, k, n, group_size;
} krasis_matrix;

/* y[m][n_out] = x[m][k_in] @ W^T, both float32 with rows ldx and ldy elements apart (unused where m is 1). Columns of x
 * from k_in to k count as zero; only the first n_out columns are computed and written. */
typedef struct krasis_job {
    const krasis_matrix *matrix;
    const float *x;
    int64_t m, ldx, k_in;
    float *y;
    int64_t ldy, n_out;
} krasis_job;

typedef enum krasis_type {
    KRASIS_FLOAT32 = 0,
    KRASIS_BFLOAT16 = 1,
    KRASIS_FLOAT16 = 2,
    KRASIS_FLOAT8 = 3 /* e4m3, for cached rows alone */
} krasis_type;

typedef struct krasis_pool krasis_pool;

KRASIS_API int krasis_abi_version(void);
/* A static English sentence without a full stop. */
KRASIS_API const char *krasis_strerror(int status);
/* The best instruction set that this processor and its operating system have. */
KRASIS_API int krasis_best_isa(void);

/* A pool of `threads` threads, the caller of krasis_matmul being one of them. `status`, if not null, receives the
 * reason for a null result. A pool does not survive fork. */
KRASIS_API krasis_pool *krasis_pool_create(int threads, int isa, int *status);
KRASIS_API void krasis_pool_destroy(krasis_pool *pool);
/* 0 for a null pool. */
KRASIS_API int krasis_pool_threads(const krasis_pool *pool);
/* KRASIS_ISA_AUTO for a null pool. */
KRASIS_API int krasis_pool_isa(const krasis_pool *pool);

/* Keeps thread i of the pool on processor cpus[i], but for the first: that is whoever calls. KRASIS_ERROR_THREADS where
 * there is no such processor, or the system refuses; some threads may be where they were told to be then. */
KRASIS_API int krasis_pool_pin(krasis_pool *pool, const int32_t *cpus);

/* Reads `bytes`, a multiple of 64, with every thread, as fast as memory goes. `sum` receives the sum of the 32-bit words,
 * modulo 2^32. */
KRASIS_API int krasis_read(krasis_pool *pool, const void *data, int64_t bytes, uint32_t *sum);

/* One product; see krasis_job. Calls on one pool from several threads run one after another.
 *
 * The result depends on the numbers alone: it is the same bit for bit on every instruction set, in every layout, with
 * every thread count and batch size.
 *
 * INT4, INT8, MXFP4: for every token and group of x, in float32,
 *     a = max |x|;   q = rint(x * (127 / a)), ties to even;   s = a / 127
 *     y = fma(sum of number * q, step * s, y)
 * with y = 0 at first, groups ascending, and the sum exact. A group with a < 2^-100 counts as zero. A NaN or infinity
 * in x makes its whole row of y NaN. Of INT4 and INT8, number = code - zero and step = scale; of MXFP4, number = twice
 * the e2m1 value, and step = 2^(e - 127) / 2 or 0.
 *
 * BF16: acc[i] = fma(w[k], x[k], acc[i]) with i = k mod 32, from zero, k ascending; then acc[i] += acc[i + h] for
 * h = 16, 8, 4, 2, 1. */
KRASIS_API int krasis_matmul(krasis_pool *pool, const krasis_matrix *matrix, const float *x, int64_t m, int64_t ldx,
                             int64_t k_in, float *y, int64_t ldy, int64_t n_out);

/* `count` products that do not depend on each other, split over the threads as one. Neighbours in the list that share x
 * quantize it once. Nothing is computed unless every job is valid. */
KRASIS_API int krasis_matmul_batch(krasis_pool *pool, const krasis_job *jobs, int64_t count);

#define KRASIS_MOST_HEADS 4096

/* `count` products, KRASIS_MOST_HEADS at most, whose results lie side by side: product i is of x + i * x_step (0: all of
 * one x) and writes n_out[i] columns of y after those before it. Otherwise as krasis_matmul_batch. */
KRASIS_API int krasis_linears(krasis_pool *pool, const krasis_matrix *const *matrices, const int64_t *n_out,
                              int64_t count, const float *x, int64_t x_step, int64_t m, int64_t ldx, int64_t k_in,
                              float *y, int64_t ldy);

/* What lies between products, in float32. Little work is done by the calling thread alone, much by the pool. Results are
 * the same bit for bit on every instruction set, with every number of threads and tokens; NaN gives NaN where it has a
 * say. Strides are in elements, between tokens or rows. Unless told, arrays are contiguous, and what is written does not
 * overlap what is read. */

#define KRASIS_MOST_ROUTED 4096

/* y[rows][n] = x / sqrt(mean of x^2 + eps) * weight. With `add`, x is x + add, which is written to `sum`; sum may be x or add. */
KRASIS_API int krasis_norm(krasis_pool *pool, const float *x, const float *add, int64_t rows, int64_t n,
                           const float *weight, float eps, float *sum, float *y);

/* Queries and keys in place: x[token] has q_heads, then k_heads of `dim` dimensions. Each is normalized as by krasis_norm
 * with q_norm or k_norm [dim], where it is not null; then dimension i turns with i + half by cos and sin [tokens][half]:
 *     x[i], x[i + half] = x[i] * cos - x[i + half] * sin, x[i + half] * cos + x[i] * sin   for i < half */
KRASIS_API int krasis_turn_heads(krasis_pool *pool, float *x, int64_t tokens, int64_t stride, int32_t q_heads,
                                 int32_t k_heads, int32_t dim, const float *q_norm, const float *k_norm, float eps,
                                 const float *cos, const float *sin, int32_t half);

/* The same for latent attention: of q[token], heads of nope + 2 * half dimensions, the last 2 * half turn; of kv[token]
 * the first `rank` are normalized by norm[rank] and the last 2 * half turn. Pairs lie side by side and become halves. */
KRASIS_API int krasis_turn_latent(krasis_pool *pool, float *q, int64_t q_stride, float *kv, int64_t kv_stride,
                                  int64_t tokens, int32_t heads, int32_t nope, int32_t rank, const float *norm,
                                  float eps, const float *cos, const float *sin, int32_t half);

typedef enum krasis_gating {
    KRASIS_GATE_SIGMOID = 0, /* x * sigmoid(gate) */
    KRASIS_GATE_SILU = 1,    /* x * gate * sigmoid(gate) */
    KRASIS_GATE_ROWS = 2     /* x * sigmoid(gate), which has one value a row */
} krasis_gating;

/* y[rows][n] of x and gate, rows x_stride and gate_stride apart. y may be x or gate where that is contiguous. */
KRASIS_API int krasis_gate(krasis_pool *pool, const float *x, int64_t x_stride, const float *gate, int64_t gate_stride,
                           int64_t rows, int64_t n, int32_t kind, float *y);

/* y[rows][n] += x[rows][n], rows x_stride apart, 0: one for all of y. */
KRASIS_API int krasis_add(krasis_pool *pool, const float *x, int64_t x_stride, int64_t rows, int64_t n, float *y);

/* y[rows][n] = x[rows][n], rows x_stride and y_stride apart. */
KRASIS_API int krasis_copy(krasis_pool *pool, const float *x, int64_t x_stride, int64_t rows, int64_t n, float *y,
                           int64_t y_stride);

/* y[t] = silu(sum over i < width of weight[i] * x[t - width + 1 + i]) of every channel; state[width - 1][channels] has the
 * x before the first, and then the last ones. */
KRASIS_API int krasis_conv(krasis_pool *pool, const float *x, int64_t tokens, int64_t x_stride, int64_t channels,
                           const float *weight, int64_t width, float *state, float *y);

typedef enum krasis_scores {
    KRASIS_SCORES_SOFTMAX = 0, /* softmax of all logits */
    KRASIS_SCORES_SIGMOID = 1, /* sigmoid of each */
    KRASIS_SCORES_LOGITS = 2   /* logits + bias; weights are the softmax of the chosen ones */
} krasis_scores;

/* For every token the `chosen` experts of greatest score + bias (bias null or [experts]), greatest first, of equals the
 * first; and their scores, divided by their sum where `normalize` is not 0, times `scale`. */
KRASIS_API int krasis_route(krasis_pool *pool, const float *logits, const float *bias, int64_t tokens, int64_t experts,
                            int64_t chosen, int32_t scores, int32_t normalize, float scale, int64_t *ids,
                            float *weights);

/* A gated DeltaNet. `norm` is [value_dim], the others [value_heads]; value heads share keys in runs. */
typedef struct krasis_delta_net {
    int32_t key_heads, value_heads, key_dim, value_dim;
    const float *rate, *dt_bias, *norm;
    float norm_eps;
} krasis_delta_net;

/* out[tokens][value_heads][value_dim] = norm(o) * silu(z), token by token, for every value head with its q, k and v:
 *     q, k = q / (|q| sqrt(key_dim)), k / |k|   where |x| = sqrt(sum of x^2 + 1e-6)
 *     a = exp(rate * softplus(step + dt_bias));   b = sigmoid(beta)
 *     S = a S + k (b (v - a S^T k))^T;   o = S^T q
 * qkv[token] has all q, then all k [key_heads][key_dim], then all v; z[token] is as v; beta_step[token] has all beta, then
 * all step. S is memory[value_heads][key_dim][value_dim]. */
KRASIS_API int krasis_delta_net_step(krasis_pool *pool, const krasis_delta_net *form, const float *qkv,
                                     int64_t qkv_stride, const float *z, int64_t z_stride, const float *beta_step,
                                     int64_t beta_step_stride, int64_t tokens, float *memory, float *out);

/* Cached rows of float32, bf16 bits or e4m3 bits; the latter are multiplied by scales[position * scale_stride + head]. */
typedef struct krasis_rows {
    const void *values;
    const float *scales;
    int64_t stride, head_stride, scale_stride; /* stride: between positions */
    int32_t type;                              /* krasis_type */
} krasis_rows;

/* Rows `at` and on of values[..][heads][dim], of a krasis_type, become x[tokens][heads][dim], rounded to nearest even. Of
 * float8 they are x / scale with scales[..][heads] = max(|x|, 1e-12) / 448; otherwise `scales` is not used. */
KRASIS_API int krasis_store(krasis_pool *pool, const float *x, int64_t tokens, int64_t x_stride, int32_t heads,
                            int32_t dim, int32_t type, int64_t at, void *values, float *scales);

/* out[tokens][heads][v_dim]: softmax(scale q k) v of q[tokens][heads][dim], which are the last of `length` positions. A
 * token sees the `window` positions up to its own, all where it is 0; heads share kv heads in runs. sinks, null or [heads],
 * join the softmax and are dropped. v may lie within k. */
KRASIS_API int krasis_attention(krasis_pool *pool, const float *q, int64_t tokens, int64_t q_stride,
                                const krasis_rows *k, const krasis_rows *v, int64_t length, int32_t heads,
                                int32_t kv_heads, int32_t dim, int32_t v_dim, int64_t window, float scale,
                                const float *sinks, float *out);

typedef enum krasis_activation {
    KRASIS_SWIGLU = 0,        /* gate * sigmoid(gate) * up */
    KRASIS_CLAMPED_SWIGLU = 1 /* (up + 1) * gate * sigmoid(alpha * gate), gate at most and up within `limit` */
} krasis_activation;

/* The experts of a layer, all alike: record e has every array of the first one e * stride bytes further.
 * w13 has gate over up: column i of gate is i, of up w13.n / 2 + i. Biases, laid out as the columns, are null or float32 or
 * bf16 bits. `hidden` columns go in and come out, `size` lie between; matrices may be larger, as they are padded, or as
 * only the first features between are wanted: no more is read of them than it takes. All are quantized. */
typedef struct krasis_experts {
    krasis_matrix w13, w2;
    const void *b13, *b2;
    int64_t count, stride;
    int32_t hidden, size;
    int32_t bias_type; /* krasis_type */
    int32_t activation;
    float alpha, limit;
} krasis_experts;

/* y[m][hidden] = sum over i < chosen of weights[m][i] * expert ids[m][i] of x[m][hidden], rows ldx and ldy elements apart.
 *
 * gate and up are products as krasis_matmul gives them, and w2's of activation(gate + b, up + b); then, from y = 0 and
 * by ascending expert, y = fma(weight, product + b2, y). The same bit for bit on every instruction set, in every layout,
 * with every thread count and batch size. KRASIS_ERROR_SHAPE for an id that is no expert's. */
KRASIS_API int krasis_moe(krasis_pool *pool, const krasis_experts *experts, const float *x, int64_t m, int64_t ldx,
                          const int64_t *ids, const float *weights, int64_t chosen, float *y, int64_t ldy);

/* What can be recorded, by the function that does it. */
typedef enum krasis_operation {
    KRASIS_LINEARS = 0,
    KRASIS_NORM = 1,
    KRASIS_TURN_HEADS = 2,
    KRASIS_TURN_LATENT = 3,
    KRASIS_GATE = 4,
    KRASIS_ADD = 5,
    KRASIS_COPY = 6,
    KRASIS_CONV = 7,
    KRASIS_ROUTE = 8,
    KRASIS_DELTA_NET_STEP = 9,
    KRASIS_STORE = 10,
    KRASIS_ATTENTION = 11,
    KRASIS_MOE = 12
} krasis_operation;

#define KRASIS_MOST_ARGUMENTS 15

/* A call: the arguments behind the pool, each in the first bytes of its slot. */
typedef struct krasis_call {
    int64_t operation; /* krasis_operation */
    int64_t arguments[KRASIS_MOST_ARGUMENTS];
} krasis_call;

/* Makes `count` calls again, one after the other, for a token that is `later` tokens behind the one they were recorded for:
 * krasis_store's `at` and krasis_attention's `length` are as many more. The first error ends it; KRASIS_ERROR_CODEC is no
 * such operation. */
KRASIS_API int krasis_replay(krasis_pool *pool, const krasis_call *calls, int64_t count, int64_t later);

/* Row-major weights with rows `stride` elements apart. */
typedef struct krasis_part {
    const void *values;
    int64_t rows, stride;
} krasis_part;

/* The logical weights of a matrix: `count` parts of one type and width, of which part p starts at row p * n / count. */
typedef struct krasis_weights {
    const krasis_part *parts;
    int32_t count, type;
    int64_t columns;
    const float *importance; /* null, or a weight for the squared error of each column: finite, not negative */
} krasis_weights;

/* Codes, one a byte and valid, of the numbers of a part, and its scales [rows][ceil(columns / group_size)] as the codec
 * stores them, both row-major. */
typedef struct krasis_codes {
    const uint8_t *codes;
    const void *scales;
    int64_t rows, columns, codes_stride, scales_stride;
} krasis_codes;

/* Where the whole padded matrix goes in one layout. Codes are aligned to 4 bytes, bf16 scales to 2. */
typedef struct krasis_target {
    void *codes, *scales;
    int32_t layout;
} krasis_target;

/* The padded matrix, as in krasis_matrix, with n a multiple of 64 and of the number of parts. */
typedef struct krasis_packing {
    int32_t codec, k, n, group_size;
    const krasis_target *targets;
    int32_t target_count;
} krasis_packing;

/* Quantizes rows [64 * first, 64 * last) of the padded matrix into every target, on the calling thread. What lies beyond
 * the logical weights is filled with zero codes and zero scales. Threads may work on different rows of one matrix.
 *
 * errors[last - first][2]: for every 64 rows the sum of squared errors of the logical weights, and of their squares; with
 * importance [4], the same two weighted by it after them. Each is a sum over groups of one row, then over rows, both
 * ascending.
 *
 * Codes, scales and errors are the same bit for bit on every instruction set; formats/codecs.md says how they are chosen.
 * KRASIS_ERROR_VALUE leaves the targets half-written. */
KRASIS_API int krasis_quantize(int isa, const krasis_weights *weights, const krasis_packing *packing, int64_t first,
                               int64_t last, double *errors);

/* Lays out codes and scales that are kept as they are, `count` parts of them. Otherwise as krasis_quantize. */
KRASIS_API int krasis_pack(int isa, const krasis_codes *parts, int32_t count, const krasis_packing *packing,
                           int64_t first, int64_t last);

/* INT4 codes [n][k] of float32 weights [n][k] for bf16 scales [n][k / group_size], by error feedback, on the calling
 * thread. `shares` [k][k] are read where j < k only. With wanted = w[k] and then, j ascending,
 * wanted = fma(shares[k][j], e[j], wanted):
 *     number = rint(wanted / scale) within -8..7, 0 where w[k] or the scale is 0;   e[k] = w[k] - number * scale
 *     code = number + 8
 * k and n are multiples of 16, group_size divides k. errors[n][4]: of each row the sums of (w - number * scale)^2 and of
 * w^2, and the same two times importance[k], in float64 and by ascending k. Codes and errors are the same bit for bit on
 * every instruction set. */
KRASIS_API int krasis_int4_feedback(int isa, const float *weight, const float *shares, const uint16_t *scales,
                                    const float *importance, int64_t k, int64_t n, int64_t group_size, uint8_t *codes,
                                    double *errors);

#ifdef __cplusplus
}
#endif

#endif
