// The quantization half of the C ABI: checks its arguments, and runs the quantizer of an instruction set.
#include <cstddef>
#include <cstdint>

#include "check.h"
#include "isa.h"

namespace krasis {
namespace {

constexpr int64_t kMostColumns = int64_t(1) << 40; // keeps every offset far inside 64 bits

krasis_status check_packing(const krasis_packing &packing, int32_t parts, int64_t first, int64_t last) {
    if (packing.codec == KRASIS_BF16)
        return KRASIS_ERROR_CODEC;
    if (parts < 1 || packing.target_count < 0)
        return KRASIS_ERROR_SHAPE;
    if (!packing.targets && packing.target_count > 0)
        return KRASIS_ERROR_NULL;
    for (int i = 0; i < packing.target_count; i++) {
        const krasis_target &target = packing.targets[i];
        const krasis_matrix matrix{target.codes, target.scales, packing.codec, target.layout,
                                   packing.k,    packing.n,     packing.group_size};
        if (const krasis_status status = check(matrix))
            return status;
        if (!aligned(target.codes, sizeof(uint32_t)))
            return KRASIS_ERROR_ALIGNMENT;
    }
    const krasis_matrix matrix{&packing, &packing, packing.codec, KRASIS_LAYOUT_CPU, packing.k, packing.n, packing.group_size};
    if (const krasis_status status = check(matrix))
        return status;
    const bool in_range = packing.n % parts == 0 && first >= 0 && first <= last && last <= packing.n / kBlock;
    return in_range ? KRASIS_OK : KRASIS_ERROR_SHAPE;
}

bool fits(const krasis_packing &packing, int32_t parts, int64_t rows, int64_t columns, int64_t stride) {
    const bool inside = rows >= 0 && rows <= packing.n / parts && columns >= 1 && columns <= packing.k;
    return inside && stride >= 0 && stride <= kMostColumns;
}

krasis_status check_weights(const krasis_weights &weights, const krasis_packing &packing) {
    if (!weights.parts)
        return KRASIS_ERROR_NULL;
    if (weights.type < KRASIS_FLOAT32 || weights.type > KRASIS_FLOAT16)
        return KRASIS_ERROR_TYPE;
    const size_t bytes = weights.type == KRASIS_FLOAT32 ? 4 : 2;
    for (int i = 0; i < weights.count; i++) {
        const krasis_part &part = weights.parts[i];
        if (!fits(packing, weights.count, part.rows, weights.columns, part.stride))
            return KRASIS_ERROR_SHAPE;
        if (!part.values && part.rows > 0)
            return KRASIS_ERROR_NULL;
        if (!aligned(part.values, bytes))
            return KRASIS_ERROR_ALIGNMENT;
    }
    return aligned(weights.importance, sizeof(float)) ? KRASIS_OK : KRASIS_ERROR_ALIGNMENT;
}

krasis_status check_codes(const krasis_codes *parts, int32_t count, const krasis_packing &packing) {
    const size_t bytes = packing.codec == KRASIS_MXFP4 ? 1 : 2;
    for (int i = 0; i < count; i++) {
        const krasis_codes &part = parts[i];
        if (!fits(packing, count, part.rows, part.columns, part.codes_stride) ||
            !fits(packing, count, part.rows, part.columns, part.scales_stride))
            return KRASIS_ERROR_SHAPE;
        if ((!part.codes || !part.scales) && part.rows > 0)
            return KRASIS_ERROR_NULL;
        if (!aligned(part.scales, bytes))
            return KRASIS_ERROR_ALIGNMENT;
    }
    return KRASIS_OK;
}

const Quantizers *quantizers(int isa) { return quantizers_of(isa == KRASIS_ISA_AUTO ? best_isa() : isa); }

} // namespace
} // namespace krasis

int krasis_quantize(int isa, const krasis_weights *weights, const krasis_packing *packing, int64_t first, int64_t last,
                    double *errors) {
    if (!weights || !packing || !errors)
        return KRASIS_ERROR_NULL;
    if (const krasis_status status = krasis::check_packing(*packing, weights->count, first, last))
        return status;
    if (const krasis_status status = krasis::check_weights(*weights, *packing))
        return status;
    const krasis::Quantizers *quantizers = krasis::quantizers(isa);
    if (!quantizers)
        return KRASIS_ERROR_ISA;
    const krasis::Quantize work{*weights, *packing, nullptr, errors};
    return quantizers->quantize[packing->codec](work, first, last) ? KRASIS_OK : KRASIS_ERROR_VALUE;
}

int krasis_pack(int isa, const krasis_codes *parts, int32_t count, const krasis_packing *packing, int64_t first,
                int64_t last) {
    if (!parts || !packing)
        return KRASIS_ERROR_NULL;
    if (const krasis_status status = krasis::check_packing(*packing, count, first, last))
        return status;
    if (const krasis_status status = krasis::check_codes(parts, count, *packing))
        return status;
    const krasis::Quantizers *quantizers = krasis::quantizers(isa);
    if (!quantizers)
        return KRASIS_ERROR_ISA;
    krasis_weights weights{};
    weights.count = count;
    quantizers->pack[packing->codec]({weights, *packing, parts, nullptr}, first, last);
    return KRASIS_OK;
}
