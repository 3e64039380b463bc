#include "pool.h"

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

namespace krasis {
namespace {

// Longer than the gap between two products of one layer, short enough to free the cores for whatever else runs.
constexpr auto kSpin = std::chrono::microseconds(50);
constexpr int kPauses = 32;

} // namespace

void Pool::wait_for_change(const std::atomic<uint32_t> &value, uint32_t old) {
    const auto since = std::chrono::steady_clock::now();
    for (;;) {
        for (int i = 0; i < kPauses; i++) {
            if (value.load(std::memory_order_acquire) != old)
                return;
            pause();
        }
        const auto waited = std::chrono::steady_clock::now() - since;
        const bool awake = awake_.load(std::memory_order_relaxed);
        if (!awake && waited > kSpin)
            break;
        if (waited > kEager)
            std::this_thread::yield();
    }
    value.wait(old, std::memory_order_acquire);
}

Pool::Pool(int threads) : threads_(threads), arrivals_(new Arrivals[threads]) {
    try {
        for (int i = 1; i < threads; i++)
            workers_.emplace_back(&Pool::work, this, i);
    } catch (...) {
        stop();
        throw;
    }
}

Pool::~Pool() { stop(); }

bool Pool::pin(const int32_t *cpus) {
#ifdef __linux__
    for (int i = 1; i < threads_; i++) {
        if (cpus[i] < 0 || cpus[i] >= CPU_SETSIZE)
            return false;
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(cpus[i], &set);
        if (pthread_setaffinity_np(workers_[i - 1].native_handle(), sizeof set, &set))
            return false;
    }
    return true;
#else
    return threads_ == 1 || !cpus;
#endif
}

void Pool::run(Task task, void *context) {
    task_ = task;
    context_ = context;
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    task(context, 0);
    gather([] { return false; });
}

void Pool::arrive(int thread) {
    std::atomic<uint32_t> &mine = arrivals_[thread].count;
    mine.store(mine.load(std::memory_order_relaxed) + 1, std::memory_order_release);
    mine.notify_one();
}

void Pool::work(int thread) {
    for (uint32_t seen = 0;; seen++) {
        wait_for_change(round_, seen);
        if (!task_)
            return;
        task_(context_, thread);
        arrive(thread);
    }
}

void Pool::stop() {
    task_ = nullptr;
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    for (std::thread &worker : workers_)
        worker.join();
}

} // namespace krasis
