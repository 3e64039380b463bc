"""Is there the room on a device that a plan takes? Others may have taken it since the budget was chosen."""

from collections.abc import Callable

import torch

from krasis.errors import FitError
from krasis.runtime.placement.plan import PlacementError, Plan
from krasis.runtime.plan import gib


def free_bytes(device: torch.device) -> int:
    """Of a GPU, once it has back what this process only keeps to use again."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def check_room(made: Plan, free: int, planned: Callable[[int], Plan]) -> None:
    """Raises FitError where a plan of one device takes more than the `free` bytes, with what would fit there.

    `planned(vram)` plans the same anew. The driver's context is not counted: whoever knows what is free has it already.
    """
    (device,) = made.devices
    needed = device.budget - device.free - device.workspace.context
    if needed <= free:
        return
    try:
        planned(free)
        hint = f"--vram {free} would fit"
    except PlacementError as error:
        most = error.would_fit.get("context")
        hint = f"--vram {free} --context {most} would fit" if most else "free memory of the GPU that others hold"
    raise FitError(f"the plan takes {gib(needed)}", where="VRAM", expected=f"{gib(free)} are free", hint=hint)
