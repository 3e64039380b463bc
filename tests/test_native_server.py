"""The server of a mailbox: its answers are bit for bit those of a call, whatever is posted."""

import time

import pytest
import torch
from posted_layers import EXPERTS, SIZE, expected, random_layer, random_post, workers
from torch import Tensor

from krasis.errors import InputError, KrasisError
from krasis.native.cpu import Pool
from krasis.native.server import Mailbox, Server, trouble

HIDDEN, CHOSEN, TOKENS = 128, 5, 8
BAD_SHAPE = 4


def post(
    box: Mailbox,
    number: int,
    layer: int,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    tokens: int | None = None,
    inner: int = SIZE,
) -> None:
    """As a device does; `tokens` of them, it says. Stores of this processor are seen in their order."""
    slot, rows = box.slot(number), len(x)
    slot.x[:rows], slot.ids[:rows], slot.weights[:rows] = x, ids, weights
    slot.post[1], slot.post[2], slot.post[3] = layer, rows if tokens is None else tokens, inner
    slot.post[0] = number


def answered(box: Mailbox, number: int, seconds: float = 30) -> bool:
    reply, until = box.slot(number).reply, time.monotonic() + seconds
    while reply[0] != number:
        if time.monotonic() > until:
            return False
        time.sleep(0)
    return True


def status(box: Mailbox, number: int) -> int:
    assert answered(box, number)
    return int(box.slot(number).reply[1])


@pytest.fixture
def box() -> Mailbox:
    return Mailbox(TOKENS, CHOSEN, HIDDEN)


def test_answers_are_those_of_a_call(box):
    layers = [random_layer(seed, HIDDEN, workers()) for seed in range(3)]
    with Server(workers(), layers, box):
        for number in range(1, 60):
            x, ids, weights = random_post(number, number % TOKENS + 1, CHOSEN, HIDDEN)
            ids[torch.rand(ids.shape) < number % 4 / 3] = -1
            post(box, number, number % 3, x, ids, weights)
            assert status(box, number) == 0
            assert torch.equal(box.slot(number).y[: len(x)], expected(layers[number % 3], x, ids, weights))


@pytest.mark.parametrize("size", [256, 192])
def test_the_features_that_a_post_asks_for_are_computed(size, box):
    """Also where it asks for more than there are; bytes are counted by these features."""
    whole, read = random_layer(1, HIDDEN, workers(), size=size), 0
    with Server(workers(), [whole], box) as server:
        for number, inner in enumerate((size, 64, 128, 2**31 - 1, 64), 1):
            layer = random_layer(1, HIDDEN, workers(), size=size, inner=min(inner, size))
            found = random_post(number, number % TOKENS, CHOSEN, HIDDEN)
            post(box, number, 0, *found, inner=inner)
            assert status(box, number) == 0
            assert torch.equal(box.slot(number).y[: len(found[0])], expected(layer, *found))
            read += found[1].numel() * (whole.c_struct.stride * min(inner, size) // size)
        assert server.counts.read == read


def test_two_posts_may_be_unanswered(box):
    layer, posts = random_layer(1, HIDDEN, workers()), [random_post(seed, 2, CHOSEN, HIDDEN) for seed in (1, 2)]
    with Server(workers(), [layer], box) as server:
        server.freeze()
        for number, found in enumerate(posts, 1):
            post(box, number, 0, *found)
        assert not answered(box, 1, seconds=0.1)
        server.freeze(frozen=False)
        for number, found in enumerate(posts, 1):
            assert status(box, number) == 0
            assert torch.equal(box.slot(number).y[:2], expected(layer, *found))


def test_what_there_is_not_is_an_error_and_the_next_post_is_not(box):
    layer, (x, ids, weights) = random_layer(1, HIDDEN, workers()), random_post(1, 2, CHOSEN, HIDDEN)
    number = 0
    with Server(workers(), [layer], box):
        for bad_layer, bad_id, tokens, inner in (
            (1, 0, 2, 1),
            (-1, 0, 2, 1),
            (0, EXPERTS, 2, 1),
            (0, -2, 2, 1),
            (0, 0, 0, 1),
            (0, 0, 9, 1),
            (0, 0, 2, 0),
            (0, 0, 2, -64),
        ):
            number += 1
            wrong = ids.clone()
            wrong[1, 2] = bad_id
            post(box, number, bad_layer, x, wrong, weights, tokens, inner)
            assert status(box, number) == BAD_SHAPE
        post(box, number + 1, 0, x, ids, weights)
        assert status(box, number + 1) == 0
        assert torch.equal(box.slot(number + 1).y[:2], expected(layer, x, ids, weights))
    assert "out of range" in str(trouble(BAD_SHAPE))


def test_a_server_that_dozed_answers(box):
    """With a call, without one, and beside others who use the pool."""
    layer = random_layer(1, HIDDEN, workers())
    with Server(workers(), [layer], box) as server:
        for number in range(1, 5):
            time.sleep(0.08)
            if number % 2:
                server.wake()
            found = random_post(number, 1, CHOSEN, HIDDEN)
            post(box, number, 0, *found)
            right = expected(layer, *found)
            assert status(box, number) == 0
            assert torch.equal(box.slot(number).y[:1], right)


def test_an_idle_server_costs_little(box):
    with Server(workers(), [random_layer(1, HIDDEN, workers())], box):
        time.sleep(0.2)
        used = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - used < 0.25


@pytest.mark.parametrize("start", [0, -2])
def test_a_new_server_goes_on_where_the_last_one_ended(start, box):
    """Also where the number of posts wraps round."""
    layer = random_layer(1, HIDDEN, workers())
    for number in (start - 1, start):
        if start:
            box.slot(number).post[0] = box.slot(number).reply[0] = number
    for number in range(start + 1, start + 4):
        found = random_post(number, 1, CHOSEN, HIDDEN)
        if number % 2:
            post(box, number, 0, *found)  # while there is none
        with Server(workers(), [layer], box):
            if number % 2 == 0:
                post(box, number, 0, *found)
            assert status(box, number) == 0
        assert torch.equal(box.slot(number).y[:1], expected(layer, *found))


def test_ends_idle_and_mid_job(box):
    layer = random_layer(1, HIDDEN, workers())
    for number in range(1, 20):
        with Server(workers(), [layer], box):
            post(box, number, 0, *random_post(number, TOKENS, CHOSEN, HIDDEN))
        with Server(workers(), [layer], box):  # where the post was not taken before
            assert status(box, number) == 0


def test_refusals(box):
    layer = random_layer(1, HIDDEN, workers())
    for sizes in ((9, 1, 64), (0, 1, 64), (1, 65, 64), (1, 1, 8196), (1, 1, 66)):
        with pytest.raises(InputError, match="a mailbox for"):
            Mailbox(*sizes)
    with pytest.raises(InputError, match="1 layers for a mailbox of 64 features"):
        Server(workers(), [layer], Mailbox(1, 1, 64))
    with pytest.raises(InputError, match="0 layers"):
        Server(workers(), [], box)
    closed = Pool(1)
    closed.close()
    with pytest.raises(KrasisError, match="the pool is closed"):
        Server(closed, [layer], box)
