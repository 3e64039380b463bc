// Calls made again from their arguments, as they were recorded.
#include <cstring>
#include <utility>

#include "check.h"

namespace {

template <class T> T read(const int64_t &slot) {
    T value;
    static_assert(sizeof value <= sizeof slot);
    std::memcpy(&value, &slot, sizeof value);
    return value;
}

template <auto kFunction> struct Again;
template <class... Arguments, int (*kFunction)(krasis_pool *, Arguments...)> struct Again<kFunction> {
    static_assert(sizeof...(Arguments) <= KRASIS_MOST_ARGUMENTS);

    static int call(krasis_pool *pool, const int64_t *slots) {
        return call(pool, slots, std::index_sequence_for<Arguments...>{});
    }

private:
    template <size_t... kSlots> static int call(krasis_pool *pool, const int64_t *slots, std::index_sequence<kSlots...>) {
        return kFunction(pool, read<Arguments>(slots[kSlots])...);
    }
};

struct Operation {
    int (*call)(krasis_pool *pool, const int64_t *slots);
    int position = -1; // the argument that follows the position of a token, if any
};

// In the order of krasis_operation.
constexpr Operation kOperations[] = {
    {Again<krasis_linears>::call},
    {Again<krasis_norm>::call},
    {Again<krasis_turn_heads>::call},
    {Again<krasis_turn_latent>::call},
    {Again<krasis_gate>::call},
    {Again<krasis_add>::call},
    {Again<krasis_copy>::call},
    {Again<krasis_conv>::call},
    {Again<krasis_route>::call},
    {Again<krasis_delta_net_step>::call},
    {Again<krasis_store>::call, 6},
    {Again<krasis_attention>::call, 5},
    {Again<krasis_moe>::call},
};
constexpr int64_t kCount = sizeof kOperations / sizeof *kOperations;

} // namespace

int krasis_replay(krasis_pool *pool, const krasis_call *calls, int64_t count, int64_t later) {
    if (!pool || (!calls && count > 0))
        return KRASIS_ERROR_NULL;
    if (!krasis::aligned(calls, sizeof(int64_t)))
        return KRASIS_ERROR_ALIGNMENT;
    for (int64_t i = 0; i < count; i++) {
        if (calls[i].operation < 0 || calls[i].operation >= kCount)
            return KRASIS_ERROR_CODEC;
        const Operation &operation = kOperations[calls[i].operation];
        krasis_call call = calls[i];
        if (operation.position >= 0)
            call.arguments[operation.position] += later;
        if (const int status = operation.call(pool, call.arguments))
            return status;
    }
    return KRASIS_OK;
}
