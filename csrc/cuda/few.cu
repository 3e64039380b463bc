// Products of few rows: dense, and of routed experts.
#include "few.cuh"

#include "checks.cuh"

namespace {

struct Dense {
    const void *codes, *scales;
    const float *bias;
    int k, n, group, first_tile, part, part_out, column; // of the result
};

struct Outputs {
    void *y;
    int64_t ldy;
    int floats, add;
};

__device__ void store(const Outputs &to, int64_t row, int column, float value) {
    const int64_t at = row * to.ldy + column;
    if (to.floats) {
        float *y = (float *)to.y + at;
        *y = to.add ? *y + value : value;
    } else {
        bf16 *y = (bf16 *)to.y + at;
        *y = to_bf16(to.add ? to_float(*y) + value : value);
    }
}

struct Linear {
    Rows rows;
    Dense matrices[KRASIS_CUDA_MOST_PRODUCTS];
    int count, fixed;
    Outputs out;
    float *partials;
    int32_t *counters;
};

/* The batches of one of several blocks that split them evenly. */
__device__ int split_start(int batches, int split, int splits) { return (int)((int64_t)batches * split / splits); }

template <class Codec> __global__ __launch_bounds__(kMostWarps * kWarp, 2) void linear(const Linear p) {
    let_next_begin();
    if (!p.fixed)
        wait_for_previous();
    int which = 0;
    while (which + 1 < p.count && (int)blockIdx.x >= p.matrices[which + 1].first_tile)
        which++;
    const Dense &matrix = p.matrices[which];
    const int tile = blockIdx.x - matrix.first_tile, warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp;
    const Strip<Codec> strip(matrix.codes, matrix.scales, matrix.k, matrix.n, matrix.group, tile);
    const int first = split_start(strip.batches(), blockIdx.y, gridDim.y);
    const int last = split_start(strip.batches(), blockIdx.y + 1, gridDim.y);
    float sums[4][4] = {};
    char *x = dynamic_shared() + warp * 2 * p.rows.m * Strip<Codec>::kRowBytes;
    sum_batches(strip, p.rows, first + warp, last, warps, x, sums);
    float *all = add_warps(sums, Codec::kShift, p.rows.m, 1);
    const int count = p.rows.m * kTileColumns;
    if (!add_splits(all, count, blockIdx.x, blockIdx.y, gridDim.y, p.partials, p.counters))
        return;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const int column = tile * kTileColumns + i % kTileColumns, part = column >= matrix.part;
        const int inside = column - part * matrix.part, at = part * matrix.part_out + inside;
        if (inside < matrix.part_out)
            store(p.out, i / kTileColumns, matrix.column + at, all[i] + (matrix.bias ? matrix.bias[at] : 0));
    }
}

struct Routed {
    krasis_cuda_experts experts;
    const int64_t *records;
    const int32_t *from, *ids; // from: features before count as zero; may be null
    const float *weights;
    int slots;
    const bf16 *x;
    int64_t ldx;
    bf16 *h;
    Outputs out;
    float *partials;
    int32_t *counters;

    __device__ int64_t record(int pair) const { return ids[pair] < 0 ? 0 : records[ids[pair]]; }
    __device__ int first(int pair) const { return from && ids[pair] >= 0 ? from[ids[pair]] : 0; }
    __device__ Values bias(int64_t record, int64_t offset) const {
        return {offset < 0 ? nullptr : (const void *)(record + offset), experts.bias_type == KRASIS_BFLOAT16};
    }
};

/* Block: 64 columns of h, a pair, a part of k. The first half of the warps has the gate. */
template <class Codec> __global__ __launch_bounds__(kMostWarps * kWarp, 2) void up(const Routed p) {
    follow_previous();
    const krasis_cuda_experts &e = p.experts;
    const int pair = blockIdx.y, tiles = e.size / kTileColumns, warp = threadIdx.x / kWarp, half = blockDim.x / kWarp / 2;
    const int64_t record = p.record(pair);
    if (!record)
        return;
    bf16 *h = p.h + (int64_t)pair * e.size + blockIdx.x * kTileColumns;
    if ((int)blockIdx.x * kTileColumns < p.first(pair)) {
        if (blockIdx.z == 0 && threadIdx.x < kTileColumns)
            h[threadIdx.x] = to_bf16(0);
        return;
    }
    const Strip<Codec> strip((const void *)(record + e.w13_codes), (const void *)(record + e.w13_scales), e.k13,
                             2 * e.size, e.group13, blockIdx.x + warp / half * tiles);
    const Rows rows{p.x + pair / p.slots * p.ldx, p.ldx, 1, e.hidden};
    const int first = split_start(strip.batches(), blockIdx.z, gridDim.z);
    const int last = split_start(strip.batches(), blockIdx.z + 1, gridDim.z);
    float sums[4][4] = {};
    sum_batches(strip, rows, first + warp % half, last, half, dynamic_shared() + warp * 2 * Strip<Codec>::kRowBytes, sums);
    float *all = add_warps(sums, Codec::kShift, 1, 2);
    const int unit = pair * gridDim.x + blockIdx.x;
    if (!add_splits(all, 2 * kTileColumns, unit, blockIdx.z, gridDim.z, p.partials, p.counters))
        return;
    const Values bias = p.bias(record, e.b13);
    for (int i = threadIdx.x; i < kTileColumns; i += blockDim.x) {
        const int column = blockIdx.x * kTileColumns + i;
        const float gate = all[i] + value(bias, column), other = all[kTileColumns + i] + value(bias, e.size + column);
        h[i] = to_bf16(activate({e.alpha, e.limit}, gate, other));
    }
}

/* Block: 64 columns, a slot, a token. Slots split the sum. */
template <class Codec> __global__ __launch_bounds__(kMostWarps * kWarp, 2) void down(const Routed p) {
    follow_previous();
    const krasis_cuda_experts &e = p.experts;
    const int slot = blockIdx.y, token = blockIdx.z, pair = token * p.slots + slot, tile = blockIdx.x;
    const int warp = threadIdx.x / kWarp;
    const int64_t record = p.record(pair);
    const int first = p.first(pair), begin = first / e.group2 * e.group2;
    float sums[4][4] = {};
    if (record) {
        const Strip<Codec> whole((const void *)(record + e.w2_codes), (const void *)(record + e.w2_scales), e.size, e.n2,
                                 e.group2, tile);
        const Strip<Codec> strip = whole.from(begin);
        const Rows rows{p.h + (int64_t)pair * e.size + begin, e.size, 1, strip.k};
        sum_batches(strip, rows, warp, strip.batches(), blockDim.x / kWarp,
                    dynamic_shared() + warp * 2 * Strip<Codec>::kRowBytes, sums);
    }
    float *all = add_warps(sums, Codec::kShift, 1, 1);
    const int column = tile * kTileColumns + threadIdx.x;
    if (threadIdx.x < kTileColumns)
        all[threadIdx.x] =
            record ? p.weights[pair] * (all[threadIdx.x] + (first ? 0 : value(p.bias(record, e.b2), column))) : 0;
    if (!add_splits(all, kTileColumns, token * gridDim.x + tile, slot, p.slots, p.partials, p.counters))
        return;
    if (threadIdx.x < kTileColumns && column < e.hidden)
        store(p.out, token, column, all[threadIdx.x]);
}

// Fewer than twice as many have sums of 8 x 64 in the partials.
constexpr int kMostBlocks = KRASIS_CUDA_PARTIALS / (2 * 8 * kTileColumns);

struct Cut {
    int warps, splits;
};

/* How `blocks` blocks, whose warps walk `batches` of k in each of `runs` runs, become `wanted` ones or more: k is split, as
 * long as every warp has a batch, and then warps are spread. */
Cut cut(int64_t blocks, int batches, int runs, int wanted) {
    Cut found{kMostWarps, 1};
    while (found.warps > 2 && batches * runs <= found.warps / 2)
        found.warps /= 2;
    while (blocks * found.splits < wanted) {
        if (batches * runs < 2 * found.splits * found.warps) {
            if (found.warps <= 4)
                break;
            found.warps /= 2;
        }
        found.splits *= 2;
    }
    return found;
}

template <class Codec> int run_linear(const Linear &p, int wanted, void *stream) {
    const Dense &last = p.matrices[p.count - 1];
    const int64_t tiles = last.first_tile + last.n / kTileColumns;
    int batches = 0;
    for (int i = 0; i < p.count; i++)
        batches = max(batches, p.matrices[i].k / Strip<Codec>::kBatch);
    const Cut found = cut(tiles, batches, 1, wanted);
    return launch(linear<Codec>, dim3(tiles, found.splits), found.warps * kWarp,
                  shared_few<Codec>(p.rows.m, found.warps), stream, p);
}

template <class Codec> int run_up(const Routed &p, int tokens, int wanted, void *stream) {
    const int tiles = p.experts.size / kTileColumns;
    const Cut found = cut((int64_t)tokens * p.slots * tiles, p.experts.k13 / Strip<Codec>::kBatch, 2, wanted);
    return launch(up<Codec>, dim3(tiles, tokens * p.slots, found.splits), found.warps * kWarp,
                  shared_few<Codec>(1, found.warps) + kTileColumns * 4, stream, p);
}

template <class Codec> int run_down(const Routed &p, int tokens, void *stream) {
    const int tiles = p.experts.n2 / kTileColumns;
    // Slots split the sum already.
    const Cut found = cut(1, p.experts.size / Strip<Codec>::kBatch, 1, 1);
    return launch(down<Codec>, dim3(tiles, p.slots, tokens), found.warps * kWarp, shared_few<Codec>(1, found.warps),
                  stream, p);
}

template <class F> int for_codec(int codec, const F &call) {
    return codec == KRASIS_INT4 ? call(Int4()) : codec == KRASIS_INT8 ? call(Int8()) : call(Mxfp4());
}

} // namespace

extern "C" int krasis_cuda_linear_few(const krasis_cuda_product *products, int count, const uint16_t *x, int m,
                                      int64_t ldx, int k_in, void *y, int y_type, int64_t ldy, int add, int fixed,
                                      float *partials, int32_t *counters, int blocks, void *stream) {
    if (const int status = check_linear(products, count, x, m, ldx, k_in, y, y_type, ldy))
        return status;
    if (!partials || !counters)
        return KRASIS_ERROR_NULL;
    if (m > kFewRows || blocks > kMostBlocks)
        return KRASIS_ERROR_SHAPE;
    for (const int codec : {KRASIS_INT4, KRASIS_INT8, KRASIS_MXFP4}) {
        Linear p = {};
        p.rows = {(const bf16 *)x, ldx, m, k_in}, p.fixed = fixed, p.partials = partials, p.counters = counters;
        p.out = {y, ldy, y_type == KRASIS_FLOAT32, add};
        int column = 0, tile = 0;
        for (int i = 0; i < count; i++) {
            const krasis_matrix &matrix = products[i].matrix;
            const int parts = products[i].parts, n_out = products[i].n_out;
            if (matrix.codec == codec) {
                p.matrices[p.count++] = {matrix.codes, matrix.scales, products[i].bias, matrix.k, matrix.n,
                                         matrix.group_size, tile, matrix.n / parts, n_out / parts, column};
                tile += matrix.n / kTileColumns;
            }
            column += n_out;
        }
        const int status = !p.count ? KRASIS_OK : for_codec(codec, [&](auto of) {
            return run_linear<decltype(of)>(p, blocks, stream);
        });
        if (status)
            return status;
    }
    return KRASIS_OK;
}

extern "C" int krasis_cuda_experts_few(const krasis_cuda_experts *experts, const int64_t *records, const int32_t *first,
                                       const int32_t *ids, const float *weights, int tokens, int slots,
                                       const uint16_t *x, int64_t ldx, uint16_t *h, void *out, int out_type, int add,
                                       float *partials, int32_t *counters, int blocks, void *stream) {
    if (const int status = check_experts(experts, records, tokens, slots))
        return status;
    if (const int status = check_rows(x, tokens, ldx, experts->hidden))
        return status;
    if (const int status = check_output(out, out_type))
        return status;
    if (!ids || !weights || !h || !partials || !counters)
        return KRASIS_ERROR_NULL;
    if (!aligned(h))
        return KRASIS_ERROR_ALIGNMENT;
    if (tokens > kFewRows || blocks > kMostBlocks || (int64_t)tokens * slots * experts->n2 > KRASIS_CUDA_PARTIALS)
        return KRASIS_ERROR_SHAPE;
    const Routed p{*experts, records, first, ids, weights, slots, (const bf16 *)x, ldx, (bf16 *)h,
                   {out, experts->hidden, out_type == KRASIS_FLOAT32, add}, partials, counters};
    const auto up = [&](auto of) { return run_up<decltype(of)>(p, tokens, blocks, stream); };
    if (const int status = for_codec(experts->codec13, up))
        return status;
    return for_codec(experts->codec2, [&](auto of) { return run_down<decltype(of)>(p, tokens, stream); });
}
