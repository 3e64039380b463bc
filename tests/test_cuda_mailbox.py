"""The whole round: a device posts cold pairs, the server computes them, the device adds the sum."""

import pytest
import torch
from cuda_devices import on_devices
from posted_layers import EXPERTS, SIZE, expected, random_layer, random_post, workers

from krasis.errors import InputError, KrasisError
from krasis.native.cuda.mailbox import DeviceMailbox, Split
from krasis.native.server import Mailbox, Server

HIDDEN, CHOSEN = 192, 5
SHAPES = [(1, 5, 192), (3, 5, 192), (8, 9, 2112)]
every_type = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def cold_of(where: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return torch.where(where[ids.long()] < 0, ids, -1)


@on_devices
@every_type
@pytest.mark.parametrize(("tokens", "chosen", "hidden"), SHAPES)
def test_adds_what_a_call_gives_for_cold_pairs(tokens, chosen, hidden, dtype, device):
    """Many posts in a row of random cold sets, none and all among them: exact, as both add once and round once."""
    layers, box = [random_layer(seed, hidden, workers()) for seed in range(2)], Mailbox(8, chosen, hidden)
    with Server(workers(), layers, box) as server:
        mail = DeviceMailbox(box, torch.device(device))
        server.wake()
        posted = 0
        for turn in range(12):
            x, ids, weights = random_post(turn, tokens, chosen, hidden)
            x, out = x.to(dtype), torch.randn(tokens, hidden).to(dtype)
            where = torch.where(torch.rand(EXPERTS) < turn % 4 / 3, -1, 7).int()
            cold = cold_of(where, ids)
            right = (out.float() + expected(layers[turn % 2], x.float(), cold, weights)).to(dtype)
            found = out.to(device)
            mail.post(turn % 2, x.to(device), ids.to(device), weights.to(device), where.to(device))
            mail.wait_add(found)
            assert torch.equal(found.cpu(), right)
            posted += int((cold >= 0).any())
            assert max(int(box.slot(slot).post[0]) for slot in (0, 1)) == posted
        mail.check()
        mail.close()


@on_devices
def test_a_split_leaves_the_first_features_to_the_cpu(device):
    """As many as the number of cold pairs says, of which none, all and more than there are."""
    size, host, stride = 4 * SIZE, 1 << 40, 4096
    layer, box = random_layer(1, HIDDEN, workers(), size=size), Mailbox(1, CHOSEN, HIDDEN)
    table = torch.arange(1, EXPERTS + 1) << 20
    cut = torch.tensor([64, 0, 64, 192, size, size + 64], dtype=torch.int32, device=device)
    split, posted = Split(cut, table.to(device), host, stride), 0
    with Server(workers(), [layer], box) as server:
        mail = DeviceMailbox(box, torch.device(device))
        server.wake()
        for turn in range(24):
            x, ids, weights = random_post(turn, 1, CHOSEN, HIDDEN)
            ids[0, turn % CHOSEN] = -1 if turn % 3 else ids[0, turn % CHOSEN]
            where = torch.where(torch.rand(EXPERTS) < turn % 4 / 3, -1, 0).int()
            chosen = cold_of(where, ids)
            cold = chosen[0] >= 0
            features = int(cut[int(cold.sum())]) if cold.any() else 0
            out = torch.zeros(1, HIDDEN, device=device)
            mail.post(0, *(t.to(device) for t in (x, ids, weights, where)), split)
            mail.wait_add(out)
            at = torch.where(cold, host + stride * ids[0].long(), torch.where(ids[0] < 0, 0, table[ids[0].long()]))
            assert torch.equal(split.records.cpu(), at)
            assert torch.equal(split.first.cpu(), torch.where(cold, features, 0).int())
            part = random_layer(1, HIDDEN, workers(), size=size, inner=min(features or 1, size))
            right = expected(part, x, chosen, weights) if features else torch.zeros(1, HIDDEN)
            assert torch.equal(out.cpu(), right)
            posted += features > 0
            assert max(int(box.slot(slot).post[0]) for slot in (0, 1)) == posted
        assert 0 < posted < 24
        mail.check()
        mail.close()


@on_devices
def test_pairs_of_nobody_are_not_posted(device):
    layer, box = random_layer(1, HIDDEN, workers()), Mailbox(2, CHOSEN, HIDDEN)
    x, ids, weights = random_post(1, 2, CHOSEN, HIDDEN)
    ids[0], ids[1, 2:] = -1, -1
    with Server(workers(), [layer], box):
        mail = DeviceMailbox(box, torch.device(device))
        out = torch.zeros(2, HIDDEN, device=device)
        mail.post(0, *(t.to(device) for t in (x, ids, weights, torch.full((EXPERTS,), -1, dtype=torch.int32))))
        mail.wait_add(out)
        assert torch.equal(out.cpu(), expected(layer, x, ids, weights))
        assert not out[0].any()
        mail.close()


@on_devices
@pytest.mark.parametrize(("tokens", "chosen"), [(1, 5), (8, 9), (8, 12)])
def test_all_pairs_are_counted_cold_or_not(tokens, chosen, device):
    layer, box = random_layer(1, HIDDEN, workers()), Mailbox(8, chosen, HIDDEN)
    uses, right = torch.zeros(EXPERTS, dtype=torch.int32, device=device), torch.zeros(EXPERTS, dtype=torch.int32)
    with Server(workers(), [layer], box):
        mail = DeviceMailbox(box, torch.device(device))
        for turn in range(6):
            x, ids, weights = random_post(turn, tokens, chosen, HIDDEN)
            ids[0, 0] = -1
            where = torch.where(torch.rand(EXPERTS) < turn / 5, -1, 0).int()
            mail.post(0, *(t.to(device) for t in (x, ids, weights, where)), uses=uses)
            mail.wait_add(torch.zeros(tokens, HIDDEN, device=device))
            right += torch.bincount(ids[ids >= 0], minlength=EXPERTS)
        assert torch.equal(uses.cpu(), right)
        with pytest.raises(InputError, match=r"uses torch\.int64"):
            mail.post(0, *(t.to(device) for t in (x, ids, weights, where)), uses=uses.long())
        mail.close()


@on_devices
@pytest.mark.parametrize("what", ["frozen", "no such layer"])
def test_trouble_is_told_once_and_leaves_the_rest_alone(what, device):
    layer, box = random_layer(1, HIDDEN, workers()), Mailbox(1, CHOSEN, HIDDEN)
    x, ids, weights = (t.to(device) for t in random_post(1, 1, CHOSEN, HIDDEN))
    where = torch.full((EXPERTS,), -1, dtype=torch.int32, device=device)
    with Server(workers(), [layer], box) as server:
        server.freeze(frozen=what == "frozen")
        mail = DeviceMailbox(box, torch.device(device), timeout=0.3 if what == "frozen" else 30)
        out = torch.ones(1, HIDDEN, device=device)
        mail.check()
        for _ in range(3):
            mail.post(1 if what == "no such layer" else 0, x, ids, weights, where)
            mail.wait_add(out)
        assert torch.equal(out.cpu(), torch.ones(1, HIDDEN))
        assert int(box.slot(0).post[0]) == 0  # the second post was not made
        with pytest.raises(KrasisError, match="no answer came in time" if what == "frozen" else "out of range"):
            mail.check()
        mail.close()


@on_devices
def test_refusals(device):
    mail = DeviceMailbox(Mailbox(1, CHOSEN, HIDDEN), torch.device(device))
    x, ids, weights = (t.to(device) for t in random_post(1, 1, CHOSEN, HIDDEN))
    where = torch.zeros(EXPERTS, dtype=torch.int32, device=device)
    for wrong in (
        (x.half(), ids, weights, where),
        (x[:, :64], ids, weights, where),
        (x, ids.long(), weights, where),
        (x, ids, weights[:, :2], where),
        (x, ids, weights, where.long()),
        (x.repeat(2, 1), ids, weights, where),
    ):
        with pytest.raises(InputError):
            mail.post(0, *wrong)
    with pytest.raises(InputError):
        mail.wait_add(x.double())
    mail.close()
