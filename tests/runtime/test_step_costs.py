"""What steps of the GPU are expected to take: more for more tokens, by what these read."""

import numpy as np
import pytest

from krasis.runtime.cuda.costs import ROUND_TRIP_S, step_costs
from krasis.runtime.cuda.passes import Crossover
from krasis.runtime.drafts import WIDTHS
from krasis.runtime.placement.residents import Candidates
from krasis.runtime.rates import REFERENCE

EXPERTS, SIZE, DENSE = 64, 10**7, 10**9
"""Of one layer, a sixteenth of them chosen."""


def costs(away, undo=0):
    found = Candidates(
        np.zeros(EXPERTS, np.int64), np.arange(EXPERTS), np.full(EXPERTS, SIZE), np.full(EXPERTS, 1 / 16)
    )
    missing = np.arange(EXPERTS) < away * EXPERTS
    ways = Crossover.of(found, missing, 1, DENSE, 0.0, REFERENCE)
    return step_costs(found, missing, ways, 1e-3, undo)


def test_one_token_reads_dense_weights_and_what_it_chooses():
    fixed = 1e-3 + REFERENCE.hand_off_s + DENSE / REFERENCE.device_read
    assert costs(0)(1) == pytest.approx(fixed + 4 * SIZE / REFERENCE.device_read)
    assert costs(1)(1) == pytest.approx(fixed + 4 * SIZE / REFERENCE.together)


@pytest.mark.parametrize("away", [0, 0.5, 1])
def test_several_read_what_any_of_them_chooses(away):
    found, before = costs(away), 0.0
    for tokens in sorted((1, *WIDTHS)):
        assert before < found(tokens) < 8 * found(1)
        before = found(tokens)
    read = EXPERTS * SIZE * (1 - (15 / 16) ** 8)
    if away == 1:
        assert found(8) - costs(0)(8) == pytest.approx(read / REFERENCE.host_read - read / REFERENCE.device_read)


def test_what_is_undone_costs_several_tokens_alone():
    one, other = costs(0.5), costs(0.5, undo=75 << 20)
    assert one(1) == other(1)
    assert other(2) - one(2) == pytest.approx(4 * (75 << 20) / REFERENCE.device_read)
    assert one(2) > one(1) + ROUND_TRIP_S
