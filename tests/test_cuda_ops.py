"""What lies between products on the GPU, held against the reference.

Kernels read bfloat16 and compute in float32, as the reference does of the same inputs; results are rounded to bfloat16
once, by up to 2^-9 of them. Tolerances are twice that.
"""

import pytest
import torch
from cuda_devices import on_devices

from krasis.errors import InputError, KrasisError
from krasis.models.ops import HeadShape, Routing, TorchOps, split_heads
from krasis.native.cuda import attention, delta, ops, plain
from krasis.native.cuda.attention import widen
from krasis.native.cuda.library import POINTER, Function
from krasis.native.cuda.ops import Cache
from krasis.runtime.rows import store_rows

ROUNDED = {"rtol": 2**-8, "atol": 1e-5}
EPS = 1e-6
REFERENCE = TorchOps()


def random(*shape, seed=0, dtype=torch.bfloat16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def close(found, expected, **tolerance):
    torch.testing.assert_close(found.cpu().float(), expected.float(), **(tolerance or ROUNDED))


def at(position, device):
    return torch.tensor([position], dtype=torch.int32, device=device)


def table(half, device, positions=64):
    angles = torch.outer(torch.arange(positions).float(), 0.7 ** torch.arange(half).float())
    return angles.cos().to(device), angles.sin().to(device)


def those(angles, position, tokens):
    return tuple(x.cpu()[position : position + tokens, None] for x in angles)


@on_devices
@pytest.mark.parametrize(("tokens", "n"), [(1, 4), (3, 224), (2, 2048), (1, 5120)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm(tokens, n, dtype, device):
    x, weight = random(tokens, n + 8, dtype=dtype)[:, :n], random(n, dtype=torch.float32)
    close(ops.norm(x.to(device), weight.to(device), EPS), REFERENCE.norm(x, weight, EPS))


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_add_norm(dtype, device):
    x, y, weight = random(3, 260, dtype=torch.float32), random(3, 260, seed=1, dtype=dtype), random(260).float()
    summed, expected = REFERENCE.add_norm(x, y.float(), weight, EPS)
    x = x.to(device)
    close(ops.add_norm(x, y.to(device), weight.to(device), EPS), expected)
    assert torch.equal(x.cpu(), summed)


@on_devices
def test_norm_refuses_what_it_cannot_read_in_fours(device):
    with pytest.raises(KrasisError, match="krasis_cuda_norm"):
        ops.norm(torch.zeros(2, 6, device=device), torch.zeros(6, device=device), EPS)


def new_cache(kind, capacity, heads, dim, device):
    if kind == "bf16":
        return Cache(torch.zeros(capacity, heads, dim, dtype=torch.bfloat16, device=device))
    values = torch.zeros(capacity, heads, dim, dtype=torch.float8_e4m3fn, device=device)
    return Cache(values, torch.zeros(capacity, heads, device=device))


def holds(cache, rows, x):
    """Whether the cache has x [tokens, heads, dim] in these rows, as the reference stores it."""
    values = torch.zeros(cache.values.shape, dtype=cache.values.dtype)
    scales = None if cache.scales is None else torch.zeros(*cache.scales.shape, 1)
    for i, row in enumerate(rows):
        store_rows(values, scales, row, x[i : i + 1].float().cpu())
    if scales is not None:
        torch.testing.assert_close(cache.scales.cpu(), scales[..., 0], rtol=1e-6, atol=0)
    return torch.equal(cache.values.cpu().view(torch.uint8), values.view(torch.uint8))


@on_devices
@pytest.mark.parametrize("kind", ["bf16", "fp8"])
@pytest.mark.parametrize(
    ("shape", "half", "norms", "tokens"),
    [(HeadShape(4, 2, 32), 16, True, 3), (HeadShape(8, 1, 64), 8, True, 1), (HeadShape(3, 3, 128), 64, False, 2)],
)
def test_turns_heads_and_stores_them(shape, half, norms, tokens, kind, device):
    position, capacity = 6, 7
    x = random(tokens, (shape.heads + 2 * shape.kv_heads) * shape.dim + 16)
    angles = table(half, device)
    weights = (random(shape.dim).float(), random(shape.dim, seed=1).float()) if norms else None
    q, k, v = REFERENCE.turn_heads(x.float(), shape, those(angles, position, tokens), weights, EPS)
    given = x.to(device)
    caches = tuple(new_cache(kind, capacity, shape.kv_heads, shape.dim, device) for _ in range(2))
    weights = tuple(w.to(device) for w in weights) if norms else None
    heads = (shape.heads, shape.kv_heads)
    ops.turn_heads(given, heads, shape.dim, angles, weights, EPS, at(position, device), caches)
    found = split_heads(given, shape)
    close(found[0], q)
    close(found[1], k)
    assert torch.equal(found[2].cpu().float(), v)
    assert torch.equal(given[:, -16:].cpu(), x[:, -16:])
    rows = [(position + i) % capacity for i in range(tokens)]
    assert holds(caches[0], rows, found[1])
    assert holds(caches[1], rows, found[2])


@on_devices
@pytest.mark.parametrize("kind", ["bf16", "fp8"])
@pytest.mark.parametrize(("heads", "nope", "rank", "half"), [(4, 32, 64, 8), (3, 128, 512, 32)])
def test_turns_latents_and_stores_them(heads, nope, rank, half, kind, device):
    tokens, position, dim = 3, 5, rank + 2 * half
    q, kv = random(tokens, heads, nope + 2 * half), random(tokens, dim + 16)[:, :dim]
    weight, angles = random(rank).float(), table(half, device)
    expected = REFERENCE.turn_latent(q.float(), kv.float(), those(angles, position, tokens), weight, EPS)
    q, kv, cache = q.to(device), kv.to(device), new_cache(kind, 12, 1, dim, device)
    ops.turn_latent(q, kv, angles, weight.to(device), EPS, at(position, device), cache)
    close(q, expected[0])
    close(kv, expected[1])
    assert holds(cache, range(position, position + tokens), kv[:, None])


@on_devices
def test_stores_and_widens_in_a_ring(device):
    tokens, position, capacity, window = 4, 9, 8, 5
    cache = new_cache("fp8", capacity, 2, 32, device)
    x = random(position + tokens, 2, 32)
    for first, last in ((0, 5), (5, position), (position, position + tokens)):
        ops.store(x[first:last].to(device), cache, at(first, device))
    out = widen(
        cache, at(position, device), tokens, window, torch.zeros(capacity, 2, 32, dtype=torch.bfloat16).to(device)
    )
    expected = cache.values.cpu().float() * cache.scales.cpu()[..., None]
    assert torch.equal(out.cpu(), expected.bfloat16())
    # 3 bits of mantissa.
    for p in range(position - window + 1, position + tokens):
        close(out[p % capacity], x[p], rtol=2**-4, atol=0.01)


@on_devices
@pytest.mark.parametrize("scores", ["softmax", "sigmoid", "logits"])
@pytest.mark.parametrize(("experts", "k", "bias"), [(3, 3, False), (24, 4, True), (128, 8, False), (512, 10, True)])
def test_route(experts, k, bias, scores, device):
    logits = random(5, experts, dtype=torch.float32) * 2
    added = random(experts, seed=1, dtype=torch.float32) / 4 if bias else None
    for normalize, scale in ((False, 1.0), (True, 2.5)):
        expected = REFERENCE.route(logits, added, Routing(k, scores, normalize, scale))
        given = None if added is None else added.to(device)
        ids, weights = ops.route(logits.to(device), given, k, scores, normalize, scale)
        assert torch.equal(ids.cpu().long(), expected[0])
        torch.testing.assert_close(weights.cpu(), expected[1], rtol=1e-5, atol=1e-7)


@on_devices
def test_route_prefers_lower_ids_and_always_gives_experts(device):
    logits = torch.zeros(3, 40)
    logits[1, 7], logits[1, 33] = 1, 1
    logits[2] = float("nan")
    ids, _ = ops.route(logits.to(device), None, 4, "logits", False, 1.0)
    assert ids[:2].tolist() == [[0, 1, 2, 3], [7, 33, 0, 1]]
    assert ((ids >= 0) & (ids < 40)).all()


@on_devices
def test_gate_and_swiglu(device):
    both = random(3, 72)
    x, other = both[:, :32], both[:, 36:68]
    close(ops.gate(x.to(device), other.to(device)), REFERENCE.gate(x.float(), other.float()))
    close(ops.swiglu(both[:, :64].to(device)), REFERENCE.swiglu(both[:, :64].float()))


@on_devices
@pytest.mark.parametrize(("n", "k"), [(4, 4), (1100, 260), (512, 2048)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_as_far_as_the_door_is_open(dtype, n, k, device):
    gate_up, x = random(3, 2 * n + 8)[:, : 2 * n], random(3, k + 4)[:, :k]
    door = (random(1, k, dtype=torch.float32) / k**0.5).to(dtype)
    expected = REFERENCE.open_swiglu(gate_up.float(), x.float(), door)
    close(ops.swiglu(gate_up.to(device), x.to(device), door.to(device)), expected)


@on_devices
def test_embed(device):
    rows, ids = random(11, 36), torch.tensor([10, 0, 3, 3], dtype=torch.int32)
    assert torch.equal(ops.embed(rows.to(device), ids.to(device)).cpu(), rows[ids.long()].float())


@on_devices
@pytest.mark.parametrize("n", [1, 300, 40_001])
def test_greatest(n, device):
    logits = random(n, dtype=torch.float32)
    token, position = at(-1, device), at(7, device)
    ops.greatest(logits.to(device), token, position)
    assert (token.item(), position.item()) == (logits.argmax().item(), 8)
    logits[n // 2 :] = 9
    ops.greatest(logits.to(device), token)
    assert (token.item(), position.item()) == (n // 2, 8)


FUNCTIONS = [
    function
    for module in (ops, attention, delta, plain)
    for function in vars(module).values()
    if isinstance(function, Function)
]


@on_devices
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.name)
def test_refuses_nulls(function, device):
    nothing = [None if kind is POINTER else kind(0).value for kind in function.arguments]
    with pytest.raises(KrasisError, match=function.name):
        function(torch.device(device), *nothing)


def test_caches_are_of_a_kind():
    with pytest.raises(InputError, match=r"a cache of torch\.float32"):
        Cache(torch.zeros(2, 1, 8))
