// A fixed team of threads that all run the same function.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace krasis {

// So long a thread that may only spin keeps its core from others: longer than a layer takes.
constexpr auto kEager = std::chrono::milliseconds(1);

// Between two looks at what another thread writes.
inline void pause() {
#ifdef __x86_64__
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
}

class Pool {
public:
    using Task = void (*)(void *context, int thread);

    // Throws std::system_error where the system refuses threads.
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool &) = delete;

    int threads() const { return threads_; }

    // Keeps worker i on processor cpus[i]; the caller, who is worker 0, goes where it likes. False where the system
    // refuses one.
    bool pin(const int32_t *cpus);

    // Calls task(context, t) for every t below threads(), t = 0 on the caller, and returns when all are done. One call
    // at a time.
    void run(Task task, void *context);

    // Within a task, called by every thread: returns once all have come. Those who wait call idle() until it is false.
    template <class Idle> void meet(int thread, Idle &&idle) {
        if (thread == 0)
            return open(idle);
        const uint32_t meeting = meetings_.load(std::memory_order_relaxed);
        arrive(thread);
        while (meetings_.load(std::memory_order_acquire) == meeting && idle())
            continue;
        wait_for_change(meetings_, meeting);
    }
    void meet(int thread) {
        meet(thread, [] { return false; });
    }

    // Whether waiting threads only spin. Those that sleep already do so until the next call of run().
    void stay_awake(bool awake) { awake_.store(awake, std::memory_order_relaxed); }

private:
    // How often a thread has come to a meeting or to the end of a task: each writes a line of its own.
    struct alignas(64) Arrivals {
        std::atomic<uint32_t> count{0};
    };

    // Returns once `value` is no longer `old`: spins first, sleeps then.
    void wait_for_change(const std::atomic<uint32_t> &value, uint32_t old);
    void arrive(int thread);

    // Thread 0: returns once all others have arrived as often as it has.
    template <class Idle> void gather(Idle &&idle) {
        const uint32_t count = ++arrivals_[0].count;
        for (int i = 1; i < threads_; i++) {
            const std::atomic<uint32_t> &found = arrivals_[i].count;
            for (uint32_t at; (at = found.load(std::memory_order_acquire)) != count;)
                if (!idle())
                    wait_for_change(found, at);
        }
    }

    template <class Idle> void open(Idle &&idle) {
        gather(idle);
        meetings_.fetch_add(1, std::memory_order_release);
        meetings_.notify_all();
    }

    void work(int thread);
    void stop();

    int threads_;
    Task task_ = nullptr; // null tells the workers to end
    void *context_ = nullptr;
    std::atomic<bool> awake_{false};
    alignas(64) std::atomic<uint32_t> round_{0};
    alignas(64) std::atomic<uint32_t> meetings_{0};
    const std::unique_ptr<Arrivals[]> arrivals_;
    std::vector<std::thread> workers_;
};

} // namespace krasis
