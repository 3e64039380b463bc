// Runs valid jobs on a pool: activations first, then columns, each split evenly over the threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <vector>

#include "kernels.h"
#include "pool.h"
#include "scratch.h"

namespace krasis {

class Matmul {
public:
    Matmul(Pool &pool, const Kernels &kernels) : pool_(pool), kernels_(kernels) {}

    // Throws std::bad_alloc. One call at a time.
    void run(const krasis_job *jobs, size_t count);

private:
    struct Step {
        Work work;
        int64_t tokens; // whose activations are to be prepared: none where the step before has the same
        int64_t units;
        double unit_cost; // in weight bytes times tokens
    };

    unsigned char *panels_of(int thread) { return panels_ + thread * panel_bytes_; }
    void plan(const krasis_job *jobs, size_t count);
    void prepare();
    void prepare_share(int thread);
    void multiply_share(int thread);

    Pool &pool_;
    const Kernels &kernels_;
    std::vector<Step> steps_;
    std::atomic<int> taken_{0}; // see Shares
    Scratch scratch_; // the activations of all steps, and panels
    unsigned char *panels_ = nullptr;
    int64_t panel_bytes_ = 0; // of a thread
};

} // namespace krasis
