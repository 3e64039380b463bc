"""What tensors hold that are not quantized: normals of a spread that keeps a forward sane, and routers.

A hidden state has one component, `CHANNEL`, that embeddings set to `LEVEL` and no layer writes to. Routers alone read
it: their offsets of popularity are weights on it.
"""

import numpy as np
import torch
from torch import Tensor

from krasis.models.family import ModelSpec
from krasis.pack.record import TensorSpec

CHANNEL = 0
LEVEL = 4.0

RESIDUAL = ("o", "w2", "down", "shared_down", "o_bias", "b2")
"""Tensors that make what is added to the hidden state."""

GROWTH = 0.15
"""What all layers together add to the mean square of a hidden state, which is 1 at first. Measured: 0.03 to 0.5."""

_SHARE = 0.5
"""Small enough that routers of the last layer see about what those of the first do."""

_ZERO_CENTERED = {"qwen3_next": ("input_norm", "post_norm", "q_norm", "k_norm", "norm")}
"""Norms whose family stores weights minus one."""

_NORM_SPREAD = 0.1
_BIAS_SPREAD = 0.1
_NAMED = {
    "embed": (0.0, 1.0),
    "sinks": (0.0, 1.0),
    "router_bias": (0.0, 0.0),
    # DeltaNet forgets over some tens to thousands of tokens, as it does when training begins.
    "a_log": (1.5, 0.7),
    "dt_bias": (-4.5, 1.2),
}
"""Name -> (mean, spread)."""


def gain(name: str, spec: ModelSpec) -> float:
    """What the spread of a tensor is multiplied by: layers share what they may add to the hidden state."""
    return float(_SHARE * spec.num_layers**-0.5) if name in RESIDUAL else 1.0


def matrix_spread(tensor: TensorSpec, spec: ModelSpec) -> float:
    """Keeps the mean square of what goes in."""
    return float(gain(tensor.name, spec) * tensor.shape[-1] ** -0.5)


class Values:
    """Fills the unquantized tensors of a model. Rows are windows of normals that are drawn once."""

    LENGTH = 1 << 20
    WINDOW = 1 << 16
    """The longest row."""

    def __init__(self, spec: ModelSpec, seed: int) -> None:
        self._spec = spec
        drawn = np.random.default_rng(seed).standard_normal(self.LENGTH + self.WINDOW, dtype=np.float32)
        self._normals = torch.from_numpy(drawn)

    def fill(self, out: Tensor, tensor: TensorSpec, rng: np.random.Generator) -> None:
        """`out`, zeros of the tensor's padded shape, gets its values; vectors are padded part by part."""
        if out.ndim == 1:
            rows = tensor.shape[0] // tensor.parts
            self._fill(out.view(tensor.parts, -1)[:, :rows], tensor, rng)
        else:
            self._fill(out.view(-1, out.shape[-1]), tensor, rng)
        if out.ndim == 2:
            out[:, CHANNEL] = LEVEL if tensor.name == "embed" else 0
        if tensor.name in RESIDUAL:
            out[CHANNEL] = 0

    def router(self, out: Tensor, offsets: Tensor, layer: int, rng: np.random.Generator) -> None:
        """`out` [experts, H] gets a router whose logits over tokens are normals of spread 1, plus `offsets`."""
        rows = torch.empty(out.shape)
        self._draw(rows, 0.0, 1.0, rng)
        constant, rest = self._components(layer)
        rows[:, CHANNEL] = 0
        rows /= rows.norm(dim=1, keepdim=True) * rest
        rows[:, CHANNEL] = offsets / constant
        out.copy_(rows)

    def _fill(self, out: Tensor, tensor: TensorSpec, rng: np.random.Generator) -> None:
        mean, spread = self._law(tensor)
        self._draw(out, mean, spread, rng)
        if tensor.name == "post_norm":
            # So that routers find what they expect there.
            out[:, CHANNEL] = mean

    def _law(self, tensor: TensorSpec) -> tuple[float, float]:
        """(mean, spread) of a tensor's numbers."""
        name = tensor.name
        if name.endswith("norm"):
            return float(name not in _ZERO_CENTERED.get(self._family, ())), _NORM_SPREAD
        if name in _NAMED:
            return _NAMED[name]
        if len(tensor.shape) == 1:
            return 0.0, _BIAS_SPREAD * gain(name, self._spec)
        return 0.0, matrix_spread(tensor, self._spec)

    @property
    def _family(self) -> str:
        return str(self._spec.__struct_config__.tag)

    def _draw(self, out: Tensor, mean: float, spread: float, rng: np.random.Generator) -> None:
        """Fill [rows, width], each row with another window of the normals."""
        windows, level = self._normals.unfold(0, out.shape[1], 1), torch.tensor(mean)
        # An odd step comes back only after `LENGTH` rows.
        step = 2 * int(rng.integers(self.LENGTH // 2)) + 1
        starts = (int(rng.integers(self.LENGTH)) + step * torch.arange(len(out))) % self.LENGTH
        count = max(1, self.WINDOW // out.shape[1])
        for rows, chosen in zip(torch.split(out, count), torch.split(starts, count), strict=True):
            torch.add(level, windows[chosen], alpha=spread, out=rows)

    def _components(self, layer: int) -> tuple[float, float]:
        """What a router sees of the constant component, and the root mean square of the others."""
        spec = self._spec
        rest = 1 + GROWTH * (layer + 0.5) / spec.num_layers
        rms = (rest + LEVEL**2 / spec.hidden_size) ** 0.5
        return LEVEL / rms, rest**0.5 / rms
