"""Open a pack to run it: on a GPU, on the CPU, or by the reference."""

from dataclasses import dataclass

import torch

from krasis.errors import KrasisError, UsageError
from krasis.heat import profile
from krasis.heat.routing import Routing
from krasis.native.cuda.library import library
from krasis.pack.progress import Progress
from krasis.pack.reader import Pack
from krasis.runtime.backend import KvDtype
from krasis.runtime.devices import Device, open_backend
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


def runs_on_gpu(pack: Pack, where: Where) -> bool:
    """Whether a GPU is what `where` comes to. Raises UsageError where one is asked for that can't run the pack."""
    if where.device in ("cpu", "reference"):
        return False
    why_not = _why_no_gpu(pack)
    if why_not and where.device == "cuda":
        expected, hint = "a GPU that can run the pack", "use --device cpu"
        raise UsageError(why_not, where="--device cuda", expected=expected, hint=hint)
    return not why_not


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
    found = None if where.heat is None else profile.load(pack.path, where.heat, pack.manifest)
    on_gpu, why_not = runs_on_gpu(pack, where), "importance matrices are summed on the CPU"
    if on_gpu and moments:
        if where.device == "cuda":
            raise UsageError(why_not, where="--device cuda", hint="use --device cpu with --imatrix")
        on_gpu = False
    if on_gpu:
        routing, notes = _routing(pack, None if found is None else found.routing())
        from krasis.runtime.cuda.engine import CudaEngine

        device = torch.device("cuda", torch.cuda.current_device())
        vram = where.vram or torch.cuda.mem_get_info(device)[0] - LEFT_FREE
        engine: Engine = CudaEngine(
            pack,
            device,
            context=context,
            vram=vram,
            kv=where.kv,
            heat=routing,
            load=where.load,
            threads=where.threads,
            rates=rates,
            trace=trace,
        )
        engine.notes[:0] = notes
        return engine
    backend, notes = open_backend(where.device, where.threads)
    if where.device == "auto" and torch.cuda.is_available():
        why_not = why_not if moments else _why_no_gpu(pack)
        notes.append(f"running on the CPU though there is a GPU: {why_not}")
    notes += [f"--{name} has no effect on the CPU" for name in ("vram", "heat") if getattr(where, name) is not None]
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


def _why_no_gpu(pack: Pack) -> str:
    """Why no GPU can run the pack, empty where one can."""
    if not torch.cuda.is_available():
        return "no GPU with a driver that torch can use"
    if (capability := torch.cuda.get_device_capability()) < LEAST_CAPABILITY:
        have, least = (".".join(map(str, c)) for c in (capability, LEAST_CAPABILITY))
        return f"the GPU has compute capability {have}, and kernels need {least}"
    try:
        library("cuda")
    except KrasisError as error:
        return f"krasis was installed without its CUDA library ({error})"
    if any(LAYOUT not in layouts and layouts != ("plain",) for layouts in pack.layouts_of.values()):
        return f"{pack.path} has no {LAYOUT} layout, which GPUs read: convert again with --layouts {LAYOUT}"
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
