// Attention split over the threads of a pool.
#pragma once

#include "ops.h"
#include "pool.h"
#include "scratch.h"

namespace krasis {

class AttentionRuns {
public:
    AttentionRuns(Pool &pool, const Ops &ops) : pool_(pool), ops_(ops) {}

    // Of a valid call. Throws std::bad_alloc.
    void run(const Attention &call);

private:
    void work(int thread, int threads);
    void attend(int64_t first, int64_t last, float *scratch);
    void combine(int64_t first, int64_t last);

    Pool &pool_;
    const Ops &ops_;
    Attention call_;
    int64_t first_;  // position that the first token sees, where the first run begins: no sum depends on what lies before
    int64_t runs_;   // that any token sees
    int64_t groups_; // of query heads that share a key, kHeads or fewer each
    Scratch scratch_;
    float *partial_; // [tokens][heads][runs][stride]
    int64_t stride_;
    float *thread_scratch_;
};

} // namespace krasis
