"""Make a pack of a configuration's real shape with made-up weights."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from krasis import __version__, models
from krasis.convert import encodings
from krasis.convert.assign import choose, plan_group
from krasis.convert.planned import PlannedFile
from krasis.errors import InputError, UsageError
from krasis.heat import profile
from krasis.heat.profile import HeatProfile, Text, Tokens, layers_of
from krasis.heat.routing import Routing
from krasis.models.family import ModelSpec
from krasis.models.weight import Group
from krasis.pack import manifest as manifests
from krasis.pack.file_writer import Arrays, FileWriter, SegmentPlan
from krasis.pack.manifest import FileHash, Manifest, PackFile, Segment, Settings
from krasis.pack.progress import Progress
from krasis.pack.record import TensorSpec
from krasis.pack.writer import PackWriter
from krasis.synth import popularity, tokenizer, values
from krasis.synth.codes import Matrices
from krasis.synth.fill import fill
from krasis.synth.popularity import Popularity
from krasis.synth.values import Values


@dataclass(frozen=True)
class Recipe:
    """What a made-up pack depends on besides its configuration: all of it, whatever the machine and the jobs."""

    settings: Settings
    expert_codec: str | None = None
    skew: float = 0.9
    seed: int = 0


def shortened(config: Mapping[str, Any], layers: int | None, vocab: int | None) -> dict[str, Any]:
    """A config.json with fewer layers, the first ones, and another vocabulary. Raises UsageError for more layers."""
    found = dict(config)
    if layers is not None:
        most = config.get("num_hidden_layers")
        if not 1 <= layers <= (most if isinstance(most, int) else layers):
            raise UsageError(f"--layers is {layers}", expected=f"1 to {most}")
        found["num_hidden_layers"] = layers
        if isinstance(config.get("layer_types"), list):
            found["layer_types"] = config["layer_types"][:layers]
    if vocab is not None:
        found["vocab_size"] = vocab
    return found


class Synthesis:
    """A made-up pack, planned. Raises InputError for a configuration that krasis can't run."""

    def __init__(self, config: Mapping[str, Any], recipe: Recipe) -> None:
        family = models.get(str(config.get("model_type")))
        spec = family.parse_config({key: value for key, value in config.items() if key != encodings.KEY})
        if spec.vocab_size < tokenizer.BYTES:
            expected = f"{tokenizer.BYTES} or more, for its tokenizer"
            raise InputError(f"vocab_size is {spec.vocab_size}", where="config.json", expected=expected)
        ends = tuple(token for token in spec.eos_token_ids if token < spec.vocab_size)
        self.spec: ModelSpec = msgspec.structs.replace(spec, eos_token_ids=ends)
        self.recipe = recipe
        self._kept_as = encodings.of(config)[0].kept_as
        self.files = [
            PlannedFile(name, groups, [self._plan(group) for group in groups], frozenset())
            for name, groups in family.files(spec)
        ]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def run(self, pack: Path, source: FileHash, progress: Progress, *, force: bool = False, jobs: int = 1) -> Manifest:
        """Write the pack, on `jobs` threads; the same bytes come out whatever they are. `source` is the config.json.

        A partial pack of the same making is continued.
        """
        extras = tokenizer.files(self.spec.vocab_size)
        recipe = self.recipe
        need = self.bytes + sum(map(len, extras.values()))
        with PackWriter(pack, self._key(source), need, force=force, threads=jobs, progress=progress) as writer:
            left = [file for file in self.files if file.name not in writer.finished]
            progress.start("making weights up", sum(file.bytes for file in left))
            weights = Weights(self.spec, recipe, self.files)
            fill(writer, left, weights.put, jobs, progress.advance)
            manifest = writer.publish(
                tool=self._tool,
                settings=recipe.settings,
                model=msgspec.to_builtins(self.spec),
                source=[source],
                extras=[writer.extra(name, content) for name, content in extras.items()],
            )
        if models.of(self.spec).moe_layers(self.spec):
            profile.save(self._heat(weights.heat(), manifest), profile.path_in(pack, "default"))
        return manifest

    def _heat(self, found: Routing, manifest: Manifest) -> HeatProfile:
        """The profile that measuring the pack would give, had it time."""
        origin = Text(f"the law of skew {self.recipe.skew}", 0, hashlib.sha256().hexdigest(), found.tokens, 0)
        nothing = Routing.nothing({layer: len(counts) for layer, counts in found.counts.items()})
        return HeatProfile(
            format=profile.FORMAT,
            version=profile.VERSION,
            tool=self._tool,
            pack_root=manifest.root,
            model=manifest.model,
            corpus=(origin,),
            tokens=Tokens(found.tokens, 0),
            layers=layers_of(found, nothing),
        )

    def manifest(self) -> Manifest:
        """What the manifest will say, but for hashes and errors, which are zeros as long as nothing is made."""
        files = tuple(map(_unwritten, self.files))
        segments = [segment for file in files for segment in file.segments]
        return Manifest(
            format="krasis-pack",
            version=manifests.VERSION,
            root=manifests.BLANK_ROOT,
            tool=self._tool,
            settings=self.recipe.settings,
            model=msgspec.to_builtins(self.spec),
            source=(),
            extras=(),
            files=files,
            errors={f"{s.name}.{t.name}": (0.0,) * s.count for s in segments for t in s.tensors if t.quantized},
        )

    @property
    def _tool(self) -> str:
        return f"krasis {__version__} synth: made-up weights, skew {self.recipe.skew}, seed {self.recipe.seed}"

    def _plan(self, group: Group) -> list[SegmentPlan]:
        # Tied heads are quantized, and everything else is in one precision.
        kept_as = self._kept_as if group.kind == "expert" else None
        choice = choose(group, self.recipe.settings, self.recipe.expert_codec, kept_as)
        return plan_group(group, choice, self.recipe.settings.layouts, lambda source: torch.bfloat16)

    def _key(self, source: FileHash) -> str:
        job: list[Any] = [__version__, "synth", self.recipe, msgspec.to_builtins(self.spec), source]
        return hashlib.sha256(msgspec.json.encode(job)).hexdigest()


def _unwritten(file: PlannedFile) -> PackFile:
    """The entry of a file that is planned, hashes blank."""
    segments, end = [], 0
    for plan in file.plans:
        segments.append(Segment(plan.name, plan.layout, end, plan.tensors, (manifests.BLANK_ROOT,) * plan.count))
        end += plan.bytes
    return PackFile(file.name, end, tuple(segments))


class Weights:
    """The made-up weights of a model, record by record, in any order and from any thread."""

    def __init__(self, spec: ModelSpec, recipe: Recipe, files: list[PlannedFile]) -> None:
        self._seed = recipe.seed
        self._values = Values(spec, recipe.seed)
        self._spec = spec
        self._popularity = Popularity(spec, recipe.skew, recipe.seed)
        self._matrices: dict[tuple[object, ...], Matrices] = {}
        for file in files:
            for plans in file.segments:
                for tensor in plans[0].tensors:
                    if tensor.quantized and self._alike(tensor) not in self._matrices:
                        orders = tuple(plan.layout for plan in plans)
                        drawn = self._rng(f"columns {len(self._matrices)}")
                        spread = values.matrix_spread(tensor, spec)
                        self._matrices[self._alike(tensor)] = Matrices(tensor, orders, spread, drawn)

    def put(self, out: FileWriter, plans: list[SegmentPlan], indices: range) -> int:
        """Write some records in every layout. Returns their bytes."""
        records = [torch.zeros(plan.record_bytes, dtype=torch.uint8) for plan in plans]
        arrays = {plan.layout: plan.arrays(record) for plan, record in zip(plans, records, strict=True)}
        for index in indices:
            self.fill(arrays, plans[0], index)
            for plan, record in zip(plans, records, strict=True):
                out.write(plan.name, plan.layout, index, record)
        return len(indices) * sum(plan.record_bytes for plan in plans)

    def fill(self, arrays: Mapping[str, Arrays], plan: SegmentPlan, index: int) -> None:
        """Layout -> the sections of a record, zeroed or those of another of the segment, which get weights."""
        rng = self._rng(plan.name, index)
        for tensor in plan.tensors:
            if tensor.quantized:
                self._matrices[self._alike(tensor)].fill(arrays, tensor, rng)
                continue
            found, *others = (sections[tensor.name, "values"] for sections in arrays.values())
            if tensor.name == "router":
                layer = int(re.findall(r"\d+", plan.name)[0])
                self._values.router(found, self._popularity.offsets(self.order(layer)), layer, rng)
            else:
                self._values.fill(found, tensor, rng)
            for other in others:
                other.copy_(found)

    def order(self, layer: int) -> Tensor:
        """See `Popularity.order`."""
        return self._popularity.order(self._rng("order", layer))

    def heat(self) -> Routing:
        """What routers choose of `popularity.EXPECTED` tokens."""
        counts = {
            layer: self._popularity.counts(self.order(layer)) for layer in models.of(self._spec).moe_layers(self._spec)
        }
        return popularity.counted(counts)

    def _alike(self, tensor: TensorSpec) -> tuple[object, ...]:
        """Matrices for which this is equal take their columns from one place."""
        spread = values.matrix_spread(tensor, self._spec)
        return tensor.codec, tensor.group_size, tensor.shape[1], tensor.padded_shape[1], spread

    def _rng(self, *what: object) -> np.random.Generator:
        """One for each purpose, so that nothing depends on the order of work."""
        digest = hashlib.sha256(repr((self._seed, *what)).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16], "little"))
