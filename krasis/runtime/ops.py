"""The operations between products on the CPU: native kernels, and torch where these take what is asked no faster."""

from functools import cache, partial
from typing import TypeVar

from torch import Tensor

from krasis.models.blocks.rope import Angles
from krasis.models.ops import DeltaForm, HeadShape, Routing, TorchOps, split_heads
from krasis.models.state import Places
from krasis.native.delta_net import DeltaNet
from krasis.native.ops import CpuDeltaNet, NativeOps

D = TypeVar("D", bound=DeltaNet)


class CpuOps(TorchOps):
    """Implements `krasis.models.ops.Ops`."""

    def __init__(self, native: NativeOps) -> None:
        self.native = native
        self._delta_nets = cache(partial(delta_net_of, CpuDeltaNet))

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self.native.norm(x, weight, eps)

    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return self.native.add_norm(x, y, weight, eps)

    def turn_heads(
        self,
        x: Tensor,
        shape: HeadShape,
        angles: Angles,
        norms: tuple[Tensor, Tensor] | None,
        eps: float,
        places: Places = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        self.native.turn_heads(x, (shape.heads, shape.kv_heads), shape.dim, angles, norms, eps)
        return split_heads(x, shape)

    def turn_latent(
        self, q: Tensor, kv: Tensor, angles: Angles, norm: Tensor, eps: float, places: Places = None
    ) -> tuple[Tensor, Tensor]:
        self.native.turn_latent(q, kv, angles, norm, eps)
        return q, kv

    def gate(self, x: Tensor, gate: Tensor) -> Tensor:
        return self.native.gate(x, gate, "sigmoid")

    def open_rows(self, x: Tensor, gate: Tensor) -> Tensor:
        return self.native.gate(x, gate, "rows")

    def swiglu(self, gate_up: Tensor) -> Tensor:
        return self.native.swiglu(gate_up)

    def conv_silu(self, x: Tensor, weight: Tensor, state: Tensor) -> Tensor:
        return self.native.conv_silu(x, weight, state)

    def route(self, logits: Tensor, bias: Tensor | None, routing: Routing) -> tuple[Tensor, Tensor]:
        return self.native.route(logits, bias, routing.k, routing.scores, routing.normalize, routing.scale)

    def delta_net(self, qkv: Tensor, z: Tensor, beta_step: Tensor, form: DeltaForm, memory: Tensor) -> Tensor:
        return self.native.delta_net(qkv, z, beta_step, self._delta_nets(form), memory)


def delta_net_of(kind: type[D], form: DeltaForm) -> D:
    """The form as kernels take it, of the kind that theirs is."""
    shape = form.shape
    dims = (shape.key_heads, shape.value_heads, shape.key_dim, shape.value_dim)
    return kind(*dims, form.rate, form.dt_bias, form.norm, form.norm_eps)
