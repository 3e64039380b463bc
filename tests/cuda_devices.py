"""Devices that tests of CUDA kernels run on."""

import pytest
import torch

from krasis.errors import KrasisError
from krasis.native.cuda.library import library


def _skip(device: str) -> str:
    """Why nothing runs there, if so."""
    if device == "cuda" and not torch.cuda.is_available():
        return "no GPU"
    try:
        library(device)
    except KrasisError as error:
        return str(error)
    return ""


DEVICES = [
    pytest.param(device, id=name, marks=pytest.mark.skipif(bool(_skip(device)), reason=_skip(device)))
    for device, name in (("cpu", "emulated"), ("cuda", "cuda"))
]
on_devices = pytest.mark.parametrize("device", DEVICES)
"""Parametrizes a test over the types of torch device that kernels run on."""
