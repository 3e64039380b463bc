"""A tensor as a checkpoint stores it, and what an encoding provides."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from krasis import quant
from krasis.models.weight import Source
from krasis.quant.codec import Quantized


class Header(NamedTuple):
    """What a shard says of a tensor: dtype, in the words of safetensors, and shape."""

    dtype: str
    shape: tuple[int, ...]

    def pick(self, source: Source) -> "Header":
        """The same of what the source's `index` picks."""
        return self if source.index is None else Header(self.dtype, self.shape[1:])

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


Headers = Mapping[str, Header]
"""Tensor name -> header, for every tensor of a checkpoint."""


@dataclass(frozen=True, eq=False)
class Coded:
    """A matrix [N, K] that a codec of ours holds exactly: codes uint8 [N, K], scales [N, K/g]."""

    codec: str
    codes: Tensor
    scales: Tensor

    def quantized(self) -> Quantized:
        """The same, in the order of codecs: codes [K, N], scales [K/g, N]."""
        return Quantized(self.codes.T.contiguous(), self.scales.T.contiguous())

    def values(self) -> Tensor:
        """float32 [N, K]."""
        return quant.get(self.codec).dequantize(self.quantized())


Stored = Tensor | Coded
"""Floats of any shape, or a matrix in codes."""

Read = Callable[[str, int | None], Tensor]
"""(tensor name, index into its first dimension or None for all of it) -> the tensor, as it is stored."""


class Encoding(Protocol):
    """A way to store tensors. `source.name` and `name` are what an unquantized checkpoint calls one."""

    @property
    def kept_as(self) -> str | None:
        """The codec that experts stored this way keep unless told otherwise, None where bits alone decide."""

    def names(self, name: str, have: Headers) -> tuple[str, ...]:
        """The tensors that hold `name`, some perhaps missing; none where it is not stored this way."""

    def shape(self, source: Source, have: Headers) -> tuple[int, ...]:
        """The shape that `read` gives. Raises InputError where the tensors do not fit together or have other dtypes."""

    def read(self, read: Read, source: Source) -> Stored:
        """The whole of `source.name`, or what its `index` picks, as [output, input].

        Tensors must have passed `shape`. Raises InputError for values that mean no number.
        """
