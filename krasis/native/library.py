"""Find and open a compiled library, once, with its C signatures."""

import ctypes
import functools
from pathlib import Path

from krasis import native
from krasis.errors import KrasisError

ABI_VERSION = 1

_INT, _LONG, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
_CPU_SIGNATURES = {
    "krasis_abi_version": (_INT, []),
    "krasis_strerror": (ctypes.c_char_p, [_INT]),
    "krasis_best_isa": (_INT, []),
    "krasis_pool_create": (_POINTER, [_INT, _INT, ctypes.POINTER(_INT)]),
    "krasis_pool_destroy": (None, [_POINTER]),
    "krasis_pool_threads": (_INT, [_POINTER]),
    "krasis_pool_isa": (_INT, [_POINTER]),
    "krasis_matmul": (_INT, [_POINTER, _POINTER, _POINTER, _LONG, _LONG, _LONG, _POINTER, _LONG, _LONG]),
    "krasis_matmul_batch": (_INT, [_POINTER, _POINTER, _LONG]),
}


@functools.cache
def cpu_library() -> ctypes.CDLL:
    """libkrasis_cpu.so. Raises KrasisError where it is missing, can't be opened or has another ABI."""
    path = _find("libkrasis_cpu.so")
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _CPU_SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise KrasisError("the CPU library can't be loaded", where=path, expected=str(error), hint=_HINT) from error
    if (found := library.krasis_abi_version()) != ABI_VERSION:
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
