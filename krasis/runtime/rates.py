"""What a machine can do, as plans need it: measured here once and kept, read from a file, or assumed."""

import hashlib
from pathlib import Path

import msgspec
import platformdirs
import torch

from krasis.errors import InputError
from krasis.pack.disk import write_output

GB = 10**9
CPUINFO = Path("/proc/cpuinfo")


class Rates(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Bytes and multiply-adds a second, and seconds. `source` says where they are from, `assumed` which of them are
    the reference machine's because they could not be measured.

    `together` is what the CPU and one GPU's reads of host memory reach at once. `hand_off_s` is a round trip from GPU
    to CPU and back inside a graph, `exchange_s` a sum over several GPUs, both a layer of experts; `launch_s` one kernel
    outside a graph, `node_s` one inside it. `register_s` is what registering a byte of a mapping takes.
    """

    machine: str
    source: str
    host_read: float
    host_products: float
    pcie: float
    together: float
    device_read: float
    device_products: float
    hand_off_s: float
    exchange_s: float
    launch_s: float
    node_s: float
    register_s: float
    assumed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not all(0 < value < float("inf") for value in msgspec.structs.astuple(self) if isinstance(value, float)):
            raise ValueError("rates must be above 0")


REFERENCE = Rates(
    machine="one H100 of 80 GB and 16 cores of a Sapphire Rapids Xeon",
    source="assumed",
    host_read=95e9,
    host_products=1e12,
    pcie=52e9,
    together=104e9,
    device_read=2990e9,
    device_products=300e12,
    hand_off_s=17e-6,
    exchange_s=20e-6,
    launch_s=11e-6,
    node_s=1.1e-6,
    register_s=0.05 / (1 << 30),
)
"""Measured on that machine, but for the exchange, a guess, and multiply-adds: the processor's are what whole prompts
reached there, the GPU's what dense 16-bit products reach on most cards of the kind.
"""


def machine() -> str:
    """Names of this machine's processor and GPUs."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = f"{len(names)} x {names[0]}" if names else "unknown processor"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join([cpu, *gpus])


def known() -> Rates:
    """What was measured on this machine, else the reference machine's."""
    path = cache_path()
    return load(path) if path.is_file() else REFERENCE


def cache_path() -> Path:
    """Where this machine's rates are kept."""
    name = hashlib.sha256(machine().encode()).hexdigest()[:16]
    return platformdirs.user_cache_path("krasis") / f"rates-{name}.json"


def load(path: Path) -> Rates:
    """Raises InputError for a file that holds no rates."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Rates)
    except OSError as error:
        raise InputError(f"can't read the rates: {error.strerror}", where=path) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"not rates of a machine: {error}", where=path, hint="krasis plan --measure") from error


def save(rates: Rates, path: Path) -> None:
    """Write rates whole or not at all. Raises UsageError where nothing can be written there."""
    write_output(path, msgspec.json.format(msgspec.json.encode(rates), indent=1), "rates")
