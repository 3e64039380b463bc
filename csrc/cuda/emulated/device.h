// device.cuh on the CPU: a block's threads are fibers of the calling thread, blocks run one after another.
#pragma once

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __constant__ static const
// Blocks run one after another on a thread, so its fibers share what is static there.
#define __shared__ static thread_local

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { uint32_t x, y; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }

namespace emulated {

constexpr int kLanes = 32, kMostThreads = 1024, kMostShared = 227 << 10, kStack = 128 << 10, kPayload = 16, kMostCopies = 256;

enum class Waits { kNothing, kBlock, kEver };

/* What lanes of a warp leave for each other at a meeting, twice: a lane may be one meeting ahead. */
struct Warp {
    int lanes, arrived;
    unsigned meetings;
    alignas(16) char left[2][kLanes][kPayload];
};

/* Copies happen as late as they may, so that whoever does not wait for them reads what was there before. */
struct Copy {
    void *to;
    const void *from;
    bool valid;
    unsigned commit;
};

struct Fiber {
    void *stack_pointer;
    Waits waits;
    dim3 index;
    int number;
    unsigned commits;
    bool waited; // for the previous kernel
    int copies;
    Copy under_way[kMostCopies];
};

struct Block {
    dim3 size, grid, index;
    int threads;
    Fiber fibers[kMostThreads];
    Warp warps[kMostThreads / kLanes];
    Fiber *running;
    void *host;
    void (*body)(void *);
    void *arguments;
    alignas(128) char shared[kMostShared];
};

Block &block();
inline Fiber &self() { return *block().running; }
inline Warp &warp() { return block().warps[self().number / kLanes]; }
inline int lane() { return self().number % kLanes; }
inline void *left(unsigned meeting, int lane) { return warp().left[meeting % 2][lane]; }

/* Runs body(arguments) on every thread of every block. */
void run(dim3 grid, dim3 block, void (*body)(void *), void *arguments);
void wait_for_block();

/* The caller leaves `mine` and goes on once every lane of its warp has; `last`, called by the last of them, finds what
 * all have left under the number of the meeting, which is returned. */
void leave(const void *mine, size_t bytes);
unsigned meet(void (*last)(unsigned meeting));

void copy(void *to, const void *from, bool valid);
void wait_for_copies(unsigned left);

template <class T> T from_lane(T mine, int source) {
    static_assert(sizeof(T) <= kPayload);
    leave(&mine, sizeof mine);
    const unsigned meeting = meet(nullptr);
    T value;
    std::memcpy(&value, left(meeting, source), sizeof value);
    return value;
}

void mma(float *d, const uint32_t *a, const uint32_t *b);
void load_matrix(uint32_t *r, const void *row, bool turned);

} // namespace emulated

#define threadIdx (emulated::self().index)
#define blockIdx (emulated::block().index)
#define blockDim (emulated::block().size)
#define gridDim (emulated::block().grid)

inline void __syncthreads() { emulated::wait_for_block(); }
inline void __syncwarp(unsigned = ~0u) { emulated::meet(nullptr); }
template <class T> T __shfl_sync(unsigned, T x, int source) { return emulated::from_lane(x, source % 32); }
template <class T> T __shfl_xor_sync(unsigned, T x, int mask) { return emulated::from_lane(x, emulated::lane() ^ mask); }
template <class T> T __shfl_down_sync(unsigned, T x, int step) {
    const int source = emulated::lane() + step;
    const T found = emulated::from_lane(x, source % 32);
    return source < 32 ? found : x;
}
inline unsigned __ballot_sync(unsigned, bool predicate) {
    emulated::leave(&predicate, sizeof predicate);
    const unsigned meeting = emulated::meet(nullptr);
    unsigned bits = 0;
    for (int i = 0; i < emulated::warp().lanes; i++)
        bits |= unsigned(*static_cast<bool *>(emulated::left(meeting, i))) << i;
    return bits;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(x); }

template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }
template <class T> T __ldg(const T *p) { return *p; }
inline uint32_t __float_as_uint(float x) { uint32_t bits; std::memcpy(&bits, &x, 4); return bits; }
inline float __uint_as_float(uint32_t bits) { float x; std::memcpy(&x, &bits, 4); return x; }
inline int __float_as_int(float x) { return (int)__float_as_uint(x); }
inline float __int_as_float(int x) { return __uint_as_float((uint32_t)x); }

struct bf16 { uint16_t bits; };
inline float to_float(bf16 x) { return __uint_as_float((uint32_t)x.bits << 16); }
inline bf16 to_bf16(float x) {
    const uint32_t bits = __float_as_uint(x);
    if (x != x)
        return {0x7fff};
    return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline uint32_t pack_bf16(float low, float high) { return to_bf16(low).bits | (uint32_t)to_bf16(high).bits << 16; }
inline float low_float(uint32_t word) { return __uint_as_float(word << 16); }
inline float high_float(uint32_t word) { return __uint_as_float(word & 0xffff0000u); }
inline uint32_t mul_bf16x2(uint32_t a, uint32_t b) {
    return pack_bf16(low_float(a) * low_float(b), high_float(a) * high_float(b));
}
inline uint32_t sub_bf16x2(uint32_t a, uint32_t b) {
    return pack_bf16(low_float(a) - low_float(b), high_float(a) - high_float(b));
}

inline float fast_exp2(float x) { return std::exp2(x); }

// Exact in float32 before it is rounded, as long as the sum of two products of bf16's eight bits is.
inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
    return pack_bf16(std::fma(low_float(a), low_float(b), low_float(c)),
                     std::fma(high_float(a), high_float(b), high_float(c)));
}

inline float e4m3_to_float(uint8_t x) {
    const int exponent = x >> 3 & 15, mantissa = x & 7;
    if (exponent == 15 && mantissa == 7)
        return std::nanf("");
    const float size = exponent ? std::ldexp(8.f + mantissa, exponent - 10) : std::ldexp((float)mantissa, -9);
    return x & 128 ? -size : size;
}
inline uint8_t to_e4m3(float x) {
    if (x != x)
        return 0x7f;
    const uint8_t sign = std::signbit(x) ? 128 : 0;
    const float size = std::fmin(std::fabs(x), 448.f);
    int exponent;
    std::frexp(size, &exponent);
    // Steps are 2^-3 of the power of two below, at least 2^-9; rounding up may carry into the exponent, as it should.
    const int step = exponent - 4 < -9 ? -9 : exponent - 4;
    const int units = (int)std::nearbyint(std::ldexp(size, -step));
    return sign | (uint8_t)(step == -9 ? units : ((step + 9) << 3) + units);
}

inline uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) { return (a & b) | c; }
inline uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t both = (uint64_t)b << 32 | a;
    uint32_t found = 0;
    for (int i = 0; i < 4; i++)
        found |= (uint32_t)(both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    return found;
}

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { emulated::mma(d, a, b); }
inline void load_matrix_x4(uint32_t (&r)[4], const void *row) { emulated::load_matrix(r, row, false); }
inline void load_matrix_x4_turned(uint32_t (&r)[4], const void *row) { emulated::load_matrix(r, row, true); }
inline void copy_async(void *shared, const void *global, bool valid = true) { emulated::copy(shared, global, valid); }
inline void copy_async_commit() { emulated::self().commits++; }
template <int N> void copy_async_wait() { emulated::wait_for_copies(N); }

inline uint4 load_fixed(const void *p) {
    uint4 found;
    std::memcpy(&found, __builtin_assume_aligned(p, 16), sizeof found);
    return found;
}

inline void __threadfence() {}
template <class T> T __ldcg(const T *p) { return *p; }
inline int atomicAdd(int *p, int x) { return __atomic_fetch_add(p, x, __ATOMIC_SEQ_CST); }

inline void fence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline uint32_t load_acquire(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
inline uint64_t load_acquire(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
inline void store_release(uint32_t *p, uint32_t value) { __atomic_store_n(p, value, __ATOMIC_RELEASE); }
inline void let_next_begin() {}
inline void wait_for_previous() { emulated::self().waited = true; }
inline void pause_polling() { std::this_thread::yield(); }
inline uint64_t nanoseconds() {
    return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}
inline char *dynamic_shared() { return emulated::block().shared; }

template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void *, Arguments... arguments) {
    if (shared_bytes > emulated::kMostShared || block.x * block.y * block.z > emulated::kMostThreads)
        return KRASIS_ERROR_DEVICE;
    struct Call {
        void (*kernel)(Parameters...);
        std::tuple<Parameters...> arguments;
    } call{kernel, {Parameters(arguments)...}};
    emulated::run(grid, block, [](void *opaque) {
        auto *made = static_cast<Call *>(opaque);
        std::apply(made->kernel, made->arguments);
    }, &call);
    return KRASIS_OK;
}
