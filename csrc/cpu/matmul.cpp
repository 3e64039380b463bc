#include "matmul.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace krasis {
namespace {

constexpr int64_t kLine = 64;
// Fewer activations than this are ready before the other threads are awake.
constexpr int64_t kWorthSharing = 1 << 15;

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Hands out the parts of a buffer, or with a null buffer only measures them.
class Cursor {
public:
    explicit Cursor(unsigned char *at) : at_(reinterpret_cast<uintptr_t>(at)) {}

    template <class T> T *take(int64_t count) {
        T *const part = reinterpret_cast<T *>(at_);
        at_ += round_up(count * sizeof(T), kLine);
        return part;
    }

    uintptr_t at() const { return at_; }

private:
    uintptr_t at_;
};

Activations place(const krasis_job &job, Cursor &cursor) {
    const krasis_matrix &matrix = *job.matrix;
    Activations a{};
    if (matrix.codec == KRASIS_BF16) {
        a.padded_k = round_up(matrix.k, 32);
        a.values = cursor.take<float>(job.m * a.padded_k);
        return a;
    }
    const int64_t groups = matrix.k / matrix.group_size;
    a.q = cursor.take<int8_t>(job.m * matrix.k);
    a.scale = cursor.take<float>(job.m * groups);
    a.sum = cursor.take<int32_t>(job.m * groups);
    return a;
}

bool same_activations(const krasis_job &a, const krasis_job &b) {
    const bool same_form = (a.matrix->codec == KRASIS_BF16) == (b.matrix->codec == KRASIS_BF16) &&
                           a.matrix->k == b.matrix->k && a.matrix->group_size == b.matrix->group_size;
    return same_form && a.x == b.x && a.m == b.m && a.k_in == b.k_in && (a.m <= 1 || a.ldx == b.ldx);
}

int64_t units_of(const krasis_job &job) {
    switch (job.matrix->layout) {
    case KRASIS_LAYOUT_PLAIN: return job.n_out;
    case KRASIS_LAYOUT_MARLIN: return round_up(job.n_out, 64) / kUnit;
    default: return round_up(job.n_out, kUnit) / kUnit;
    }
}

double unit_cost(const krasis_job &job) {
    constexpr double kUnitBytesPerK[] = {kUnit / 2.0, kUnit, sizeof(uint16_t), kUnit / 2.0};
    return kUnitBytesPerK[job.matrix->codec] * job.matrix->k * static_cast<double>(job.m);
}

// The part of a row of equal pieces, laid end to end over all steps, that belongs to one thread.
struct Share {
    double begin, end;

    Share(double total, int thread, int threads)
        : begin(total * thread / threads), end(total * (thread + 1) / threads) {}

    // Calls action(first, last) for the share's pieces of `count` that begin at `base`. A piece belongs to the share
    // in which it begins, so shares cover every piece once.
    template <class Action> void of(double base, double piece, int64_t count, const Action &action) const {
        const auto first = index(begin - base, piece, count), last = index(end - base, piece, count);
        if (first < last)
            action(first, last);
    }

private:
    static int64_t index(double offset, double piece, int64_t count) {
        return static_cast<int64_t>(std::ceil(std::clamp(offset / piece, 0.0, static_cast<double>(count))));
    }
};

} // namespace

void Matmul::run(const krasis_job *jobs, size_t count) {
    plan(jobs, count);
    if (steps_.empty())
        return;
    prepare();
    pool_.run([](void *self, int thread) { static_cast<Matmul *>(self)->multiply_share(thread); }, this);
}

void Matmul::plan(const krasis_job *jobs, size_t count) {
    steps_.clear();
    Cursor measure(nullptr);
    for (size_t i = 0; i < count; i++) {
        const krasis_job &job = jobs[i];
        if (job.m == 0)
            continue;
        const bool shared = !steps_.empty() && same_activations(steps_.back().work.job, job);
        steps_.push_back({{job, {}}, shared ? 0 : job.m, units_of(job), unit_cost(job)});
        if (!shared)
            place(job, measure);
    }
    if (scratch_.size() < measure.at() + kLine)
        scratch_.resize(measure.at() + kLine);
    Cursor cursor(scratch_.data() + kLine - reinterpret_cast<uintptr_t>(scratch_.data()) % kLine);
    for (size_t i = 0; i < steps_.size(); i++) {
        Work &work = steps_[i].work;
        work.activations = steps_[i].tokens ? place(work.job, cursor) : steps_[i - 1].work.activations;
    }
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
    double total = 0, base = 0;
    for (const Step &step : steps_)
        total += step.units * step.unit_cost;
    const Share share(total, thread, pool_.threads());
    for (const Step &step : steps_) {
        const krasis_matrix &matrix = *step.work.job.matrix;
        const auto multiply = kernels_.multiply[matrix.codec][matrix.layout];
        share.of(base, step.unit_cost, step.units, [&](int64_t first, int64_t last) { multiply(step.work, first, last); });
        base += step.units * step.unit_cost;
    }
}

} // namespace krasis
