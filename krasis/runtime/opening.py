"""Open a pack to run it: on a GPU, on the CPU, or by the reference."""

from dataclasses import dataclass

import torch

from krasis.errors import InputError, KrasisError, UsageError
from krasis.heat import profile
from krasis.heat.routing import Routing
from krasis.native.cuda.library import library
from krasis.pack.progress import Progress
from krasis.pack.reader import Pack
from krasis.runtime.backend import KvDtype
from krasis.runtime.cuda.engine import CudaEngine
from krasis.runtime.cuda.residents import Residency
from krasis.runtime.cuda.room import free_bytes
from krasis.runtime.devices import Device, check_threads, open_backend
from krasis.runtime.engine import Engine
from krasis.runtime.placement.outline import LAYOUT
from krasis.runtime.plan import Load
from krasis.runtime.rates import Rates

LEAST_CAPABILITY = (8, 0)

LEFT_FREE = 256 << 20
"""Bytes of free GPU memory that are left to others where no budget is given."""


@dataclass(frozen=True)
class Where:
    """Where and how a pack is to run: what the options of these names say. `vram` is bytes."""

    device: Device = "auto"
    threads: int | None = None
    layout: str | None = None
    load: Load = "mapped"
    vram: int | None = None
    kv: KvDtype | None = None
    heat: str | None = None
    residency: Residency | None = None


def runs_on_gpu(pack: Pack, where: Where, *, moments: bool = False) -> bool:
    """Whether a GPU is what `where` comes to. Where one is asked for that can't run the pack so, raises UsageError for
    the machine or the options, InputError for the pack.
    """
    if where.device in ("cpu", "reference"):
        return False
    obstacle = _obstacle(pack, where, moments=moments)
    if obstacle and where.device == "cuda":
        raise obstacle
    return obstacle is None


def open_engine(
    pack: Pack,
    where: Where,
    *,
    context: int,
    sequences: int = 1,
    progress: Progress | None = None,
    rates: Rates | None = None,
    trace: bool = False,
    moments: bool = False,
) -> Engine:
    """The engine for sequences of `context` tokens; its notes say what was chosen and why. `rates` are the machine's.

    Raises UsageError for a device that is not there, FitError for what does not fit, InputError for a bad profile.
    """
    check_threads(where.threads)
    heat = None if where.heat is None else profile.load(pack.path, where.heat, pack.manifest).routing()
    if runs_on_gpu(pack, where, moments=moments):
        return _on_gpu(pack, where, heat, context, sequences, rates, trace=trace)
    backend, notes = open_backend(where.device, where.threads)
    if where.device == "auto" and torch.cuda.is_available() and (obstacle := _obstacle(pack, where, moments=moments)):
        notes.append(f"running on the CPU though there is a GPU: {obstacle.what}")
    without_effect = (name for name in ("vram", "heat", "residency") if getattr(where, name) is not None)
    notes += [f"--{name} has no effect on the CPU" for name in without_effect]
    engine = Engine(
        pack,
        backend,
        context=context,
        sequences=sequences,
        kv=where.kv,
        layout=where.layout,
        load=where.load,
        progress=progress,
        trace=trace,
        moments=moments,
    )
    engine.notes[:0] = notes
    return engine


def free_gpu() -> tuple[torch.device, int]:
    """The GPU to run on, and how many bytes of it are free."""
    device = torch.device("cuda", torch.cuda.current_device())
    return device, free_bytes(device)


def _on_gpu(
    pack: Pack,
    where: Where,
    heat: Routing | None,
    context: int,
    sequences: int,
    rates: Rates | None,
    *,
    trace: bool,
) -> Engine:
    routing, notes = _routing(pack, heat)
    device, free = free_gpu()
    engine = CudaEngine(
        pack,
        device,
        context=context,
        vram=where.vram or free - LEFT_FREE,
        kv=where.kv,
        heat=routing,
        threads=where.threads,
        rates=rates,
        # A profile is to be the same wherever a run was cut short.
        residency=where.residency or ("static" if trace else "follow"),
        trace=trace,
    )
    if sequences > engine.sequences:
        notes.append(f"{engine.backend.name} runs one sequence at a time")
    if where.load == "copied":
        notes.append("--load copied has no effect on the GPU, which reads the pack where it is mapped")
    engine.notes[:0] = notes
    return engine


def _obstacle(pack: Pack, where: Where, *, moments: bool) -> KrasisError | None:
    """Why no GPU can run the pack as it is asked for, if so."""
    if why := _why_no_gpu() or _why_not_asked(where, moments=moments):
        return UsageError(why, where="--device cuda", hint="use --device cpu")
    layouts = {name: found for name, found in pack.layouts_of.items() if LAYOUT not in found}
    if any(found != ("plain",) for found in layouts.values()):
        hint = f"convert again with --layouts {LAYOUT}, or use --device cpu"
        return InputError(f"the pack lacks layout {LAYOUT}, which GPUs read", where=pack.path, hint=hint)
    if any(name.endswith(".experts") for name in layouts):
        hint = "convert again with --expert-bits 4 or 8, or use --device cpu"
        return InputError("experts are not quantized, as kernels of the GPU need them", where=pack.path, hint=hint)
    return None


def _why_no_gpu() -> str:
    if not torch.cuda.is_available():
        return "no GPU with a driver that torch can use"
    if (capability := torch.cuda.get_device_capability()) < LEAST_CAPABILITY:
        have, least = (".".join(map(str, c)) for c in (capability, LEAST_CAPABILITY))
        return f"the GPU has compute capability {have}, and kernels need {least}"
    try:
        library("cuda")
    except KrasisError as error:
        return f"krasis was installed without its CUDA library ({error.what})"
    return ""


def _why_not_asked(where: Where, *, moments: bool) -> str:
    """What the options ask for that no GPU does."""
    if moments:
        return "importance matrices are summed on the CPU"
    if where.kv == "f32":
        return "--kv f32 is not for GPUs, which cache bf16 or fp8"
    if where.layout not in (None, LAYOUT):
        return f"--layout {where.layout} is not for GPUs, which read {LAYOUT}"
    return ""


def _routing(pack: Pack, asked: Routing | None) -> tuple[Routing | None, list[str]]:
    """What places experts: the profile asked for, else the pack's own, else none."""
    if asked is not None:
        return asked, []
    names = profile.names_in(pack.path)
    if not names:
        return None, ["no heat profile: all experts are taken as equally hot; krasis profile-heat measures them"]
    name = "default" if "default" in names else names[0]
    return profile.load(pack.path, name, pack.manifest).routing(), [f"experts are placed by the heat profile {name!r}"]
