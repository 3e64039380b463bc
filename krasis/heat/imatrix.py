"""An importance matrix: what a calibration run saw of each expert's inputs. The format: formats/imatrix-v1.md."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import msgspec
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from krasis.errors import InputError
from krasis.heat.same_model import check_model
from krasis.pack import strict_json
from krasis.pack.disk import write_output
from krasis.pack.manifest import Origin, Printable, Sha256, Size
from krasis.quant.treesum import tree_sum

FORMAT: Final = "krasis-imatrix"
VERSION: Final = 1
METADATA = "imatrix"
MAX_HEADER = 16 << 20
HINT = "make one with: krasis profile-heat PACK --text FILE... --imatrix FILE"
DTYPES = {"tokens": "I64", "w13": "F32", "w2": "F32", "shares": "BF16"}

PRIOR_TOKENS = 64
"""An expert's own moments count as its tokens, those of the whole layer as this many."""
LEAST = 1e-3
"""No input matters less than this share of the mean: text that never touched it says little."""


class Header(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Made with the pack whose root hash is `pack_root`, which holds `model`, from `tokens` tokens of `corpus`."""

    format: Literal["krasis-imatrix"]
    version: Literal[1]
    tool: Printable
    pack_root: Sha256
    model: dict[str, Any]
    corpus: tuple[Origin, ...]
    tokens: Size


@dataclass(frozen=True)
class LayerMoments:
    """What one layer's experts were given.

    - `tokens` int64 [experts]: how many each was given.
    - `w13` float32 [experts, H], `w2` float32 [experts, I]: mean square of each input of these
      matrices, 0 without tokens.
    - `shares` bfloat16 [H (H - 1) / 2]: `krasis.quant.feedback.coefficients` of the second moments of every token's
      input, row by row what lies below the diagonal.
    """

    tokens: Tensor
    w13: Tensor
    w2: Tensor
    shares: Tensor

    def importance(self, means: Tensor) -> Tensor:
        """`w13` or `w2` [experts, K] shrunk to the layer's mean by tokens: float32, positive, as shares of their mean.

        The same bits on every machine.
        """
        tokens, sums = self.tokens.double().unsqueeze(1), means.double() * self.tokens.unsqueeze(1)
        together = tree_sum(sums.unsqueeze(0).clone())[0] / tokens.sum().clamp_min(1)
        shrunk = (sums + PRIOR_TOKENS * together) / (tokens + PRIOR_TOKENS)
        mean = tree_sum(shrunk.unsqueeze(2).clone())[..., 0] / shrunk.shape[1]
        # A layer that saw no tokens knows no difference.
        return torch.where(mean > 0, shrunk / mean, 1.0).float().clamp_min(LEAST)

    def dense_shares(self) -> Tensor:
        """float32 [H, H]: the shares, zero on the diagonal and above it."""
        size = self.w13.shape[1]
        dense = torch.zeros(size, size)
        dense[torch.ones(size, size, dtype=torch.bool).tril(-1)] = self.shares.float()
        return dense


def pack_shares(dense: Tensor) -> Tensor:
    """float32 [H, H] -> bfloat16, the inverse of `dense_shares` but for rounding."""
    return dense[torch.ones(dense.shape, dtype=torch.bool).tril(-1)].bfloat16()


class Imatrix:
    """An importance matrix file. `header`, names, dtypes and shapes are checked now, values of a layer when it is read.

    Raises InputError where it is none, or breaks the format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Its stubs say nothing of what it returns.
            self._file: Any = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            self._bad(error)
        self.header = self._header()
        self.layers = self._check_shapes()

    def layer(self, layer: int) -> LayerMoments:
        """Raises InputError where the file lacks the layer, or holds numbers that are none."""
        if layer not in self.layers:
            self._bad(f"it lacks layer {layer}")
        found = LayerMoments(**{part: self._file.get_tensor(_name(layer, part)) for part in DTYPES})
        for part in DTYPES:
            values = getattr(found, part)
            if not values.isfinite().all() or (part != "shares" and values.lt(0).any()):
                self._bad(f"{_name(layer, part)} has values that are no moments")
        if found.tokens.gt(self.header.tokens).any():
            self._bad(f"{_name(layer, 'tokens')} exceeds the tokens of the run")
        return found

    def sha256(self) -> str:
        """The hash of the whole file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def check_model(self, model: Mapping[str, Any]) -> None:
        """Raises InputError where it was made with another model than this, a normalized spec."""
        check_model("imatrix", self.header.model, model, where=self.path, hint=HINT)

    def _header(self) -> Header:
        text = (self._file.metadata() or {}).get(METADATA)
        if text is None or len(text) > MAX_HEADER:
            self._bad(f"no {METADATA!r} of at most {MAX_HEADER} characters in its metadata")
        try:
            tree = strict_json.parse(text.encode())
            if not isinstance(tree, dict) or tree.get("format") != FORMAT:
                raise ValueError(f'no "format": "{FORMAT}"')
            if isinstance(tree.get("version"), int) and tree["version"] > VERSION:
                raise ValueError(f"format version {tree['version']} is newer than this krasis")
            return msgspec.json.decode(text, type=Header)
        except (ValueError, RecursionError) as error:
            self._bad(error)

    def _check_shapes(self) -> list[int]:
        found = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
        shapes = {name: tuple(tensor.get_shape()) for name, tensor in found.items()}
        layers = sorted({int(parts[1]) for name in found if (parts := name.split("."))[1:2] and parts[1].isdecimal()})
        expected = {_name(layer, part): dtype for layer in layers for part, dtype in DTYPES.items()}
        if odd := sorted(expected.keys() ^ found.keys()):
            self._bad(f"{odd[0]} is {'missing' if odd[0] in expected else 'unexpected'}")
        for name, dtype in expected.items():
            if found[name].get_dtype() != dtype:
                self._bad(f"{name} is {found[name].get_dtype()}, expected {dtype}")
        for layer in layers:
            tokens, w13, w2, shares = (shapes[_name(layer, part)] for part in DTYPES)
            width = w13[-1] if w13 else 0
            fits = len(w13) == len(w2) == 2 and w13[:1] == w2[:1] == tokens
            if not fits or 0 in (*w13, *w2) or shares != (math.comb(width, 2),):
                self._bad(f"the shapes of layer {layer} do not fit together")
        return layers

    def _bad(self, what: object) -> NoReturn:
        raise InputError(f"not an imatrix: {what}", where=self.path, hint=HINT)


def save(path: Path, header: Header, layers: Iterator[tuple[int, LayerMoments]]) -> None:
    """Write an importance matrix whole or not at all. Raises UsageError where nothing can be written there."""
    tensors = {_name(layer, part): getattr(moments, part) for layer, moments in layers for part in DTYPES}
    content = safetensors.torch.save(tensors, {METADATA: msgspec.json.encode(header).decode()})
    write_output(path, content, "imatrix")


def _name(layer: int, part: str) -> str:
    return f"layers.{layer}.{part}"
