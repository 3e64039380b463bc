"""The operations between products on the GPU."""

from functools import cache, partial

from torch import Tensor

from krasis.models.blocks.rope import Angles
from krasis.models.ops import DeltaForm, HeadShape, Routing, TorchOps, split_heads
from krasis.models.state import Places
from krasis.native.cuda import delta, ops
from krasis.native.delta_net import DeltaNet
from krasis.runtime.ops import delta_net_of


class CudaOps(TorchOps):
    """Implements `krasis.models.ops.Ops`: activations bfloat16, the residual stream and routing weights float32, ids
    int32. Angles are those of all positions; `position`, int32 on the device, says where the sequence is.
    """

    def __init__(self, position: Tensor) -> None:
        self._position = position
        self._delta_nets = cache(partial(delta_net_of, DeltaNet))

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return ops.norm(x, weight, eps)

    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return x, ops.add_norm(x, y, weight, eps)

    def turn_heads(
        self,
        x: Tensor,
        shape: HeadShape,
        angles: Angles,
        norms: tuple[Tensor, Tensor] | None,
        eps: float,
        places: Places = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ops.turn_heads(x, (shape.heads, shape.kv_heads), shape.dim, angles, norms, eps, self._position, places)
        return split_heads(x, shape)

    def turn_latent(
        self, q: Tensor, kv: Tensor, angles: Angles, norm: Tensor, eps: float, places: Places = None
    ) -> tuple[Tensor, Tensor]:
        ops.turn_latent(q, kv, angles, norm, eps, self._position, *(places or ()))
        return q, kv

    def gate(self, x: Tensor, gate: Tensor) -> Tensor:
        return ops.gate(x, gate)

    def open_rows(self, x: Tensor, gate: Tensor) -> Tensor:
        return x * gate.sigmoid()

    def swiglu(self, gate_up: Tensor) -> Tensor:
        return ops.swiglu(gate_up)

    def open_swiglu(self, gate_up: Tensor, x: Tensor, door: Tensor) -> Tensor:
        return ops.swiglu(gate_up, x, door)

    def conv_silu(self, x: Tensor, weight: Tensor, state: Tensor) -> Tensor:
        return delta.conv_silu(x, weight, state)

    def route(self, logits: Tensor, bias: Tensor | None, routing: Routing) -> tuple[Tensor, Tensor]:
        return ops.route(logits, bias, routing.k, routing.scores, routing.normalize, routing.scale)

    def delta_net(self, qkv: Tensor, z: Tensor, beta_step: Tensor, form: DeltaForm, memory: Tensor) -> Tensor:
        return delta.delta_net(qkv, z, beta_step, self._delta_nets(form), memory)
