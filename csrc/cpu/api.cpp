// The C ABI of the CPU library: checks its arguments, and turns exceptions into codes.
#include "check.h"
#include "isa.h"
#include "team.h"

namespace {

constexpr int kMaxThreads = 4096;

krasis_status create(int threads, int isa, krasis_pool **pool) noexcept {
    if (threads < 1 || threads > kMaxThreads)
        return KRASIS_ERROR_THREADS;
    if (isa == KRASIS_ISA_AUTO)
        isa = krasis::best_isa();
    const krasis::Kernels *kernels = krasis::kernels_of(isa);
    if (!kernels)
        return KRASIS_ERROR_ISA;
    return krasis::made(pool, [&] { return new krasis_pool(threads, isa, *kernels); });
}

} // namespace

int krasis_abi_version(void) { return KRASIS_ABI_VERSION; }

const char *krasis_strerror(int status) {
    switch (status) {
    case KRASIS_OK: return "success";
    case KRASIS_ERROR_NULL: return "a pointer is null";
    case KRASIS_ERROR_CODEC: return "no such codec";
    case KRASIS_ERROR_LAYOUT: return "no such layout for this codec";
    case KRASIS_ERROR_SHAPE: return "a shape or stride is out of range";
    case KRASIS_ERROR_GROUP: return "the group size does not fit the codec or the matrix";
    case KRASIS_ERROR_ALIGNMENT: return "a pointer is not aligned to its element";
    case KRASIS_ERROR_ISA: return "this machine lacks the instruction set";
    case KRASIS_ERROR_THREADS: return "that many threads can't be had";
    case KRASIS_ERROR_MEMORY: return "out of memory";
    case KRASIS_ERROR_DEVICE: return "the GPU refused";
    case KRASIS_ERROR_TYPE: return "no such type of weights";
    case KRASIS_ERROR_VALUE: return "weights are NaN, infinite or beyond 2^127";
    case KRASIS_ERROR_TIMEOUT: return "no answer came in time";
    default: return "unknown error";
    }
}

int krasis_best_isa(void) { return krasis::best_isa(); }

krasis_pool *krasis_pool_create(int threads, int isa, int *status) {
    krasis_pool *pool = nullptr;
    const krasis_status result = create(threads, isa, &pool);
    if (status)
        *status = result;
    return pool;
}

void krasis_pool_destroy(krasis_pool *pool) { delete pool; }

int krasis_pool_threads(const krasis_pool *pool) { return pool ? pool->pool.threads() : 0; }

int krasis_pool_isa(const krasis_pool *pool) { return pool ? pool->isa : KRASIS_ISA_AUTO; }

int krasis_pool_pin(krasis_pool *pool, const int32_t *cpus) {
    if (!pool || !cpus)
        return KRASIS_ERROR_NULL;
    const std::lock_guard<std::mutex> lock(pool->mutex);
    return pool->pool.pin(cpus) ? KRASIS_OK : KRASIS_ERROR_THREADS;
}

int krasis_matmul(krasis_pool *pool, const krasis_matrix *matrix, const float *x, int64_t m, int64_t ldx, int64_t k_in,
                  float *y, int64_t ldy, int64_t n_out) {
    const krasis_job job{matrix, x, m, ldx, k_in, y, ldy, n_out};
    return krasis_matmul_batch(pool, &job, 1);
}

int krasis_linears(krasis_pool *pool, const krasis_matrix *const *matrices, const int64_t *n_out, int64_t count,
                   const float *x, int64_t x_step, int64_t m, int64_t ldx, int64_t k_in, float *y, int64_t ldy) {
    if (!pool || ((!matrices || !n_out) && count > 0))
        return KRASIS_ERROR_NULL;
    if (count < 0 || count > KRASIS_MOST_HEADS || x_step < 0 || x_step > INT32_MAX)
        return KRASIS_ERROR_SHAPE;
    return krasis::alone(*pool, [&] {
        pool->jobs.clear();
        int64_t column = 0;
        for (int64_t i = 0; i < count; i++) {
            const krasis_job job{matrices[i], x ? x + i * x_step : x, m, ldx, k_in, y ? y + column : y, ldy, n_out[i]};
            if (const krasis_status status = krasis::check(job))
                return status;
            pool->jobs.push_back(job);
            column += n_out[i];
        }
        if (m > 1 && ldy < column)
            return KRASIS_ERROR_SHAPE;
        pool->matmul.run(pool->jobs.data(), count);
        return KRASIS_OK;
    });
}

int krasis_matmul_batch(krasis_pool *pool, const krasis_job *jobs, int64_t count) {
    if (!pool || (!jobs && count > 0))
        return KRASIS_ERROR_NULL;
    if (count < 0)
        return KRASIS_ERROR_SHAPE;
    for (int64_t i = 0; i < count; i++)
        if (const krasis_status status = krasis::check(jobs[i]))
            return status;
    return krasis::alone(*pool, [&] {
        pool->matmul.run(jobs, count);
        return KRASIS_OK;
    });
}
