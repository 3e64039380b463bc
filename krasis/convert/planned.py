"""A file of the pack before anything is written."""

from dataclasses import dataclass

from krasis.models.weight import Group
from krasis.pack.file_writer import SegmentPlan


@dataclass(frozen=True)
class PlannedFile:
    """The groups of weights it holds, the segments each becomes, and the shards of the checkpoint they lie in."""

    name: str
    groups: list[Group]
    segments: list[list[SegmentPlan]]
    shards: frozenset[str]

    @property
    def plans(self) -> list[SegmentPlan]:
        return [plan for plans in self.segments for plan in plans]

    @property
    def bytes(self) -> int:
        return sum(plan.bytes for plan in self.plans)
