// A mixture of experts in one wake of the pool: every expert is read once, for all tokens that chose it.
#pragma once

#include <atomic>
#include <vector>

#include "ahead.h"
#include "kernels.h"
#include "pool.h"
#include "scratch.h"
#include "share.h"

namespace krasis {

// What krasis_moe is given.
struct MoeCall {
    krasis_experts experts;
    const float *x;
    int64_t m, ldx;
    const int64_t *ids; // -1, which krasis_moe does not take: nothing
    const float *weights;
    int64_t chosen;
    float *y;
    int64_t ldy;
};

class Moe {
public:
    Moe(Pool &pool, const Kernels &kernels) : pool_(pool), kernels_(kernels) {}

    // Of a valid call. Throws std::bad_alloc.
    void run(const MoeCall &call);

private:
    // A token at an expert. Slots are ordered by expert, then by token.
    struct Slot {
        int64_t token;
        float weight;
    };

    // Neighbouring slots of one expert.
    struct Run {
        int64_t expert, first, slots;

        // Of a unit, in tokens: reading weights takes as long as multiplying them with about four.
        double cost() const { return 4 + static_cast<double>(slots); }
    };

    // Units [begin, end) of an expert's matrix.
    struct Part {
        const Run &run;
        krasis_matrix matrix;
        Kernel kernel;
        int64_t begin, end;
    };

    // Runs [first_run, last_run), whose products are held at once.
    struct Batch {
        size_t first_run, last_run;
        int64_t first_slot, last_slot;
    };

    unsigned char *panels_of(int thread) { return panels_ + thread * panel_bytes_; }
    void sort();
    void plan();
    void place();
    void work(int thread);
    void quantize(int thread);
    void quantize_tokens(int64_t first, int64_t last);
    void quantize_groups(int64_t first, int64_t last); // of the only token
    void gather(const Batch &batch, int thread);
    const krasis_matrix &matrix(bool down) const; // of the first expert
    int64_t k_in(bool down) const;                // of the features that count
    int64_t columns() const;                      // of gate, and of up, that are computed
    int64_t units(bool down) const;               // of each expert
    template <class Action>
    void parts(const Batch &batch, bool down, const Share &share, const Action &action) const;
    Shares shares(const Batch &batch, bool down, int thread);
    Warmer warmer(const Batch &batch, bool down, int thread);
    void multiply(const Batch &batch, bool down, int thread);
    void activate(const Batch &batch, int thread);
    void add(const Batch &batch, int thread);

    Pool &pool_;
    const Kernels &kernels_;
    MoeCall call_;
    std::vector<int64_t> starts_; // expert -> its first slot
    std::vector<Slot> slots_;
    std::vector<Run> runs_;
    std::vector<Batch> batches_;
    std::atomic<int> taken_[2]{}; // see Shares, of the products up and down
    Scratch scratch_;
    unsigned char *panels_;
    int64_t panel_bytes_; // of a thread
    Activations tokens_; // of x
    Activations inputs_; // of x, by the slots of a batch; where there is one token, the same as tokens_
    Activations inner_;  // of what w2 multiplies
    float *gate_up_;     // [slots of a batch][w13.n]
    float *out_;         // [slots of a batch][w2.n]
};

} // namespace krasis
