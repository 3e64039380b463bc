"""How much is spent on INT4 experts: presets, and what becomes of their fragile matrix, w2."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from krasis.errors import UsageError
from krasis.pack.file_writer import SegmentPlan
from krasis.pack.manifest import PresetName, Settings
from krasis.pack.record import GroupSize
from krasis.quant import int4


@dataclass(frozen=True)
class Preset:
    """`w2_codec` and `w2_group_size` are those of w13 where None. `feedback`: errors are fed back, given an imatrix."""

    w2_codec: str | None
    w2_group_size: GroupSize | None
    feedback: bool


PRESETS: Final[dict[PresetName, Preset]] = {
    "fast": Preset(None, None, feedback=False),
    "balanced": Preset(None, 32, feedback=True),
    "best": Preset("int8", None, feedback=True),
}


def default(calibrated: bool) -> PresetName:
    """Whoever ran a calibration wants what it buys."""
    return "balanced" if calibrated else "fast"


def check(settings: Settings, plans: Iterable[SegmentPlan]) -> None:
    """Raises UsageError where something is asked of INT4 experts and the pack will have none."""
    asked = {
        f"--preset {settings.preset}": settings.preset != "fast",
        "--w2-codec": settings.w2_codec,
        "--w2-group-size": settings.w2_group_size,
        "--imatrix": settings.imatrix,
    }
    flags = [flag for flag, given in asked.items() if given]
    experts = (spec for plan in plans if plan.name.endswith(".experts") for spec in plan.tensors)
    if flags and not any(spec.codec == int4.NAME for spec in experts):
        what = f"{flags[0]} is for INT4 experts, and the pack would have none"
        raise UsageError(what, hint="--expert-codec int4 quantizes them whatever they are")
