// What an instruction set provides, and what its kernels are given. No STL here: translation units with special
// instructions include this, and code they share with others could be linked into a program that must not run it.
#pragma once

#include <stdint.h>

#include "krasis.h"

namespace krasis {

// Columns of y computed at once: the finest grain at which quantized products are split.
constexpr int kUnit = 16;

// From so many tokens on it is worth to decode weights into panels, a block of units at once.
constexpr int kTileTokens = 16; // of AMX
constexpr int kMany = 8, kPanelUnits = 4;

// The activations of one job as its codec wants them, a row a token.
struct Activations {
    int8_t *q;       // quantized codecs: [m][k]
    float *scale;    // quantized codecs: [m][k / group_size]
    int32_t *sum;    // quantized codecs: [m][k / group_size], of q over each group
    float *values;   // BF16: [m][padded_k], zeros from k_in on
    int64_t padded_k;
};

// Weights that a thread reads after those it was told to multiply, of a matrix of the same form; null: none.
struct Next {
    const void *codes, *scales;
};

struct Work {
    krasis_job job;
    Activations activations;
    unsigned char *panels; // room for decoded weights, where there are many tokens
    Next next;             // to be prefetched
};

// Of k, those that x has a say in.
static inline int64_t groups_in(const krasis_job &job) {
    return (job.k_in + job.matrix->group_size - 1) / job.matrix->group_size;
}

struct Feedback;
struct Ops;

struct Kernels {
    // Fills the activations of tokens [first, last).
    using Prepare = void (*)(const Work &, int64_t first, int64_t last);
    // Writes y for units [first, last) of columns and every token.
    using Multiply = void (*)(const Work &, int64_t first, int64_t last);

    Prepare prepare[4];      // by codec
    Multiply multiply[4][3];      // by codec and layout; null where the two do not go together
    Multiply multiply_many[4][3]; // for kMany tokens and more, of whole blocks of units; null where there is none
    // Both of expert.h.
    void (*activate)(const krasis_experts &, int64_t expert, const float *gate_up, int64_t first, int64_t last,
                     int8_t *q, float *scale, int32_t *sum);
    void (*add_weighted)(const krasis_experts &, int64_t expert, float weight, const float *x, float *y, int64_t first,
                         int64_t last);
    uint32_t (*read)(const uint8_t *line, int64_t lines);
    void (*feed_back)(const Feedback &, float *errors);
    const Ops *ops; // what lies between products
};

const Kernels &scalar_kernels();
const Kernels &emulated_vnni_kernels();
const Kernels &emulated_amx_kernels();
#ifdef KRASIS_X86
const Kernels &avx2_kernels();
const Kernels &vnni_kernels();
const Kernels &amx_kernels();
#endif

} // namespace krasis
