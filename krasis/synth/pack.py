"""Make a pack of a configuration's real shape with made-up weights."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch

from krasis import __version__, models
from krasis.convert import encodings
from krasis.convert.assign import choose, plan_group
from krasis.convert.pipeline import PlannedFile, Progress
from krasis.errors import InputError, UsageError
from krasis.models.family import ModelSpec
from krasis.models.weight import Group
from krasis.pack.manifest import FileHash, Manifest, Settings
from krasis.pack.record import TensorSpec, record_bytes, sections
from krasis.pack.writer import FileWriter, PackWriter, SegmentPlan
from krasis.synth import tokenizer, values
from krasis.synth.codes import Arrays, Matrices
from krasis.synth.popularity import Popularity
from krasis.synth.values import Values


import threading
LOCK=threading.Lock()
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
            PlannedFile(name, groups, [self._plan(group) for group in groups]) for name, groups in family.files(spec)
        ]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def run(self, path: Any, source: FileHash, progress: Progress, *, jobs: int, force: bool = False) -> Manifest:
        """Write the pack with `jobs` threads. `source` is the configuration, named as what it was made from."""
        extras = tokenizer.files(self.spec.vocab_size)
        recipe = self.recipe
        with PackWriter(path, self._key(source), self.bytes + sum(map(len, extras.values())), force=force) as writer:
            progress.start("making", self.bytes)
            # Every job is a thread of its own; threads of torch would only be in their way.
            torch.set_num_threads(1)
            weights = Weights(self.spec, recipe, self.files)
            with ThreadPoolExecutor(jobs) as pool:
                for file in self.files:
                    if file.name in writer.finished:
                        progress.advance(file.bytes)
                        continue
                    with writer.file(file.name, [plan for plans in file.segments for plan in plans]) as out:
                        for size in pool.map(lambda job: weights.put(out, *job), list(_records(file))):
                            progress.advance(size)
                        _note_errors(out, file)
            return writer.publish(
                tool=f"krasis {__version__} synth: made-up weights, skew {recipe.skew}, seed {recipe.seed}",
                settings=recipe.settings,
                model=msgspec.to_builtins(self.spec),
                source=[source],
                extras=[writer.extra(name, content) for name, content in extras.items()],
            )

    def _plan(self, group: Group) -> list[SegmentPlan]:
        # Tied heads are quantized, and everything else is in one precision.
        kept_as = self._kept_as if group.kind == "expert" else None
        choice = choose(group, self.recipe.settings, self.recipe.expert_codec, kept_as)
        return plan_group(group, choice, self.recipe.settings.layouts, lambda source: torch.bfloat16)

    def _key(self, source: FileHash) -> str:
        job: list[Any] = [__version__, "synth", self.recipe, msgspec.to_builtins(self.spec), source]
        return hashlib.sha256(msgspec.json.encode(job)).hexdigest()


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

    def put(self, out: FileWriter, plans: list[SegmentPlan], index: int) -> int:
        """Write a record in every layout. Returns its bytes."""
        records = {plan.layout: torch.zeros(record_bytes(plan.tensors, plan.layout), dtype=torch.uint8) for plan in plans}
        arrays = {plan.layout: _views(plan, records[plan.layout]) for plan in plans}
        self.fill(arrays, plans[0], index)
        for plan in plans:
          with LOCK:
            out.put(plan.name, plan.layout, index, arrays[plan.layout])
        return sum(map(len, records.values()))

    def fill(self, arrays: Mapping[str, Arrays], plan: SegmentPlan, index: int) -> None:
        """Layout -> the zeroed sections of a record, which get weights."""
        rng = self._rng(plan.name, index)
        for tensor in plan.tensors:
            if tensor.quantized:
                self._matrices[self._alike(tensor)].fill(arrays, tensor, rng)
                continue
            found, *others = (sections[tensor.name, "values"] for sections in arrays.values())
            if tensor.name == "router":
                layer = int(re.findall(r"\d+", plan.name)[0])
                self._values.router(found, self._popularity.offsets(rng), layer, rng)
            else:
                self._values.fill(found, tensor, rng)
            for other in others:
                other.copy_(found)

    def _alike(self, tensor: TensorSpec) -> tuple[object, ...]:
        """Matrices for which this is equal take their columns from one place."""
        spread = values.matrix_spread(tensor, self._spec)
        return tensor.codec, tensor.group_size, tensor.shape[1], tensor.padded_shape[1], spread

    def _rng(self, *what: object) -> np.random.Generator:
        """One for each purpose, so that nothing depends on the order of work."""
        digest = hashlib.sha256(repr((self._seed, *what)).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def _records(file: PlannedFile) -> Iterator[tuple[list[SegmentPlan], int]]:
    return ((plans, index) for plans in file.segments for index in range(plans[0].count))


def _views(plan: SegmentPlan, record: torch.Tensor) -> Arrays:
    return {
        (s.tensor, s.part): record[s.offset : s.offset + s.bytes].view(s.dtype).view(s.shape)
        for s in sections(plan.tensors, plan.layout)
    }


def _note_errors(out: FileWriter, file: PlannedFile) -> None:
    """Made-up weights are what their codes say."""
    for plans in file.segments:
        for tensor in plans[0].tensors:
            if tensor.quantized:
                for _ in range(plans[0].count):
                    out.put_error(plans[0].name, tensor.name, 0.0)
