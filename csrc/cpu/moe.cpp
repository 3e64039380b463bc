#include "moe.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "check.h"
#include "share.h"
#include "team.h"

namespace krasis {
namespace {

// Slots whose products are held at once: enough to keep every thread busy, few enough for the last-level cache.
constexpr int64_t kSlots = 2048;
constexpr int64_t kTileColumns = 64; // of `marlin`

krasis_matrix of_expert(krasis_matrix matrix, int64_t offset) {
    matrix.codes = static_cast<const char *>(matrix.codes) + offset;
    matrix.scales = static_cast<const char *>(matrix.scales) + offset;
    return matrix;
}

Activations from(const Activations &all, const krasis_matrix &matrix, int64_t row) {
    const int64_t groups = matrix.k / matrix.group_size;
    return {all.q + row * matrix.k, all.scale + row * groups, all.sum + row * groups, nullptr, 0};
}

} // namespace

void Moe::run(const MoeCall &call) {
    call_ = call;
    if (call.m == 0)
        return;
    sort();
    plan();
    place();
    taken_[0] = taken_[1] = 0;
    pool_.run([](void *self, int thread) { static_cast<Moe *>(self)->work(thread); }, this);
}

void Moe::sort() {
    const int64_t all = call_.m * call_.chosen;
    starts_.assign(call_.experts.count + 1, 0);
    for (int64_t i = 0; i < all; i++)
        if (call_.ids[i] >= 0)
            starts_[call_.ids[i] + 1]++;
    for (int64_t e = 0; e < call_.experts.count; e++)
        starts_[e + 1] += starts_[e];
    slots_.resize(all);
    for (int64_t i = 0; i < all; i++)
        if (call_.ids[i] >= 0)
            slots_[starts_[call_.ids[i]]++] = {i / call_.chosen, call_.weights[i]};
    // Now starts_[e] is where the slots of e end.
}

void Moe::plan() {
    runs_.clear();
    batches_.clear();
    int64_t slot = 0;
    for (int64_t expert = 0; expert < call_.experts.count; expert++)
        while (slot < starts_[expert]) {
            const int64_t slots = std::min(starts_[expert] - slot, kSlots);
            if (batches_.empty() || slot + slots - batches_.back().first_slot > kSlots)
                batches_.push_back({runs_.size(), runs_.size(), slot, slot});
            runs_.push_back({expert, slot, slots});
            slot += slots;
            batches_.back().last_run = runs_.size();
            batches_.back().last_slot = slot;
        }
}

void Moe::place() {
    const krasis_experts &experts = call_.experts;
    int64_t slots = 0;
    for (const Batch &batch : batches_)
        slots = std::max(slots, batch.last_slot - batch.first_slot);
    panel_bytes_ = round_up(std::max(panel_bytes(experts.w13), panel_bytes(experts.w2)), kLine);
    const auto lay_out = [&](Cursor cursor) {
        tokens_ = krasis::place(experts.w13, call_.m, cursor);
        inputs_ = call_.m == 1 ? tokens_ : krasis::place(experts.w13, slots, cursor);
        inner_ = krasis::place(experts.w2, slots, cursor);
        gate_up_ = cursor.take<float>(slots * experts.w13.n);
        out_ = cursor.take<float>(slots * experts.w2.n);
        panels_ = cursor.take<unsigned char>(panel_bytes_ * pool_.threads());
        return cursor.at();
    };
    const uintptr_t bytes = lay_out(Cursor(nullptr));
    lay_out(Cursor(scratch_.of(bytes)));
}

void Moe::work(int thread) {
    quantize(thread);
    if (batches_.empty())
        return;
    Warmer warmer = this->warmer(batches_.front(), false, thread);
    pool_.meet(thread, warmer);
    for (const Batch &batch : batches_) {
        if (call_.m > 1) {
            gather(batch, thread);
            pool_.meet(thread, warmer);
        }
        multiply(batch, false, thread);
        warmer = this->warmer(batch, true, thread);
        pool_.meet(thread, warmer);
        if (thread == 0)
            taken_[false] = 0;
        activate(batch, thread);
        pool_.meet(thread, warmer);
        multiply(batch, true, thread);
        pool_.meet(thread);
        if (thread == 0)
            taken_[true] = 0;
        add(batch, thread);
    }
}

void Moe::quantize(int thread) {
    const krasis_matrix &w13 = call_.experts.w13;
    const bool by_token = call_.m > 1 || w13.codec == KRASIS_BF16;
    const int64_t pieces = by_token ? call_.m : w13.k / w13.group_size;
    const Share share(static_cast<double>(pieces), thread, pool_.threads());
    share.of(0, 1, pieces, [&](int64_t first, int64_t last) {
        by_token ? quantize_tokens(first, last) : quantize_groups(first, last);
    });
}

void Moe::quantize_groups(int64_t first, int64_t last) {
    krasis_matrix part = call_.experts.w13;
    const int64_t begin = first * part.group_size, hidden = call_.experts.hidden;
    part.k = static_cast<int32_t>(last * part.group_size - begin);
    const int64_t have = std::clamp<int64_t>(hidden - begin, 0, part.k);
    const krasis_job job{&part, call_.x + begin, 1, call_.ldx, have, nullptr, 0, 0};
    const Activations a{tokens_.q + begin, tokens_.scale + first, tokens_.sum + first, nullptr, 0};
    kernels_.prepare[part.codec]({job, a, nullptr, {}}, 0, 1);
    std::memset(call_.y + begin, 0, have * sizeof(float));
}

void Moe::quantize_tokens(int64_t first, int64_t last) {
    const krasis_job job{&call_.experts.w13, call_.x, call_.m, call_.ldx, call_.experts.hidden, nullptr, 0, 0};
    kernels_.prepare[job.matrix->codec]({job, tokens_, nullptr, {}}, first, last);
    for (int64_t token = first; token < last; token++)
        std::memset(call_.y + token * call_.ldy, 0, call_.experts.hidden * sizeof(float));
}

void Moe::gather(const Batch &batch, int thread) {
    const krasis_matrix &w13 = call_.experts.w13;
    const int64_t groups = w13.k / w13.group_size, slots = batch.last_slot - batch.first_slot;
    const Share share(static_cast<double>(slots), thread, pool_.threads());
    share.of(0, 1, slots, [&](int64_t first, int64_t last) {
        for (int64_t slot = first; slot < last; slot++) {
            const Activations source = from(tokens_, w13, slots_[batch.first_slot + slot].token);
            const Activations target = from(inputs_, w13, slot);
            std::memcpy(target.q, source.q, w13.k);
            std::memcpy(target.scale, source.scale, groups * sizeof(float));
            std::memcpy(target.sum, source.sum, groups * sizeof(int32_t));
        }
    });
}

const krasis_matrix &Moe::matrix(bool down) const { return down ? call_.experts.w2 : call_.experts.w13; }

int64_t Moe::k_in(bool down) const { return down ? call_.experts.size : call_.experts.hidden; }

// Whole tiles, where no tile has columns of both.
int64_t Moe::columns() const {
    const int64_t half = call_.experts.w13.n / 2;
    return half % kTileColumns ? half : round_up(call_.experts.size, kTileColumns);
}

int64_t Moe::units(bool down) const { return units_of(matrix(down), down ? call_.experts.hidden : 2 * columns()); }

// Calls action(part) for what of a product belongs to a share.
template <class Action>
void Moe::parts(const Batch &batch, bool down, const Share &share, const Action &action) const {
    const krasis_matrix &first = matrix(down);
    const int64_t units = this->units(down);
    // Where units of up follow those of gate in a share, and how many lie between them in memory.
    const int64_t border = down ? units : columns() / kUnit, between = down ? 0 : first.n / 2 / kUnit - border;
    double base = 0;
    for (size_t r = batch.first_run; r < batch.last_run; r++) {
        const Run &run = runs_[r];
        const Kernel kernel(kernels_, first, run.slots);
        const krasis_matrix matrix = of_expert(first, run.expert * call_.experts.stride);
        share.of(base, run.cost(), units, kernel, [&](int64_t begin, int64_t end) {
            if (!between)
                return action(Part{run, matrix, kernel, begin, end});
            if (begin < border)
                action(Part{run, matrix, kernel, begin, std::min(end, border)});
            if (end > border)
                action(Part{run, matrix, kernel, std::max(begin, border) + between, end + between});
        });
        base += run.cost() * units;
    }
}

Shares Moe::shares(const Batch &batch, bool down, int thread) {
    double cost = 0;
    for (size_t r = batch.first_run; r < batch.last_run; r++)
        cost += runs_[r].cost();
    return {cost * units(down), thread, pool_.threads(), taken_[down]};
}

// For what a thread will multiply first.
Warmer Moe::warmer(const Batch &batch, bool down, int thread) {
    std::optional<Warmer> warmer;
    parts(batch, down, shares(batch, down, thread).own, [&](const Part &part) {
        if (!warmer)
            warmer.emplace(Place(part.matrix, k_in(down), part.begin, part.end));
    });
    return warmer.value_or(Warmer());
}

void Moe::multiply(const Batch &batch, bool down, int thread) {
    std::optional<Part> held; // until it is known what comes next
    const auto multiply_held = [&](Next next) {
        if (!held)
            return;
        const krasis_matrix &matrix = held->matrix;
        const int64_t slots = held->run.slots, slot = held->run.first - batch.first_slot;
        const bool one_token = !down && call_.m == 1;
        float *y = (down ? out_ : gate_up_) + slot * matrix.n;
        const krasis_job job{&matrix, nullptr, slots, 0, k_in(down), y, matrix.n, matrix.n};
        const Activations activations = from(down ? inner_ : inputs_, matrix, one_token ? 0 : slot);
        held->kernel.multiply({job, activations, panels_of(thread), next}, held->begin, held->end);
    };
    shares(batch, down, thread).each([&](const Share &share) {
        parts(batch, down, share, [&](const Part &part) {
            const Place place(part.matrix, k_in(down), part.begin, part.end);
            multiply_held({place.codes, place.scales});
            held.emplace(part);
        });
    });
    multiply_held({});
}

void Moe::activate(const Batch &batch, int thread) {
    const krasis_experts &experts = call_.experts;
    const int64_t groups = round_up(experts.size, experts.w2.group_size) / experts.w2.group_size;
    double base = 0;
    const Share share(static_cast<double>((batch.last_slot - batch.first_slot) * groups), thread, pool_.threads());
    for (size_t r = batch.first_run; r < batch.last_run; r++)
        for (int64_t i = 0; i < runs_[r].slots; i++, base += groups)
            share.of(base, 1, groups, [&](int64_t begin, int64_t end) {
                const int64_t slot = runs_[r].first + i - batch.first_slot;
                const Activations target = from(inner_, experts.w2, slot);
                kernels_.activate(experts, runs_[r].expert, gate_up_ + slot * experts.w13.n, begin, end, target.q,
                                  target.scale, target.sum);
            });
}

void Moe::add(const Batch &batch, int thread) {
    const krasis_experts &experts = call_.experts;
    const int64_t units = round_up(experts.hidden, kUnit) / kUnit;
    const Share share(static_cast<double>(units), thread, pool_.threads());
    share.of(0, 1, units, [&](int64_t begin, int64_t end) {
        for (size_t r = batch.first_run; r < batch.last_run; r++)
            for (int64_t i = 0; i < runs_[r].slots; i++) {
                const Slot &slot = slots_[runs_[r].first + i];
                const float *x = out_ + (runs_[r].first + i - batch.first_slot) * experts.w2.n;
                kernels_.add_weighted(experts, runs_[r].expert, slot.weight, x, call_.y + slot.token * call_.ldy,
                                      begin * kUnit, end * kUnit);
            }
    });
}

} // namespace krasis

int krasis_moe(krasis_pool *pool, const krasis_experts *experts, const float *x, int64_t m, int64_t ldx,
               const int64_t *ids, const float *weights, int64_t chosen, float *y, int64_t ldy) {
    using namespace krasis;
    if (!pool || !experts)
        return KRASIS_ERROR_NULL;
    const MoeCall call{*experts, x, m, ldx, ids, weights, chosen, y, ldy};
    if (const krasis_status status = check(call))
        return status;
    return alone(*pool, [&] {
        pool->moe.run(call);
        return KRASIS_OK;
    });
}
