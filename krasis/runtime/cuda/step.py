"""One decoded token as one captured graph: nothing of it is decided on the host."""

from collections.abc import Callable

import torch
from torch import Tensor


class Step:
    """`forward(token)`, int32 [1] -> logits float32 [vocabulary], captured once and replayed for every token.

    What it reads of the sequence lies on the device. On the emulated one it is called anew.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self._forward = forward
        self._token = torch.zeros(1, dtype=torch.int32, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None
        if device.type == "cuda":
            self._capture()

    def __call__(self, token: int) -> Tensor:
        """Logits, until the next call."""
        self._token.fill_(token)
        if self._graph is None:
            return self._forward(self._token)
        assert self._logits is not None
        self._graph.replay()
        return self._logits

    def _capture(self) -> None:
        # Libraries set themselves up when first called, which can't be captured.
        self._forward(self._token)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self._forward(self._token)
