"""Convert a checkpoint: plan the whole pack, then fill it file by file."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from krasis import __version__, models
from krasis.convert import encodings
from krasis.convert.assign import choose, plan_group
from krasis.convert.checkpoint import Checkpoint
from krasis.convert.encode import Arrays, encode_plain, lay_out, quantize
from krasis.errors import InputError
from krasis.models.family import Family, ModelSpec
from krasis.models.weight import Group, Weight
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

    def __init__(self, folder: Path, settings: Settings, expert_codec: str | None = None) -> None:
        self.checkpoint = Checkpoint(folder)
        self.settings = settings
        self.expert_codec = expert_codec
        model_type = self.checkpoint.config.get("model_type")
        family = models.get(str(model_type))
        config = {key: value for key, value in self.checkpoint.config.items() if key != encodings.KEY}
        self.spec = _with_eos(family.parse_config(config), self.checkpoint.eos_token_ids())
        files = list(family.files(self.spec))
        self._account(family, [group for _, groups in files for group in groups])
        self.files = [PlannedFile(name, groups, [self._plan(group) for group in groups]) for name, groups in files]

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

    def _plan(self, group: Group) -> list[SegmentPlan]:
        kept_as = self.checkpoint.kept_as(group.records[0][0].sources[0])
        choice = choose(group, self.settings, self.expert_codec, kept_as)
        return plan_group(group, choice, self.settings.layouts, self.checkpoint.dtype)

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
        arrays: list[Arrays] = [{} for _ in plans]
        for spec, weight in zip(plans[0].tensors, weights, strict=True):
            sources = [self.checkpoint.load(source) for source in weight.sources]
            try:
                if spec.quantized:
                    quantized, error = quantize(spec, sources)
                    out.put_error(plans[0].name, spec.name, error)
                    parts = [lay_out(spec, quantized, plan.layout) for plan in plans]
                else:
                    parts = [encode_plain(spec, sources)] * len(plans)
            except InputError as cause:
                names = " or ".join(dict.fromkeys(source.name for source in weight.sources))
                raise InputError(f"{names}: {cause}", where=self.checkpoint.folder) from cause
            for found, part in zip(arrays, parts, strict=True):
                found |= part
        for plan, found in zip(plans, arrays, strict=True):
            out.put(plan.name, plan.layout, index, found)

    def _account(self, family: Family, groups: list[Group]) -> None:
        """Every tensor is used whole or rightly ignored, none is missing, and all have the shapes they should."""
        have = self.checkpoint.headers
        weights = [weight for group in groups for record in group.records for weight in record]
        wanted = [(source, weight.shape) for weight in weights for source in weight.sources]
        # How many of a stack are used; 0 for what is no stack.
        used: dict[str, int] = {}
        for source, _ in wanted:
            for name in self.checkpoint.tensors(source):
                used[name] = max(used.get(name, 0), 0 if source.index is None else source.index + 1)
        self._refuse("is missing", used.keys() - have.keys(), hint="download the model again")
        for name, count in used.items():
            if count and have[name].shape[:1] != (count,):
                raise InputError(f"{name} is {have[name]}", where=self.checkpoint.folder, expected=f"{count} experts")
        for source, shape in wanted:
            self.checkpoint.check(source, shape)
        left = {name for name in have.keys() - used.keys() if not family.ignored(name, self.spec)}
        self._refuse("is unexpected", left, expected="only tensors the family and config.json are known to use")

    def _refuse(self, what: str, names: set[str], **advice: str) -> None:
        if names:
            others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise InputError(f"{min(names)} {what}{others}", where=self.checkpoint.folder, **advice)

    def _key(self, source: list[FileHash]) -> str:
        job: list[Any] = [__version__, self.settings, self.expert_codec, msgspec.to_builtins(self.spec), source]
        return hashlib.sha256(msgspec.json.encode(job)).hexdigest()


def _with_eos(spec: ModelSpec, generation: tuple[int, ...]) -> ModelSpec:
    # generation_config.json often lists more end tokens than config.json.
    merged = tuple(dict.fromkeys((*spec.eos_token_ids, *generation)))
    return msgspec.structs.replace(spec, eos_token_ids=merged)
