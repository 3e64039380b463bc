"""Products with packed matrices on the CPU."""

import ctypes
import os
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from krasis.errors import InputError, KrasisError
from krasis.native.cores import core_cpus, physical_cores
from krasis.native.library import cpu_library
from krasis.native.matrix import Matrix as Matrix
from krasis.native.tape import Tape

ISAS = ("scalar", "avx2", "avx512", "vnni", "amx")
"""Instruction sets in the order of `krasis_isa`, best last."""

EMULATED = {"emulated-vnni": 19, "emulated-amx": 20}
"""Kernels of instruction sets that a machine may lack, on instructions in plain C++: slow, for tests."""

ISA_VARIABLE = "KRASIS_ISA"
_AUTO = -1


class _CJob(ctypes.Structure):
    _fields_ = (
        ("matrix", ctypes.c_void_p),
        ("x", ctypes.c_void_p),
        ("m", ctypes.c_int64),
        ("ldx", ctypes.c_int64),
        ("k_in", ctypes.c_int64),
        ("y", ctypes.c_void_p),
        ("ldy", ctypes.c_int64),
        ("n_out", ctypes.c_int64),
    )


def best_isa() -> str:
    """The best instruction set of this machine that the kernels know. Raises KrasisError as `Pool` does."""
    return ISAS[cpu_library().krasis_best_isa()]


class Pool:
    """Threads that multiply. One caller at a time computes; others wait. Doesn't survive a fork.

    `threads`: one per physical core that this process may use, if None. `isa`: one of `ISAS`; if None, what the
    environment variable KRASIS_ISA says, or else the machine's best. Raises KrasisError for one this machine lacks, for
    an impossible number of threads, or where the CPU library isn't built.
    """

    def __init__(self, threads: int | None = None, isa: str | None = None) -> None:
        library = cpu_library()
        isa = isa or os.environ.get(ISA_VARIABLE) or None
        status = ctypes.c_int()
        count = physical_cores() if threads is None else threads
        handle = library.krasis_pool_create(count, isa_number(isa), ctypes.byref(status))
        if not handle:
            raise _pool_error(count, isa, status.value)
        self._handle: int | None = handle
        self._matmul, self._matmul_batch = library.krasis_matmul, library.krasis_matmul_batch
        self._read = library.krasis_read
        self.tape: Tape | None = None
        """What is given the calls that `call` makes."""
        self._destroy = weakref.finalize(self, library.krasis_pool_destroy, handle)
        self.threads: int = library.krasis_pool_threads(handle)
        self._pin(library)
        number = library.krasis_pool_isa(handle)
        self.isa = next(name for name, of_name in _numbers().items() if of_name == number)

    def _pin(self, library: ctypes.CDLL) -> None:
        cpus = core_cpus()
        # More threads than cores share them as the system likes. Where it refuses, as some sandboxes do, likewise.
        if 1 < self.threads <= len(cpus):
            library.krasis_pool_pin(self._handle, (ctypes.c_int32 * len(cpus))(*cpus))

    def matmul(self, matrix: Matrix, x: Tensor, n_out: int | None = None) -> Tensor:
        """float32 [m, k_in] -> float32 [m, n_out]: x times the transposed weights.

        k_in may be below `matrix.k` (missing columns count as zero) and n_out below `matrix.n` (the rest isn't
        computed). The result is the same bit for bit on every instruction set, in every layout, with every number of
        threads and tokens. Raises InputError for any other x or n_out, KrasisError if the pool is closed.
        """
        m, k_in, stride = _shape_of(x)
        y, n_out = _result(matrix, m, n_out)
        status = self._matmul(self._handle, matrix.address, x.data_ptr(), m, stride, k_in, y.data_ptr(), n_out, n_out)
        if status:
            raise self.error(status, _shapes([(matrix, x, n_out)]))
        return y

    def matmul_batch(self, jobs: Sequence[tuple[Matrix, Tensor, int]]) -> list[Tensor]:
        """(matrix, x, n_out) each as in `matmul`, computed together: no thread waits between them.

        Neighbours with the same x tensor quantize it once.
        """
        array, results = (_CJob * len(jobs))(), []
        for i, (matrix, x, n_out) in enumerate(jobs):
            m, k_in, stride = _shape_of(x)
            y, _ = _result(matrix, m, n_out)
            array[i] = _CJob(matrix.address, x.data_ptr(), m, stride, k_in, y.data_ptr(), n_out, n_out)
            results.append(y)
        if status := self._matmul_batch(self._handle, ctypes.addressof(array), len(jobs)):
            raise self.error(status, _shapes(jobs))
        return results

    def linears(self, matrices: Sequence[Matrix], n_out: Sequence[int]) -> "Linears":
        """Products of several matrices, 1 to n_out columns of each, made ready to run on one x."""
        return Linears(self, matrices, n_out)

    def read(self, memory: Tensor) -> int:
        """Read a contiguous tensor of a multiple of 64 bytes with every thread; the sum of its 32-bit words mod 2^32.

        Raises InputError for any other tensor, KrasisError if the pool is closed.
        """
        if memory.device.type != "cpu" or not memory.is_contiguous():
            raise InputError(
                f"a tensor with strides {memory.stride()} on {memory.device}", expected="one run of memory"
            )
        total = ctypes.c_uint32()
        if status := self._read(self._handle, memory.data_ptr(), memory.nbytes, ctypes.byref(total)):
            raise self.error(status, f"{memory.nbytes} bytes")
        return total.value

    def call(self, function: Any, *arguments: Any) -> int:
        """Call one of `tape.OPERATIONS`, which gives a status."""
        if self.tape is not None:
            self.tape.record(function, arguments)
        status: int = function(self._handle, *arguments)
        return status

    def keep(self, *memory: object) -> None:
        """What a call that may be recorded points into."""
        if self.tape is not None:
            self.tape.kept += memory

    def close(self) -> None:
        """End the threads. Products after this raise KrasisError; closing again does nothing."""
        self._handle = None
        self._destroy()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def handle(self) -> int | None:
        """The `krasis_pool`, None once closed."""
        return self._handle

    def error(self, status: int, where: str | None = None) -> KrasisError:
        """What a call on the pool that gave `status` is to raise."""
        return KrasisError("the pool is closed") if self._handle is None else InputError(_message(status), where=where)


class Linears:
    """Products with matrices of one x, or of one x for each, their results side by side. Holds the matrices."""

    def __init__(self, pool: Pool, matrices: Sequence[Matrix], n_out: Sequence[int]) -> None:
        count = len(matrices)
        for matrix, n in zip(matrices, n_out, strict=True):
            _check_columns(matrix, n)
        self._pool, self._matrices, self._n_out, self._columns = pool, matrices, n_out, sum(n_out)
        self._addresses = (ctypes.c_void_p * count)(*(matrix.address for matrix in matrices))
        self._widths = (ctypes.c_int64 * count)(*n_out)
        self._fixed = (ctypes.addressof(self._addresses), ctypes.addressof(self._widths), count)
        self._run = cpu_library().krasis_linears

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [m, k_in] -> [m, sum of n_out]: `Pool.matmul` with every matrix."""
        m, k_in, stride = _shape_of(x)
        return self._multiply(x, 0, m, stride, k_in)

    def each(self, x: Tensor) -> Tensor:
        """float32 [m, matrices, k_in] -> [m, sum of n_out]: matrix i times x[:, i]."""
        if x.dim() != 3 or x.shape[1] != len(self._matrices):
            raise InputError(f"x is {tuple(x.shape)}", expected=f"[m, {len(self._matrices)}, k]")
        m, k_in, stride = _shape_of(x[:, 0])
        return self._multiply(x, x.stride(1), m, stride, k_in)

    def _multiply(self, x: Tensor, step: int, m: int, stride: int, k_in: int) -> Tensor:
        pool, columns = self._pool, self._columns
        y = torch.empty((m, columns), dtype=torch.float32, device="cpu")
        arguments = (*self._fixed, x.data_ptr(), step, m, stride, k_in, y.data_ptr(), columns)
        if status := pool.call(self._run, *arguments):
            jobs = [(matrix, x, n) for matrix, n in zip(self._matrices, self._n_out, strict=True)]
            raise pool.error(status, _shapes(jobs))
        return y


def _shapes(jobs: Sequence[tuple[Matrix, Tensor, int]]) -> str:
    return ", ".join(f"x {tuple(x.shape)} into {n_out} of K = {matrix.k}, N = {matrix.n}" for matrix, x, n_out in jobs)


def _shape_of(x: Tensor) -> tuple[int, int, int]:
    if x.dtype is not torch.float32 or x.dim() != 2 or not x.is_cpu:
        found = f"x is {x.dtype} {tuple(x.shape)} on {x.device}"
        raise InputError(found, expected="float32 [m, k] in main memory")
    m, k = x.shape
    stride, step = x.stride()
    if step != 1 and k > 1:
        raise InputError(f"x has strides {x.stride()}", expected="a contiguous last dimension")
    return m, k, stride


def _result(matrix: Matrix, m: int, n_out: int | None) -> tuple[Tensor, int]:
    n_out = matrix.n if n_out is None else n_out
    _check_columns(matrix, n_out)
    return torch.empty((m, n_out), dtype=torch.float32, device="cpu"), n_out


def _check_columns(matrix: Matrix, n_out: int) -> None:
    if not 0 < n_out <= matrix.n:
        raise InputError(f"n_out is {n_out}", expected=f"1 to {matrix.n}")


def isa_number(isa: str | None) -> int:
    """The `krasis_isa` of a name, or that of the machine's best for None. Raises KrasisError for an unknown one."""
    if isa is None:
        return _AUTO
    if isa not in _numbers():
        raise KrasisError(f"unknown instruction set {isa!r}", expected=f"one of {', '.join(ISAS)}")
    return _numbers()[isa]


def _numbers() -> dict[str, int]:
    return {isa: number for number, isa in enumerate(ISAS)} | EMULATED


def _pool_error(threads: int, isa: str | None, status: int) -> KrasisError:
    return KrasisError(
        _message(status), where=f"{isa or 'auto'}, {threads} threads", hint=f"this machine has {best_isa()}"
    )


def _message(status: int) -> str:
    return str(cpu_library().krasis_strerror(status).decode())
