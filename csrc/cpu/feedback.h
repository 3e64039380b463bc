// INT4 codes by error feedback: 16 rows of the matrix a register, each column making up for those before it.
#pragma once

#include <math.h>

#include "kernels.h"

namespace krasis {

constexpr int kFeedbackColumns = 4; // whose sums are kept in registers at once
constexpr int kFeedbackUnits = 4;   // of kUnit rows that read the same shares, one after the other

struct Feedback {
    const float *weight;    // [n][k]
    const float *shares;    // [k][k], of the errors of the columns before
    const uint16_t *scales; // [n][k / group_size]
    const float *importance;
    int64_t n, k, group_size;
    uint8_t *codes; // [n][k]
    double *sums;   // [n][4]: errors, weights, and both by importance; zero at first
};

// Codes of column `column` of `kUnit` rows from `row` on, whose weights with feedback are `fed`, and their `error`.
template <class Isa>
void round_column(const Feedback &job, int64_t row, int64_t column, typename Isa::Floats fed, float *error) {
    const int64_t groups = job.k / job.group_size, group = column / job.group_size;
    uint16_t scales[kUnit];
    float weight[kUnit], step[kUnit], wanted[kUnit], number[kUnit];
    for (int i = 0; i < kUnit; i++) {
        scales[i] = job.scales[(row + i) * groups + group];
        weight[i] = job.weight[(row + i) * job.k + column];
    }
    Isa::store_floats(step, Isa::widen(scales));
    Isa::store_floats(wanted, fed);
    for (int i = 0; i < kUnit; i++) {
        const float nearest = rintf(wanted[i] / step[i]);
        const float above = nearest > -8 ? nearest : -8;
        const float within = above < 7 ? above : 7;
        number[i] = step[i] == 0 || weight[i] == 0 ? 0 : within;
        error[i] = weight[i] - number[i] * step[i];
    }
    const double importance = job.importance[column];
    for (int i = 0; i < kUnit; i++) {
        job.codes[(row + i) * job.k + column] = (uint8_t)(int)(number[i] + 8);
        const double exact = weight[i], off = exact - (double)number[i] * step[i];
        double *sums = job.sums + (row + i) * 4;
        sums[0] += off * off;
        sums[1] += exact * exact;
        sums[2] += off * off * importance;
        sums[3] += exact * exact * importance;
    }
}

// Columns [first, first + kFeedbackColumns) of `kUnit` rows; `errors` [k][kUnit] has those of the columns before.
template <class Isa> void round_columns(const Feedback &job, int64_t row, int64_t first, float *errors) {
    typename Isa::Floats sums[kFeedbackColumns];
    const float *shares[kFeedbackColumns];
    for (int c = 0; c < kFeedbackColumns; c++) {
        float start[kUnit];
        for (int i = 0; i < kUnit; i++)
            start[i] = job.weight[(row + i) * job.k + first + c];
        sums[c] = Isa::load_floats(start);
        shares[c] = job.shares + (first + c) * job.k;
    }
    for (int64_t j = 0; j < first; j++) {
        const auto error = Isa::load_floats(errors + j * kUnit);
        for (int c = 0; c < kFeedbackColumns; c++)
            sums[c] = Isa::fma(Isa::floats(shares[c][j]), error, sums[c]);
    }
    for (int c = 0; c < kFeedbackColumns; c++) {
        float *error = errors + (first + c) * kUnit;
        round_column<Isa>(job, row, first + c, sums[c], error);
        const auto own = Isa::load_floats(error);
        for (int later = c + 1; later < kFeedbackColumns; later++)
            sums[later] = Isa::fma(Isa::floats(shares[later][first + c]), own, sums[later]);
    }
}

// `errors` has room for kFeedbackUnits * kUnit * k.
template <class Isa> void feed_back(const Feedback &job, float *errors) {
    const int64_t units = job.n / kUnit;
    for (int64_t unit = 0; unit < units; unit += kFeedbackUnits) {
        const int64_t last = units - unit < kFeedbackUnits ? units - unit : kFeedbackUnits;
        for (int64_t first = 0; first < job.k; first += kFeedbackColumns)
            for (int64_t i = 0; i < last; i++)
                round_columns<Isa>(job, (unit + i) * kUnit, first, errors + i * kUnit * job.k);
    }
}

} // namespace krasis
