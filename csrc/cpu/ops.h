// What lies between products: operations on rows of floats. No STL here, as in kernels.h.
#pragma once

#include <stdint.h>

#include "krasis.h"

namespace krasis {

struct Norm {
    const float *x, *add, *weight; // add: null or as x
    int64_t n;
    float eps;
    float *sum, *y; // sum: where x + add goes, null without add
};

// Heads of `dim` dimensions that lie side by side, changed in place.
struct Turn {
    float *x;
    int64_t stride; // between tokens
    int32_t heads, dim;
    const float *norm; // null or [norm_size], of the first dimensions of a head
    int32_t norm_size;
    float eps;
    int32_t first, half; // dimensions first to first + 2 * half turn
    bool interleaved;    // pairs are neighbours, and become halves
    const float *cos, *sin; // [tokens][half]
};

struct Gate {
    const float *x, *gate;
    int64_t x_stride, gate_stride, n;
    int32_t kind;
    float *y;
};

struct Add {
    const float *x;
    int64_t x_stride, n;
    float *y;
};

struct Conv {
    const float *x, *weight;
    int64_t tokens, x_stride, channels, width;
    float *state, *y;
};

struct Route {
    const float *logits, *bias;
    int64_t experts, chosen;
    int32_t scores;
    bool normalize;
    float scale;
    int64_t *ids;
    float *weights;
};

struct DeltaNet {
    krasis_delta_net form;
    const float *qkv, *z;
    int64_t tokens, qkv_stride, z_stride;
    const float *beta_step;
    int64_t beta_step_stride;
    float *memory, *out;
};

constexpr int kMostHeadDim = 1024;

// Of one call of krasis_attention.
struct Attention {
    const float *q;
    int64_t tokens, q_stride;
    krasis_rows k, v;
    int64_t length;
    int32_t heads, kv_heads, dim, v_dim;
    int64_t window;
    float scale;
    const float *sinks;
    float *out;
};

// Positions that a token sees: [first, end).
static inline int64_t end_of(const Attention &a, int64_t token) { return a.length - a.tokens + token + 1; }
static inline int64_t first_of(const Attention &a, int64_t token) {
    return a.window && end_of(a, token) > a.window ? end_of(a, token) - a.window : 0;
}

// Positions of a run, which is attended to as one, and heads of one piece of work.
constexpr int64_t kRun = 128;
constexpr int kRowsAtOnce = 2 * 16, kHeads = 16; // rows: of values, or of keys and the tiles they come from

// What one piece of attention is: query heads [head, head + heads) of a token, that share a key, over the run of positions
// that begins at `begin`.
struct AttentionPiece {
    int64_t token, begin;
    int32_t head, heads;
    float *partial; // of the first head, `partial_stride` apart: a sum of values, the greatest score, the sum of weights
    int64_t partial_stride;
    float *scratch; // attention_scratch floats
};

static inline int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

static inline int64_t attention_scratch(const Attention &a) {
    const int64_t widest = a.dim > a.v_dim ? a.dim : a.v_dim;
    return kHeads * (padded(a.dim) + kRun) + (kRowsAtOnce + 1) * padded(widest);
}

struct Ops {
    // Rows [first, last), tokens or, of conv, runs of 16 channels, or, of delta_net, value heads.
    void (*norm)(const Norm &, int64_t first, int64_t last);
    void (*turn)(const Turn &, int64_t first, int64_t last);
    void (*gate)(const Gate &, int64_t first, int64_t last);
    void (*add)(const Add &, int64_t first, int64_t last);
    void (*conv)(const Conv &, int64_t first, int64_t last);
    void (*route)(const Route &, int64_t first, int64_t last);
    void (*delta_net)(const DeltaNet &, int64_t first, int64_t last);
    void (*attend)(const Attention &, const AttentionPiece &);
    // Writes a head's result from the partial ones of `runs` runs, which are lost.
    void (*combine)(const Attention &, int32_t head, float *partial, int64_t stride, int64_t runs, float *out);
};

} // namespace krasis
