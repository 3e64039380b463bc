"""Rates of machines: kept, read back, refused where they are none."""

import msgspec
import pytest
import torch

from krasis.errors import InputError, UsageError
from krasis.runtime import measure, rates
from krasis.runtime.rates import REFERENCE


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache, for this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "krasis"


def test_without_measurements_the_reference_machine_is_assumed(cache):
    assert rates.known() == REFERENCE
    assert not cache.exists()


def test_what_was_measured_is_known_from_then_on(cache):
    mine = msgspec.structs.replace(REFERENCE, source="measured on 2026-01-01", host_read=12.5e9)
    rates.save(mine, rates.cache_path())
    assert rates.known() == mine
    assert [path.parent for path in cache.iterdir()] == [cache]


def test_another_machine_has_rates_of_its_own(cache, monkeypatch):
    rates.save(REFERENCE, rates.cache_path())
    here = rates.cache_path()
    monkeypatch.setattr(rates, "machine", lambda: "2 x another")
    assert rates.cache_path() != here


@pytest.mark.parametrize(
    "change",
    [
        {"pcie": 0.0},
        {"pcie": -1.0},
        {"hand_off_s": 0.0},
        {"pcie": "fast"},
        {"unknown": 1.0},
        {"pcie": None},
    ],
    ids=str,
)
def test_what_are_no_rates_is_bad_input(change, tmp_path):
    path = tmp_path / "rates.json"
    path.write_bytes(msgspec.json.encode(msgspec.to_builtins(REFERENCE) | change))
    with pytest.raises(InputError, match="not rates of a machine"):
        rates.load(path)


def test_rates_that_are_missing_or_broken_are_bad_input(tmp_path):
    path = tmp_path / "rates.json"
    with pytest.raises(InputError, match="can't read the rates"):
        rates.load(path)
    path.write_text("{")
    with pytest.raises(InputError, match="not rates"):
        rates.load(path)


def test_rates_that_can_not_be_kept_are_wrong_usage(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can't write the rates"):
        rates.save(REFERENCE, tmp_path / "file" / "rates.json")


def test_without_a_gpu_its_rates_stay_assumed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(measure, "memory_to_read", lambda: torch.ones(1 << 24, dtype=torch.uint8))
    found = measure.measure()
    assert found.host_read > 0
    assert "host_read" not in found.assumed
    assert "host_products" not in found.assumed
    for name in found.assumed:
        assert getattr(found, name) == getattr(REFERENCE, name)
    assert {"pcie", "together", "device_read", "device_products", "hand_off_s"} <= set(found.assumed)
    assert found.source.startswith("measured on 2")
