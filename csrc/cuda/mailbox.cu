// The GPU's side of the mailbox: posts cold experts to the CPU, waits for their sum and adds it.
#include <limits.h>

#include "device.cuh"
#include "krasis_cuda.h"

namespace {

constexpr int kThreads = 512, kQuad = 4, kMostBlocks = 16;

struct Slots {
    krasis_slot even, odd;
    __device__ krasis_slot of(uint32_t number) const { return number % KRASIS_MAILBOX_SLOTS ? odd : even; }
};

__device__ float4 load_quad(const float *x, int64_t quad) { return reinterpret_cast<const float4 *>(x)[quad]; }

__device__ float4 load_quad(const bf16 *x, int64_t quad) {
    const uint2 words = reinterpret_cast<const uint2 *>(x)[quad];
    return make_float4(low_float(words.x), high_float(words.x), low_float(words.y), high_float(words.y));
}

__device__ void store_quad(float *x, int64_t quad, float4 v) { reinterpret_cast<float4 *>(x)[quad] = v; }

__device__ void store_quad(bf16 *x, int64_t quad, float4 v) {
    reinterpret_cast<uint2 *>(x)[quad] = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
}

__device__ bool is_cold(int32_t id, const int32_t *where) { return id >= 0 && where[id] < 0; }

// Asked by every warp for itself, so that none waits for another.
__device__ int count_cold(const int32_t *ids, const int32_t *where, int pairs) {
    int count = 0;
    for (int first = 0; first < pairs; first += kWarp) {
        const int i = first + threadIdx.x % kWarp;
        count += __popc(__ballot_sync(0xffffffffu, i < pairs && is_cold(ids[i], where)));
    }
    return count;
}

// The first warp's: what the device reads itself, and what is left for the CPU.
__device__ void divide(const krasis_cuda_split &split, const krasis_slot &slot, bool posts, int cut, const int32_t *ids,
                       const float *weights, const int32_t *where, int pairs) {
    for (int i = threadIdx.x; i < pairs; i += kWarp) {
        const int id = ids[i];
        const bool cold = is_cold(id, where);
        if (split.cut) {
            split.records[i] = cold ? split.host + id * split.stride : id < 0 ? 0 : split.table[id];
            split.first[i] = cold ? cut : 0;
        }
        if (posts) {
            slot.ids[i] = cold ? id : -1;
            slot.weights[i] = weights[i];
        }
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    post(Slots slots, krasis_mailbox_state *state, int layer, int tokens, const T *x, int quads, const int32_t *ids,
         const float *weights, const int32_t *where, int pairs, krasis_cuda_split split, int32_t *uses) {
    follow_previous();
    const int thread = threadIdx.x;
    // Under way while the experts are looked up.
    float4 values = thread < quads ? load_quad(x, thread) : make_float4(0, 0, 0, 0);
    const uint32_t number = state->number + 1;
    const int cold = count_cold(ids, where, pairs), cut = split.cut ? split.cut[cold] : INT_MAX;
    const bool posts = !state->failed && cold && cut;
    const krasis_slot slot = slots.of(number);
    if (posts)
        for (int quad = thread; quad < quads; quad += kThreads) {
            store_quad(slot.x, quad, values);
            if (quad + kThreads < quads)
                values = load_quad(x, quad + kThreads);
        }
    if (thread < kWarp)
        divide(split, slot, posts, cut, ids, weights, where, pairs);
    __syncthreads();
    // Other warps', so that what follows does not have to wait for it.
    if (uses)
        for (int i = thread - kWarp; i >= 0 && i < pairs; i += kThreads - kWarp)
            if (ids[i] >= 0)
                atomicAdd(uses + ids[i], 1);
    if (thread)
        return;
    state->waits = posts;
    state->missed += cold;
    if (!posts)
        return;
    state->number = number;
    slot.post->layer = layer;
    slot.post->tokens = tokens;
    slot.post->inner = cut;
    // Releases what the whole block wrote: the barrier comes before it.
    store_release(&slot.post->number, number);
}

__device__ uint32_t wait_for(const krasis_reply *reply, uint32_t number, uint64_t timeout) {
    const uint64_t since = nanoseconds();
    for (;;) {
        const uint64_t word = load_acquire(&reply->word);
        if ((uint32_t)word == number)
            return word >> 32;
        if (nanoseconds() - since > timeout)
            return KRASIS_ERROR_TIMEOUT;
        pause_polling();
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    wait_add(Slots slots, krasis_trouble *trouble, krasis_mailbox_state *state, T *out, int quads, uint64_t timeout) {
    follow_previous();
    if (!state->waits)
        return;
    const uint32_t number = state->number;
    const krasis_slot slot = slots.of(number);
    __shared__ uint32_t status;
    if (threadIdx.x == 0) {
        const uint64_t since = nanoseconds();
        status = wait_for(slot.reply, number, timeout);
        if (blockIdx.x == 0)
            state->waited += nanoseconds() - since;
    }
    __syncthreads();
    if (status) {
        if (threadIdx.x == 0) {
            state->failed = 1;
            store_release(&trouble->status, status);
        }
        return;
    }
    for (int quad = blockIdx.x * kThreads + threadIdx.x; quad < quads; quad += gridDim.x * kThreads) {
        const float4 y = load_quad(slot.y, quad), old = load_quad(out, quad);
        store_quad(out, quad, make_float4(old.x + y.x, old.y + y.y, old.z + y.z, old.w + y.w));
    }
}

Slots slots_of(const krasis_mailbox *mailbox) { return {krasis_slot_of(mailbox, 0), krasis_slot_of(mailbox, 1)}; }

int check(const krasis_mailbox *mailbox, int tokens, const void *rows, int type) {
    if (const int status = krasis_mailbox_check(mailbox))
        return status;
    if (type != KRASIS_FLOAT32 && type != KRASIS_BFLOAT16)
        return KRASIS_ERROR_TYPE;
    if (tokens < 1 || tokens > mailbox->tokens)
        return KRASIS_ERROR_SHAPE;
    return (uintptr_t)rows % (kQuad * (type == KRASIS_FLOAT32 ? 4 : 2)) ? KRASIS_ERROR_ALIGNMENT : KRASIS_OK;
}

} // namespace

extern "C" int krasis_cuda_post(const krasis_mailbox *mailbox, krasis_mailbox_state *state, int layer, int tokens,
                                const void *x, int x_type, const int32_t *ids, const float *weights,
                                const int32_t *where, const krasis_cuda_split *split, int32_t *uses, void *stream) {
    if (!state || !x || !ids || !weights || !where)
        return KRASIS_ERROR_NULL;
    const krasis_cuda_split given = split ? *split : krasis_cuda_split{};
    if (given.cut && (!given.table || !given.records || !given.first || !given.host))
        return KRASIS_ERROR_NULL;
    if (const int status = check(mailbox, tokens, x, x_type))
        return status;
    const Slots slots = slots_of(mailbox);
    const int quads = tokens * mailbox->hidden / kQuad, pairs = tokens * mailbox->chosen;
    if (x_type == KRASIS_FLOAT32)
        return launch(post<float>, 1, kThreads, 0, stream, slots, state, layer, tokens, (const float *)x, quads, ids,
                      weights, where, pairs, given, uses);
    return launch(post<bf16>, 1, kThreads, 0, stream, slots, state, layer, tokens, (const bf16 *)x, quads, ids, weights,
                  where, pairs, given, uses);
}

extern "C" int krasis_cuda_wait_add(const krasis_mailbox *mailbox, krasis_mailbox_state *state, int tokens, void *out,
                                    int out_type, int64_t timeout, void *stream) {
    if (!state || !out)
        return KRASIS_ERROR_NULL;
    if (const int status = check(mailbox, tokens, out, out_type))
        return status;
    const Slots slots = slots_of(mailbox);
    krasis_trouble *const trouble = (krasis_trouble *)mailbox->memory;
    const int quads = tokens * mailbox->hidden / kQuad;
    const unsigned blocks = min((quads + kThreads - 1) / kThreads, kMostBlocks);
    if (out_type == KRASIS_FLOAT32)
        return launch(wait_add<float>, blocks, kThreads, 0, stream, slots, trouble, state, (float *)out, quads,
                      (uint64_t)timeout);
    return launch(wait_add<bf16>, blocks, kThreads, 0, stream, slots, trouble, state, (bf16 *)out, quads,
                  (uint64_t)timeout);
}
