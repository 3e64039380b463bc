"""The native quantizer against the reference, bit for bit: codec x group x layout x instruction set x ragged shape."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from krasis import layout as layouts
from krasis import quant
from krasis.layout import marlin
from krasis.native import cpu
from krasis.native.quantize import BLOCK, Target, pack, quantize
from krasis.quant.codec import Quantized
from krasis.quant.groups import power_of_two, relative_importance

CODECS = ("int4", "int8", "mxfp4")
GROUPS = [(codec, group) for codec in CODECS for group in quant.get(codec).GROUP_SIZES]
ISAS = [isa for isa in cpu.ISAS if cpu.ISAS.index(isa) <= cpu.ISAS.index(cpu.best_isa())]
LAYOUTS = ("cpu", "marlin")
# Rows and columns of a part, and how many parts: whole, ragged, smaller than a block or a group, parts of half a block.
SHAPES = [(128, 256, 1), (101, 333, 1), (64, 128, 2), (3, 5, 2), (70, 97, 3), (1, 1, 1)]
MODELS = Path(__file__).parents[1] / "examples" / "models"
every_isa = pytest.mark.parametrize("isa", ISAS)
every_codec = pytest.mark.parametrize(("codec", "group"), GROUPS)


def weights(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Heavy-tailed, of very different sizes from row to row, some of them zero."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator) / torch.rand(rows, columns, generator=generator).sqrt()
    values[torch.rand(rows, columns, generator=generator) < 0.05] = 0
    return values * torch.exp2(torch.randint(-20, 20, (rows, 1), generator=generator).float())


def importance_of(columns: int) -> Tensor:
    values = torch.randn(columns, generator=torch.Generator().manual_seed(columns)).square()
    values[::7] *= 1000
    values[3::11] = 0
    return values


def padded_shape(parts: list[Tensor], group: int) -> tuple[int, int]:
    """(N, K) as packs pad them: every part at its end, as long as the others."""
    k, n = marlin.padded_shape(parts[0].shape[1], len(parts) * max(map(len, parts)), group)
    while n % len(parts):
        k, n = marlin.padded_shape(k, n + 1, group)
    return n, k


def pad(parts: list[Tensor], padded: tuple[int, int], value: float = 0) -> Tensor:
    rows = padded[0] // len(parts)
    return torch.cat([functional.pad(p, (0, padded[1] - p.shape[1], 0, rows - len(p)), value=value) for p in parts])


def empty_targets(codec: str, padded: tuple[int, int], group: int) -> list[Target]:
    (n, k), targets = padded, []
    for name in LAYOUTS:
        order = layouts.get(name)
        codes = torch.full(order.packed_shape(k, n, quant.get(codec).BITS), 77, dtype=order.PACKED_DTYPE)
        scales = torch.full(order.scales_shape(k, n, group), 77, dtype=quant.get(codec).SCALE_DTYPE)
        targets.append(Target(name, codes, scales))
    return targets


def assert_holds(targets: list[Target], codec: str, quantized: Quantized) -> None:
    for target in targets:
        order, k = layouts.get(target.layout), len(quantized.codes)
        assert torch.equal(target.codes, order.pack(quantized.codes, quant.get(codec).BITS))
        expected = order.pack_scales(quantized.scales, k, quantized.group_size)
        # As bits, so that -0 is not 0.
        assert torch.equal(target.scales.view(torch.uint8), expected.view(torch.uint8))


def ascending(values: Tensor) -> Tensor:
    """[A, B, ...] -> [A, ...], summed over B from its first on."""
    total = torch.zeros_like(values[:, 0])
    for i in range(values.shape[1]):
        total = total + values[:, i]
    return total


def squares(values: Tensor, group: int, shares: Tensor | None = None) -> Tensor:
    """float32 [N, K] -> float64 [N, K/g]: even and odd k apart, ascending, in float32."""
    found = values.square().view(len(values), -1, group)
    if shares is not None:
        found = found * shares.view(1, -1, group)
    return (ascending(found[..., ::2].transpose(1, 2)) + ascending(found[..., 1::2].transpose(1, 2))).double()


def errors_of(codec: str, weight: Tensor, quantized: Quantized, importance: Tensor | None) -> Tensor:
    """What `quantize` returns, of a padded float32 matrix."""
    group, n = quantized.group_size, len(weight)
    groups, approx = weight.view(n, -1, group), quant.get(codec).dequantize(quantized).view(n, -1, group)
    if codec == "int4":
        # Exact sums of whole numbers, against the step in float32.
        high, low = groups.amax(2, keepdim=True), groups.amin(2, keepdim=True)
        peaks = torch.where(high >= -low, high, low)
        factors = torch.tensor(-(2**15) / 2.75) / torch.where(peaks.abs() < 2.0**-100, 1.0, peaks)
        scales = quantized.scales.float().t().unsqueeze(2)
        steps, x = (scales * factors), (groups * factors).round()
        numbers = (quantized.codes.t().double() - 8).view(n, -1, group)
        a, b = (x.double() * numbers).sum(2), numbers.square().sum(2)
        energy, s = x.double().square().sum(2), steps.squeeze(2).double()
        sums, unit = [(energy - 2 * s * a + s * s * b).clamp_min(0), energy], factors.squeeze(2).double()
        near = numbers.float() * steps

        def scaled(value: Tensor) -> Tensor:
            return value * (1 / (unit * unit))

    else:
        unit = power_of_two(groups.abs().amax(2, keepdim=True))[0].squeeze(2).double()
        x, near = groups / unit.float().unsqueeze(2), approx / unit.float().unsqueeze(2)
        sums = [squares(v.view(n, -1), group) for v in (x - near, x)]

        def scaled(value: Tensor) -> Tensor:
            return value * (unit * unit)

    sums = [scaled(value) for value in sums]
    if importance is not None:
        shares, largest = relative_importance(importance, weight.shape[1], group), importance.view(-1, group).amax(1)
        sums += [scaled(squares(v.view(n, -1), group, shares)) * largest.double() for v in (x - near, x)]
    found = torch.stack(sums, dim=2)
    return ascending(ascending(found).view(-1, BLOCK, len(sums)))


def check(parts: list[Tensor], codec: str, group: int, isa: str | None, importance: Tensor | None = None) -> Tensor:
    padded = padded_shape(parts, group)
    targets = empty_targets(codec, padded, group)
    found = quantize(codec, parts, padded, group, targets, importance=importance, isa=isa)
    weight = pad([part.float() for part in parts], padded)
    if importance is not None:
        importance = functional.pad(importance, (0, padded[1] - len(importance)))
    expected = quant.get(codec).quantize(weight, group, importance)
    assert_holds(targets, codec, expected)
    assert torch.equal(found, errors_of(codec, weight, expected, importance))
    return found


@every_isa
@every_codec
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_quantize(codec: str, group: int, shape: tuple[int, int, int], dtype: torch.dtype, isa: str) -> None:
    rows, columns, count = shape
    check([weights(rows, columns, seed).clamp(-6e4, 6e4).to(dtype) for seed in range(count)], codec, group, isa)


@every_isa
@every_codec
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_importance(codec: str, group: int, shape: tuple[int, int, int], isa: str) -> None:
    rows, columns, count = shape
    parts = [weights(rows, columns, seed).bfloat16() for seed in range(count)]
    for importance in (importance_of(columns), torch.zeros(columns)):
        check(parts, codec, group, isa, importance)


@every_isa
@every_codec
def test_rows_may_be_any_distance_apart(codec: str, group: int, isa: str) -> None:
    whole = weights(140, 200).bfloat16()
    check([whole[::2, 7:171], whole[1::2, 7:171]], codec, group, isa)
    check([whole.t()[:70]], codec, group, isa)
    check([whole[:1].expand(70, 200)], codec, group, isa)


@every_isa
@every_codec
def test_rows_may_be_split_over_threads(codec: str, group: int, isa: str) -> None:
    parts, importance = [weights(90, 200, seed).bfloat16() for seed in range(2)], importance_of(200)
    whole = check(parts, codec, group, isa, importance)
    padded = padded_shape(parts, group)
    targets = empty_targets(codec, padded, group)

    def some(first: int) -> Tensor:
        rows = range(first, first + BLOCK)
        return quantize(codec, parts, padded, group, targets, rows=rows, importance=importance, isa=isa)

    with ThreadPoolExecutor(2) as pool:
        found = torch.cat(list(pool.map(some, range(0, padded[0], BLOCK))))
    assert torch.equal(found, whole)
    once = empty_targets(codec, padded, group)
    quantize(codec, parts, padded, group, once, importance=importance, isa=isa)
    for target, expected in zip(targets, once, strict=True):
        assert torch.equal(target.codes, expected.codes)
        assert torch.equal(target.scales, expected.scales)


def extremes() -> Tensor:
    """Rows of 128: zeros of both signs, subnormals, the smallest and largest, ties, one value, a lone peak."""
    rows = [torch.zeros(128), -torch.zeros(128)]
    rows += [weights(1, 128, seed)[0] * scale for seed in range(3) for scale in (2.0**-149, 2.0**-130, 2.0**-126)]
    rows += [torch.linspace(-1, 1, 128) * 2.0**e for e in (-140, -126, -125, -124, -101, -100, -99, -60, 60, 126)]
    rows += [torch.full((128,), sign * 2.0**127 * (1 - 2.0**-24)) for sign in (-1, 1)]
    rows += [torch.full((128,), 2.0**e) for e in (-126, -100, 0, 126)]
    rows += [torch.arange(-64, 64) / 8, torch.arange(-64, 64) / 64, torch.arange(128) % 16 - 7.5]
    rows += [torch.eye(128)[5] * 3, torch.eye(128)[99] * -3 + 0.1, torch.tensor([1.0, -1.0] * 64)]
    rows += [torch.tensor([1.0] + [0.0499] * 127), torch.tensor([-1.0] + [2.0**-100] * 127)]
    return torch.stack(rows)


@every_isa
@every_codec
def test_special_values(codec: str, group: int, isa: str) -> None:
    check([extremes()], codec, group, isa)
    check([extremes().bfloat16().clamp(-1.5e38, 1.5e38)], codec, group, isa, importance_of(128))


@pytest.mark.parametrize("family", sorted(path.name for path in MODELS.iterdir()))
def test_weights_of_trained_models(family: str) -> None:
    isa = cpu.best_isa()
    for path in sorted((MODELS / family).glob("*.safetensors"))[:1]:
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if file.get_tensor(name).ndim == 2]  # noqa: SIM118
            for name in names[::7]:
                weight = file.get_tensor(name)
                if weight.is_floating_point():
                    for codec, group in GROUPS:
                        check([weight[:256]], codec, group, isa)


@every_isa
@every_codec
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pack(codec: str, group: int, shape: tuple[int, int, int], isa: str) -> None:
    rows, columns, count = shape
    kind, groups = quant.get(codec), -(-columns // group)
    generator = torch.Generator().manual_seed(1)
    codes = [
        torch.randint(0, 1 << kind.BITS, (2 * rows, columns), generator=generator).byte()[::2] for _ in range(count)
    ]
    scales = [torch.randint(1, 120, (rows, groups), generator=generator).to(kind.SCALE_DTYPE) for _ in range(count)]
    padded = padded_shape(codes, group)
    targets = empty_targets(codec, padded, group)
    pack(codec, codes, scales, padded, group, targets, isa=isa)
    expected_scales = pad(scales, (padded[0], padded[1] // group))
    assert_holds(targets, codec, Quantized(pad(codes, padded, kind.ZERO).t(), expected_scales.t()))


def test_dequantized_weights_come_back_and_leave_no_error() -> None:
    codes = torch.randint(0, 16, (256, 64), generator=torch.Generator().manual_seed(0)).byte()
    codes[::32] = 0
    scales = (torch.rand(8, 64, generator=torch.Generator().manual_seed(1)) + 0.5).bfloat16()
    exact = Quantized(codes, scales)
    targets = empty_targets("int4", (64, 256), 32)
    errors = quantize("int4", [quant.get("int4").dequantize(exact)], (64, 256), 32, targets)
    assert errors[0, 0] < 1e-8 * errors[0, 1]
    assert_holds(targets, "int4", exact)
