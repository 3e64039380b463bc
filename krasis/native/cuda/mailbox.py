"""The device's side of a mailbox: cold experts are posted to the CPU, and their sum is waited for and added."""

import ctypes

import torch
from torch import Tensor

from krasis.errors import InputError
from krasis.native.cuda.host import Registered
from krasis.native.cuda.library import INT, LONG, POINTER, TYPES, Function
from krasis.native.server import Mailbox, trouble

TIMEOUT = 10.0
"""Seconds: a layer's experts may have to come from a disk first."""

_STATE, _MISSED, _WAITED = 6, 3, 2

_post = Function("krasis_cuda_post", POINTER, POINTER, INT, INT, POINTER, INT, *[POINTER] * 5)
_wait_add = Function("krasis_cuda_wait_add", POINTER, POINTER, INT, POINTER, INT, LONG)


class _CSplit(ctypes.Structure):
    """`krasis_cuda_split`."""

    _fields_ = (
        ("cut", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("host", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("records", ctypes.c_void_p),
        ("first", ctypes.c_void_p),
    )


class Split:
    """Of n cold pairs of a token the CPU computes the first cut[n] inner features, the device the others.

    `cut`, int32 [pairs + 1], has multiples of `krasis.native.cuda.experts.CUT`, and may be rewritten. The records of
    all experts are at `host`, as the device sees it, `stride` bytes apart; `table`, int64 [experts], has the addresses
    of resident ones. After a post `records`, int64 [pairs], and `first`, int32, are those of `experts_few` for each
    pair. `pairs`, int32 [1, pairs], are the indices into both.
    """

    def __init__(self, cut: Tensor, table: Tensor, host: int, stride: int) -> None:
        self.cut, pairs = cut, len(cut) - 1
        self.records = torch.zeros(pairs, dtype=torch.int64, device=cut.device)
        self.first = torch.zeros(pairs, dtype=torch.int32, device=cut.device)
        self.pairs = torch.arange(pairs, dtype=torch.int32, device=cut.device)[None]
        self._kept = table
        written = self.records.data_ptr(), self.first.data_ptr()
        self._struct = _CSplit(cut.data_ptr(), table.data_ptr(), host, stride, *written)
        self.address = ctypes.addressof(self._struct)


class DeviceMailbox:
    """`box` as `device` reaches it. Calls allocate nothing, don't wait on the host, and may be captured.

    Every post is waited for before the next. Raises KrasisError where the system refuses to register the memory.
    """

    def __init__(self, box: Mailbox, device: torch.device, timeout: float = TIMEOUT) -> None:
        self._box, self._device, self._timeout = box, device, int(timeout * 1e9)
        self._registered = Registered(box.memory, device, read_only=False)
        self._struct = box.c_struct(self._registered.address)
        self._address = ctypes.addressof(self._struct)
        self._state = torch.zeros(_STATE, dtype=torch.int32, device=device)
        self._there = self._state.device  # numbered, as those of tensors are

    def post(
        self,
        layer: int,
        x: Tensor,
        ids: Tensor,
        weights: Tensor,
        where: Tensor,
        split: Split | None = None,
        uses: Tensor | None = None,
    ) -> None:
        """Hand the CPU the pairs whose expert is cold, but for what `split` says: `where` int32 [experts] is negative
        for cold ones.

        x float32 or bfloat16 [tokens, hidden], ids int32 (-1: nobody's) and weights float32 [tokens, chosen]. `layer`
        is the server's. All pairs, cold or not, are counted in `uses`, int32 [experts]. Raises InputError for other
        tensors.
        """
        box, tokens = self._box, len(x)
        pairs = (tokens, box.chosen)
        if ids.shape != pairs or weights.shape != pairs or ids.dtype != torch.int32 or weights.dtype != torch.float32:
            found = f"ids {ids.dtype} {tuple(ids.shape)}, weights {weights.dtype} {tuple(weights.shape)}"
            raise InputError(found, expected=f"int32 and float32 {pairs}")
        counts = [where] if uses is None else [where, uses]
        if any(found.dtype != torch.int32 for found in counts):
            raise InputError(f"where is {where.dtype}, uses {counts[-1].dtype}", expected="int32")
        kind = self._type_of(x)
        self._check(x, ids, weights, *counts)
        how = None if split is None else split.address
        _post(self._device, self._address, self._state, layer, tokens, x, kind, ids, weights, where, how, uses)

    def wait_add(self, out: Tensor) -> None:
        """Add what the CPU computed of the last post to `out`, float32 or bfloat16 [tokens, hidden] as posted.

        Where the CPU fails or doesn't answer in time, `out` stays as it is, `check` says so, and nothing is posted or
        waited for any more.
        """
        kind = self._type_of(out)
        self._check(out)
        _wait_add(self._device, self._address, self._state, len(out), out, kind, self._timeout)

    @property
    def missed(self) -> int:
        """Cold pairs so far, modulo 2^32, whoever computed them; waits for the device."""
        return int(self._state[_MISSED]) & 0xFFFFFFFF

    @property
    def waited(self) -> float:
        """Seconds of the device's waits so far; waits for it itself."""
        return int(self._state.view(torch.int64)[_WAITED]) * 1e-9

    def check(self) -> None:
        """Raises KrasisError if a wait was in vain, among the calls that the device has finished."""
        if status := self._box.trouble:
            raise trouble(status)

    def close(self) -> None:
        self._registered.close()

    def _type_of(self, rows: Tensor) -> int:
        box = self._box
        if rows.dtype not in TYPES or rows.dim() != 2 or rows.shape[1] != box.hidden or len(rows) > box.tokens:
            expected = f"float32 or bfloat16, at most ({box.tokens}, {box.hidden})"
            raise InputError(f"{rows.dtype} {tuple(rows.shape)}", expected=expected)
        return TYPES[rows.dtype]

    def _check(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            if tensor.device != self._there or not tensor.is_contiguous():
                found = f"a tensor on {tensor.device} with strides {tensor.stride()}"
                raise InputError(found, expected=f"contiguous, on {self._there}")
