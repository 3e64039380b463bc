"""What lies between products, natively: against torch, and instruction sets and threads against each other."""

import ctypes

import pytest
import torch
from native_reference import ISAS

from krasis.errors import InputError, KrasisError
from krasis.models.blocks.rope import Rope, RopeSpec
from krasis.models.ops import DeltaForm, DeltaShape, HeadShape, Routing, TorchOps
from krasis.native.cpu import Pool
from krasis.native.library import cpu_library
from krasis.native.ops import NativeOps
from krasis.native.tape import OPERATIONS, Tape
from krasis.runtime.attention import reference_attention
from krasis.runtime.ops import CpuOps
from krasis.runtime.rows import store_rows

REFERENCE = TorchOps()
CLOSE = {"rtol": 2e-5, "atol": 2e-6}
EPS = 1e-6


@pytest.fixture(scope="module")
def teams():
    """A pool for every instruction set, of one to three threads."""
    pools = [Pool(1 + i % 3, isa) for i, isa in enumerate(ISAS)]
    yield pools
    for pool in pools:
        pool.close()


@pytest.fixture
def everywhere(teams):
    """Runs an operation on every pool with tensors of its own; the one result of them all."""

    def run(operation, *tensors):
        found = []
        for pool in teams:
            own = [t.clone() if isinstance(t, torch.Tensor) else t for t in tensors]
            result = operation(CpuOps(NativeOps(pool)), *own)
            found.append((result if isinstance(result, tuple) else (result,), own))
        for results, own in found[1:]:
            for a, b in zip((*found[0][0], *found[0][1]), (*results, *own), strict=True):
                if isinstance(a, torch.Tensor):
                    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        return found[0]

    return run


def random(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def angles(dim, tokens, start=5):
    return Rope(dim, RopeSpec(theta=10000.0)).angles(start, tokens)


def check(everywhere, operation, *tensors, **tolerance):
    """The operation gives everywhere what torch gives, in its results and in what it overwrites."""
    own = [t.clone() if isinstance(t, torch.Tensor) else t for t in tensors]
    expected = operation(REFERENCE, *own)
    expected = expected if isinstance(expected, tuple) else (expected,)
    found, changed = everywhere(operation, *tensors)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **(CLOSE | tolerance))
    return changed, own


@pytest.mark.parametrize(("rows", "n"), [(1, 1), (1, 2048), (3, 100), (2, 7), (40, 1000)])
def test_norm(rows, n, everywhere):
    check(everywhere, lambda ops, x, w: ops.norm(x, w, EPS), random(rows, n), random(n))


@pytest.mark.parametrize(("rows", "n"), [(1, 2880), (3, 33), (40, 1000)])
def test_add_norm(rows, n, everywhere):
    x, y = random(rows, n), random(rows, n, seed=1)
    check(everywhere, lambda ops, x, y, w: ops.add_norm(x, y, w, EPS), x, y, random(n))


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "dim", "turning", "rest"),
    [(1, 4, 2, 128, 128, 0), (3, 3, 1, 10, 6, 5), (2, 2, 2, 64, 16, 128), (30, 8, 4, 72, 72, 8)],
)
def test_turn_heads(tokens, heads, kv_heads, dim, turning, rest, normed, everywhere):
    shape, turns = HeadShape(heads, kv_heads, dim), angles(turning, tokens)
    norms = (random(dim), random(dim, seed=1)) if normed else None
    x = random(tokens, (heads + 2 * kv_heads) * dim + rest)
    changed, own = check(everywhere, lambda ops, x: ops.turn_heads(x, shape, turns, norms, EPS), x)
    assert torch.equal(changed[0][:, (heads + kv_heads) * dim :], own[0][:, (heads + kv_heads) * dim :])


@pytest.mark.parametrize(("tokens", "heads", "nope", "rank", "rope"), [(1, 16, 128, 512, 64), (3, 2, 5, 9, 6)])
def test_turn_latent(tokens, heads, nope, rank, rope, everywhere):
    turns = angles(rope, tokens)
    q, kv = random(tokens, heads, nope + rope), random(tokens, rank + rope)
    check(everywhere, lambda ops, q, kv, w: ops.turn_latent(q, kv, turns, w, EPS), q, kv, random(rank))


@pytest.mark.parametrize(("rows", "n"), [(1, 4096), (5, 13), (70, 600)])
def test_gates(rows, n, everywhere):
    x, gate = random(rows, n, scale=5), random(rows, n, seed=1, scale=5)
    check(everywhere, lambda ops, x, gate: ops.gate(x, gate), x, gate)
    check(everywhere, lambda ops, both: ops.swiglu(both), torch.cat((x, gate), dim=-1))


@pytest.mark.parametrize(("rows", "n"), [(1, 4096), (5, 13), (70, 3000)])
def test_rows_opened_added_and_copied(rows, n, everywhere):
    x, y, gate = random(rows, n), random(rows, n, seed=1), random(rows, 1, scale=5)
    check(everywhere, lambda ops, x, gate: ops.open_rows(x, gate), x, gate)
    wide = torch.zeros(rows, n + 3)
    for added in (x, random(n)):
        (found,), _ = everywhere(lambda ops, y, x: ops.native.add(y, x), y, added)
        assert torch.equal(found, y + added)
    _, (_, copied) = everywhere(lambda ops, x, y: ops.native.copy(x[:, 1:], y[:, 2 : n + 1]), x, wide)
    assert torch.equal(copied[:, 2 : n + 1], x[:, 1:])
    assert not copied[:, :2].any()


def test_gates_far_from_zero_are_open_or_shut(everywhere):
    gate = torch.tensor([[-1e30, -200.0, 0.0, 200.0, 1e30]])
    (found,), _ = everywhere(lambda ops, x, gate: ops.gate(x, gate), torch.ones(1, 5), gate)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0, 0.5, 1.0, 1.0]]))


@pytest.mark.parametrize(("tokens", "channels", "width"), [(1, 8192, 4), (2, 50, 4), (7, 33, 3), (5, 16, 1)])
def test_conv_silu(tokens, channels, width, everywhere):
    x, weight, state = random(tokens, channels), random(width, channels, seed=1), random(width - 1, channels, seed=2)
    changed, own = check(everywhere, lambda ops, x, w, s: ops.conv_silu(x, w, s), x, weight, state)
    assert torch.equal(changed[2], own[2])


ROUTINGS = [
    Routing(8, "softmax"),
    Routing(8, "softmax", normalize=True),
    Routing(4, "logits"),
    Routing(8, "sigmoid", normalize=True, scale=2.5),
    Routing(1, "softmax", scale=16.0),
]


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
@pytest.mark.parametrize(("tokens", "experts"), [(1, 128), (3, 9), (300, 512)])
def test_route(tokens, experts, routing, biased, everywhere):
    bias = random(experts, seed=1, scale=0.1) if biased else None
    check(everywhere, lambda ops, x, b: ops.route(x, b, routing), random(tokens, experts, scale=2), bias)


def test_of_equal_experts_the_first_are_chosen(everywhere):
    (ids, weights), _ = everywhere(lambda ops, x: ops.route(x, None, Routing(3, "softmax")), torch.zeros(1, 20))
    assert ids.tolist() == [[0, 1, 2]]
    torch.testing.assert_close(weights, torch.full((1, 3), 0.05))


@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
def test_logits_that_are_nan_choose_different_experts(routing, everywhere):
    logits = torch.full((2, 20), torch.nan)
    logits[1] = torch.arange(20)
    logits[1, 17] = torch.nan
    (ids, _), _ = everywhere(lambda ops, x: ops.route(x, None, routing), logits)
    assert ((ids >= 0) & (ids < 20)).all()
    assert all(len(set(row)) == routing.k for row in ids.tolist())


@pytest.mark.parametrize(
    ("tokens", "shape"),
    [
        (1, DeltaShape(4, 8, 128, 128)),
        (5, DeltaShape(2, 2, 12, 7)),
        (9, DeltaShape(1, 3, 33, 85)),
        (2, DeltaShape(1, 1, 1, 1)),
    ],
)
def test_delta_net(tokens, shape, everywhere):
    values = shape.value_heads * shape.value_dim
    heads = shape.value_heads
    form = DeltaForm(shape, -random(heads).exp(), random(heads, seed=1), random(shape.value_dim), EPS)
    qkv = random(tokens, 2 * shape.key_heads * shape.key_dim + values)
    memory = random(heads, shape.key_dim, shape.value_dim)
    tensors = (qkv, random(tokens, values, seed=1), random(tokens, 2 * heads, scale=10), memory)
    operation = lambda ops, qkv, z, beta, memory: ops.delta_net(qkv, z, beta, form, memory)  # noqa: E731
    changed, own = check(everywhere, operation, *tensors, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(changed[3], own[3], rtol=1e-4, atol=1e-5)


def cached(x, kind):
    """x as it is cached, scales, and what it stands for."""
    if kind == "fp8":
        scales = x.abs().amax(-1, keepdim=True) / 448
        values = (x / scales).to(torch.float8_e4m3fn)
        return (values, scales), values.float() * scales
    values = x.to({"f32": torch.float32, "bf16": torch.bfloat16}[kind])
    return (values, None), values.float()


ATTENTIONS = [
    # tokens, length, heads, kv heads, dim, v dim, window, sinks
    (1, 1, 1, 1, 64, 64, 0, False),
    (1, 700, 8, 2, 128, 128, 0, False),
    (1, 1300, 8, 4, 64, 64, 128, True),
    (2, 40, 21, 3, 100, 33, 0, True),
    (4, 515, 5, 1, 40, 24, 300, False),
    (3, 3, 4, 4, 7, 9, 1, True),
]


@pytest.mark.parametrize("kind", ["f32", "bf16", "fp8"])
@pytest.mark.parametrize("case", ATTENTIONS, ids=str)
def test_attention(case, kind, everywhere):
    tokens, length, heads, kv_heads, dim, v_dim, window, sunk = case
    (k, k_floats), (v, v_floats) = (
        cached(random(length, kv_heads, d, seed=i), kind) for i, d in enumerate((dim, v_dim))
    )
    q, sinks = random(tokens, heads, dim, seed=3, scale=3), random(heads) if sunk else None
    (found,), _ = everywhere(lambda ops, q: ops.native.attention(q, k, v, dim**-0.5, window, sinks), q)
    torch.testing.assert_close(found, reference_attention(q, k_floats, v_floats, dim**-0.5, window, sinks), **CLOSE)


@pytest.mark.parametrize("kind", ["f32", "bf16", "fp8"])
def test_attention_on_latents_reads_values_within_keys(kind, everywhere):
    (values, scales), floats = cached(random(300, 1, 576), kind)
    q = random(1, 40, 576, scale=2)
    (found,), _ = everywhere(
        lambda ops, q: ops.native.attention(q, (values, scales), (values[..., :512], scales), 576**-0.5), q
    )
    torch.testing.assert_close(found, reference_attention(q, floats, floats[..., :512], 576**-0.5), **CLOSE)


def test_every_fp8_value_is_read_exactly(everywhere):
    codes = torch.tensor([code for code in range(256) if code & 127 != 127], dtype=torch.uint8)
    values = codes.view(torch.float8_e4m3fn).view(1, 1, -1)
    ones = (torch.ones(1, 1, 1), torch.zeros(1, 1, 254))
    (found,), _ = everywhere(lambda ops, q: ops.native.attention(q, (values, ones[0]), (values, ones[0]), 1.0), ones[1])
    assert torch.equal(found, values.float())


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_rows_are_stored_as_torch_rounds_them(kind, teams):
    """Values of every magnitude, ties and ends of ranges among them."""
    ties = torch.arange(0, 480, 0.5) * 2.0 ** torch.arange(-20, 1)[:, None]
    x = torch.cat((random(2000, 1, scale=3).flatten(), ties.flatten(), -ties.flatten(), random(2000).exp()))
    x = x[: len(x) // 60 * 60].view(-1, 3, 20)
    x[1, 2, 3], x[2, 1], x[3, 1, 0] = torch.nan, 0.0, 1e30
    x[:, 0, 0] = 448  # whose scale is 1
    for rows in (x, torch.cat((x, x), dim=1)[:, 1:4]):
        scaled = kind is torch.float8_e4m3fn
        found, expected = (
            (torch.zeros(len(x) + 2, 3, 20, dtype=kind), torch.zeros(len(x) + 2, 3, 1) if scaled else None)
            for _ in range(2)
        )
        NativeOps(teams[0]).store(*found, 1, rows)
        store_rows(*expected, 1, rows)
        for a, b in zip(found, expected, strict=True):
            if a is not None:
                torch.testing.assert_close(a.float(), b.float(), rtol=0, atol=0, equal_nan=True)


def test_nan_goes_through_and_stays_in_its_head(everywhere):
    k = random(600, 2, 32)
    v = random(600, 2, 32, seed=1)
    q = random(1, 4, 32)
    k[300, 1, 3] = torch.nan
    (found,), _ = everywhere(lambda ops, q: ops.native.attention(q, (k, None), (v, None), 1.0), q)
    assert found[0, :2].isfinite().all()
    assert found[0, 2:].isnan().all()
    (normed,), _ = everywhere(
        lambda ops, x, w: ops.norm(x, w, EPS), torch.tensor([[1.0, torch.nan], [1, 2]]), random(2)
    )
    assert normed.isnan().tolist() == [[True, True], [False, False]]


def test_rows_of_other_shapes_are_refused(teams):
    ops = NativeOps(teams[0])
    x = torch.zeros(2, 6)
    for call in (
        lambda: ops.norm(x, torch.zeros(5), EPS),
        lambda: ops.norm(x.double(), torch.zeros(6), EPS),
        lambda: ops.add_norm(x, x[:1], torch.zeros(6), EPS),
        lambda: ops.turn_heads(x, (3, 1), 2, angles(2, 2)),
        lambda: ops.turn_heads(x, (1, 1), 2, angles(2, 1)),
        lambda: ops.gate(x, x[:, :3], "silu"),
        lambda: ops.gate(x.T, x.T, "silu"),
        lambda: ops.conv_silu(x, torch.zeros(4, 6), torch.zeros(2, 6)),
        lambda: ops.route(x, None, 7, "softmax", False, 1.0),
        lambda: ops.attention(x.view(2, 1, 6), (x.view(2, 1, 6), None), (x.view(1, 2, 6), None), 1.0),
        lambda: ops.attention(x.view(2, 1, 6).half(), (x.view(2, 1, 6), None), (x.view(2, 1, 6), None), 1.0),
        lambda: ops.attention(x.view(2, 1, 6), (x.view(2, 1, 6).half(), None), (x.view(2, 1, 6), None), 1.0),
        lambda: ops.add(x, x[:1]),
        lambda: ops.add(x.T, x.T),
        lambda: ops.copy(x, x[:, :3]),
        lambda: ops.store(torch.zeros(5, 1, 6), torch.zeros(5, 1, 1), 0, x.view(2, 1, 6)),
        lambda: ops.store(torch.zeros(5, 1, 6).half(), None, 0, x.view(2, 1, 6)),
        lambda: ops.store(torch.zeros(5, 1, 6).to(torch.float8_e4m3fn), torch.zeros(5, 1, 1), 4, x.view(2, 1, 6)),
    ):
        with pytest.raises(InputError):
            call()


def test_a_closed_pool_is_named():
    pool = Pool(1)
    ops = NativeOps(pool)
    pool.close()
    with pytest.raises(KrasisError, match="the pool is closed"):
        ops.norm(torch.zeros(1, 4), torch.zeros(4), EPS)


def test_no_argument_crashes():
    """Each argument of each operation in turn is null, unaligned or negative."""
    library, pool = cpu_library(), Pool(1)
    room = torch.zeros(1 << 12)
    for name in (*OPERATIONS, "krasis_replay"):
        function = getattr(library, name)
        kinds = function.argtypes[1:]
        good = [room.data_ptr() if kind is ctypes.c_void_p else 1 for kind in kinds]
        for i, kind in enumerate(kinds):
            for bad in (None, room.data_ptr() + 1) if kind is ctypes.c_void_p else (-1,):
                room.zero_()  # which is what structures are made of, too
                assert 0 <= function(pool.handle, *good[:i], bad, *good[i + 1 :]) < 20, (name, i, bad)
        assert function(None, *good) != 0


def test_calls_are_made_again_for_later_tokens():
    """Rows go where those of the token belong, and it sees all of them."""
    with Pool(2) as pool:
        ops = NativeOps(pool)
        cache, rows, weight = torch.zeros(9, 2, 8), random(9, 2, 8), random(16)
        given, tape = rows[:1].clone(), Tape(pool)
        cache[:3] = rows[:3]
        pool.tape = tape
        keys = cache[:4], None
        ops.store(cache, None, 3, given)
        found = ops.attention(given, keys, keys, 0.3, 5)
        normed = ops.norm(found.view(1, 16), weight, EPS)
        pool.tape = None
        for at in (3, 4, 5, 8):
            given.copy_(rows[at])
            cache[:at] = rows[:at]
            tape.replay(at - 3)
            assert torch.equal(cache[: at + 1], rows[: at + 1])
            expected = ops.attention(rows[at : at + 1], (rows[: at + 1], None), (rows[: at + 1], None), 0.3, 5)
            assert torch.equal(found, expected)
            assert torch.equal(normed, ops.norm(expected.view(1, 16), weight, EPS))
    with pytest.raises(KrasisError, match="the pool is closed"):
        tape.replay(0)


def test_an_operation_that_there_is_not_is_refused():
    pool, call = Pool(1), (ctypes.c_int64 * 16)(len(OPERATIONS))
    assert b"codec" in cpu_library().krasis_strerror(
        cpu_library().krasis_replay(pool.handle, ctypes.addressof(call), 1, 0)
    )
