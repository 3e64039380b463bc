/* Products of many rows with a packed matrix, or with an expert's for each run of rows: y = x @ W^T.
 *
 * A block multiplies kRows rows by kWarpsN tiles of 64 columns, a warp 64 or 32 rows by one of them, 64 k at a time.
 * Stages of x (swizzled, for ldmatrix) and of codes and scales (as they are) wait in shared memory; codes become bf16 in
 * registers and are scaled there, which rounds a weight once, to 2^-9 of it.
 */
#pragma once

#include "weights.cuh"

constexpr int kDepth = 64, kLevels = kDepth / kTileDepth; // k of a stage, rows of tiles in it
constexpr int kMostStages = 4;
constexpr int kSharedLimit = 99 << 10; // of a block on the smallest of the GPUs
constexpr int kSuper = 16;             // tiles of rows whose blocks run side by side and share a strip of weights

/* Warps of a block along rows and columns, and rows of a warp. */
template <int WarpsM, int WarpsN, int WarpRows> struct Shape {
    static constexpr int kWarpsM = WarpsM, kWarpsN = WarpsN, kWarpRows = WarpRows, kSixteens = WarpRows / 16;
    static constexpr int kThreads = kWarp * WarpsM * WarpsN, kRows = WarpRows * WarpsM;

    using Sums = float[kSixteens][8][4]; // rows x 64 columns of a warp, as mma leaves them
    static constexpr int kSums = kSixteens * 8 * 4;

    // Which rows of a pair of warps, one with the gate and one with up, a warp turns into the activation.
    static __device__ constexpr bool activates(int i, bool up) { return (i >= kSixteens / 2) == up; }
};

struct Gemm {
    const bf16 *x;
    int64_t ldx;
    int k_in, m;
    const int64_t *table; // of the experts' records; null: codes, scales and bias are addresses, else offsets
    int64_t codes, scales, bias;
    int k, n, group, strips;
    const int4 *tiles;    // of rows, one expert each: {expert, first row, rows}, their number before them; null: m rows
    const int32_t *pairs; // row -> token * slots + slot
    int slots, gather, scatter;
    void *y;
    int64_t ldy;
    int y_float, part, part_out; // columns of a part, of at most two, with padding and without
    int biased, bias_bf16;
    Activation activation;
};

template <class Codec, class Shape> struct Stages {
    static constexpr int kX = Shape::kRows * kDepth * 2;
    static constexpr int kTileBytes = 512 * Codec::kVectors, kTileScales = kTileColumns * Codec::kScaleBytes;
    static constexpr int kCodes = kLevels * Shape::kWarpsN * kTileBytes;
    static constexpr int kBytes = kX + kCodes + 2 * Shape::kWarpsN * kTileScales;
    static constexpr int kFit = kSharedLimit / kBytes, kCount = kFit < kMostStages ? kFit : kMostStages;
    static constexpr int kAll = kCount * kBytes;
};

/* Where a block's part of the product lies. */
struct Place {
    int expert, first, rows, strip;
};

__device__ inline bool find_place(const Gemm &p, int rows_of_tile, Place &place) {
    const int super = blockIdx.x / (kSuper * p.strips), inside = blockIdx.x % (kSuper * p.strips);
    const int tile = super * kSuper + inside % kSuper;
    place.strip = inside / kSuper;
    if (!p.tiles) {
        place.expert = 0, place.first = tile * rows_of_tile, place.rows = min(rows_of_tile, p.m - place.first);
        return place.rows > 0;
    }
    if (tile >= p.tiles[0].x)
        return false;
    const int4 found = p.tiles[1 + tile];
    place.expert = found.x, place.first = found.y, place.rows = found.z;
    return true;
}

/* The tile of columns that a warp has, beyond the last where there is none. Gated: one of the gate, then one of up. */
template <bool Gated, int WarpsN> __device__ inline int column_tile(const Gemm &p, int strip, int warp) {
    const int all = p.n / kTileColumns;
    if (!Gated)
        return strip * WarpsN + warp;
    const int gate = strip * (WarpsN / 2) + warp / 2;
    return gate < all / 2 ? gate + warp % 2 * (all / 2) : all;
}

// Halves of a lane's 32 bytes change places in every other four lanes, so that eight lanes read from all banks.
template <int Vectors> __device__ inline int spread(int chunk) {
    return Vectors == 1 ? chunk : chunk ^ (chunk >> 3 & 1);
}

/* What a thread copies: called for the steps 0, 1, ... in order. */
template <class Codec, class Shape, bool Gated> struct Loader {
    using S = Stages<Codec, Shape>;
    static constexpr int kRowStep = Shape::kThreads / 8, kRowsEach = Shape::kRows / kRowStep;
    static constexpr int kScaleChunks = S::kTileScales / 16;
    static_assert(2 * Shape::kWarpsN * kScaleChunks <= Shape::kThreads);

    const bf16 *x;
    const char *codes, *scales;
    int64_t pitch, scale_pitch; // bytes of a row of tiles
    int k, k_in, group_bits;
    bool has_codes, has_scales, copies_scales;
    uint32_t rows[kRowsEach], valid = 0; // of x, in units of 16 bytes

    __device__ Loader(const Gemm &p, const Place &place) {
        const int64_t record = p.table ? p.table[place.expert] : 0;
        const int all = p.n / kTileColumns, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
        pitch = (int64_t)all * S::kTileBytes, scale_pitch = (int64_t)all * S::kTileScales;
        k_in = p.k_in, group_bits = log2_group(p.group);

        const int tile = column_tile<Gated, Shape::kWarpsN>(p, place.strip, warp % Shape::kWarpsN);
        has_codes = tile < all;
        codes = (const char *)(record + p.codes) + (has_codes ? tile : 0) * (int64_t)S::kTileBytes +
                warp / Shape::kWarpsN * pitch + lane * 16;

        const int run = threadIdx.x / kScaleChunks, half = run / Shape::kWarpsN;
        const int scale_tile = column_tile<Gated, Shape::kWarpsN>(p, place.strip, run % Shape::kWarpsN);
        copies_scales = half < (p.group < kDepth ? 2 : 1), has_scales = scale_tile < all;
        scales = (const char *)(record + p.scales) + (has_scales ? scale_tile : 0) * (int64_t)S::kTileScales +
                 threadIdx.x % kScaleChunks * 16 + half * scale_pitch;

        k = 8 * (threadIdx.x % 8), x = p.x + k;
#pragma unroll
        for (int i = 0; i < kRowsEach; i++) {
            const int row = threadIdx.x / 8 + i * kRowStep;
            const bool there = row < place.rows;
            const int at = place.first + (there ? row : 0);
            rows[i] = (uint32_t)(p.gather ? p.pairs[at] / p.slots : at) * (uint32_t)(p.ldx / 8);
            valid |= (uint32_t)there << i;
        }
    }

    __device__ void load(char *stage, int step) {
        const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
        const bool inside = k < k_in;
#pragma unroll
        for (int i = 0; i < kRowsEach; i++) {
            const int row = threadIdx.x / 8 + i * kRowStep;
            copy_async(stage + row * 128 + (threadIdx.x % 8 ^ row % 8) * 16, x + 8 * (int64_t)rows[i],
                       inside && valid >> i & 1);
        }
        x += inside ? kDepth : 0, k += kDepth;

#pragma unroll
        for (int i = 0; i < kLevels / Shape::kWarpsM; i++) {
            const int slot = warp + i * Shape::kWarpsM * Shape::kWarpsN; // a level's tiles lie side by side
#pragma unroll
            for (int v = 0; v < Codec::kVectors; v++)
                copy_async(stage + S::kX + slot * S::kTileBytes + spread<Codec::kVectors>(v * kWarp + lane) * 16,
                           codes + i * Shape::kWarpsM * pitch + v * kWarp * 16, has_codes);
        }
        codes += kLevels * pitch;

        if (copies_scales)
            copy_async(stage + S::kX + S::kCodes + threadIdx.x * 16,
                       scales + (step * kDepth >> group_bits) * scale_pitch, has_scales);
    }
};

template <class Codec, class Shape>
__device__ inline void multiply_stage(const Gemm &p, const char *stage, int warp_m, int warp_n,
                                      typename Shape::Sums &sums) {
    using S = Stages<Codec, Shape>;
    const int lane = threadIdx.x % kWarp;
    const char *codes = stage + S::kX, *scales = codes + S::kCodes;
    Scaling<Codec> scaling[8];
#pragma unroll
    for (int level = 0; level < kLevels; level++) {
        if (level == 0 || (level == kLevels / 2 && p.group < kDepth)) {
            const char *row = scales + ((level != 0) * Shape::kWarpsN + warp_n) * S::kTileScales;
            const uint4 found = Codec::scales(row, lane / 4, p.group == p.k);
#pragma unroll
            for (int j = 0; j < 8; j++)
                scaling[j].set(found, j);
        }
        uint32_t x[Shape::kSixteens][4];
#pragma unroll
        for (int i = 0; i < Shape::kSixteens; i++) {
            const int row = warp_m * Shape::kWarpRows + i * 16 + lane % 16, chunk = level * 2 + lane / 16;
            load_matrix_x4(x[i], stage + row * 128 + (chunk ^ row % 8) * 16);
        }
        uint4 tile[Codec::kVectors];
#pragma unroll
        for (int v = 0; v < Codec::kVectors; v++)
            tile[v] = *reinterpret_cast<const uint4 *>(codes + (level * Shape::kWarpsN + warp_n) * S::kTileBytes +
                                                       spread<Codec::kVectors>(lane * Codec::kVectors + v) * 16);
#pragma unroll
        for (int w = 0; w < 4; w++) {
            uint32_t pairs[4];
            Codec::fragment(tile, w, pairs);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const Scaling<Codec> &s = scaling[2 * w + h];
                const uint32_t weights[2] = {s.weights(pairs[h]), s.weights(pairs[2 + h])};
#pragma unroll
                for (int i = 0; i < Shape::kSixteens; i++)
                    mma_bf16(sums[i][2 * w + h], x[i], weights);
            }
        }
    }
}

/* Two neighbouring columns of a row. Columns are those of the matrix, with padding. */
__device__ inline void store_pair(const Gemm &p, int64_t row, int column, float a, float b, const Values &bias) {
    const int part = column >= p.part, inside = column - part * p.part, left = p.part_out - inside;
    if (left <= 0)
        return;
    const int at = part * p.part_out + inside;
    a += value(bias, at), b += left > 1 ? value(bias, at + 1) : 0;
    const int64_t to = row * p.ldy + at;
    if (p.y_float) {
        float *y = (float *)p.y + to;
        y[0] = a;
        if (left > 1)
            y[1] = b;
    } else if (left > 1 && to % 2 == 0) {
        *reinterpret_cast<uint32_t *>((bf16 *)p.y + to) = pack_bf16(a, b);
    } else {
        bf16 *y = (bf16 *)p.y + to;
        y[0] = to_bf16(a);
        if (left > 1)
            y[1] = to_bf16(b);
    }
}

/* `given`: the pair's shared memory, where each leaves what the other needs. */
template <class Shape>
__device__ inline void activate_pair(const Gemm &p, bool up, int tile, float *given, const Values &bias,
                                     typename Shape::Sums &sums) {
    const int lane = threadIdx.x % kWarp, column = tile * kTileColumns + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < Shape::kSixteens; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                sums[i][j][c] += value(bias, column + 8 * j + c % 2);
                if (!Shape::activates(i, up))
                    given[((i * 8 + j) * 4 + c) * kWarp + lane] = sums[i][j][c];
            }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Shape::kSixteens; i++) {
        if (!Shape::activates(i, up))
            continue;
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const float mine = sums[i][j][c], other = given[((i * 8 + j) * 4 + c) * kWarp + lane];
                sums[i][j][c] = activate(p.activation, up ? other : mine, up ? mine : other);
            }
    }
}

template <class Codec, class Shape, bool Gated>
__global__ __launch_bounds__(Shape::kThreads, Shape::kThreads <= 128 ? 2 : 1) void gemm(const Gemm p) {
    follow_previous();
    using S = Stages<Codec, Shape>;
    Place place;
    if (!find_place(p, Shape::kRows, place))
        return;
    char *shared = dynamic_shared();
    Loader<Codec, Shape, Gated> loader(p, place);
    const int warp = threadIdx.x / kWarp, warp_m = warp / Shape::kWarpsN, warp_n = warp % Shape::kWarpsN;
    const int steps = p.k / kDepth;
#pragma unroll
    for (int s = 0; s < S::kCount - 1; s++) {
        if (s < steps)
            loader.load(shared + s * S::kBytes, s);
        copy_async_commit();
    }
    typename Shape::Sums sums = {};
    int reading = 0, writing = S::kCount - 1;
    for (int step = 0; step < steps; step++) {
        copy_async_wait<S::kCount - 2>();
        __syncthreads();
        if (step + S::kCount - 1 < steps)
            loader.load(shared + writing * S::kBytes, step + S::kCount - 1);
        copy_async_commit();
        multiply_stage<Codec, Shape>(p, shared + reading * S::kBytes, warp_m, warp_n, sums);
        reading = reading + 1 == S::kCount ? 0 : reading + 1;
        writing = writing + 1 == S::kCount ? 0 : writing + 1;
    }

#pragma unroll
    for (auto &i : sums)
#pragma unroll
        for (auto &j : i)
#pragma unroll
            for (float &sum : j)
                sum *= 1 << Codec::kShift;

    const int tile = column_tile<Gated, Shape::kWarpsN>(p, place.strip, warp_n), lane = threadIdx.x % kWarp;
    const bool there = tile < p.n / kTileColumns, up = Gated && warp_n % 2;
    const int64_t record = p.table ? p.table[place.expert] : 0;
    Values bias{p.biased && there ? (const void *)(record + p.bias) : nullptr, p.bias_bf16};
    if (Gated) {
        copy_async_wait<0>();
        __syncthreads();
        activate_pair<Shape>(p, up, tile, (float *)shared + warp / 2 * kWarp * Shape::kSums, bias, sums);
        bias.at = nullptr;
    }
    if (!there)
        return;
    const int first_column = (tile - up * (p.n / kTileColumns / 2)) * kTileColumns + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < Shape::kSixteens; i++) {
        if (Gated && !Shape::activates(i, up))
            continue;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = warp_m * Shape::kWarpRows + i * 16 + half * 8 + lane / 4;
            if (row >= place.rows)
                continue;
            const int64_t to = p.scatter ? p.pairs[place.first + row] : place.first + row;
#pragma unroll
            for (int j = 0; j < 8; j++)
                store_pair(p, to, first_column + 8 * j, sums[i][j][2 * half], sums[i][j][2 * half + 1], bias);
        }
    }
}

/* Launches for `tiles` tiles of rows at most. */
template <class Codec, class Shape, bool Gated> int run(Gemm p, int64_t tiles, void *stream) {
    const int columns = p.n / kTileColumns / (Gated ? 2 : 1), each = Gated ? Shape::kWarpsN / 2 : Shape::kWarpsN;
    p.strips = (columns + each - 1) / each;
    const int64_t blocks = (tiles + kSuper - 1) / kSuper * kSuper * p.strips;
    constexpr int kPairs = Gated ? Shape::kThreads / 2 * Shape::kSums * 4 : 0, kStages = Stages<Codec, Shape>::kAll;
    return launch(gemm<Codec, Shape, Gated>, (unsigned)blocks, Shape::kThreads, kPairs > kStages ? kPairs : kStages,
                  stream, p);
}
