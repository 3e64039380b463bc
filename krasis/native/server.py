"""A mailbox, and the thread that computes what is posted there."""

import ctypes
import mmap
import weakref
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from types import TracebackType

import torch
from torch import Tensor

from krasis.errors import InputError, KrasisError
from krasis.native.cpu import Pool
from krasis.native.library import cpu_library
from krasis.native.moe import CExperts, NativeExperts

MOST_TOKENS, MOST_CHOSEN, MOST_HIDDEN = 8, 64, 8192

_LINE, _SLOTS, _MULTIPLE = 128, 2, 4


class CMailbox(ctypes.Structure):
    """`krasis_mailbox`."""

    _fields_ = (
        ("memory", ctypes.c_void_p),
        ("tokens", ctypes.c_int32),
        ("chosen", ctypes.c_int32),
        ("hidden", ctypes.c_int32),
    )


class Mailbox:
    """Memory for posts of up to `tokens` tokens of `hidden` features with `chosen` experts each.

    csrc/include/krasis_mailbox.h says what lies where. Raises InputError for sizes beyond what that allows.
    """

    def __init__(self, tokens: int, chosen: int, hidden: int) -> None:
        fits = 1 <= tokens <= MOST_TOKENS and 1 <= chosen <= MOST_CHOSEN and 1 <= hidden <= MOST_HIDDEN
        if not fits or hidden % _MULTIPLE:
            most = f"at most {MOST_TOKENS}, {MOST_CHOSEN} and {MOST_HIDDEN}, a multiple of {_MULTIPLE}"
            raise InputError(f"a mailbox for {tokens} tokens, {chosen} experts, {hidden} features", expected=most)
        self.tokens, self.chosen, self.hidden = tokens, chosen, hidden
        self._rows, self._pairs = _lines(4 * tokens * hidden), _lines(4 * tokens * chosen)
        self._slot = 2 * _LINE + 2 * self._rows + 2 * self._pairs
        # Pages of its own, zeroed: the whole of them can be registered with a device.
        self.memory: Tensor = torch.frombuffer(mmap.mmap(-1, _LINE + _SLOTS * self._slot), dtype=torch.uint8)
        self._trouble = self.memory[:4].view(torch.int32)

    def c_struct(self, address: int | None = None) -> CMailbox:
        """For whoever has the memory at `address`, by default this process."""
        return CMailbox(address or self.memory.data_ptr(), self.tokens, self.chosen, self.hidden)

    def slot(self, number: int) -> "Slot":
        """That of a post's number."""
        return Slot(self, _LINE + number % _SLOTS * self._slot)

    @property
    def trouble(self) -> int:
        """The status of what was waited for in vain, 0 if nothing was."""
        return int(self._trouble)

    def part(self, at: int, count: int, dtype: torch.dtype) -> Tensor:
        return self.memory[at : at + count * dtype.itemsize].view(dtype)


class Slot:
    """Views of a post's memory: `post` int32 [number, layer, tokens, inner], `reply` int32 [number, status], x and y
    float32 [tokens, hidden], ids int32 and weights float32 [tokens, chosen]."""

    def __init__(self, box: Mailbox, at: int) -> None:
        rows, pairs = box.tokens * box.hidden, box.tokens * box.chosen
        self.post = box.part(at, 4, torch.int32)
        self.reply = box.part(at + _LINE, 2, torch.int32)
        at += 2 * _LINE
        self.x = box.part(at, rows, torch.float32).view(box.tokens, -1)
        at += _lines(self.x.nbytes)
        self.ids = box.part(at, pairs, torch.int32).view(box.tokens, -1)
        at += _lines(self.ids.nbytes)
        self.weights = box.part(at, pairs, torch.float32).view(box.tokens, -1)
        at += _lines(self.weights.nbytes)
        self.y = box.part(at, rows, torch.float32).view(box.tokens, -1)


@dataclass(frozen=True)
class Counts:
    """Posts answered, pairs of tokens and experts computed for them, seconds that took, and bytes of experts' records.

    Of experts that were computed in part, bytes are the share of their features.
    """

    posts: int = 0
    pairs: int = 0
    seconds: float = 0.0
    read: int = 0

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Server:
    """A thread that answers posts for `layers`, counted from 0, on their pool, until this is closed: before the pool.

    It spins while posts come, and so do the pool's threads; 50 ms after the last one they sleep. Raises InputError
    where layers and mailbox don't match, KrasisError where the system refuses a thread or the pool is closed.
    """

    def __init__(self, pool: Pool, layers: Sequence[NativeExperts], box: Mailbox) -> None:
        library = cpu_library()
        array, status = (CExperts * len(layers))(*(layer.c_struct for layer in layers)), ctypes.c_int()
        struct = box.c_struct()
        handle = library.krasis_server_create(
            pool.handle, array, len(layers), ctypes.addressof(struct), ctypes.byref(status)
        )
        if not handle:
            raise pool.error(status.value, f"{len(layers)} layers for a mailbox of {box.hidden} features")
        self._kept = (pool, layers, box)
        self._handle: int | None = handle
        self._wake, self._freeze = library.krasis_server_wake, library.krasis_server_freeze
        self._destroy = weakref.finalize(self, library.krasis_server_destroy, handle)

    def wake(self) -> None:
        """Posts will come soon: spin from now on."""
        self._wake(self._handle)

    @property
    def counts(self) -> "Counts":
        """What was done so far."""
        found = (ctypes.c_int64 * 4)()
        cpu_library().krasis_server_counts(self._handle, found)
        return Counts(found[0], found[1], found[2] / 1e9, found[3])

    def freeze(self, *, frozen: bool = True) -> None:
        """Take no posts, until told otherwise: for tests of those who wait."""
        self._freeze(self._handle, int(frozen))

    def close(self) -> None:
        """End the thread, once the post at hand is answered. Closing again does nothing."""
        self._handle = None
        self._destroy()

    def __enter__(self) -> "Server":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def trouble(status: int) -> KrasisError:
    """What is to be raised for a krasis_status that a mailbox gave."""
    return KrasisError(str(cpu_library().krasis_strerror(status).decode()), where="the mailbox of the CPU's experts")


def _lines(size: int) -> int:
    return -(-size // _LINE) * _LINE
