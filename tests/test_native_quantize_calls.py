"""What the native quantizer refuses, and how it says so."""

from collections.abc import Callable

import pytest
import torch

from krasis import layout as layouts
from krasis import quant
from krasis.errors import InputError, KrasisError
from krasis.native import cpu
from krasis.native.quantize import Target, pack, quantize

ISAS = [isa for isa in cpu.ISAS if cpu.ISAS.index(isa) <= cpu.ISAS.index(cpu.best_isa())]


def targets_of(codec: str) -> list[Target]:
    """Room for a matrix of 128 x 128 in groups of 32."""
    order, kind = layouts.get("cpu"), quant.get(codec)
    codes = torch.zeros(order.packed_shape(128, 128, kind.BITS), dtype=order.PACKED_DTYPE)
    return [Target("cpu", codes, torch.zeros(order.scales_shape(128, 128, 32), dtype=kind.SCALE_DTYPE))]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("codec", ["int4", "int8", "mxfp4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_weights_that_are_not_finite_are_refused(codec: str, dtype: torch.dtype, isa: str) -> None:
    targets = targets_of(codec)
    for bad in (torch.nan, -torch.nan, torch.inf, -torch.inf, *((2.0**127,) if dtype != torch.float16 else ())):
        part = torch.randn(70, 77).to(dtype)
        part[69, 76] = bad
        with pytest.raises(InputError, match="1 of 5390 weights are NaN"):
            quantize(codec, [part], (128, 128), 32, targets, isa=isa)


def a_call(**changes: object) -> Callable[[], object]:
    arguments = {"codec": "int4", "parts": [torch.zeros(128, 128)], "padded": (128, 128), "group_size": 32}
    arguments |= {"targets": targets_of("int4")} | changes
    return lambda: quantize(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"codec": "bf16"},
        {"codec": "int3"},
        {"parts": []},
        {"parts": [torch.zeros(64, 128), torch.zeros(64, 127)]},
        {"parts": [torch.zeros(64, 128), torch.zeros(64, 128).bfloat16()]},
        {"parts": [torch.zeros(64, 128, dtype=torch.int32)]},
        {"parts": [torch.zeros(129, 128)]},
        {"parts": [torch.zeros(65, 128), torch.zeros(64, 128)]},
        {"parts": [torch.zeros(4, 128)] * 3},
        {"parts": [torch.zeros(64, 129)]},
        {"parts": [torch.zeros(64)]},
        {"padded": (128, 192)},
        {"padded": (64, 128)},
        {"group_size": 48},
        {"group_size": 64},
        {"targets": []},
        {"rows": range(0, 65)},
        {"rows": range(32, 64)},
        {"rows": range(0, 192)},
        {"rows": range(0, 64, 2)},
        {"importance": torch.ones(127)},
        {"importance": torch.ones(128).double()},
        {"importance": -torch.ones(128)},
        {"importance": torch.full((128,), torch.inf)},
    ],
    ids=str,
)
def test_what_does_not_belong_together_is_refused(changes: dict[str, object]) -> None:
    a_call()()
    with pytest.raises(InputError):
        a_call(**changes)()


def test_unknown_instruction_sets_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KrasisError, match="unknown instruction set 'avx9'"):
        a_call(isa="avx9")()
    monkeypatch.setattr(cpu, "ISAS", (*cpu.ISAS, "avx9"))
    with pytest.raises(KrasisError, match="lacks the instruction set"):
        a_call(isa="avx9")()
    monkeypatch.setenv(cpu.ISA_VARIABLE, "avx9")
    with pytest.raises(KrasisError, match="lacks the instruction set"):
        a_call()()


@pytest.mark.parametrize(
    ("codes", "scales"),
    [
        ([], []),
        ([torch.zeros(64, 128).byte()], []),
        ([torch.zeros(64, 128).byte()], [torch.zeros(64, 3).bfloat16()]),
        ([torch.zeros(64, 128).byte()], [torch.zeros(64, 4).byte()]),
        ([torch.zeros(64, 128).int()], [torch.zeros(64, 4).bfloat16()]),
        ([torch.zeros(129, 128).byte()], [torch.zeros(129, 4).bfloat16()]),
    ],
    ids=str,
)
def test_codes_that_do_not_belong_together_are_refused(codes: list[torch.Tensor], scales: list[torch.Tensor]) -> None:
    with pytest.raises(InputError):
        pack("int4", codes, scales, (128, 128), 32, targets_of("int4"))


def test_status_of_bad_pointers() -> None:
    library = cpu.cpu_library()
    assert library.krasis_quantize(0, None, None, 0, 0, None) == 1
    assert library.krasis_pack(0, None, 0, None, 0, 0) == 1
