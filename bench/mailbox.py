"""What it costs to have a layer's experts computed through the mailbox: here, and by a GPU in the middle of a graph.

On the CPU: microseconds from a post to its answer, beside a direct call of the same layer, one after another and with
`--gap` microseconds between, as a GPU leaves them. Who posts spins until the answer is there.

With a GPU: microseconds a layer of a CUDA graph of `--layers` times post and wait, in which every layer is small and
its experts are all cold, or all resident, which leaves the cost of the two kernels; beside a call of the same layer on
the CPU. Medians over `--rounds` graphs.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from krasis.native.cores import physical_cores
from krasis.native.cpu import Matrix, Pool
from krasis.native.cuda.mailbox import DeviceMailbox
from krasis.native.moe import ExpertShape, NativeActivation, NativeExperts
from krasis.native.server import Mailbox, Server
from krasis.pack.anonymous import anonymous

LAYERS = {"small": (64, 64, 4), "16 MB": (2048, 512, 10)}
"""Hidden and own features of experts, and how many a token uses. The larger one's are those of Qwen3-Coder-Next."""
EXPERTS, GROUP = 32, 64


def make_layer(pool: Pool, hidden: int, size: int) -> NativeExperts:
    """INT4 experts; activations of such weights stay small."""
    found, at = [], 0
    shapes = ((hidden, 2 * size), (size, hidden))
    stride = sum(k * n // 2 + k // GROUP * n * 2 for k, n in shapes)
    data = anonymous(EXPERTS * stride)
    data.view(torch.int16).random_(0x3B70, 0x3B80)
    for k, n in shapes:
        codes, scales = k * n // 2, k // GROUP * n * 2
        parts = data[at : at + codes], data[at + codes : at + codes + scales].view(torch.bfloat16)
        found.append(Matrix("int4", "marlin", k, n, GROUP, *parts))
        at += codes + scales
    return NativeExperts(pool, *found, ExpertShape(EXPERTS, stride, hidden, size), NativeActivation())


Action = Callable[[int], None]
Times = tuple[float, float]
"""The median and the best, in microseconds."""


def timed(prepare: Action, action: Action, rounds: int, gap: float) -> Times:
    """Of action(n), n from 1 on, each after prepare(n) and `gap` seconds of nothing."""
    times = []
    for number in range(1, rounds + 1):
        prepare(number)
        until = time.perf_counter() + gap
        while time.perf_counter() < until:
            pass
        begin = time.perf_counter()
        action(number)
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e6, min(times) * 1e6


def on_cpu(pool: Pool, name: str, rounds: int, gap: float) -> tuple[Times, Times]:
    """Of calls, and of posts."""
    hidden, size, chosen = LAYERS[name]
    layer, box = make_layer(pool, hidden, size), Mailbox(1, chosen, hidden)
    x, weights, y = torch.randn(1, hidden), torch.rand(1, chosen), torch.empty(1, hidden)
    chosen_of = torch.stack([torch.randperm(EXPERTS)[:chosen] for _ in range(rounds + 1)])
    ids = chosen_of[:1].clone()
    run = layer.bind(x, ids, weights, y)
    calls = timed(lambda n: ids.copy_(chosen_of[n : n + 1]), lambda n: run(), rounds, gap)

    slots = [box.slot(number) for number in (0, 1)]
    posts, replies = [slot.post.numpy() for slot in slots], [slot.reply.numpy() for slot in slots]
    for slot in slots:
        slot.x[:], slot.weights[:], slot.post[2] = x, weights, 1

    def post(number: int) -> None:
        posts[number % 2][0] = number
        reply = replies[number % 2]
        while reply[0] != number:
            pass

    with Server(pool, [layer], box):
        return calls, timed(lambda n: slots[n % 2].ids.copy_(chosen_of[n : n + 1]), post, rounds, gap)


def call_alone(layer: NativeExperts, hidden: int, chosen: int, rounds: int) -> float:
    """Median microseconds of the layer on the CPU, one call after another."""
    x, y = torch.randn(1, hidden), torch.empty(1, hidden)
    run = layer.bind(x, torch.arange(chosen)[None], torch.rand(1, chosen), y)
    return timed(lambda n: None, lambda n: run(), rounds, 0)[0]


def on_gpu(
    pool: Pool, layer: NativeExperts, layers: int, rounds: int, *, hidden: int, chosen: int, cold: bool
) -> float:
    """Microseconds a layer."""
    device, box = torch.device("cuda"), Mailbox(1, chosen, hidden)
    x, weights = torch.randn(1, hidden, device=device).bfloat16(), torch.rand(1, chosen, device=device)
    ids = torch.arange(chosen, dtype=torch.int32, device=device)[None]
    where = torch.full((EXPERTS,), -1 if cold else 0, dtype=torch.int32, device=device)
    out = torch.zeros(1, hidden, device=device)
    with Server(pool, [layer] * layers, box) as server:
        mail = DeviceMailbox(box, device)
        mail.post(0, x, ids, weights, where)
        mail.wait_add(out)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for number in range(layers):
                mail.post(number, x, ids, weights, where)
                mail.wait_add(out)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        times = []
        for _ in range(rounds):
            server.wake()
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        mail.check()
        mail.close()
    return statistics.median(times[rounds // 10 :]) / layers * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="default: one a physical core but one, for whoever posts")
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--gap", type=float, default=200, help="microseconds")
    arguments = parser.parse_args()
    pool = Pool(arguments.threads or max(1, physical_cores() - 1))
    print(f"{pool.threads} threads, {pool.isa}; microseconds, median (best)")
    print(f"{'layer':8} {'gap':>5} {'call':>18} {'post':>18}")
    for name in LAYERS:
        for gap in (0, arguments.gap):
            found = on_cpu(pool, name, arguments.rounds, gap / 1e6)
            shown = [f"{middle:9.1f} ({best:.1f})" for middle, best in found]
            print(f"{name:8} {gap:5.0f} {shown[0]:>18} {shown[1]:>18}", flush=True)
    if not torch.cuda.is_available():
        print("no GPU")
        return
    print(f"\n{torch.cuda.get_device_name()}: graph of {arguments.layers} layers, microseconds a layer")
    print(f"{'hidden':>6} {'all cold':>9} {'CPU alone':>10} {'all resident':>13}")
    for hidden in (64, 2048, 4096):
        layer, chosen, rounds = make_layer(pool, hidden, 64), 4, arguments.rounds
        alone = call_alone(layer, hidden, chosen, rounds)
        cold, resident = (
            on_gpu(pool, layer, arguments.layers, rounds, hidden=hidden, chosen=chosen, cold=cold)
            for cold in (True, False)
        )
        print(f"{hidden:6} {cold:9.1f} {alone:10.1f} {resident:13.1f}", flush=True)


if __name__ == "__main__":
    main()
