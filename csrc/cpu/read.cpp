// Reads memory with every thread of a pool.
#include <atomic>

#include "team.h"

namespace {

struct Read {
    const krasis::Kernels &kernels;
    const uint8_t *data;
    int64_t lines;
    int threads;
    std::atomic<uint32_t> sum{0};

    void share(int thread) {
        const int64_t first = lines * thread / threads, last = lines * (thread + 1) / threads;
        sum.fetch_add(kernels.read(data + first * 64, last - first), std::memory_order_relaxed);
    }
};

} // namespace

int krasis_read(krasis_pool *pool, const void *data, int64_t bytes, uint32_t *sum) {
    if (!pool || !data || !sum)
        return KRASIS_ERROR_NULL;
    if (bytes < 0 || bytes % 64)
        return KRASIS_ERROR_SHAPE;
    const std::lock_guard<std::mutex> lock(pool->mutex);
    Read read{pool->kernels, static_cast<const uint8_t *>(data), bytes / 64, pool->pool.threads()};
    pool->pool.run([](void *self, int thread) { static_cast<Read *>(self)->share(thread); }, &read);
    *sum = read.sum;
    return KRASIS_OK;
}
