#include "matmul.h"

#include "share.h"

namespace krasis {
namespace {

// Fewer activations than this are ready before the other threads are awake.
constexpr int64_t kWorthSharing = 1 << 15;

bool same_activations(const krasis_job &a, const krasis_job &b) {
    const bool same_form = (a.matrix->codec == KRASIS_BF16) == (b.matrix->codec == KRASIS_BF16) &&
                           a.matrix->k == b.matrix->k && a.matrix->group_size == b.matrix->group_size;
    return same_form && a.x == b.x && a.m == b.m && a.k_in == b.k_in && (a.m <= 1 || a.ldx == b.ldx);
}

} // namespace

void Matmul::run(const krasis_job *jobs, size_t count) {
    plan(jobs, count);
    if (steps_.empty())
        return;
    prepare();
    taken_ = 0;
    pool_.run([](void *self, int thread) { static_cast<Matmul *>(self)->multiply_share(thread); }, this);
}

void Matmul::plan(const krasis_job *jobs, size_t count) {
    steps_.clear();
    panel_bytes_ = 0;
    Cursor measure(nullptr);
    for (size_t i = 0; i < count; i++) {
        const krasis_job &job = jobs[i];
        if (job.m == 0)
            continue;
        const bool shared = !steps_.empty() && same_activations(steps_.back().work.job, job);
        steps_.push_back({{job, {}, nullptr}, shared ? 0 : job.m, units_of(*job.matrix, job.n_out), unit_cost(*job.matrix, job.m)});
        if (!shared)
            place(*job.matrix, job.m, measure);
        if (job.m >= kMany)
            panel_bytes_ = std::max(panel_bytes_, round_up(panel_bytes(*job.matrix), kLine));
    }
    measure.take<unsigned char>(panel_bytes_ * pool_.threads());
    Cursor cursor(scratch_.of(measure.at()));
    for (size_t i = 0; i < steps_.size(); i++) {
        Work &work = steps_[i].work;
        work.activations = steps_[i].tokens ? place(*work.job.matrix, work.job.m, cursor) : steps_[i - 1].work.activations;
    }
    panels_ = cursor.take<unsigned char>(panel_bytes_ * pool_.threads());
}

void Matmul::prepare() {
    int64_t activations = 0;
    for (const Step &step : steps_)
        activations += step.tokens * step.work.job.matrix->k;
    if (activations >= kWorthSharing)
        return pool_.run([](void *self, int thread) { static_cast<Matmul *>(self)->prepare_share(thread); }, this);
    for (const Step &step : steps_)
        kernels_.prepare[step.work.job.matrix->codec](step.work, 0, step.tokens);
}

void Matmul::prepare_share(int thread) {
    double total = 0, base = 0;
    for (const Step &step : steps_)
        total += step.tokens;
    const Share share(total, thread, pool_.threads());
    for (const Step &step : steps_) {
        const auto prepare = kernels_.prepare[step.work.job.matrix->codec];
        share.of(base, 1, step.tokens, [&](int64_t first, int64_t last) { prepare(step.work, first, last); });
        base += step.tokens;
    }
}

void Matmul::multiply_share(int thread) {
    double total = 0;
    for (const Step &step : steps_)
        total += step.units * step.unit_cost;
    Shares(total, thread, pool_.threads(), taken_).each([&](const Share &share) {
        double base = 0;
        for (const Step &step : steps_) {
            const Kernel kernel(kernels_, *step.work.job.matrix, step.work.job.m);
            Work work = step.work;
            work.panels = panels_of(thread);
            share.of(base, step.unit_cost, step.units, kernel, [&](int64_t first, int64_t last) {
                kernel.multiply(work, first, last);
            });
            base += step.units * step.unit_cost;
        }
    });
}

} // namespace krasis
