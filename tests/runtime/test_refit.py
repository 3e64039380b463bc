"""Rates of the CPU, refitted to its posts."""

import pytest
from msgspec.structs import replace

from krasis.native.server import Counts, Work
from krasis.runtime.cuda.division import HAND_OFFS, division, host_beside
from krasis.runtime.cuda.refit import BOUND, LEAST, Refit, refitted
from krasis.runtime.rates import REFERENCE

SIZE = 10_000_000


def posts(rate, count=LEAST, read=SIZE):
    """Of `read` bytes each, at `rate`, as `division` assumes that they take."""
    return Counts(count, count, count * ((HAND_OFFS - 1) * REFERENCE.hand_off_s + read / rate), count * read)


def test_rates_become_what_posts_took():
    found = refitted(REFERENCE, REFERENCE, Work(whole=posts(70e9), part=posts(50e9)))
    assert found.host_read == pytest.approx(70e9)
    assert host_beside(found) == pytest.approx(50e9)
    assert replace(found, host_read=REFERENCE.host_read, together=REFERENCE.together) == REFERENCE


def test_what_was_not_seen_stays():
    """Also what was seen too seldom, and posts of several tokens."""
    used = replace(REFERENCE, host_read=80e9, together=110e9)
    assert refitted(used, REFERENCE, Work()) == used
    assert refitted(used, REFERENCE, Work(posts(1e9), posts(1e9, LEAST - 1), posts(1e9, LEAST - 1))) == used
    assert refitted(used, REFERENCE, Work(part=posts(70e9))).host_read == 80e9


@pytest.mark.parametrize(("seconds", "times"), [(1e9, 1 / BOUND), (0.0, BOUND)])
def test_rates_stay_near_those_measured(seconds, times):
    """Also where posts took less than is assumed that they cost beside their bytes."""
    seen, used = Counts(LEAST, LEAST, seconds, LEAST * SIZE), REFERENCE
    for _ in range(3):
        used = refitted(used, REFERENCE, Work(whole=seen, part=seen))
    assert used.host_read == pytest.approx(times * REFERENCE.host_read)
    assert host_beside(used) == pytest.approx(times * host_beside(REFERENCE))


def test_small_changes_are_no_news():
    begun = Refit(REFERENCE)
    assert not begun.refit(Work(whole=posts(10e9)))  # before the first sequence
    assert not begun.refit(Work(whole=posts(10e9)))
    first = Work(whole=posts(10e9) + posts(1.05 * REFERENCE.host_read))
    assert not begun.refit(first)
    assert begun.rates == REFERENCE
    assert begun.refit(Work(whole=first.whole + posts(0.6 * REFERENCE.host_read)))
    assert begun.rates.host_read == pytest.approx(0.6 * REFERENCE.host_read)


def test_a_slower_cpu_is_left_less():
    slower = refitted(REFERENCE, REFERENCE, Work(whole=posts(60e9), part=posts(32e9)))
    before, after = (division(6, SIZE, 16, rates) for rates in (REFERENCE, slower))
    assert all(less <= more for less, more in zip(after, before, strict=True))
    assert after[4] < before[4]
