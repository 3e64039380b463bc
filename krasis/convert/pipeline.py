"""Convert a checkpoint: plan the whole pack, then fill it file by file."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch

from krasis import __version__, models
from krasis.convert.assign import plan_group
from krasis.convert.checkpoint import Checkpoint
from krasis.convert.encode import encode_plain, lay_out, quantize
from krasis.errors import InputError
from krasis.models.family import Family, Group, ModelSpec, Weight
from krasis.pack.manifest import FileHash, Manifest, Settings
from krasis.pack.summary import matrices
from krasis.pack.writer import FileWriter, PackWriter, SegmentPlan


class Progress(Protocol):
    """Told what is being done and how far it is."""

    def start(self, task: str, total_bytes: int) -> None: ...

    def advance(self, done_bytes: int) -> None: ...


@dataclass(frozen=True)
class PlannedFile:
    """A file of the pack: the groups of weights it holds and the segments they become."""

    name: str
    groups: list[Group]
    segments: list[list[SegmentPlan]]

    @property
    def bytes(self) -> int:
        return sum(plan.bytes for plans in self.segments for plan in plans)


class Conversion:
    """A checkpoint's way into a pack, planned: every tensor accounted for, every size known, nothing read yet."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.checkpoint = Checkpoint(folder)
        self.settings = settings
        model_type = self.checkpoint.config.get("model_type")
        family = models.get(str(model_type))
        self.spec = _with_eos(family.parse_config(self.checkpoint.config), self.checkpoint.eos_token_ids())
        grouped = list(family.groups(self.spec))
        self._account(family, [group for _, groups in grouped for group in groups])
        self.files = [
            PlannedFile(name, groups, [plan_group(group, settings, self.checkpoint.dtype) for group in groups])
            for name, groups in grouped
        ]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def summary(self) -> dict[str, Any]:
        """What the pack will be: bytes, files, and every kind of matrix with its padding."""
        plans = [plan for file in self.files for plans in file.segments for plan in plans]
        return {
            "model_type": self.checkpoint.config["model_type"],
            "bytes": self.bytes,
            "files": len(self.files),
            "matrices": matrices(plans, {}),
        }

    def run(self, pack: Path, progress: Progress, *, force: bool = False) -> Manifest:
        """Write the pack. A partial one of the same job is continued."""
        sizes = [(self.checkpoint.folder / shard).stat().st_size for shard in self.checkpoint.shards]
        progress.start("hashing the checkpoint", sum(sizes))
        source = self.checkpoint.hashes(progress.advance)
        tokenizer = self.checkpoint.tokenizer_files()
        need = self.bytes + sum(map(len, tokenizer.values()))
        with PackWriter(pack, self._key(source), need, force=force) as writer:
            progress.start("converting", self.bytes)
            for file in self.files:
                self._convert(file, writer, progress.advance)
            return writer.publish(
                tool=f"krasis {__version__}",
                settings=self.settings,
                model=msgspec.to_builtins(self.spec),
                source=source,
                extras=[writer.extra(name, content) for name, content in tokenizer.items()],
            )

    def _convert(self, file: PlannedFile, writer: PackWriter, advance: Callable[[int], None]) -> None:
        if file.name in writer.finished:
            advance(file.bytes)
            return
        with writer.file(file.name, [plan for plans in file.segments for plan in plans]) as out:
            for group, plans in zip(file.groups, file.segments, strict=True):
                for index, weights in enumerate(group.records):
                    self._put_record(out, plans, index, weights)
                    advance(sum(plan.bytes // plan.count for plan in plans))

    def _put_record(self, out: FileWriter, plans: list[SegmentPlan], index: int, weights: tuple[Weight, ...]) -> None:
        arrays: list[dict[tuple[str, str], torch.Tensor]] = [{} for _ in plans]
        for spec, weight in zip(plans[0].tensors, weights, strict=True):
            sources = (self.checkpoint.load(source, weight.shape) for source in weight.sources)
            if not spec.quantized:
                arrays[0] |= encode_plain(spec, sources)
                continue
            try:
                quantized, error = quantize(spec, sources)
            except InputError as cause:
                raise InputError(f"{weight.sources[0]}: {cause}", where=self.checkpoint.folder) from cause
            out.put_error(plans[0].name, spec.name, error)
            for plan, found in zip(plans, arrays, strict=True):
                found |= lay_out(spec, quantized, plan.layout)
        for plan, found in zip(plans, arrays, strict=True):
            out.put(plan.name, plan.layout, index, found)

    def _account(self, family: Family, groups: list[Group]) -> None:
        """Every tensor is used or rightly ignored, and none is missing."""
        used = {
            source for group in groups for record in group.records for weight in record for source in weight.sources
        }
        if missing := sorted(used - self.checkpoint.names):
            what = f"{missing[0]} is missing" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            raise InputError(what, where=self.checkpoint.folder, hint="download the model again")
        left = sorted(name for name in self.checkpoint.names - used if not family.ignored(name, self.spec))
        if left:
            what = f"unexpected tensor {left[0]}" + (f" and {len(left) - 1} more" if len(left) > 1 else "")
            raise InputError(what, where=self.checkpoint.folder, expected="only tensors the family is known to use")

    def _key(self, source: list[FileHash]) -> str:
        job: list[Any] = [__version__, self.settings, msgspec.to_builtins(self.spec), source]
        return hashlib.sha256(msgspec.json.encode(job)).hexdigest()


def _with_eos(spec: ModelSpec, generation: tuple[int, ...]) -> ModelSpec:
    # generation_config.json often lists more end tokens than config.json.
    merged = tuple(dict.fromkeys((*spec.eos_token_ids, *generation)))
    return msgspec.structs.replace(spec, eos_token_ids=merged)
