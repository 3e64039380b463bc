"""How the native library is called, and what it refuses."""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from time import sleep

import numpy as np
import pytest
import torch

from krasis import native
from krasis.errors import InputError, KrasisError
from krasis.native import cpu
from krasis.native.cpu import Matrix, Pool

ISAS = [isa for isa in cpu.ISAS if cpu.ISAS.index(isa) <= cpu.ISAS.index(cpu.best_isa())]
CODES, SCALES = torch.zeros(128 * 64, dtype=torch.uint8), torch.zeros(4 * 128, dtype=torch.bfloat16)

EXPONENTS = torch.zeros(4 * 128, dtype=torch.uint8)


@cache
def pool(threads: int, isa: str) -> Pool:
    return Pool(threads, isa)


def small() -> Matrix:
    """INT4, 128 x 128."""
    rng = np.random.default_rng(6)
    codes = torch.from_numpy(rng.integers(0, 256, 128 * 64, dtype=np.uint8))
    return Matrix("int4", "cpu", 128, 128, 32, codes, torch.randn(4, 128).bfloat16())


def test_x_may_be_a_slice_and_empty() -> None:
    matrix, x, shared = small(), torch.randn(4, 300)[::2, 7:135], pool(1, "scalar")
    assert torch.equal(shared.matmul(matrix, x), shared.matmul(matrix, x.contiguous()))
    assert shared.matmul(matrix, torch.empty(0, 128)).shape == (0, 128)


def test_threads_may_share_a_pool_and_sleep_between_calls() -> None:
    matrix, x, shared = small(), torch.randn(3, 128), pool(2, ISAS[-1])
    expected = shared.matmul(matrix, x)

    def several(_: int) -> bool:
        sleep(0.001)
        return all(torch.equal(shared.matmul(matrix, x), expected) for _ in range(50))

    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(several, range(16)))


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(1, 128, dtype=torch.float64),
        torch.zeros(128),
        torch.zeros(1, 129),
        torch.zeros(1, 0),
        torch.zeros(128, 4).T,
        torch.zeros(1, 128).expand(4, 128),
    ],
    ids=["dtype", "dimensions", "too wide", "no columns", "last stride", "overlapping rows"],
)
def test_bad_x_is_refused(x: torch.Tensor) -> None:
    with pytest.raises(InputError):
        pool(1, "scalar").matmul(small(), x)
    with pytest.raises(InputError):
        pool(1, "scalar").matmul_batch([(small(), x, 128)])


@pytest.mark.parametrize("n_out", [0, -1, 129])
def test_bad_n_out_is_refused(n_out: int) -> None:
    with pytest.raises(InputError):
        pool(1, "scalar").matmul(small(), torch.zeros(1, 128), n_out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("int5", "cpu", 128, 128, 32, CODES, SCALES), "codec"),
        (("int4", "plain", 128, 128, 32, CODES, SCALES), "layout"),
        (("bf16", "cpu", 128, 32, 0, CODES.view(torch.bfloat16)), "layout"),
        (("int4", "cpu", 100, 128, 32, CODES, SCALES), "multiples of 64"),
        (("int4", "cpu", 128, 0, 32, CODES, SCALES), "at least"),
        (("int4", "cpu", 128, 128, 48, CODES, SCALES), "groups"),
        (("int4", "cpu", 64, 256, 128, CODES, SCALES), "groups"),
        (("int4", "cpu", 128, 128, 32, CODES, None), "scales"),
        (("int4", "cpu", 128, 128, 32, CODES, SCALES.half()), "float16"),
        (("int4", "cpu", 128, 128, 32, CODES.float(), SCALES), "float32"),
        (("int8", "cpu", 128, 128, 32, CODES, SCALES), "16384"),
        (("int4", "cpu", 128, 128, 64, CODES, SCALES), "512"),
        (("int4", "cpu", 128, 128, 32, CODES.repeat(2)[::2], SCALES), "contiguous"),
        (("mxfp4", "cpu", 128, 128, 64, CODES, EXPONENTS), "whole groups of 32"),
        (("mxfp4", "cpu", 128, 128, 32, CODES, SCALES), "bfloat16"),
        (("mxfp4", "plain", 128, 128, 32, CODES, EXPONENTS), "layout"),
        (("mxfp4", "marlin", 128, 128, 32, CODES, EXPONENTS[:-1]), "512"),
        (("int4", "cpu", 128, 128, 32, CODES, EXPONENTS), "uint8"),
        (("bf16", "plain", 128, 32, 32, CODES.view(torch.bfloat16)), "group"),
        (("bf16", "plain", 128, 32, 0, CODES.view(torch.bfloat16), SCALES), "scales"),
    ],
)
def test_bad_matrices_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Matrix(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("codes", None, 1),
        ("scales", None, 1),
        ("codec", 4, 2),
        ("codec", -1, 2),
        ("layout", 2, 3),
        ("layout", -1, 3),
        ("k", 0, 4),
        ("k", -64, 4),
        ("n", 100, 4),
        ("group_size", 0, 5),
        ("group_size", 96, 5),
        ("codec", 2, 3),
    ],
)
def test_the_library_checks_matrices_itself(field: str, value: int | None, status: int) -> None:
    matrix, x = small(), torch.zeros(1, 128)
    setattr(matrix.c_struct, field, value)
    shared = pool(1, "scalar")
    found = shared._matmul(shared._handle, matrix.address, x.data_ptr(), 1, 128, 128, x.data_ptr(), 128, 128)
    assert found == status
    assert cpu.cpu_library().krasis_strerror(status) != cpu.cpu_library().krasis_strerror(99)


def test_the_codec_decides_which_groups_and_addresses_the_library_takes() -> None:
    x, y, shared = torch.zeros(1, 128), torch.zeros(1, 1), pool(1, "scalar")
    mxfp4 = Matrix("mxfp4", "cpu", 128, 128, 32, CODES, EXPONENTS)
    for matrix, field, value, status in [
        (mxfp4, "scales", EXPONENTS.data_ptr() + 1, 0),
        (mxfp4, "group_size", 64, 5),
        (small(), "scales", SCALES.data_ptr() + 1, 6),
    ]:
        setattr(matrix.c_struct, field, value)
        call = (shared._handle, matrix.address, x.data_ptr(), 1, 128, 128, y.data_ptr(), 1, 1)
        assert shared._matmul(*call) == status


def test_the_library_checks_pointers_and_strides() -> None:
    library, shared, matrix, y = cpu.cpu_library(), pool(1, "scalar"), small(), torch.zeros(2, 128)
    good = [shared._handle, matrix.address, y.data_ptr(), 2, 128, 128, torch.zeros(2, 128).data_ptr(), 128, 128]
    for place, value, status in [
        (0, None, 1),
        (1, None, 1),
        (2, None, 1),
        (2, y.data_ptr() + 1, 6),
        (3, -1, 4),
        (3, 1 << 62, 4),
        (4, 127, 4),
        (5, 0, 4),
        (5, 129, 4),
        (6, None, 1),
        (7, 127, 4),
        (8, 0, 4),
        (8, 129, 4),
    ]:
        assert library.krasis_matmul(*good[:place], value, *good[place + 1 :]) == status
    assert library.krasis_matmul_batch(shared._handle, None, 1) == 1
    assert library.krasis_matmul_batch(shared._handle, None, -1) == 4
    assert library.krasis_matmul_batch(shared._handle, None, 0) == 0
    matrices, widths = (ctypes.c_void_p * 1)(matrix.address), (ctypes.c_int64 * 1)(128)
    side = [shared._handle, matrices, widths, 1, y.data_ptr(), 0, 1, 128, 128, y.data_ptr(), 128]
    for place, value, status in [
        (0, None, 1),
        (1, None, 1),
        (2, None, 1),
        (3, -1, 4),
        (3, 1 << 40, 4),
        (4, None, 1),
        (5, -1, 4),
        (9, None, 1),
    ]:
        assert library.krasis_linears(*side[:place], value, *side[place + 1 :]) == status
    widths[0] = -1
    assert library.krasis_linears(*side) == 4
    library.krasis_pool_destroy(None)
    assert library.krasis_pool_threads(None) == 0


def test_side_by_side_x_must_fit() -> None:
    linears = pool(1, "scalar").linears([small()] * 2, [128, 5])
    assert linears(torch.randn(3, 100)).shape == (3, 133)
    for call in (
        lambda: linears(torch.randn(3, 129)),
        lambda: linears(torch.randn(3, 128).double()),
        lambda: linears.each(torch.randn(3, 1, 128)),
        lambda: linears.each(torch.randn(3, 128)),
        lambda: pool(1, "scalar").linears([small()], [129]),
    ):
        with pytest.raises(InputError):
            call()


def test_the_instruction_set_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cpu.ISA_VARIABLE, raising=False)
    for isa in ISAS:
        assert Pool(1, isa).isa == isa
    assert Pool(1).isa == cpu.best_isa() == ISAS[-1]
    monkeypatch.setenv(cpu.ISA_VARIABLE, "scalar")
    assert Pool(1).isa == "scalar"
    assert Pool(1, ISAS[-1]).isa == ISAS[-1]
    monkeypatch.setenv(cpu.ISA_VARIABLE, "mmx")
    with pytest.raises(KrasisError, match="mmx"):
        Pool(1)


def test_a_missing_instruction_set_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "ISAS", (*cpu.ISAS, "avx9"))
    with pytest.raises(KrasisError, match="avx9"):
        Pool(1, "avx9")


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= Pool().threads <= len(os.sched_getaffinity(0))
    for threads in (0, -1, 1 << 20):
        with pytest.raises(KrasisError, match="threads"):
            Pool(threads)


def test_a_closed_pool_says_so() -> None:
    with Pool(2) as closed:
        pass
    closed.close()
    with pytest.raises(KrasisError, match="closed"):
        closed.matmul(small(), torch.zeros(1, 128))


def test_a_library_that_is_not_built_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "__path__", [str(tmp_path)])
    cpu.cpu_library.cache_clear()
    try:
        with pytest.raises(KrasisError, match="isn't built"):
            Pool(1)
        (tmp_path / "libkrasis_cpu.so").write_bytes(b"not a library")
        with pytest.raises(KrasisError, match="can't be loaded"):
            Pool(1)
    finally:
        cpu.cpu_library.cache_clear()
