"""Let functions written for torch tensors take NumPy arrays too."""

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from krasis.errors import InputError

Array = TypeVar("Array", Tensor, NDArray[Any])
Rest = ParamSpec("Rest")


class SameKind(Protocol[Rest]):
    """A function whose result is of its first argument's kind."""

    def __call__(self, array: Array, /, *args: Rest.args, **kwargs: Rest.kwargs) -> Array: ...


def same_kind(function: Callable[Concatenate[Tensor, Rest], Tensor]) -> SameKind[Rest]:
    """Tensor in, tensor out; NumPy array in, NumPy array out. Raises InputError for anything else."""

    @functools.wraps(function)
    def call(array: Any, /, *args: Rest.args, **kwargs: Rest.kwargs) -> Any:
        if isinstance(array, Tensor):
            return function(array, *args, **kwargs)
        return function(_tensor(array), *args, **kwargs).numpy()

    return call


def _tensor(array: object) -> Tensor:
    if not isinstance(array, np.ndarray):
        raise InputError(f"a {type(array).__name__}", expected="a torch tensor or a NumPy array")
    try:
        # A read-only array, such as a mapped file, would make torch warn of writes that never happen.
        return torch.from_numpy(np.require(array, requirements=["C", "ALIGNED", "WRITEABLE"]))
    except (TypeError, ValueError) as error:
        raise InputError(f"NumPy dtype {array.dtype}", expected="native integers or floats") from error
