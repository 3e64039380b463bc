// What a krasis_pool is: threads, their kernels, and what may run on them.
#pragma once

#include <mutex>
#include <system_error>
#include <vector>

#include "attention.h"
#include "kernels.h"
#include "matmul.h"
#include "moe.h"
#include "ops.h"
#include "pool.h"

struct krasis_pool {
    krasis_pool(int threads, int isa, const krasis::Kernels &kernels)
        : isa(isa), kernels(kernels), pool(threads), matmul(pool, kernels), moe(pool, kernels),
          attention(pool, *kernels.ops) {}

    const int isa;
    const krasis::Kernels &kernels;
    std::mutex mutex; // one call at a time
    krasis::Pool pool;
    krasis::Matmul matmul;
    krasis::Moe moe;
    krasis::AttentionRuns attention;
    std::vector<krasis_job> jobs; // of krasis_linears
};

namespace krasis {

// Puts what make() gives, which may start threads, where it is wanted.
template <class T, class Make> krasis_status made(T **out, const Make &make) noexcept {
    try {
        *out = make();
        return KRASIS_OK;
    } catch (const std::system_error &) {
        return KRASIS_ERROR_THREADS;
    } catch (...) {
        return KRASIS_ERROR_MEMORY;
    }
}

// Runs action(), which gives a status, while no other call runs on the pool. Only memory can run out there.
template <class Action> krasis_status alone(krasis_pool &pool, const Action &action) {
    try {
        const std::lock_guard<std::mutex> lock(pool.mutex);
        return action();
    } catch (...) {
        return KRASIS_ERROR_MEMORY;
    }
}

} // namespace krasis
