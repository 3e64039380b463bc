// How work is split over threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>

#include "kernels.h"
#include "scratch.h"

namespace krasis {

// The units that make the first n_out columns of a matrix.
inline int64_t units_of(const krasis_matrix &matrix, int64_t n_out) {
    switch (matrix.layout) {
    case KRASIS_LAYOUT_PLAIN: return n_out;
    case KRASIS_LAYOUT_MARLIN: return round_up(n_out, 64) / kUnit;
    default: return round_up(n_out, kUnit) / kUnit;
    }
}

// Half a tile of `marlin`: with less, runs of memory get short; with more, threads wait for the last.
constexpr int kMarlinUnits = 2;

// The kernel for so many tokens, and how finely its columns are split.
struct Kernel {
    Kernels::Multiply multiply;
    int64_t units; // to a piece

    Kernel(const Kernels &kernels, const krasis_matrix &matrix, int64_t m) {
        const Kernels::Multiply many = kernels.multiply_many[matrix.codec][matrix.layout];
        const bool use = m >= kMany && many;
        multiply = use ? many : kernels.multiply[matrix.codec][matrix.layout];
        units = use ? kPanelUnits : matrix.layout == KRASIS_LAYOUT_MARLIN ? kMarlinUnits : 1;
    }
};

// What a thread needs for the panels of a matrix.
inline int64_t panel_bytes(const krasis_matrix &matrix) {
    if (matrix.codec == KRASIS_BF16)
        return 0;
    return kPanelUnits * kUnit * (matrix.k + matrix.k / matrix.group_size * static_cast<int64_t>(sizeof(float)));
}

// In weight bytes times tokens.
inline double unit_cost(const krasis_matrix &matrix, int64_t m) {
    constexpr double kUnitBytesPerK[] = {kUnit / 2.0, kUnit, sizeof(uint16_t), kUnit / 2.0};
    return kUnitBytesPerK[matrix.codec] * matrix.k * static_cast<double>(m);
}

// A part of a row of equal pieces, laid end to end over all steps.
struct Share {
    double begin, end;

    Share(double begin, double end) : begin(begin), end(end) {}
    // Of one thread, where all have as much.
    Share(double total, int thread, int threads) : Share(total * thread / threads, total * (thread + 1) / threads) {}

    // Calls action(first, last) for the share's pieces of `count` that begin at `base`. A piece belongs to the share
    // in which it begins, so shares cover every piece once.
    template <class Action> void of(double base, double piece, int64_t count, const Action &action) const {
        const auto first = index(begin - base, piece, count), last = index(end - base, piece, count);
        if (first < last)
            action(first, last);
    }

    // The same for the units of a product, in whole pieces of its kernel.
    template <class Action>
    void of(double base, double unit, int64_t units, const Kernel &kernel, const Action &action) const {
        of(base, unit * kernel.units, round_up(units, kernel.units) / kernel.units, [&](int64_t first, int64_t last) {
            action(first * kernel.units, std::min(last * kernel.units, units));
        });
    }

private:
    static int64_t index(double offset, double piece, int64_t count) {
        return static_cast<int64_t>(std::ceil(std::clamp(offset / piece, 0.0, static_cast<double>(count))));
    }
};

// A thread's share of most of the work, then pieces of the rest, which go to whoever comes first: threads are never
// equally fast.
class Shares {
public:
    // `taken` counts the pieces of all threads, from zero.
    Shares(double total, int thread, int threads, std::atomic<int> &taken)
        : total_(total), pieces_(threads > 1 ? kPieces * threads : 0), taken_(taken),
          own(thread ? most() * thread / threads : 0, thread + 1 < threads ? most() * (thread + 1) / threads : most()) {}

    template <class Action> void each(const Action &action) const {
        action(own);
        for (int i; (i = taken_.fetch_add(1, std::memory_order_relaxed)) < pieces_;)
            action(Share(border(i), border(i + 1)));
    }

private:
    static constexpr double kRest = 0.25;
    static constexpr int kPieces = 4; // a thread

    // What borders is computed alike on both sides: nothing is done twice or left out.
    double most() const { return pieces_ ? border(0) : total_; }
    double border(int piece) const { return total_ * (1 - kRest * (pieces_ - piece) / pieces_); }

    double total_;
    int pieces_;
    std::atomic<int> &taken_;

public:
    const Share own;
};

} // namespace krasis
