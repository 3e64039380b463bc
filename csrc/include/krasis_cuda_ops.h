/* What lies between products on the GPU: see krasis_cuda.h for pointers, streams and errors.
 *
 * Activations are bf16, tokens `stride` elements apart; dimensions are multiples of 4, of attention of 8. `position` is
 * one int32 in device memory: the length of the sequence before these tokens. Position p of a cache lies in row
 * p % capacity. Types are KRASIS_FLOAT32 or KRASIS_BFLOAT16.
 */
#ifndef KRASIS_CUDA_OPS_H
#define KRASIS_CUDA_OPS_H

#include "krasis_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KRASIS_CUDA_PARTS 128

/* Rows [capacity][heads][dim] of a sequence: bf16, or e4m3 where there are scales [capacity][heads] that multiply
 * them. */
typedef struct krasis_cuda_cache {
    void *values;
    float *scales;
    int32_t capacity, heads, dim;
} krasis_cuda_cache;

/* y bf16 [tokens][n] = x / sqrt(mean(x^2) + eps) * weight. With `add`, x (then float32) += add before, in place. */
KRASIS_API int krasis_cuda_norm(void *x, int x_type, int64_t x_stride, const void *add, int add_type,
                                int64_t add_stride, int64_t tokens, int n, const float *weight, float eps, uint16_t *y,
                                void *stream);

/* y bf16 [tokens][heads][dim] = norm of each head of x, float32 of that shape, * silu(z). */
KRASIS_API int krasis_cuda_gated_norm(const float *x, const uint16_t *z, int64_t z_stride, int64_t tokens, int heads,
                                      int dim, const float *weight, float eps, uint16_t *y, void *stream);

/* Heads of q, k and v lie side by side in x [tokens][>= (q_heads + 2 kv_heads) dim]. Those of q and k are
 * normalized where norms [dim] are given, and their dimensions i and half + i turned, i < half, by cos and sin
 * [positions][half]: in place. k and v are put into caches where these are given, of one kind. */
KRASIS_API int krasis_cuda_turn_heads(uint16_t *x, int64_t tokens, int64_t stride, int q_heads, int kv_heads, int dim,
                                      const float *q_norm, const float *k_norm, float eps, const float *cos,
                                      const float *sin, int half, const int32_t *position, void *k_values,
                                      float *k_scales, void *v_values, float *v_scales, int capacity, void *stream);

/* The same of latent attention: q [tokens][heads][nope + 2 half], kv [tokens][rank + 2 half], of which the first rank
 * dimensions are normalized; the last of both turn, lie in pairs and become halves. */
KRASIS_API int krasis_cuda_turn_latent(uint16_t *q, int64_t q_stride, uint16_t *kv, int64_t kv_stride, int64_t tokens,
                                       int heads, int nope, int rank, const float *norm, float eps, const float *cos,
                                       const float *sin, int half, const int32_t *position, void *values,
                                       float *scales, int capacity, void *stream);

/* Puts x [tokens][heads][dim] into a cache. */
KRASIS_API int krasis_cuda_store(const uint16_t *x, int64_t tokens, int64_t stride, int heads, int dim,
                                 const int32_t *position, void *values, float *scales, int capacity, void *stream);

/* What attention of `tokens` from `position` on sees of an e4m3 cache, as bf16 in the same rows of out. */
KRASIS_API int krasis_cuda_widen(const krasis_cuda_cache *cache, const int32_t *position, int64_t tokens, int window,
                                 uint16_t *out, void *stream);

/* Causal attention of q [tokens][heads][dim] over caches that hold these tokens too -> bf16
 * [tokens][heads][v_dim]. Where v is k, values are the first v_dim dimensions of keys. `sinks` [heads], or null,
 * are logits without values; a window of 0 sees all. Meant for few tokens and long caches: positions are shared
 * out to `splits`, at most 256, whose results go to `workspace`, float32 [splits][tokens][heads][v_dim + 2].
 * Dimensions are at most 256, with v as k 576 and 512, and in e4m3 multiples of 16. */
KRASIS_API int krasis_cuda_attention_few(const uint16_t *q, int64_t q_stride, int64_t tokens, int heads,
                                         const krasis_cuda_cache *k, const krasis_cuda_cache *v, int v_dim, int window,
                                         float scale, const float *sinks, const int32_t *position, int splits,
                                         void *workspace, uint16_t *out, void *stream);

/* The same for many tokens over bf16 keys and values, position p of which is in row p % capacity. */
KRASIS_API int krasis_cuda_attention_many(const uint16_t *q, int64_t q_stride, int64_t tokens, int heads, int kv_heads,
                                          int dim, int v_dim, const uint16_t *k, int64_t k_stride,
                                          int64_t k_head_stride, const uint16_t *v, int64_t v_stride,
                                          int64_t v_head_stride, int capacity, int window, float scale,
                                          const float *sinks, const int32_t *position, uint16_t *out, void *stream);

/* logits [tokens][experts] -> ids and weights [tokens][chosen], see krasis_route; at most 512 experts, 16 chosen. */
KRASIS_API int krasis_cuda_route(const float *logits, const float *bias, int64_t tokens, int experts, int chosen,
                                 int scores, int normalize, float scale, int32_t *ids, float *weights, void *stream);

/* Of x bf16 [m][heads][k + rest], at most KRASIS_CUDA_MOST_FEW rows: y [m][heads][n + rest] = the first k elements times
 * weights [heads][n][k], float32 or bf16, and the rest as it is. Rows and heads lie so many elements apart; those of x and of
 * the weights are multiples of 8, and so is k. `fixed`: see krasis_cuda_linear_few. */
KRASIS_API int krasis_cuda_plain(const void *weights, int type, int heads, int64_t weight_head, int n, int k, int rest,
                                 const uint16_t *x, int m, int64_t x_row, int64_t x_head, void *y, int y_type,
                                 int64_t y_row, int64_t y_head, int fixed, void *stream);

/* krasis_cuda_route of the logits that router [experts][k] gives of x bf16 [m][k]. logits float32 [m][experts] is scratch,
 * counter 0 before and after. */
KRASIS_API int krasis_cuda_choose(const void *router, int type, int experts, int k, const uint16_t *x, int m,
                                  int64_t x_row, const float *bias, int chosen, int scores, int normalize, float scale,
                                  float *logits, int32_t *counter, int32_t *ids, float *weights, int fixed,
                                  void *stream);

/* y = x sigmoid(gate), [tokens][n]. */
KRASIS_API int krasis_cuda_gate(const uint16_t *x, int64_t x_stride, const uint16_t *gate, int64_t gate_stride,
                                int64_t tokens, int n, uint16_t *y, void *stream);

/* y [tokens][n] = silu(first n columns) * the n behind, times sigmoid(x [tokens][k] . door [k]), of door_type, where there
 * is a door. */
KRASIS_API int krasis_cuda_swiglu(const uint16_t *gate_up, int64_t stride, int64_t tokens, int n, const uint16_t *x,
                                  int64_t x_stride, int k, const void *door, int door_type, uint16_t *y, void *stream);

/* out float32 [tokens][n] = rows `ids` of a bf16 table [rows][n]. */
KRASIS_API int krasis_cuda_embed(const uint16_t *table, int rows, int n, const int32_t *ids, int64_t tokens, float *out,
                                 void *stream);

/* token = the first of the greatest logits [n], and position, where given, += tokens. parts: 8 bytes times
 * KRASIS_CUDA_PARTS. */
KRASIS_API int krasis_cuda_greatest(const float *logits, int n, void *parts, int32_t *token, int32_t *position,
                                    int tokens, void *stream);

/* y [tokens][channels] = silu(sum over i of weight[i] x[t - width + 1 + i]), weight float32 [width][channels],
 * width 2 to 4; state float32 [width - 1][channels] holds what was before x, and is overwritten. */
KRASIS_API int krasis_cuda_conv(const uint16_t *x, int64_t tokens, int64_t stride, int channels, const float *weight,
                                int width, float *state, uint16_t *y, void *stream);

/* The gated delta rule, token by token -> out float32 [tokens][value_heads][value_dim]; see krasis_delta_net_step.
 * qkv bf16 has queries, keys and values side by side, beta_step betas and steps; memory float32
 * [value_heads][key_dim][value_dim]. key_dim is at most 128. */
KRASIS_API int krasis_cuda_delta(const uint16_t *qkv, int64_t qkv_stride, const void *beta_step, int beta_type,
                                 int64_t beta_stride, int64_t tokens, int key_heads, int value_heads, int key_dim,
                                 int value_dim, const float *rate, const float *dt_bias, float *memory, float *out,
                                 void *stream);

#ifdef __cplusplus
}
#endif

#endif
