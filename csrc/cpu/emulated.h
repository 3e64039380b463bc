// The instructions of vnni.h and tiles.h in plain C++, so that their code can be tested where a processor lacks them.
// Names, types and meaning are those of Intel's intrinsics guide.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

namespace krasis {
namespace {

template <class Lane, int N> struct Register {
    Lane v[N];
};

using __m128i = Register<uint8_t, 16>;
using __m256i = Register<uint8_t, 32>;
using __m512i = Register<uint8_t, 64>;
using __m128 = Register<float, 4>;
using __m256 = Register<float, 8>;
using __m512 = Register<float, 16>;
using __m256d = Register<double, 4>;
using __m512d = Register<double, 8>;

template <class To, class From> To bits(const From &from) {
    To to;
    static_assert(sizeof to == sizeof from);
    memcpy(&to, &from, sizeof to);
    return to;
}

template <class Lane, class From> auto lanes(const From &from) {
    return bits<Register<Lane, sizeof(From) / sizeof(Lane)>>(from);
}

template <class To> To loaded(const void *p) {
    To to;
    memcpy(&to, p, sizeof to);
    return to;
}

template <class To, class Lane> To repeated(Lane value) {
    Register<Lane, sizeof(To) / sizeof(Lane)> all;
    for (Lane &lane : all.v)
        lane = value;
    return bits<To>(all);
}

// Lane by lane.
template <class Lane, class A, class F> A each(A a, A b, const F &f) {
    auto x = lanes<Lane>(a), y = lanes<Lane>(b);
    for (auto &lane : y.v)
        lane = (Lane)f(x.v[&lane - y.v], lane);
    return bits<A>(y);
}

template <class Lane, class To, class From> To converted(const From &from) {
    const auto x = from;
    Register<Lane, sizeof(To) / sizeof(Lane)> y;
    for (auto &lane : y.v)
        lane = (Lane)x.v[&lane - y.v];
    return bits<To>(y);
}

template <class Half, class Whole> Half half(const Whole &whole, int i) {
    Half part;
    memcpy(&part, (const char *)&whole + i * sizeof part, sizeof part);
    return part;
}

__m128i _mm_loadu_si128(const __m128i *p) { return loaded<__m128i>(p); }
__m256i _mm256_loadu_si256(const __m256i *p) { return loaded<__m256i>(p); }
__m512i _mm512_loadu_si512(const void *p) { return loaded<__m512i>(p); }
__m512 _mm512_loadu_ps(const void *p) { return loaded<__m512>(p); }
void _mm_storeu_si128(__m128i *p, __m128i x) { memcpy(p, &x, sizeof x); }
void _mm256_storeu_si256(__m256i *p, __m256i x) { memcpy(p, &x, sizeof x); }
void _mm512_storeu_si512(void *p, __m512i x) { memcpy(p, &x, sizeof x); }
void _mm512_storeu_ps(void *p, __m512 x) { memcpy(p, &x, sizeof x); }

__m512i _mm512_set1_epi8(char x) { return repeated<__m512i>(x); }
__m512i _mm512_set1_epi16(short x) { return repeated<__m512i>(x); }
__m512i _mm512_set1_epi32(int x) { return repeated<__m512i>(x); }
__m512 _mm512_set1_ps(float x) { return repeated<__m512>(x); }

__m512i _mm512_setr_epi32(int a, int b, int c, int d, int e, int f, int g, int h, int i, int j, int k, int l, int m,
                          int n, int o, int p) {
    return bits<__m512i>(Register<int32_t, 16>{{a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p}});
}

__m512i _mm512_broadcast_i32x4(__m128i x) {
    __m512i y;
    for (int i = 0; i < 64; i++)
        y.v[i] = x.v[i % 16];
    return y;
}

__m512i _mm512_shuffle_epi8(__m512i x, __m512i index) {
    __m512i y;
    for (int i = 0; i < 64; i++)
        y.v[i] = index.v[i] & 128 ? 0 : x.v[i / 16 * 16 + index.v[i] % 16];
    return y;
}

__m512i _mm512_permutexvar_epi16(__m512i index, __m512i x) {
    const auto at = lanes<uint16_t>(index), from = lanes<uint16_t>(x);
    auto y = from;
    for (int i = 0; i < 32; i++)
        y.v[i] = from.v[at.v[i] % 32];
    return bits<__m512i>(y);
}

__m512i _mm512_permutex2var_epi32(__m512i a, __m512i index, __m512i b) {
    const auto at = lanes<uint32_t>(index), low = lanes<uint32_t>(a), high = lanes<uint32_t>(b);
    auto y = low;
    for (int i = 0; i < 16; i++)
        y.v[i] = (at.v[i] & 16 ? high : low).v[at.v[i] % 16];
    return bits<__m512i>(y);
}

__m512i _mm512_mask_blend_epi32(uint16_t mask, __m512i a, __m512i b) {
    auto y = lanes<uint32_t>(a);
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1)
            y.v[i] = lanes<uint32_t>(b).v[i];
    return bits<__m512i>(y);
}

template <class Floats> Floats permuted(Floats x, int order) {
    Floats y;
    for (int i = 0; i < (int)(sizeof x / 4); i++)
        y.v[i] = x.v[i / 4 * 4 + (order >> i % 4 * 2 & 3)];
    return y;
}

__m512 _mm512_permute_ps(__m512 x, int order) { return permuted(x, order); }

__m512i _mm512_and_si512(__m512i a, __m512i b) {
    return each<uint8_t>(a, b, [](int x, int y) { return x & y; });
}

__m512i _mm512_srli_epi16(__m512i x, unsigned count) {
    return each<uint16_t>(x, x, [=](unsigned a, unsigned) { return a >> count; });
}

__m512i _mm512_slli_epi32(__m512i x, unsigned count) {
    return each<uint32_t>(x, x, [=](uint32_t a, uint32_t) { return a << count; });
}

__m512i _mm512_maddubs_epi16(__m512i a, __m512i b) {
    auto y = lanes<int16_t>(a);
    for (int i = 0; i < 32; i++) {
        const int sum = a.v[2 * i] * (int8_t)b.v[2 * i] + a.v[2 * i + 1] * (int8_t)b.v[2 * i + 1];
        y.v[i] = (int16_t)(sum > 32767 ? 32767 : sum < -32768 ? -32768 : sum);
    }
    return bits<__m512i>(y);
}

__m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
    auto y = lanes<uint32_t>(sum);
    for (int i = 0; i < 64; i++)
        y.v[i / 4] += (uint32_t)(a.v[i] * (int8_t)b.v[i]);
    return bits<__m512i>(y);
}

template <class A> A added16(A a, A b) {
    return each<uint16_t>(a, b, [](unsigned x, unsigned y) { return x + y; });
}

template <class A> A added32(A a, A b) {
    return each<uint32_t>(a, b, [](uint32_t x, uint32_t y) { return x + y; });
}

__m512i _mm512_add_epi16(__m512i a, __m512i b) { return added16(a, b); }
__m512i _mm512_add_epi32(__m512i a, __m512i b) { return added32(a, b); }
__m256i _mm256_add_epi32(__m256i a, __m256i b) { return added32(a, b); }

__m512i _mm512_sub_epi16(__m512i a, __m512i b) {
    return each<uint16_t>(a, b, [](unsigned x, unsigned y) { return x - y; });
}

__m512i _mm512_max_epi32(__m512i a, __m512i b) {
    return each<int32_t>(a, b, [](int x, int y) { return x > y ? x : y; });
}

int _mm512_reduce_max_epi32(__m512i x) {
    int32_t most = INT32_MIN;
    for (int32_t lane : lanes<int32_t>(x).v)
        most = lane > most ? lane : most;
    return most;
}

int _mm512_reduce_add_epi32(__m512i x) {
    uint32_t sum = 0;
    for (uint32_t lane : lanes<uint32_t>(x).v)
        sum += lane;
    return (int)sum;
}

float _mm512_reduce_max_ps(__m512 x) {
    float most = x.v[0];
    for (float lane : x.v)
        most = lane > most ? lane : most;
    return most;
}

__m256i _mm512_castsi512_si256(__m512i x) { return half<__m256i>(x, 0); }
__m512i _mm512_castsi256_si512(__m256i x) {
    __m512i y{};
    memcpy(&y, &x, sizeof x);
    return y;
}
__m512 _mm512_castsi512_ps(__m512i x) { return bits<__m512>(x); }
__m512d _mm512_castps_pd(__m512 x) { return bits<__m512d>(x); }
__m256 _mm256_castpd_ps(__m256d x) { return bits<__m256>(x); }
__m256 _mm512_castps512_ps256(__m512 x) { return half<__m256>(x, 0); }
__m128 _mm256_castps256_ps128(__m256 x) { return half<__m128>(x, 0); }
__m256i _mm512_extracti64x4_epi64(__m512i x, int i) { return half<__m256i>(x, i); }
__m256d _mm512_extractf64x4_pd(__m512d x, int i) { return half<__m256d>(x, i); }
__m128 _mm256_extractf128_ps(__m256 x, int i) { return half<__m128>(x, i); }

__m512i _mm512_inserti64x4(__m512i x, __m256i part, int i) {
    memcpy((char *)&x + i * sizeof part, &part, sizeof part);
    return x;
}

__m512i _mm512_cvtepi16_epi32(__m256i x) { return converted<int32_t, __m512i>(lanes<int16_t>(x)); }
__m512i _mm512_cvtepu16_epi32(__m256i x) { return converted<int32_t, __m512i>(lanes<uint16_t>(x)); }
__m512i _mm512_cvtepu8_epi32(__m128i x) { return converted<int32_t, __m512i>(lanes<uint8_t>(x)); }
__m512 _mm512_cvtepi32_ps(__m512i x) { return converted<float, __m512>(lanes<int32_t>(x)); }

__m512i _mm512_cvtps_epi32(__m512 x) {
    Register<int32_t, 16> y;
    for (int i = 0; i < 16; i++)
        y.v[i] = fabsf(x.v[i]) < 0x1p31f ? (int32_t)lrintf(x.v[i]) : INT32_MIN;
    return bits<__m512i>(y);
}

__m128i _mm512_cvtsepi32_epi8(__m512i x) {
    __m128i y;
    for (int i = 0; i < 16; i++) {
        const int32_t lane = lanes<int32_t>(x).v[i];
        y.v[i] = (uint8_t)(lane > 127 ? 127 : lane < -128 ? -128 : lane);
    }
    return y;
}

template <class F> __m512 floats(__m512 a, __m512 b, const F &f) { return each<float>(a, b, f); }

__m512 _mm512_add_ps(__m512 a, __m512 b) {
    return floats(a, b, [](float x, float y) { return x + y; });
}
__m256 _mm256_add_ps(__m256 a, __m256 b) {
    return each<float>(a, b, [](float x, float y) { return x + y; });
}
__m128 _mm_add_ps(__m128 a, __m128 b) {
    return each<float>(a, b, [](float x, float y) { return x + y; });
}
__m128 _mm_add_ss(__m128 a, __m128 b) {
    a.v[0] += b.v[0];
    return a;
}
__m128 _mm_movehl_ps(__m128 a, __m128 b) { return {{b.v[2], b.v[3], a.v[2], a.v[3]}}; }
__m128 _mm_movehdup_ps(__m128 a) { return {{a.v[1], a.v[1], a.v[3], a.v[3]}}; }
float _mm_cvtss_f32(__m128 a) { return a.v[0]; }
__m512 _mm512_sub_ps(__m512 a, __m512 b) {
    return floats(a, b, [](float x, float y) { return x - y; });
}
__m512 _mm512_mul_ps(__m512 a, __m512 b) {
    return floats(a, b, [](float x, float y) { return x * y; });
}
__m512 _mm512_div_ps(__m512 a, __m512 b) {
    return floats(a, b, [](float x, float y) { return x / y; });
}
__m512 _mm512_max_ps(__m512 a, __m512 b) {
    return floats(a, b, [](float x, float y) { return x > y ? x : y; });
}
__m512 _mm512_min_ps(__m512 a, __m512 b) {
    return floats(a, b, [](float x, float y) { return x < y ? x : y; });
}

__m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
    for (int i = 0; i < 16; i++)
        c.v[i] = fmaf(a.v[i], b.v[i], c.v[i]);
    return c;
}

// AMX: one set of tiles a thread, as shaped by the last configuration.
struct Tile {
    int rows, row_bytes;
    uint8_t data[16][64];
};

thread_local Tile tiles[8];

void _tile_loadconfig(const void *config) {
    for (int i = 0; i < 8; i++) {
        tiles[i].row_bytes = loaded<uint16_t>((const char *)config + 16 + 2 * i);
        tiles[i].rows = ((const uint8_t *)config)[48 + i];
    }
}

void _tile_release() {
    for (Tile &tile : tiles)
        tile.rows = tile.row_bytes = 0;
}

void _tile_zero(int i) { memset(tiles[i].data, 0, sizeof tiles[i].data); }

void _tile_loadd(int i, const void *p, int64_t stride) {
    for (int row = 0; row < tiles[i].rows; row++)
        memcpy(tiles[i].data[row], (const char *)p + row * stride, tiles[i].row_bytes);
}

void _tile_stored(int i, void *p, int64_t stride) {
    for (int row = 0; row < tiles[i].rows; row++)
        memcpy((char *)p + row * stride, tiles[i].data[row], tiles[i].row_bytes);
}

// Signed bytes of a times unsigned bytes of b.
void _tile_dpbsud(int sum, int a, int b) {
    for (int row = 0; row < tiles[sum].rows; row++)
        for (int column = 0; column < tiles[sum].row_bytes / 4; column++) {
            uint8_t *const at = tiles[sum].data[row] + 4 * column;
            uint32_t total = loaded<uint32_t>(at);
            for (int k = 0; k < tiles[a].row_bytes; k++)
                total += (uint32_t)((int8_t)tiles[a].data[row][k] * tiles[b].data[k / 4][4 * column + k % 4]);
            memcpy(at, &total, sizeof total);
        }
}

} // namespace
} // namespace krasis
