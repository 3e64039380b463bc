"""Convert a checkpoint: plan the whole pack, then fill it record by record on many threads."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from krasis import __version__, models
from krasis.convert import encodings
from krasis.convert.assign import choose, plan_group
from krasis.convert.calibration import Calibration
from krasis.convert.checkpoint import Checkpoint
from krasis.convert.fill import Filler
from krasis.convert.planned import PlannedFile
from krasis.convert.presets import PRESETS
from krasis.convert.runs import check_room
from krasis.convert.sources import Sources, hash_file
from krasis.convert.store import Store
from krasis.errors import InputError
from krasis.models.family import Family, ModelSpec
from krasis.models.weight import Group, Weight
from krasis.pack.file_writer import SegmentPlan
from krasis.pack.manifest import Manifest, Settings
from krasis.pack.progress import Progress
from krasis.pack.summary import matrices, padding_bytes, sizes
from krasis.pack.writer import PackWriter, SourceNote


class Conversion:
    """A checkpoint's way into a pack, planned: every tensor accounted for, every size known, nothing read yet."""

    def __init__(
        self, source: Store | Path, settings: Settings, expert_codec: str | None = None, imatrix: Path | None = None
    ) -> None:
        self.checkpoint = Checkpoint(source)
        self.settings = settings
        self.expert_codec = expert_codec
        model_type = self.checkpoint.config.get("model_type")
        family = models.get(str(model_type))
        config = {key: value for key, value in self.checkpoint.config.items() if key != encodings.KEY}
        self.spec = _with_eos(family.parse_config(config), self.checkpoint.eos_token_ids())
        self.calibration: Calibration | None = None
        if imatrix is not None:
            feedback = PRESETS[settings.preset].feedback
            self.calibration = Calibration(imatrix, msgspec.to_builtins(self.spec), feedback=feedback)
            self.settings = msgspec.structs.replace(settings, imatrix=self.calibration.sha256)
        files = []
        for name, groups in family.files(self.spec):
            # File by file, as a config.json may speak of any number of layers.
            self._refuse_missing(groups)
            files.append((name, groups))
        self._account(family, [group for _, groups in files for group in groups])
        self.files = [self._plan_file(name, groups) for name, groups in files]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def plans(self) -> list[SegmentPlan]:
        """Every segment."""
        return [plan for file in self.files for plan in file.plans]

    @property
    def source_bytes(self) -> int:
        """Bytes of the checkpoint's shards."""
        return sum(self.checkpoint.store.size(shard) for shard in self.checkpoint.shards)

    def summary(self) -> dict[str, Any]:
        """What the pack will be: bytes, of which some are padding, files, and every kind of matrix with its padding."""
        plans = self.plans
        return {
            "model_type": self.checkpoint.config["model_type"],
            "source_bytes": self.source_bytes,
            "bytes": self.bytes,
            "padding_bytes": padding_bytes(plans),
            "files": len(self.files),
            "sizes": sizes(plans),
            "matrices": matrices(plans, {}, {}),
        }

    def run(self, pack: Path, progress: Progress, *, force: bool = False, jobs: int = 1) -> Manifest:
        """Write the pack, on `jobs` threads. A partial one of the same job is continued.

        The same bytes come out whatever the threads. Raises InputError where a weight is no number, or a shard changes
        meanwhile.
        """
        tokenizer = self.checkpoint.tokenizer_files()
        need = self.bytes + sum(map(len, tokenizer.values()))
        with PackWriter(
            pack,
            self._key(),
            need,
            force=force,
            recheck=self._recheck,
            threads=jobs,
            progress=progress,
            origin=self.checkpoint.store.origin,
        ) as writer:
            checkpoint = self.checkpoint
            # In the order of the shards, which may not be that of the layers.
            left = sorted((file for file in self.files if file.name not in writer.finished), key=_first_shard)
            uses = [file.shards for file in left]
            check_room(checkpoint.store, uses, writer.partial, writer.need)
            with Sources(checkpoint.store, checkpoint.shards, uses, writer.sources, writer.note_source) as sources:
                progress.start("converting", sum(file.bytes for file in left))
                with Filler(checkpoint, writer, sources, progress.advance, jobs, self.calibration) as filler:
                    filler.run(left)
                hashes = sources.hashes()
            return writer.publish(
                tool=f"krasis {__version__}",
                settings=self.settings,
                model=msgspec.to_builtins(self.spec),
                source=hashes,
                extras=[writer.extra(name, content) for name, content in tokenizer.items()],
            )

    def _plan_file(self, name: str, groups: list[Group]) -> PlannedFile:
        segments = [self._plan(group) for group in groups]
        sources = (source for weight in _weights(groups) for source in weight.sources)
        shards = {shard for source in sources for shard in self.checkpoint.shards_of(source)}
        return PlannedFile(name, groups, segments, frozenset(shards))

    def _plan(self, group: Group) -> list[SegmentPlan]:
        kept_as = self.checkpoint.kept_as(group.records[0][0].sources[0])
        choice = choose(group, self.settings, self.expert_codec, kept_as)
        return plan_group(group, choice, self.settings.layouts, self.checkpoint.dtype)

    def _recheck(self, note: SourceNote) -> SourceNote | None:
        """What an earlier run noted of a shard, None where it is not the same any more."""
        store, shard = self.checkpoint.store, note.file.name
        if shard not in self.checkpoint.shards:
            return None
        identity = store.identity(shard)
        if identity == note.identity:
            return note
        known = store.sha256(shard)
        if known is not None:
            return SourceNote(note.file, identity) if known == note.file.sha256 else None
        found = hash_file(shard, store.fetch(shard, lambda amount: None))
        return SourceNote(found, identity) if found == note.file else None

    def _account(self, family: Family, groups: list[Group]) -> None:
        """Every tensor is used whole or rightly ignored, none is missing, and all have the shapes they should."""
        have = self.checkpoint.headers
        wanted = [(source, weight.shape) for weight in _weights(groups) for source in weight.sources]
        # How many of a stack are used; 0 for what is no stack.
        used: dict[str, int] = {}
        for source, _ in wanted:
            for name in self.checkpoint.tensors(source):
                used[name] = max(used.get(name, 0), 0 if source.index is None else source.index + 1)
        for name, count in used.items():
            if count and have[name].shape[:1] != (count,):
                raise InputError(f"{name} is {have[name]}", where=self.checkpoint.where, expected=f"{count} experts")
        for source, shape in wanted:
            self.checkpoint.check(source, shape)
        left = {name for name in have.keys() - used.keys() if not family.ignored(name, self.spec)}
        self._refuse("is unexpected", left, expected="only tensors the family and config.json are known to use")

    def _refuse_missing(self, groups: list[Group]) -> None:
        sources = (source for weight in _weights(groups) for source in weight.sources)
        names = {name for source in sources for name in self.checkpoint.tensors(source)}
        self._refuse("is missing", names - self.checkpoint.headers.keys(), hint="download the model again")

    def _refuse(self, what: str, names: set[str], **advice: str) -> None:
        if names:
            others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise InputError(f"{min(names)} {what}{others}", where=self.checkpoint.where, **advice)

    def _key(self) -> str:
        shards = [(shard, self.checkpoint.store.size(shard)) for shard in self.checkpoint.shards]
        job: list[Any] = [__version__, self.settings, self.expert_codec, msgspec.to_builtins(self.spec), shards]
        return hashlib.sha256(msgspec.json.encode(job)).hexdigest()


def _first_shard(file: PlannedFile) -> str:
    return min(file.shards, default="")


def _weights(groups: list[Group]) -> Iterator[Weight]:
    return (weight for group in groups for record in group.records for weight in record)


def _with_eos(spec: ModelSpec, generation: tuple[int, ...]) -> ModelSpec:
    # generation_config.json often lists more end tokens than config.json.
    merged = tuple(dict.fromkeys((*spec.eos_token_ids, *generation)))
    return msgspec.structs.replace(spec, eos_token_ids=merged)
