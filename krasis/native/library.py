"""Find and open a compiled library, once, with its C signatures."""

import ctypes
import functools
from pathlib import Path
from typing import Any

from krasis import native
from krasis.errors import KrasisError

ERROR_ISA = 7
"""The status where this machine lacks the instruction set."""

ABI_VERSION = 6

_INT, _LONG, _POINTER, _FLOAT = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
Signatures = dict[str, tuple[Any, list[Any]]]

_CPU_SIGNATURES: Signatures = {
    "krasis_abi_version": (_INT, []),
    "krasis_strerror": (ctypes.c_char_p, [_INT]),
    "krasis_best_isa": (_INT, []),
    "krasis_pool_create": (_POINTER, [_INT, _INT, ctypes.POINTER(_INT)]),
    "krasis_pool_destroy": (None, [_POINTER]),
    "krasis_pool_threads": (_INT, [_POINTER]),
    "krasis_pool_isa": (_INT, [_POINTER]),
    "krasis_pool_pin": (_INT, [_POINTER, ctypes.POINTER(ctypes.c_int32)]),
    "krasis_read": (_INT, [_POINTER, _POINTER, _LONG, ctypes.POINTER(ctypes.c_uint32)]),
    "krasis_matmul": (_INT, [_POINTER, _POINTER, _POINTER, _LONG, _LONG, _LONG, _POINTER, _LONG, _LONG]),
    "krasis_matmul_batch": (_INT, [_POINTER, _POINTER, _LONG]),
    "krasis_linears": (_INT, [*[_POINTER] * 3, _LONG, _POINTER, *[_LONG] * 4, _POINTER, _LONG]),
    "krasis_norm": (_INT, [*[_POINTER] * 3, _LONG, _LONG, _POINTER, _FLOAT, _POINTER, _POINTER]),
    "krasis_turn_heads": (
        _INT,
        [_POINTER, _POINTER, _LONG, _LONG, _INT, _INT, _INT, _POINTER, _POINTER, _FLOAT, _POINTER, _POINTER, _INT],
    ),
    "krasis_turn_latent": (
        _INT,
        [
            *[_POINTER, _POINTER, _LONG, _POINTER, _LONG, _LONG, _INT, _INT, _INT, _POINTER],
            _FLOAT,
            _POINTER,
            _POINTER,
            _INT,
        ],
    ),
    "krasis_gate": (_INT, [_POINTER, *[_POINTER, _LONG] * 2, _LONG, _LONG, _INT, _POINTER]),
    "krasis_add": (_INT, [_POINTER, _POINTER, *[_LONG] * 3, _POINTER]),
    "krasis_copy": (_INT, [_POINTER, _POINTER, *[_LONG] * 3, _POINTER, _LONG]),
    "krasis_conv": (_INT, [_POINTER, _POINTER, _LONG, _LONG, _LONG, _POINTER, _LONG, _POINTER, _POINTER]),
    "krasis_route": (_INT, [*[_POINTER] * 3, *[_LONG] * 3, _INT, _INT, _FLOAT, _POINTER, _POINTER]),
    "krasis_delta_net_step": (_INT, [_POINTER, _POINTER, *[_POINTER, _LONG] * 3, _LONG, _POINTER, _POINTER]),
    "krasis_store": (_INT, [_POINTER, _POINTER, _LONG, _LONG, *[_INT] * 3, _LONG, _POINTER, _POINTER]),
    "krasis_replay": (_INT, [_POINTER, _POINTER, _LONG, _LONG]),
    "krasis_attention": (
        _INT,
        [_POINTER, _POINTER, *[_LONG] * 2, *[_POINTER] * 2, _LONG, *[_INT] * 4, _LONG, _FLOAT, _POINTER, _POINTER],
    ),
    "krasis_moe": (_INT, [*[_POINTER] * 3, _LONG, _LONG, _POINTER, _POINTER, _LONG, _POINTER, _LONG]),
    "krasis_server_create": (_POINTER, [_POINTER, _POINTER, _LONG, _POINTER, ctypes.POINTER(_INT)]),
    "krasis_server_destroy": (None, [_POINTER]),
    "krasis_server_wake": (None, [_POINTER]),
    "krasis_server_counts": (None, [_POINTER, _POINTER]),
    "krasis_server_freeze": (None, [_POINTER, _INT]),
    "krasis_quantize": (_INT, [_INT, _POINTER, _POINTER, _LONG, _LONG, _POINTER]),
    "krasis_int4_feedback": (_INT, [_INT, *[_POINTER] * 4, _LONG, _LONG, _LONG, _POINTER, _POINTER]),
    "krasis_pack": (_INT, [_INT, _POINTER, _INT, _POINTER, _LONG, _LONG]),
}


@functools.cache
def cpu_library() -> ctypes.CDLL:
    """libkrasis_cpu.so. Raises KrasisError where it is missing, can't be opened or has another ABI."""
    return open_library("libkrasis_cpu.so", _CPU_SIGNATURES, "krasis_abi_version")


def open_library(name: str, signatures: Signatures, abi_version: str) -> ctypes.CDLL:
    """The library of a file name, its functions typed. Raises KrasisError as `cpu_library` does."""
    path = _find(name)
    try:
        library = ctypes.CDLL(str(path))
        for symbol, (result, arguments) in signatures.items():
            function = getattr(library, symbol)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise KrasisError(f"{name} can't be loaded", where=path, expected=str(error), hint=_HINT) from error
    if (found := getattr(library, abi_version)()) != ABI_VERSION:
        raise KrasisError(f"the library has ABI {found}, not {ABI_VERSION}", where=path, hint=_HINT)
    return library


_HINT = "build it again with `pip install .`"


def _find(name: str) -> Path:
    # An editable install keeps the sources here and the libraries in site-packages; the package's path has both.
    folders = [Path(folder) for folder in native.__path__]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise KrasisError(f"{name} isn't built", where=", ".join(map(str, folders)), hint=_HINT)
