// Gated DeltaNet (Yang et al. 2024, eq. 10), token by token, with all that is small around it.
#pragma once

#include "ops_rows.h"

namespace krasis {

// A key or query of length 1 times `scale`.
template <class Isa> void unit_vector(const float *x, int64_t n, float scale, float *y) {
    constexpr float kEps = 1e-6f;
    const float factor = 1 / sqrtf(sum_of_squares<Isa>(x, n) + kEps);
    for (int64_t i = 0; i < n; i += kUnit)
        store_up_to<Isa>(y + i, n - i, Isa::mul(Isa::mul(load_up_to<Isa>(x + i, n - i), factor), scale));
}

// What a value head does at a token.
struct DeltaStep {
    float q[kMostHeadDim], k[kMostHeadDim];
    float kept, beta;
};

static inline double softplus(double x) { return x > 20 ? x : log1p(::exp(x)); }

template <class Isa> void prepare_step(const DeltaNet &call, int64_t token, int64_t head, DeltaStep &step) {
    const krasis_delta_net &form = call.form;
    const int64_t dim = form.key_dim, shared = form.value_heads / form.key_heads;
    const float *const q = call.qkv + token * call.qkv_stride + head / shared * dim;
    unit_vector<Isa>(q, dim, 1 / sqrtf((float)dim), step.q);
    unit_vector<Isa>(q + form.key_heads * dim, dim, 1, step.k);
    const float *const beta = call.beta_step + token * call.beta_step_stride + head;
    // In float64, as libraries round such functions differently in float32.
    step.beta = (float)(1 / (1 + ::exp(-(double)beta[0])));
    step.kept = (float)::exp(form.rate[head] * softplus((double)beta[form.value_heads] + form.dt_bias[head]));
}

// kChunks times 16 columns of a head's memory, rows `stride` apart: S = a S + k (beta (v - a S^T k))^T, and S^T q.
template <class Isa, int kChunks>
void step_columns(const DeltaStep &step, int64_t dim, float *memory, int64_t stride, const float *v, float *out) {
    using Floats = typename Isa::Floats;
    Floats moved[kChunks], result[kChunks];
    for (int j = 0; j < kChunks; j++)
        moved[j] = result[j] = Isa::floats(0);
    for (int64_t i = 0; i < dim; i++)
        for (int j = 0; j < kChunks; j++)
            moved[j] = Isa::fma(Isa::floats(step.k[i]), Isa::load_floats(memory + i * stride + j * kUnit), moved[j]);
    for (int j = 0; j < kChunks; j++)
        moved[j] = Isa::mul(Isa::sub(Isa::load_floats(v + j * kUnit), Isa::mul(moved[j], step.kept)), step.beta);
    const Floats kept = Isa::floats(step.kept);
    for (int64_t i = 0; i < dim; i++)
        for (int j = 0; j < kChunks; j++) {
            float *const at = memory + i * stride + j * kUnit;
            const Floats value = Isa::fma(Isa::floats(step.k[i]), moved[j], Isa::mul(Isa::load_floats(at), kept));
            Isa::store_floats(at, value);
            result[j] = Isa::fma(Isa::floats(step.q[i]), value, result[j]);
        }
    for (int j = 0; j < kChunks; j++)
        Isa::store_floats(out + j * kUnit, result[j]);
}

// The last columns, fewer than 16.
template <class Isa>
void step_rest(const DeltaStep &step, int64_t dim, float *memory, int64_t stride, int64_t n, const float *v, float *out) {
    float copied[kMostHeadDim * kUnit] = {}, padded_v[kUnit] = {}, padded_out[kUnit];
    const size_t bytes = (size_t)n * sizeof *v;
    for (int64_t i = 0; i < dim; i++)
        memcpy(copied + i * kUnit, memory + i * stride, bytes);
    memcpy(padded_v, v, bytes);
    step_columns<Isa, 1>(step, dim, copied, kUnit, padded_v, padded_out);
    memcpy(out, padded_out, bytes);
    for (int64_t i = 0; i < dim; i++)
        memcpy(memory + i * stride, copied + i * kUnit, bytes);
}

// Value heads [first, last), every token.
template <class Isa> void delta_net(const DeltaNet &call, int64_t first, int64_t last) {
    const krasis_delta_net &form = call.form;
    const int64_t dim = form.key_dim, width = form.value_dim, all = form.value_heads * width;
    constexpr int kChunks = 4, kWide = kChunks * kUnit;
    DeltaStep step;
    for (int64_t head = first; head < last; head++) {
        float *const memory = call.memory + head * dim * width;
        for (int64_t token = 0; token < call.tokens; token++) {
            prepare_step<Isa>(call, token, head, step);
            const float *const v = call.qkv + token * call.qkv_stride + 2 * form.key_heads * dim + head * width;
            float *const out = call.out + token * all + head * width;
            int64_t i = 0;
            for (; i + kWide <= width; i += kWide)
                step_columns<Isa, kChunks>(step, dim, memory + i, width, v + i, out + i);
            for (; i + kUnit <= width; i += kUnit)
                step_columns<Isa, 1>(step, dim, memory + i, width, v + i, out + i);
            if (i < width)
                step_rest<Isa>(step, dim, memory + i, width, width - i, v + i, out + i);
            norm_row<Isa>(out, form.norm, width, form.norm_eps, out);
            const float *const z = call.z + token * call.z_stride + head * width;
            for (int64_t j = 0; j < width; j += kUnit)
                store_up_to<Isa>(out + j, width - j,
                                 Isa::mul(load_up_to<Isa>(out + j, width - j), silu<Isa>(load_up_to<Isa>(z + j, width - j))));
        }
    }
}

} // namespace krasis
