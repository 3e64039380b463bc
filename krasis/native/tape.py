"""Calls of the native library, recorded while they run, to be made again without Python between them."""

import ctypes
import struct
from array import array
from typing import TYPE_CHECKING, Any

from krasis.native.library import cpu_library

if TYPE_CHECKING:
    from krasis.native.cpu import Pool

OPERATIONS = (
    "krasis_linears",
    "krasis_norm",
    "krasis_turn_heads",
    "krasis_turn_latent",
    "krasis_gate",
    "krasis_add",
    "krasis_copy",
    "krasis_conv",
    "krasis_route",
    "krasis_delta_net_step",
    "krasis_store",
    "krasis_attention",
    "krasis_moe",
)
"""In the order of `krasis_operation`."""

_MOST_ARGUMENTS = 15


class Tape:
    """Calls on a pool, each a `krasis_call`. Whatever they read and write must lie where it did whenever they are made
    again: `kept` is there for whoever holds it.
    """

    def __init__(self, pool: "Pool") -> None:
        self.kept: list[Any] = []
        self._pool, self._calls = pool, array("q")
        self._replay = cpu_library().krasis_replay

    def record(self, function: Any, arguments: tuple[Any, ...]) -> None:
        """One of OPERATIONS, and what it is given behind the pool."""
        slots = [_slot(value, kind) for value, kind in zip(arguments, function.argtypes[1:], strict=True)]
        padding = [0] * (_MOST_ARGUMENTS - len(slots))
        self._calls.extend((OPERATIONS.index(function.__name__), *slots, *padding))

    def replay(self, later: int) -> None:
        """Make all calls for a token `later` tokens behind the recorded one. Raises KrasisError as they do."""
        address, words = self._calls.buffer_info()
        if status := self._replay(self._pool.handle, address, words // (1 + _MOST_ARGUMENTS), later):
            raise self._pool.error(status, "a recorded call")


def _slot(value: Any, kind: Any) -> int:
    if kind is ctypes.c_float:
        (slot,) = struct.unpack("=q", struct.pack("=f4x", value))
        return int(slot)
    return 0 if value is None else int(value)
