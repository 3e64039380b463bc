"""A layer's routed experts on the device and beside it: resident, streamed, or on the CPU."""

import ctypes

import torch
from torch import Tensor

from krasis.models.family import Activation, Experts
from krasis.pack.reader import Pack
from krasis.runtime.backend import packed_matrix
from krasis.runtime.cuda.backend import dense
from krasis.runtime.cuda.residents import segment_of
from krasis.runtime.cuda.stream import Stream
from krasis.runtime.placement.outline import LAYOUT


class Hybrid:
    """Makes the experts of each layer."""

    def __init__(self, pack: Pack, stream: Stream) -> None:
        self._pack, self._stream = pack, stream

    def layer(self, layer: int, activation: Activation) -> Experts:
        def run(x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
            out = torch.zeros_like(x)
            for experts in self._stream.parts(layer):
                for expert in experts.tolist():
                    tokens, slots = (ids == expert).nonzero(as_tuple=True)
                    if not len(tokens):
                        continue
                    w13, w2, b13, b2 = self._record(layer, int(self._stream.table[layer][expert]))
                    gate, up = (x[tokens] @ w13.T + b13).chunk(2, dim=-1)
                    out.index_add_(0, tokens, (activation(gate, up) @ w2.T + b2) * weights[tokens, slots, None])
            return out

        return run

    def _record(self, layer: int, address: int):
        name = segment_of(layer)
        segment = self._pack.segment(name, LAYOUT)
        memory = torch.frombuffer((ctypes.c_uint8 * segment.record_bytes).from_address(address), dtype=torch.uint8)
        arrays = self._pack.views(name, LAYOUT, memory, 0)
        found = {s.name: packed_matrix(s, LAYOUT, arrays) for s in segment.tensors}
        from krasis.runtime.backend import strip_parts

        bias = [strip_parts(found[b].values, found[b].spec).float() if b in found else 0 for b in ("b13", "b2")]
        return dense(found["w13"]), dense(found["w2"]), *bias
