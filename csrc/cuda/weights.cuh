// Tiles of 16 k x 64 columns of the marlin layout, as operands of mma m16n8k16. Index formulas: formats/layouts.md.
#pragma once

#include "device.cuh"

constexpr int kTileColumns = 64, kTileDepth = 16;

__device__ __forceinline__ uint32_t word(const uint4 &v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* A codec's tile: each lane holds kVectors x 16 bytes of it, one lane's after another's.
 *
 * fragment(v, w, a): the codes of columns 16 w to 16 w + 15 of the tile. Lane 4 g + t gets pairs of k = 2 t, 2 t + 1: a[0]
 * of column g, a[1] of g + 8, a[2] and a[3] the same with k 8 further. So a is the first operand of a product with 16
 * columns as its rows, and {a[h], a[2 + h]} the second of one with 8 columns, once each pair has become
 *     fma(pair, scale * 2^112, scale * kOffset): the weight * 2^-kShift, rounded once; exact where scale is 1.
 * For the pairs are bf16 already: the least of them, code * 2^-133 (subnormal below 128), or e2m1 values * 2^-126.
 *
 * scales(row, g, one_group): `row` points at those of the tile's columns; the eight of columns g + 8 j as bf16. */
struct Int4 {
    static constexpr int kVectors = 1, kScaleBytes = 2, kShift = 21;
    static constexpr uint32_t kOffset = 0xb680b680u; // -8 * 2^-21

    static __device__ __forceinline__ void fragment(const uint4 (&v)[kVectors], int w, uint32_t (&a)[4]) {
        const uint32_t nibbles = word(v[0], w);
        a[0] = nibbles & 0x000f000fu, a[1] = nibbles >> 8 & 0x000f000fu;
        a[2] = nibbles >> 4 & 0x000f000fu, a[3] = nibbles >> 12 & 0x000f000fu;
    }

    static __device__ __forceinline__ uint4 scales(const char *row, int g, bool one_group);
};

struct Int8 {
    static constexpr int kVectors = 2, kScaleBytes = 2, kShift = 21;
    static constexpr uint32_t kOffset = 0xb880b880u; // -128 * 2^-21

    static __device__ __forceinline__ void fragment(const uint4 (&v)[kVectors], int w, uint32_t (&a)[4]) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t bytes = word(v[w / 2], 2 * (w % 2) + h);
            a[h] = bytes & 0x00ff00ffu, a[2 + h] = bytes >> 8 & 0x00ff00ffu;
        }
    }

    static __device__ __forceinline__ uint4 scales(const char *row, int g, bool one_group) {
        return Int4::scales(row, g, one_group);
    }
};

struct Mxfp4 {
    static constexpr int kVectors = 1, kScaleBytes = 1, kShift = 14;
    static constexpr uint32_t kOffset = 0;

    // Sign, exponent and mantissa of e2m1 in those of bf16, whose bias is 126 more.
    static __device__ __forceinline__ void fragment(const uint4 (&v)[kVectors], int w, uint32_t (&a)[4]) {
        const uint32_t nibbles = word(v[0], w);
        a[0] = (nibbles & 0x00080008u) << 12 | (nibbles & 0x00070007u) << 6;
        a[1] = (nibbles & 0x08000800u) << 4 | (nibbles >> 2 & 0x01c001c0u);
        a[2] = (nibbles & 0x00800080u) << 8 | (nibbles & 0x00700070u) << 2;
        a[3] = (nibbles & 0x80008000u) | (nibbles >> 6 & 0x01c001c0u);
    }

    static __device__ __forceinline__ uint4 scales(const char *row, int g, bool) {
        const uint2 e = *reinterpret_cast<const uint2 *>(row + 8 * g);
        return {exponents(e.x), exponents(e.x >> 8), exponents(e.y), exponents(e.y >> 8)};
    }

    static __device__ __forceinline__ uint32_t exponents(uint32_t bytes) { return (bytes & 0x00ff00ffu) << 7; }
};

__device__ __forceinline__ uint4 Int4::scales(const char *row, int g, bool one_group) {
    const uint4 *vectors = reinterpret_cast<const uint4 *>(row);
    if (!one_group)
        return vectors[g];
    const uint4 low = vectors[g / 2], high = vectors[4 + g / 2];
    const uint32_t odd_or_even = g % 2 ? 0x7632 : 0x5410;
    return {permute(low.x, low.y, odd_or_even), permute(low.z, low.w, odd_or_even),
            permute(high.x, high.y, odd_or_even), permute(high.z, high.w, odd_or_even)};
}

/* What makes weights * 2^-kShift of pairs of column g + 8 j. */
template <class Codec> struct Scaling {
    uint32_t factor = 0x77807780u, offset = Codec::kOffset;

    __device__ __forceinline__ void set(const uint4 &scales, int j) {
        const uint32_t scale = permute(word(scales, j / 2), 0, j % 2 ? 0x3232 : 0x1010);
        factor = mul_bf16x2(scale, 0x77807780u);
        offset = Codec::kOffset ? mul_bf16x2(scale, Codec::kOffset) : 0;
    }

    __device__ __forceinline__ uint32_t weights(uint32_t pair) const {
        return Codec::kOffset ? fma_bf16x2(pair, factor, offset) : mul_bf16x2(pair, factor);
    }
};

__device__ inline int log2_group(int group) { return group == 32 ? 5 : group == 64 ? 6 : 7; }

__device__ __forceinline__ float scale_of(const uint4 &scales, int j) {
    return j % 2 ? high_float(word(scales, j / 2)) : low_float(word(scales, j / 2));
}

/* Gated activations: the silu of the gate, or gpt-oss's clamped one where `limit` is not 0. */
struct Activation {
    float alpha, limit;
};

__device__ __forceinline__ float activate(const Activation &kind, float gate, float up) {
    if (kind.limit == 0)
        return __fdividef(gate, 1 + __expf(-gate)) * up;
    gate = fminf(gate, kind.limit), up = fminf(fmaxf(up, -kind.limit), kind.limit);
    return (up + 1) * __fdividef(gate, 1 + __expf(-kind.alpha * gate));
}

/* Values that are float32 or bf16, if any. */
struct Values {
    const void *at;
    int bf16s;
};

__device__ __forceinline__ float value(const Values &values, int64_t i) {
    if (!values.at)
        return 0;
    return values.bf16s ? to_float(((const bf16 *)values.at)[i]) : ((const float *)values.at)[i];
}
