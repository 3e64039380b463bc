"""A layer's routed experts on the device and beside it: resident, streamed, or on the CPU."""

import torch
from torch import Tensor

from krasis.errors import InputError
from krasis.models.blocks.mlp import ClampedSwiglu, swiglu
from krasis.models.family import Activation, Experts, Linear, add_product
from krasis.native.cuda.experts import ExpertForm, batch, combine, experts_down, experts_few, experts_up, sort
from krasis.native.cuda.gemm import Form, Scratch
from krasis.native.cuda.mailbox import Split
from krasis.pack.reader import Pack
from krasis.pack.record import TensorSpec, sections
from krasis.runtime.cuda.colleague import Colleague
from krasis.runtime.cuda.residents import Residents, segment_of
from krasis.runtime.cuda.stream import Stream
from krasis.runtime.placement.outline import LAYOUT


class Hybrid:
    """Makes the experts of each layer. Those of a few tokens that are not resident are the `colleague`'s, but for what
    the split of a layer, for one token, leaves to the device.
    """

    def __init__(
        self,
        pack: Pack,
        residents: Residents,
        stream: Stream,
        scratch: Scratch,
        colleague: Colleague | None,
        splits: dict[int, Split],
    ) -> None:
        self._pack, self._residents, self._stream, self._scratch = pack, residents, stream, scratch
        self._colleague, self._splits = colleague, splits

    def layer(self, layer: int, activation: Activation, beside: Linear | None) -> Experts:
        """The experts of `layer`: (x bfloat16, ids int32, weights float32) -> float32 [tokens, hidden]."""
        segment = self._pack.segment(segment_of(layer), LAYOUT)
        form = expert_form(segment.tensors, activation)
        if self._colleague is not None and layer in self._residents.partial:
            self._colleague.assign(layer, segment.name, self._pack, activation)

        def experts(x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
            run = self._few if self._stream.way == "few" else self._many
            return run(layer, form, x, ids, weights, beside)

        return experts

    def _few(
        self, layer: int, form: ExpertForm, x: Tensor, ids: Tensor, weights: Tensor, beside: Linear | None
    ) -> Tensor:
        h = torch.empty(ids.numel(), form.size, dtype=torch.bfloat16, device=x.device)
        out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        colleague = self._colleague if layer in self._residents.partial else None
        split = self._splits.get(layer) if len(x) == 1 else None
        records, first = self._residents.table[layer], None
        if colleague is not None:
            where, uses = self._residents.where[layer], self._residents.decoded.get(layer)
            colleague.mailbox.post(colleague.number[layer], x, ids, weights, where, split, uses)
            if split is not None:
                records, first, ids = split.records, split.first, split.pairs
        experts_few(form, records, x, ids, weights, h, out, self._scratch, first=first)
        if beside is not None:
            add_product(beside, out, x)
        if colleague is not None:
            colleague.mailbox.wait_add(out)
        return out

    def _many(
        self, layer: int, form: ExpertForm, x: Tensor, ids: Tensor, weights: Tensor, beside: Linear | None
    ) -> Tensor:
        routes = sort(ids, len(self._residents.table[layer]))
        if (uses := self._residents.prefilled.get(layer)) is not None:
            uses += routes.offsets.diff()
        h = torch.empty(ids.numel(), form.size, dtype=torch.bfloat16, device=x.device)
        y = torch.empty(ids.numel(), form.hidden, dtype=torch.bfloat16, device=x.device)
        for experts, table in self._stream.parts(layer, ids):
            part = batch(routes, experts)
            experts_up(form, table, part, x, h)
            experts_down(form, table, part, h, y)
        out = combine(y, ids, weights, torch.empty(x.shape, dtype=torch.float32, device=x.device))
        if beside is not None:
            add_product(beside, out, x)
        return out


def expert_form(tensors: tuple[TensorSpec, ...], activation: Activation) -> ExpertForm:
    """The form of a layer's records. Raises InputError for what kernels do not take."""
    at = {(s.tensor, s.part): s.offset for s in sections(tensors, LAYOUT)}
    spec = {tensor.name: tensor for tensor in tensors}
    w13, w2 = spec["w13"], spec["w2"]
    if not (w13.quantized and w2.quantized):
        expected, hint = "quantized experts", "convert again with --expert-bits 4 or 8"
        raise InputError(f"experts of {w13.codec} on the GPU", expected=expected, hint=hint)
    if activation is not swiglu and not isinstance(activation, ClampedSwiglu):
        raise InputError("an activation of experts that kernels of the GPU lack", expected="SwiGLU or the clamped one")
    clamp = (activation.alpha, activation.limit) if isinstance(activation, ClampedSwiglu) else (0.0, 0.0)
    return ExpertForm(
        w13.shape[1],
        _form(w13),
        _form(w2),
        at["w13", "codes"],
        at["w13", "scales"],
        at["w2", "codes"],
        at["w2", "scales"],
        at.get(("b13", "values")),
        at.get(("b2", "values")),
        torch.float32 if "b13" in spec and spec["b13"].codec == "f32" else torch.bfloat16,
        *clamp,
    )


def _form(spec: TensorSpec) -> Form:
    n, k = spec.padded_shape
    return Form(spec.codec, k, n, spec.group_size)
