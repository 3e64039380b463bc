"""Routed experts on the device, many tokens and few, held against float32 products of the same weights."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from cuda_devices import DEVICES, on_devices
from test_cuda_gemm import close, made, normal, rounded

from krasis.errors import InputError
from krasis.models.blocks.mlp import ClampedSwiglu, swiglu
from krasis.native.cuda.experts import CUT, ExpertForm, batch, combine, experts_down, experts_few, experts_up, sort
from krasis.native.cuda.gemm import Scratch

TILES = ["32x256", "64x256", "128x256"]


@dataclass(frozen=True)
class Case:
    """Padded sizes of records, and codec and group size of w13 and w2."""

    hidden: int
    k13: int
    size: int
    n2: int
    w13: tuple[str, int]
    w2: tuple[str, int]
    biases: torch.dtype | None = None
    clamped: bool = False


CASES = [
    Case(256, 256, 64, 256, ("int4", 128), ("int4", 64)),
    Case(256, 256, 128, 256, ("int4", 64), ("int8", 128)),
    Case(224, 256, 128, 256, ("int8", 128), ("int8", 64), torch.bfloat16, clamped=True),
    Case(224, 256, 192, 256, ("mxfp4", 32), ("mxfp4", 32), torch.float32, clamped=True),
]
REAL = [
    Case(2048, 2048, 512, 2048, ("int4", 128), ("int4", 128)),
    Case(2048, 2048, 1408, 2048, ("int8", 128), ("int4", 128)),
    Case(2880, 2880, 2944, 2944, ("mxfp4", 32), ("mxfp4", 32), torch.bfloat16, clamped=True),
]


class Layer:
    """Records of random experts in one tensor, their addresses on the device, and their float32 weights."""

    def __init__(self, case, experts, device):
        parts, self.weights = [], []
        for expert in range(experts):
            form13, q13, s13, w13 = made(case.w13[0], case.k13, 2 * case.size, case.w13[1], "cpu", 2 * expert)
            form2, q2, s2, w2 = made(case.w2[0], case.size, case.n2, case.w2[1], "cpu", 2 * expert + 1)
            biases = [normal(n, seed=expert + n).to(case.biases or torch.float32) for n in (2 * case.size, case.n2)]
            parts.append([q13, s13, q2, s2, *biases])
            self.weights.append((w13[:, : case.hidden], w2[: case.hidden], *(b.float() for b in biases)))
        offsets = [0]
        for tensor in parts[0]:
            offsets.append(-(-(offsets[-1] + tensor.nbytes) // 256) * 256)
        records = torch.zeros(experts, offsets.pop(), dtype=torch.uint8)
        for record, tensors in zip(records, parts, strict=True):
            for offset, tensor in zip(offsets, tensors, strict=True):
                record[offset : offset + tensor.nbytes] = tensor.flatten().view(torch.uint8)
        self.case, self.records = case, records.to(device)
        step = records.shape[1]
        self.table = torch.tensor([self.records.data_ptr() + e * step for e in range(experts)], device=device)
        biases = offsets[4:] if case.biases else (None, None)
        clamped = (1.702, 7.0) if case.clamped else (0.0, 0.0)
        dtype = case.biases or torch.bfloat16
        self.form = ExpertForm(case.hidden, form13, form2, *offsets[:4], *biases, dtype, *clamped)

    def expected(self, x, ids, weights, many, first=None):
        """float32 [tokens, hidden]. `many`: weights are rounded, and the outputs of every expert. `first`: features of
        each expert that are left out, and b2 with them.

        `flip` is then the most that one value of h, and one output that is rounded, move a sum by if rounded to their
        neighbours.
        """
        activation = ClampedSwiglu(1.702, 7.0) if self.case.clamped else swiglu
        out, self.flip = torch.zeros(len(x), self.case.hidden), 0.0
        for token, slot in (ids >= 0).nonzero().tolist():
            w13, w2, b13, b2 = self.weights[ids[token, slot]]
            if many:
                w13, w2 = rounded(w13), rounded(w2)
            gate, up = (w13 @ x[token].float() + (b13 if self.case.biases else 0)).chunk(2)
            h, left_out = rounded(activation(gate, up)), first[ids[token, slot]] if first else 0
            h[:left_out] = 0
            y = w2 @ h + (b2[: self.case.hidden] if self.case.biases and not left_out else 0)
            moved = h.abs().max() * w2.abs().max() + (y.abs().max() if many else 0)
            self.flip = max(self.flip, float(2**-8 * moved * weights[token, slot]))
            out[token] += weights[token, slot] * (rounded(y) if many else y)
        return out


def routed(tokens, slots, experts, unused=(), seed=0):
    """Ids of distinct experts but for the unused, some of them -1, and weights."""
    generator = torch.Generator().manual_seed(seed + tokens)
    scores = torch.rand(tokens, experts, generator=generator)
    scores[:, list(unused)] = -1
    ids = scores.topk(slots).indices.int()
    ids[torch.rand(tokens, slots, generator=generator) < 0.1] = -1
    return ids, torch.rand(tokens, slots, generator=generator)


@on_devices
@pytest.mark.parametrize(
    ("tokens", "slots", "experts"), [(1, 4, 8), (7, 2, 3), (130, 3, 40), (300, 4, 300), (2100, 4, 6)]
)
def test_sorts_pairs_by_expert(tokens, slots, experts, device):
    ids, _ = routed(tokens, slots, experts, unused=(1,) if experts > slots + 1 else ())
    routes = sort(ids.to(device), experts)
    flat = ids.flatten()
    expected = torch.cat([(flat == e).nonzero().flatten() for e in range(experts)])
    counts = torch.bincount(flat[flat >= 0], minlength=experts)
    assert torch.equal(routes.pairs.cpu()[: len(expected)], expected.int())
    assert torch.equal(routes.offsets.cpu().diff(), counts.int())
    assert routes.offsets[0] == 0


def near(found, expected, flip=0.0):
    """h is rounded to 2^-9 of itself, some of it to the neighbour where sums differ, and so are outputs of experts.

    Among very many sums some have the largest value rounded so, which moves them by `flip`.
    """
    close(found, expected, rtol=2**-7, atol=2**-7 * expected.std().item() + flip)


def run_many(layer, x, ids, weights, lists, tile, device):
    case, slots = layer.case, ids.shape[1]
    ids = ids.to(device)
    routes = sort(ids, len(layer.weights))
    new = partial(torch.full, fill_value=float("nan"), dtype=torch.bfloat16, device=device)
    h, y = new((len(x) * slots, case.size)), new((len(x) * slots, case.hidden))
    for chosen in lists:
        part = batch(routes, torch.tensor(chosen, dtype=torch.int32, device=device), tile)
        experts_up(layer.form, layer.table, part, x.to(device), h)
        experts_down(layer.form, layer.table, part, h, y)
    out = torch.empty(len(x), case.hidden, device=device)
    return combine(y, ids, weights.to(device), out)


@on_devices
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_many_tokens(case, tile, device):
    layer = Layer(case, 4, device)
    for tokens in (1, 17) if tile != "64x256" else (7, 130):
        x = normal(tokens, case.hidden).bfloat16()
        ids, weights = routed(tokens, 2, 4, unused=(1,))
        out = run_many(layer, x, ids, weights, [[2, 1], [0, 3]], tile, device)
        near(out, layer.expected(x, ids, weights, many=True))


@on_devices
@pytest.mark.parametrize("case", CASES, ids=str)
def test_few_tokens(case, device):
    layer, scratch = Layer(case, 4, device), Scratch(device)
    for tokens in (1, 3, 8):
        x = normal(tokens, case.hidden).bfloat16()
        ids, weights = routed(tokens, 2, 4)
        h = torch.empty(tokens * 2, case.size, dtype=torch.bfloat16, device=device)
        out = torch.full((tokens, case.hidden), float("nan"), device=device)
        arguments = x.to(device), ids.to(device), weights.to(device), h, out, scratch
        experts_few(layer.form, layer.table, *arguments)
        expected = layer.expected(x, ids, weights, many=False)
        near(out, expected)
        before = out.clone()
        experts_few(layer.form, layer.table, *arguments, add=True)
        assert torch.equal(out, before + before)
    assert not scratch.counters.any()


PARTS = [
    Case(256, 256, 320, 256, ("int4", 128), ("int4", 64)),
    Case(224, 256, 384, 256, ("int4", 64), ("int4", 128), torch.bfloat16),
    Case(224, 256, 320, 256, ("int8", 128), ("int8", 32), torch.bfloat16, clamped=True),
    Case(224, 256, 320, 256, ("mxfp4", 32), ("mxfp4", 32), torch.float32, clamped=True),
]


@on_devices
@pytest.mark.parametrize("case", PARTS, ids=str)
def test_few_tokens_and_some_features(case, device):
    """From none to all, also of parts of w2's groups."""
    layer, scratch = Layer(case, 5, device), Scratch(device)
    first = [0, CUT, 2 * CUT, case.size - CUT, case.size]
    from_device = torch.tensor(first, dtype=torch.int32, device=device)
    for tokens in (1, 3):
        x = normal(tokens, case.hidden).bfloat16()
        ids, weights = routed(tokens, 5, 5)
        h = torch.full((tokens * 5, case.size), float("nan"), dtype=torch.bfloat16, device=device)
        out = torch.full((tokens, case.hidden), float("nan"), device=device)
        arguments = x.to(device), ids.to(device), weights.to(device), h, out, scratch
        experts_few(layer.form, layer.table, *arguments, first=from_device)
        near(out, layer.expected(x, ids, weights, many=False, first=first))
        for pair, expert in enumerate(ids.flatten().tolist()):
            begin = first[expert] if expert >= 0 else case.size
            assert expert < 0 or not h[pair, :begin].any()
            assert h[pair, begin:].isfinite().all()
    assert not scratch.counters.any()


@on_devices
def test_experts_that_are_not_there_add_nothing(device):
    layer, scratch = Layer(CASES[0], 4, device), Scratch(device)
    x = normal(5, 256).bfloat16()
    ids, weights = routed(5, 3, 4)
    table = layer.table.clone()
    table[2] = 0
    h = torch.empty(15, 64, dtype=torch.bfloat16, device=device)
    out = torch.empty(5, 256, dtype=torch.bfloat16, device=device)
    arguments = x.to(device), ids.to(device), weights.to(device), h, out, scratch
    experts_few(layer.form, table, *arguments)
    expected = layer.expected(x, torch.where(ids == 2, -1, ids), weights, many=False)
    near(out, expected)


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_combines_in_order_of_slots(dtype, device):
    ids, weights = routed(9, 3, 5)
    y, base = normal(27, 40).bfloat16(), normal(9, 40, seed=2).to(dtype)
    records = torch.ones(5, dtype=torch.int64)
    records[3] = 0
    expected = torch.zeros(9, 40)
    for slot in range(3):
        there = (ids[:, slot] >= 0) & (ids[:, slot] != 3)
        expected += torch.where(there, weights[:, slot], 0)[:, None] * y.view(9, 3, 40)[:, slot].float()
    there = [tensor.to(device) for tensor in (y, ids, weights, base.clone())]
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2**-8, "atol": 1e-6}
    close(combine(*there, records=records.to(device), add=True), base.float() + expected, **tolerance)
    close(combine(*there, records=records.to(device)), expected, **tolerance)


@pytest.mark.parametrize("device", DEVICES[1:])
@pytest.mark.parametrize("case", REAL, ids=str)
def test_real_sizes(case, device):
    layer, scratch = Layer(case, 5, device), Scratch(device)
    ids, weights = routed(200, 3, 5, unused=(1,))
    x = normal(200, case.hidden).bfloat16()
    expected = layer.expected(x, ids, weights, many=True)
    for tile in TILES:
        near(run_many(layer, x, ids, weights, [[0, 1, 2, 3, 4]], tile, device), expected, layer.flip)
    for tokens in (1, 8):
        h = torch.empty(tokens * 3, case.size, dtype=torch.bfloat16, device=device)
        out = torch.empty(tokens, case.hidden, device=device)
        few = (tensor[:tokens].to(device) for tensor in (x, ids, weights))
        experts_few(layer.form, layer.table, *few, h, out, scratch)
        near(out, layer.expected(x[:tokens], ids[:tokens], weights[:tokens], many=False))


@on_devices
def test_refuses_what_does_not_match(device):
    layer = Layer(CASES[0], 2, device)
    routes = sort(torch.zeros(3, 2, dtype=torch.int32, device=device), 2)
    part = batch(routes, torch.zeros(1, dtype=torch.int32, device=device))
    x = torch.zeros(3, 256, dtype=torch.bfloat16, device=device)
    with pytest.raises(InputError, match="h "):
        experts_up(layer.form, layer.table, part, x, x)
    with pytest.raises(InputError, match="ids"):
        sort(torch.zeros(3, 2, dtype=torch.int64, device=device), 2)
