// What a krasis_pool is: threads, their kernels, and what may run on them.
#pragma once

#include <mutex>

#include "kernels.h"
#include "matmul.h"
#include "moe.h"
#include "pool.h"

struct krasis_pool {
    krasis_pool(int threads, int isa, const krasis::Kernels &kernels)
        : isa(isa), kernels(kernels), pool(threads), matmul(pool, kernels), moe(pool, kernels) {}

    const int isa;
    const krasis::Kernels &kernels;
    std::mutex mutex; // one call at a time
    krasis::Pool pool;
    krasis::Matmul matmul;
    krasis::Moe moe;
};
