"""How missed experts are divided between the CPU and the GPU."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from krasis.runtime.cuda.division import BESIDE, HAND_OFFS, READ_S, WORTH, division
from krasis.runtime.rates import REFERENCE

rates_of = st.floats(1e9, 1e12)


def seconds(asked, parts, total, rates):
    """(the CPU's, the GPU's) for `total` bytes of which the CPU has asked / parts."""
    beside = BESIDE * rates.pcie
    host = rates.host_read if asked == parts else max(rates.together - beside, rates.host_read / 2)
    cpu = HAND_OFFS * rates.hand_off_s + total * asked / parts / host if asked else 0.0
    return cpu, READ_S + total * (parts - asked) / parts / beside if asked < parts else 0.0


@given(st.integers(1, 64), st.integers(1, 46), st.integers(1, 10**8), rates_of, rates_of, rates_of)
def test_no_other_division_is_done_sooner_by_much(most, parts, size, host, pcie, together):
    rates = replace(REFERENCE, host_read=host, pcie=pcie, together=together)
    found = division(most, size, parts, rates)
    assert len(found) == most + 1
    for missed in range(1, most + 1):
        taken = [max(seconds(asked, parts, missed * size, rates)) for asked in range(parts + 1)]
        worth = min(taken) <= WORTH * taken[parts]
        assert taken[found[missed]] == pytest.approx(min(taken) if worth else taken[parts])


def test_both_are_done_at_once_where_experts_are_large():
    """Of gpt-oss, 13 MB in 46 parts: to what a part takes."""
    parts, size, rates = 46, 13_200_000, replace(REFERENCE, host_read=80e9, together=115e9)
    found = division(4, size, parts, rates)
    for missed in range(1, 5):
        cpu, gpu = seconds(found[missed], parts, missed * size, rates)
        assert abs(cpu - gpu) < missed * size / parts / (BESIDE * rates.pcie)
        assert max(cpu, gpu) < 0.85 * seconds(parts, parts, missed * size, rates)[0]


def test_little_is_computed_by_one_alone():
    """By the GPU, where reading costs it less than asking costs, else by the CPU."""
    slow = replace(REFERENCE, hand_off_s=1e-3)
    quick = replace(REFERENCE, hand_off_s=1e-6)
    assert division(8, 10_000, 8, slow) == [0] * 9
    assert division(8, 10_000, 8, quick)[1:] == [8] * 8


def test_the_gpu_reads_less_while_dense_weights_are_copied_to_it():
    rates = replace(REFERENCE, host_read=80e9, together=115e9)
    alone, beside = (division(8, 10_000_000, 16, rates, passing) for passing in (0, 10_000_000))
    assert 0 < alone[8] < beside[8] < 16
    assert all(more >= less for more, less in zip(beside, alone, strict=True))
    assert division(8, 10_000_000, 16, rates, 1e9) == [16] * 9
