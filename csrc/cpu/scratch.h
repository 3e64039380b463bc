// Working memory, and where activations lie in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace krasis {

constexpr int64_t kLine = 64;

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

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

// Memory that only grows, aligned to a line.
class Scratch {
public:
    // Throws std::bad_alloc. What was there before is lost.
    unsigned char *of(size_t bytes) {
        if (memory_.size() < bytes + kLine) {
            memory_.clear();
            memory_.resize(bytes + kLine);
        }
        return memory_.data() + kLine - reinterpret_cast<uintptr_t>(memory_.data()) % kLine;
    }

private:
    std::vector<unsigned char> memory_;
};

// Room for what `m` tokens become for a matrix.
inline Activations place(const krasis_matrix &matrix, int64_t m, Cursor &cursor) {
    Activations a{};
    if (matrix.codec == KRASIS_BF16) {
        a.padded_k = round_up(matrix.k, 32);
        a.values = cursor.take<float>(m * a.padded_k);
        return a;
    }
    const int64_t groups = matrix.k / matrix.group_size;
    // Tiles take sixteen tokens at once, whatever the last ones are.
    a.q = cursor.take<int8_t>((m + kTileTokens - 1) * matrix.k);
    a.scale = cursor.take<float>(m * groups);
    a.sum = cursor.take<int32_t>(m * groups);
    return a;
}

} // namespace krasis
