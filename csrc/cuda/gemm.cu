// Products of many rows: dense, and of routed experts.
#include "gemm.cuh"

#include "checks.cuh"

namespace {

template <class Codec, bool Gated> int run_tile(int tile, const Gemm &p, int64_t tiles, void *stream) {
    if (tile == KRASIS_TILE_32X256)
        return run<Codec, Shape<1, 4, 32>, Gated>(p, tiles, stream);
    if (tile == KRASIS_TILE_64X256)
        return run<Codec, Shape<1, 4, 64>, Gated>(p, tiles, stream);
    return run<Codec, Shape<2, 4, 64>, Gated>(p, tiles, stream);
}

template <bool Gated> int run_codec(int codec, int tile, const Gemm &p, int64_t tiles, void *stream) {
    if (codec == KRASIS_INT4)
        return run_tile<Int4, Gated>(tile, p, tiles, stream);
    if (codec == KRASIS_INT8)
        return run_tile<Int8, Gated>(tile, p, tiles, stream);
    return run_tile<Mxfp4, Gated>(tile, p, tiles, stream);
}

int64_t most_tiles(int tokens, int slots, int count, int tile) {
    return (int64_t)tokens * slots / rows_of_tile(tile) + count;
}

} // namespace

extern "C" int krasis_cuda_linear(const krasis_cuda_product *products, int count, const uint16_t *x, int m, int64_t ldx,
                                  int k_in, void *y, int y_type, int64_t ldy, int tile, void *stream) {
    if (const int status = check_linear(products, count, x, m, ldx, k_in, y, y_type, ldy))
        return status;
    if (!known_tile(tile))
        return KRASIS_ERROR_SHAPE;
    char *to = (char *)y;
    for (int i = 0; i < count; i++) {
        const krasis_cuda_product &product = products[i];
        const krasis_matrix &matrix = product.matrix;
        Gemm p = {};
        p.x = (const bf16 *)x, p.ldx = ldx, p.k_in = k_in, p.m = m;
        p.codes = (int64_t)matrix.codes, p.scales = (int64_t)matrix.scales, p.bias = (int64_t)product.bias;
        p.k = matrix.k, p.n = matrix.n, p.group = matrix.group_size, p.biased = product.bias != nullptr;
        p.y = to, p.ldy = ldy, p.y_float = y_type == KRASIS_FLOAT32;
        p.part = matrix.n / product.parts, p.part_out = product.n_out / product.parts;
        const int64_t tiles = ((int64_t)m + rows_of_tile(tile) - 1) / rows_of_tile(tile);
        if (const int status = run_codec<false>(matrix.codec, tile, p, tiles, stream))
            return status;
        to += product.n_out * (p.y_float ? 4 : 2);
    }
    return KRASIS_OK;
}

extern "C" int krasis_cuda_experts_up(const krasis_cuda_experts *experts, const int64_t *records, const int32_t *tiles,
                                      const int32_t *pairs, int tokens, int slots, int count, const uint16_t *x,
                                      int64_t ldx, uint16_t *h, int tile, void *stream) {
    if (const int status = check_experts(experts, records, tokens, slots))
        return status;
    if (const int status = check_rows(x, tokens, ldx, experts->hidden))
        return status;
    if (!tiles || !pairs || !h)
        return KRASIS_ERROR_NULL;
    if (!known_tile(tile) || count < 1)
        return KRASIS_ERROR_SHAPE;
    Gemm p = {};
    p.x = (const bf16 *)x, p.ldx = ldx, p.k_in = experts->hidden;
    p.table = records, p.codes = experts->w13_codes, p.scales = experts->w13_scales, p.bias = experts->b13;
    p.k = experts->k13, p.n = 2 * experts->size, p.group = experts->group13;
    p.tiles = (const int4 *)tiles, p.pairs = pairs, p.slots = slots, p.gather = 1;
    p.y = h, p.ldy = experts->size, p.part = p.n, p.part_out = experts->size;
    p.biased = experts->b13 >= 0, p.bias_bf16 = experts->bias_type == KRASIS_BFLOAT16;
    p.activation = {experts->alpha, experts->limit};
    return run_codec<true>(experts->codec13, tile, p, most_tiles(tokens, slots, count, tile), stream);
}

extern "C" int krasis_cuda_experts_down(const krasis_cuda_experts *experts, const int64_t *records, const int32_t *tiles,
                                        const int32_t *pairs, int tokens, int slots, int count, const uint16_t *h,
                                        uint16_t *y, int tile, void *stream) {
    if (const int status = check_experts(experts, records, tokens, slots))
        return status;
    if (!tiles || !pairs || !h || !y)
        return KRASIS_ERROR_NULL;
    if (!known_tile(tile) || count < 1)
        return KRASIS_ERROR_SHAPE;
    if (!aligned(h))
        return KRASIS_ERROR_ALIGNMENT;
    Gemm p = {};
    p.x = (const bf16 *)h, p.ldx = experts->size, p.k_in = experts->size;
    p.table = records, p.codes = experts->w2_codes, p.scales = experts->w2_scales, p.bias = experts->b2;
    p.k = experts->size, p.n = experts->n2, p.group = experts->group2;
    p.tiles = (const int4 *)tiles, p.pairs = pairs, p.slots = slots, p.scatter = 1;
    p.y = y, p.ldy = experts->hidden, p.part = p.n, p.part_out = experts->hidden;
    p.biased = experts->b2 >= 0, p.bias_bf16 = experts->bias_type == KRASIS_BFLOAT16;
    return run_codec<false>(experts->codec2, tile, p, most_tiles(tokens, slots, count, tile), stream);
}
