"""The fused mixture of experts against NumPy, bit for bit, activation included."""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
import torch
from native_reference import (
    CODECS_IN_GROUPS,
    F32,
    ISAS,
    LAYOUTS,
    Weights,
    assert_same,
    every_isa,
    every_layout,
    fma,
    pool,
    random_weights,
    random_x,
    reference,
)
from numpy.typing import NDArray

from krasis.errors import InputError, KrasisError
from krasis.native.cpu import Matrix, Pool
from krasis.native.moe import ExpertShape, NativeActivation, NativeExperts

Ids = NDArray[np.int64]
SWIGLU = NativeActivation()
CLAMPED = NativeActivation("clamped_swiglu", 1.702, 7.0)
ALIGN = 64


def exp(x: F32) -> F32:
    """As csrc/cpu/functions.h has it."""

    def constant(value: float) -> F32:
        return np.full_like(x, value)

    x = np.maximum(np.minimum(x, np.float32(88)), np.float32(-87))
    n = np.rint(x * np.float32(float.fromhex("0x1.715476p+0")))
    r = fma(n, constant(-float.fromhex("0x1.62e4p-1")), x)
    r = fma(n, constant(-float.fromhex("0x1.7f7d1cp-20")), r)
    y = constant(1 / 5040)
    for over in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1, 1):
        y = fma(y, r, constant(over))
    return y * (2.0**n).astype(np.float32)


def sigmoid(x: F32) -> F32:
    return np.float32(1) / (np.float32(1) + exp(np.float32(0) - x))


def activate(activation: NativeActivation, gate: F32, up: F32) -> F32:
    if activation.name == "swiglu":
        return gate * sigmoid(gate) * up
    limit = np.float32(activation.limit)
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return (up + np.float32(1)) * gate * sigmoid(gate * np.float32(activation.alpha))


@dataclass
class Layer:
    """Experts of logical `hidden` and `size`, padded as their weights are."""

    hidden: int
    size: int
    w13: list[Weights]
    w2: list[Weights]
    b13: F32 | None = None
    b2: F32 | None = None
    activation: NativeActivation = SWIGLU

    def reference(self, x: F32, ids: Ids, weights: F32) -> F32:
        y = np.zeros_like(x)
        for expert in range(len(self.w13)):
            for token, slot in zip(*np.nonzero(ids == expert), strict=True):
                out = self._expert(expert, x[token : token + 1])
                y[token] = fma(np.full(self.hidden, weights[token, slot], np.float32), out, y[token])
        return y

    def _expert(self, expert: int, x: F32) -> F32:
        both = reference(x, self.w13[expert])
        if self.b13 is not None:
            both = both + self.b13[expert]
        half = both.shape[1] // 2
        inner = activate(self.activation, both[:, : self.size], both[:, half : half + self.size])
        out = reference(inner, self.w2[expert])[0]
        return (out if self.b2 is None else out + self.b2[expert])[: self.hidden]

    def native(self, workers: Pool, layout: str, bias_dtype: torch.dtype = torch.float32) -> NativeExperts:
        """Records side by side in one run of memory, as in a pack."""
        records = []
        for expert in range(len(self.w13)):
            w13, w2 = self.w13[expert].packed(layout), self.w2[expert].packed(layout)
            parts = [w13.codes, w13.scales, w2.codes, w2.scales]
            parts += [torch.from_numpy(b[expert]).to(bias_dtype) for b in (self.b13, self.b2) if b is not None]
            records.append((w13, w2, parts))
        offsets = [0]
        for part in records[0][2]:
            offsets.append(-(-(offsets[-1] + part.nbytes) // ALIGN) * ALIGN)
        stride = offsets[-1]
        memory = torch.zeros(len(records) * stride, dtype=torch.uint8)
        for expert, (_, _, parts) in enumerate(records):
            for part, offset in zip(parts, offsets, strict=False):
                at = expert * stride + offset
                memory[at : at + part.nbytes] = part.contiguous().view(-1).view(torch.uint8)
        w13, w2, parts = records[0]
        first = [
            memory[at : at + part.nbytes].view(part.dtype).view(part.shape)
            for part, at in zip(parts, offsets, strict=False)
        ]
        biases = iter(first[4:])
        return NativeExperts(
            workers,
            replace_arrays(w13, *first[:2]),
            replace_arrays(w2, *first[2:4]),
            ExpertShape(len(records), stride, self.hidden, self.size),
            self.activation,
            next(biases) if self.b13 is not None else None,
            next(biases) if self.b2 is not None else None,
        )


def replace_arrays(matrix: Matrix, codes: torch.Tensor, scales: torch.Tensor) -> Matrix:
    return Matrix(matrix.codec, matrix.layout, matrix.k, matrix.n, matrix.group_size, codes, scales)


def random_layer(seed: int, codec: str, group: int, hidden: int, size: int, experts: int = 5) -> Layer:
    rng = np.random.default_rng(seed)
    padded_hidden, padded_size = (-(-value // 128) * 128 for value in (hidden, size))
    w13 = [random_weights(rng, codec, padded_hidden, 2 * padded_size, group, 0.2) for _ in range(experts)]
    w2 = [random_weights(rng, codec, padded_size, padded_hidden, group, 0.2) for _ in range(experts)]
    return Layer(hidden, size, w13, w2)


def with_biases(layer: Layer) -> Layer:
    rng, count = np.random.default_rng(9), len(layer.w13)

    def bias(matrix: Weights) -> F32:
        values = rng.standard_normal((count, matrix.codes.shape[1]), dtype=np.float32)
        return torch.from_numpy(values).bfloat16().float().numpy()

    return replace(layer, b13=bias(layer.w13[0]), b2=bias(layer.w2[0]))


def random_routes(seed: int, tokens: int, experts: int, chosen: int) -> tuple[Ids, F32]:
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(experts)[:chosen] for _ in range(tokens)]).reshape(tokens, chosen)
    return ids, rng.random((tokens, chosen), dtype=np.float32)


def run(experts: NativeExperts, x: F32, ids: Ids, weights: F32) -> torch.Tensor:
    return experts(*map(torch.from_numpy, (x, ids, weights)))


@every_isa
@every_layout
@pytest.mark.parametrize(("codec", "group"), CODECS_IN_GROUPS)
def test_experts(codec: str, group: int, layout: str, isa: str) -> None:
    """Ragged sizes, from one token to more than a tile of them, on every number of threads."""
    layer = random_layer(group, codec, group, hidden=100, size=77)
    ids, weights = random_routes(1, 40, experts=5, chosen=3)
    x = random_x(np.random.default_rng(2), 40, layer.hidden)
    expected = layer.reference(x, ids, weights)
    for threads, m in product((1, 2, 5), (1, 2, 40)):
        found = run(layer.native(pool(threads, isa), layout), x[:m], ids[:m], weights[:m])
        assert_same(found, expected[:m])


@every_isa
@every_layout
@pytest.mark.parametrize(("codec", "group"), CODECS_IN_GROUPS)
def test_the_first_features_of_larger_experts(codec: str, group: int, layout: str, isa: str) -> None:
    """As many as there are and fewer, whole tiles and groups or not; those that follow are anything but zero."""
    whole = with_biases(random_layer(group, codec, group, hidden=100, size=340))
    ids, weights = random_routes(21, 9, experts=5, chosen=5)
    x = random_x(np.random.default_rng(22), 9, whole.hidden)
    for size, threads in ((340, 2), (256, 3), (128, 1), (64, 5), (9, 2)):
        layer = replace(whole, size=size)
        native, expected = layer.native(pool(threads, isa), layout), layer.reference(x, ids, weights)
        for m in (1, 9):
            assert_same(run(native, x[:m], ids[:m], weights[:m]), expected[:m])


@every_layout
@pytest.mark.parametrize("threads", [2, 3, 6, 7, 11])
def test_threads_leave_no_column_out(threads: int, layout: str) -> None:
    """A share and the pieces after it end where others begin, for numbers of threads that no float divides by."""
    layer = random_layer(17, "int8", 128, hidden=640, size=320, experts=9)
    ids, weights = random_routes(17, 4, experts=9, chosen=7)
    x = random_x(np.random.default_rng(18), 4, layer.hidden)
    many, one = (layer.native(pool(count, ISAS[-1]), layout) for count in (threads, 1))
    for m in (1, 4):
        expected = run(one, x[:m], ids[:m], weights[:m])
        for _ in range(5):
            assert torch.equal(run(many, x[:m], ids[:m], weights[:m]), expected)
            run(many, -x[:m], ids[:m], weights[:m])  # so that no old result is right


@every_isa
@every_layout
@pytest.mark.parametrize("activation", [NativeActivation(), CLAMPED], ids=lambda a: a.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_biases_and_activations(dtype: torch.dtype, activation: NativeActivation, layout: str, isa: str) -> None:
    layer = replace(with_biases(random_layer(3, "mxfp4", 32, hidden=128, size=90)), activation=activation)
    ids, weights = random_routes(3, 6, experts=5, chosen=4)
    x = random_x(np.random.default_rng(4), 6, layer.hidden)
    assert_same(run(layer.native(pool(2, isa), layout, dtype), x, ids, weights), layer.reference(x, ids, weights))


@every_layout
def test_more_tokens_at_one_expert_than_are_held_at_once(layout: str) -> None:
    layer = random_layer(5, "int4", 64, hidden=64, size=64, experts=3)
    tokens = 2500
    ids, weights = random_routes(5, tokens, experts=3, chosen=2)
    ids[:, 0], ids[:, 1] = 2, np.arange(tokens) % 2
    x = random_x(np.random.default_rng(6), tokens, layer.hidden)
    found = run(layer.native(pool(2, ISAS[-1]), layout), x, ids, weights)
    some = np.r_[0:20, 2040:2060, 2480:2500]
    assert_same(found[torch.from_numpy(some)], layer.reference(x[some], ids[some], weights[some]))


def test_functions_are_near_the_true_ones() -> None:
    x = np.linspace(-87, 88, 100001, dtype=np.float32)
    np.testing.assert_allclose(exp(x), np.exp(x.astype(np.float64)), rtol=1.5e-7)
    np.testing.assert_allclose(sigmoid(x), 1 / (1 + np.exp(-x.astype(np.float64))), rtol=3e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("isa", ISAS)
def test_what_is_not_finite_spoils_its_own_token_only(isa: str, bad: float) -> None:
    layer = random_layer(7, "int8", 128, hidden=128, size=128)
    ids, weights = random_routes(7, 12, experts=5, chosen=2)
    x = random_x(np.random.default_rng(8), 12, layer.hidden)
    expected = layer.reference(x, ids, weights)
    x[4, 3] = bad
    found = run(layer.native(pool(2, isa), "marlin"), x, ids, weights).numpy()
    assert np.isnan(found[4]).all()
    np.testing.assert_array_equal(np.delete(found, 4, 0), np.delete(expected, 4, 0))


def test_layouts_are_alike_whatever_the_order_of_experts() -> None:
    layer = random_layer(11, "int4", 32, hidden=128, size=128)
    ids, weights = random_routes(11, 3, experts=5, chosen=5)
    x = random_x(np.random.default_rng(12), 3, layer.hidden)
    turned = np.ascontiguousarray(ids[:, ::-1]), np.ascontiguousarray(weights[:, ::-1])
    found = [run(layer.native(pool(2, ISAS[-1]), layout), x, ids, weights) for layout in LAYOUTS]
    found.append(run(layer.native(pool(2, ISAS[-1]), "cpu"), x, *turned))
    assert all(torch.equal(other, found[0]) for other in found)


def test_a_bound_call_reads_what_its_tensors_hold() -> None:
    layer = random_layer(19, "int4", 64, hidden=128, size=128)
    experts = layer.native(pool(2, ISAS[-1]), "marlin")
    x, ids, weights = torch.randn(2, 128), torch.tensor([[0, 3], [4, 1]]), torch.rand(2, 2)
    y = torch.empty_like(x)
    call = experts.bind(x, ids, weights, y)
    for chosen in ([[0, 3], [4, 1]], [[2, 1], [0, 4]]):
        x.normal_()
        ids.copy_(torch.tensor(chosen))
        call()
        assert torch.equal(y, experts(x, ids, weights))
    with pytest.raises(InputError, match="gaps"):
        experts.bind(x, ids.T, weights, y)
    with pytest.raises(InputError, match=r"y \(1, 128\)"):
        experts.bind(x, ids, weights, y[:1])


def test_refusals() -> None:
    layer = random_layer(13, "int4", 32, hidden=128, size=128)
    experts = layer.native(pool(1, "scalar"), "cpu")
    x, ids, weights = torch.zeros(2, 128), torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3)
    assert experts(x[:0], ids[:0], weights[:0]).shape == (0, 128)
    for wrong in (-1, 5):
        with pytest.raises(InputError, match="2 tokens, 3 of 5 experts"):
            experts(x, torch.full_like(ids, wrong), weights)
    with pytest.raises(InputError, match=r"x \(2, 127\)"):
        experts(x[:, :127], ids, weights)
    with pytest.raises(InputError, match="float64"):
        experts(x.double(), ids, weights)
    with pytest.raises(InputError, match="a bias of"):
        NativeExperts(
            pool(1, "scalar"),
            layer.w13[0].packed("cpu"),
            layer.w2[0].packed("cpu"),
            ExpertShape(1, 0, 128, 128),
            NativeActivation(),
            b13=torch.zeros(3),
        )
    closing = Pool(1, "scalar")
    orphan = layer.native(closing, "cpu")
    closing.close()
    with pytest.raises(KrasisError, match="closed"):
        orphan(x, ids, weights)
