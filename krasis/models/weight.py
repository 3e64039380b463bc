"""Which tensors of a checkpoint make which tensors of a pack, and the groups that several families share."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Source:
    """A tensor of the checkpoint, or some rows of it. `name` is what an unquantized checkpoint calls it.

    - `index` picks one of a stack [experts, ...].
    - Rows are cut into `runs` equal runs, and from each those from `first` to `last` are taken, to its end where None.
    - `columns`: an unquantized checkpoint stores this matrix as [input, output]. Quantized ones store [output, input].
    - `turned`: the rows taken become the columns.
    """

    name: str
    index: int | None = None
    runs: int = 1
    first: int = 0
    last: int | None = None
    columns: bool = False
    turned: bool = False


@dataclass(frozen=True)
class Weight:
    """One tensor of the pack and the sources it is made of, stacked along rows (gate over up, say).

    `shape` is that of each source. `feeds` names the matrix of the same record that consumes the rows: they are padded
    to its padded input. `bias_of` names the matrix whose rows this vector is added to: it is padded like them.
    """

    name: str
    sources: tuple[Source, ...]
    shape: tuple[int, ...]
    feeds: str = ""
    bias_of: str = ""

    @property
    def stacked(self) -> tuple[int, ...]:
        """The shape of the whole."""
        return (self.shape[0] * len(self.sources), *self.shape[1:])


@dataclass(frozen=True)
class Group:
    """A segment of the pack: records of the same weights.

    `keep` is stored as it is; of `dense` and `expert` matrices are quantized and vectors kept.
    """

    name: str
    kind: Literal["keep", "dense", "expert"]
    records: tuple[tuple[Weight, ...], ...]


File = tuple[str, list[Group]]
"""A file of the pack and the segments in it."""


def tensor(name: str, source: str, *shape: int) -> Weight:
    """A whole tensor as it is."""
    return Weight(name, (Source(source),), shape)


def gated(prefix: str, hidden: int, size: int, gate_up: str, down: str) -> list[Weight]:
    """A gated MLP of `size` from gate_proj, up_proj and down_proj: gate over up as `gate_up`, and `down`."""
    halves = (Source(f"{prefix}gate_proj.weight"), Source(f"{prefix}up_proj.weight"))
    return [
        Weight(gate_up, halves, (size, hidden), feeds=down),
        tensor(down, f"{prefix}down_proj.weight", hidden, size),
    ]


def experts(prefix: str, count: int, hidden: int, size: int) -> tuple[tuple[Weight, ...], ...]:
    """The records of `count` experts that lie in the checkpoint one by one, as `w13` and `w2`."""
    return tuple(tuple(gated(f"{prefix}{expert}.", hidden, size, "w13", "w2")) for expert in range(count))


def base_file(hidden: int, vocab: int, *, tied: bool) -> File:
    """Embedding, final norm and head under their usual names."""
    embed = "model.embed_tokens.weight"
    keep = (tensor("embed", embed, vocab, hidden), tensor("norm", "model.norm.weight", hidden))
    head = tensor("lm_head", embed if tied else "lm_head.weight", vocab, hidden)
    return "base.bin", [Group("base", "keep", (keep,)), Group("head", "dense", ((head,),))]


def layer_file(layer: int, groups: list[Group]) -> File:
    return f"layer-{layer:03d}.bin", groups


def left_out(name: str, *, tied: bool, layers: int) -> bool:
    """Whether a tensor is one that checkpoints carry and no family needs.

    A tied head's copy, rope frequencies, and layers after the last of `layers`, which predict further tokens.
    """
    parts = name.split(".")
    beyond = parts[:2] == ["model", "layers"] and parts[2].isdecimal() and int(parts[2]) >= layers
    return beyond or (tied and name == "lm_head.weight") or name.endswith(".rotary_emb.inv_freq")
