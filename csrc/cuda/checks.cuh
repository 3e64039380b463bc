// What arguments of products are held to.
#pragma once

#include "device.cuh"
#include "krasis_cuda.h"

inline krasis_status check_form(int codec, int k, int n, int group) {
    if (codec != KRASIS_INT4 && codec != KRASIS_INT8 && codec != KRASIS_MXFP4)
        return KRASIS_ERROR_CODEC;
    const bool tiled = (k % 64 == 0 && n % 128 == 0) || (k % 128 == 0 && n % 64 == 0);
    if (k < 1 || n < 1 || !tiled)
        return KRASIS_ERROR_SHAPE;
    const bool known = group == 32 || (codec != KRASIS_MXFP4 && (group == 64 || group == 128));
    return known && k % group == 0 ? KRASIS_OK : KRASIS_ERROR_GROUP;
}

inline bool aligned(const void *p) { return (uintptr_t)p % 16 == 0; }

inline krasis_status check_rows(const void *x, int m, int64_t ldx, int k_in) {
    if (!x)
        return KRASIS_ERROR_NULL;
    if (m < 1 || k_in < 8 || k_in % 8 || ldx % 8 || (m > 1 && ldx < k_in))
        return KRASIS_ERROR_SHAPE;
    return aligned(x) ? KRASIS_OK : KRASIS_ERROR_ALIGNMENT;
}

inline krasis_status check_output(const void *y, int type) {
    if (!y)
        return KRASIS_ERROR_NULL;
    return type == KRASIS_FLOAT32 || type == KRASIS_BFLOAT16 ? KRASIS_OK : KRASIS_ERROR_TYPE;
}

inline krasis_status check_products(const krasis_cuda_product *products, int count, int k_in, int64_t ldy) {
    if (!products)
        return KRASIS_ERROR_NULL;
    if (count < 1 || count > KRASIS_CUDA_MOST_PRODUCTS)
        return KRASIS_ERROR_SHAPE;
    int64_t columns = 0;
    for (int i = 0; i < count; i++) {
        const krasis_matrix &matrix = products[i].matrix;
        const int parts = products[i].parts, n_out = products[i].n_out;
        if (!matrix.codes || !matrix.scales)
            return KRASIS_ERROR_NULL;
        if (matrix.layout != KRASIS_LAYOUT_MARLIN)
            return KRASIS_ERROR_LAYOUT;
        if (const krasis_status status = check_form(matrix.codec, matrix.k, matrix.n, matrix.group_size))
            return status;
        if (k_in > matrix.k || (parts != 1 && parts != 2) || n_out < parts || n_out % parts || n_out > matrix.n)
            return KRASIS_ERROR_SHAPE;
        if (!aligned(matrix.codes) || !aligned(matrix.scales))
            return KRASIS_ERROR_ALIGNMENT;
        columns += n_out;
    }
    return columns <= ldy ? KRASIS_OK : KRASIS_ERROR_SHAPE;
}

inline krasis_status check_linear(const krasis_cuda_product *products, int count, const void *x, int m, int64_t ldx,
                                  int k_in, const void *y, int y_type, int64_t ldy) {
    if (const krasis_status status = check_rows(x, m, ldx, k_in))
        return status;
    if (const krasis_status status = check_output(y, y_type))
        return status;
    return check_products(products, count, k_in, ldy);
}

inline krasis_status check_experts(const krasis_cuda_experts *e, const void *records, int tokens, int slots) {
    if (!e || !records)
        return KRASIS_ERROR_NULL;
    if (const krasis_status status = check_form(e->codec13, e->k13, 2 * e->size, e->group13))
        return status;
    if (const krasis_status status = check_form(e->codec2, e->size, e->n2, e->group2))
        return status;
    if (tokens < 1 || slots < 1 || e->hidden < 8 || e->hidden % 8 || e->hidden > e->k13 || e->hidden > e->n2 ||
        e->size % 64)
        return KRASIS_ERROR_SHAPE;
    if ((e->w13_codes | e->w13_scales | e->w2_codes | e->w2_scales) % 16)
        return KRASIS_ERROR_ALIGNMENT;
    return e->bias_type == KRASIS_FLOAT32 || e->bias_type == KRASIS_BFLOAT16 ? KRASIS_OK : KRASIS_ERROR_TYPE;
}

inline int rows_of_tile(int tile) { return tile == KRASIS_TILE_32X256 ? 32 : tile == KRASIS_TILE_64X256 ? 64 : 128; }
inline bool known_tile(int tile) { return tile >= KRASIS_TILE_32X256 && tile <= KRASIS_TILE_128X256; }
