// What a krasis_pool is: threads, their kernels, and what may run on them.
#pragma once

#include <mutex>
#include <vector>

#include "attention.h"
#include "kernels.h"
#include "matmul.h"
#include "moe.h"
#include "ops.h"
#include "pool.h"

struct krasis_pool {
    krasis_pool(int threads, int isa, const krasis::Kernels &kernels, const krasis::Ops &ops)
        : isa(isa), kernels(kernels), ops(ops), pool(threads), matmul(pool, kernels), moe(pool, kernels),
          attention(pool, ops) {}

    const int isa;
    const krasis::Kernels &kernels;
    const krasis::Ops &ops;
    std::mutex mutex; // one call at a time
    krasis::Pool pool;
    krasis::Matmul matmul;
    krasis::Moe moe;
    krasis::AttentionRuns attention;
    std::vector<krasis_job> jobs; // of krasis_linears
};
