"""The feedback transformer's steps in order, with the backward pass written by hand.

Step t needs the top of step t - 1, so the loop over steps stays, and all that need not be in it is
taken out: the first layer's queries, the gradient of every weight (one product over all steps at
the end, from gradients that the loop leaves behind) and most of the gradient of old memories (one
product a block of steps).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from studies.recurrence.feedback_back import scan_back
from studies.recurrence.feedback_types import Kept, LayerWeights, Shared


def scan(shared: Shared, layers: Sequence[LayerWeights]) -> Tensor:
    """Return the top layer's states [T, B, d].

    The loop runs in the inputs' type: cast them, and leave autocast, before the call.
    """
    return _Scan.apply(*shared, *(weight for layer in layers for weight in layer))


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor | None) -> Tensor:
        kept = _forward(*_grouped(tensors))
        ctx.given = len(tensors)
        ctx.save_for_backward(*tensors, *kept[:-1], *kept.chances)
        return kept.states[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        given, left = ctx.saved_tensors[: ctx.given], ctx.saved_tensors[ctx.given :]
        single = len(Kept._fields) - 1
        kept = Kept(*left[:single], left[single:])
        with torch.autocast(grad.device.type, enabled=False):
            return scan_back(*_grouped(given), kept, grad)


def _grouped(tensors: Sequence[Any]) -> tuple[Shared, list[LayerWeights]]:
    first, size = len(Shared._fields), len(LayerWeights._fields)
    starts = range(first, len(tensors), size)
    return Shared(*tensors[:first]), [LayerWeights(*tensors[i : i + size]) for i in starts]


def _buffers(shared: Shared, layers: list[LayerWeights]) -> Kept:
    (steps, paths, width), depth = shared.inputs.shape, len(layers)
    _, heads, inner = shared.null.shape
    new, each = shared.inputs.new_empty, (depth, steps, paths, width)
    hidden = new(*each[:-1], len(layers[0].up))
    memory = (new(paths * heads, 1 + steps, inner) for _ in range(2))
    chances = (new(depth, paths * heads, 1, 1 + t) for t in range(steps))
    states = new(1 + depth, *each[1:])
    states[0] = shared.inputs
    singles = new(each), new(each), new(each), hidden, new(each[1:])
    return Kept(states, *singles, *memory, tuple(chances))


def _forward(shared: Shared, layers: list[LayerWeights]) -> Kept:
    kept = _buffers(shared, layers)
    kept.queries[0] = shared.queries
    by_head = kept.keys.unflatten(0, (-1, shared.null.shape[1]))
    by_head[:, :, 0] = shared.null[0]
    kept.values.unflatten(0, by_head.shape[:2])[:, :, 0] = shared.null[1]
    layers = [LayerWeights(*map(_turned, layer)) for layer in layers]
    to_memory = _turned(shared.memory)
    for t in range(len(shared.inputs)):
        for depth, layer in enumerate(layers):
            _layer_forward(kept, shared.bias, layer, t, depth)
        memory, states = kept.memories[t], kept.states[:, t]
        torch.mm(shared.mix[None], states.flatten(1), out=memory.view(1, -1))
        both = torch.addmm(shared.memory_bias, _normal(memory), to_memory)
        _store(kept.keys[:, 1 + t], both[:, : memory.shape[1]])
        _store(kept.values[:, 1 + t], both[:, memory.shape[1] :])
    return kept


def _turned(weight: Tensor | None) -> Tensor | None:
    """Lay a matrix out so that a product of few rows with it is fastest."""
    return weight.T.contiguous() if weight is not None and weight.dim() == 2 else weight


def _normal(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def _store(rows: Tensor, vectors: Tensor) -> None:
    """Write vectors [B, d] to a step's rows [N, d / H]."""
    rows.copy_(vectors.reshape(rows.shape))


def _layer_forward(kept: Kept, bias: Tensor, layer: LayerWeights, t: int, depth: int) -> None:
    x, query, mixed = kept.states[depth, t], kept.queries[depth, t], kept.mixed[depth, t]
    if layer.query is not None:
        torch.addmm(layer.query_bias, _normal(x), layer.query, out=query)
    seen, rows = 1 + t, (len(kept.keys), 1, -1)
    scores = torch.bmm(query.view(rows), kept.keys[:, :seen].mT)
    scores.view(-1, len(bias), seen).add_(bias[:, t, :seen])
    chances = torch.softmax(scores, -1, out=kept.chances[t][depth])
    torch.bmm(chances, kept.values[:, :seen], out=mixed.view(rows))
    middle = torch.addmm(x, mixed, layer.out, out=kept.middle[depth, t])
    hidden = kept.hidden[depth, t]
    torch.addmm(layer.up_bias, _normal(middle), layer.up, out=hidden).relu_()
    above = torch.addmm(middle, hidden, layer.down, out=kept.states[1 + depth, t])
    above.add_(layer.down_bias)
