"""The feedback transformer's steps in order, with the backward pass written by hand.

Step t needs the top of step t - 1, so the loop over steps stays, and all that need not be in it is
taken out: the first layer's queries, the gradient of every weight (one product over all steps at
the end, from gradients that the loop leaves behind) and most of the gradient of old memories (one
product a block of steps).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 8  # steps whose gradients of older keys and values are taken in one product


class Shared(NamedTuple):
    """What all layers share: T steps, B paths, L layers, H heads; width d; normalisation folded.

    inputs [T, B, d]; queries [T, B, d], the first layer's; mix [1 + L], the weights of a step's
    states in its memory; bias [H, T, 1 + T], added to scores; null [2, H, d / H], a key and a
    value; memory [2 d, d] and memory_bias [2 d], from a normalised memory to its key and value.
    """

    inputs: Tensor
    queries: Tensor
    mix: Tensor
    bias: Tensor
    null: Tensor
    memory: Tensor
    memory_bias: Tensor


class LayerWeights(NamedTuple):
    """A layer's matrices [out, in] and biases, of normalised inputs; the first has no query."""

    query: Tensor | None
    query_bias: Tensor | None
    out: Tensor
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor


class Kept(NamedTuple):
    """What the forward pass leaves for the backward one (N = B H; 1 + T: the null comes first).

    states [1 + L, T, B, d]; middle (after attention), queries and mixed (attended values), all
    [L, T, B, d]; hidden [L, T, B, 4 d]; memories [T, B, d]; chances (of attention)
    [N, T, L, 1 + T]; keys and values [N, 1 + T, d / H].
    """

    states: Tensor
    middle: Tensor
    queries: Tensor
    mixed: Tensor
    hidden: Tensor
    memories: Tensor
    chances: Tensor
    keys: Tensor
    values: Tensor


def scan(shared: Shared, layers: Sequence[LayerWeights]) -> Tensor:
    """Return the top layer's states [T, B, d].

    The loop runs in the inputs' type: cast them, and leave autocast, before the call.
    """
    return _Scan.apply(*shared, *(weight for layer in layers for weight in layer))


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor | None) -> Tensor:
        kept = _forward(*_grouped(tensors))
        ctx.save_for_backward(*tensors, *kept)
        return kept.states[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors, count = ctx.saved_tensors, len(Kept._fields)
        with torch.autocast(grad.device.type, enabled=False):
            return _backward(*_grouped(tensors[:-count]), Kept(*tensors[-count:]), grad)


def _grouped(tensors: Sequence[Any]) -> tuple[Shared, list[LayerWeights]]:
    first, size = len(Shared._fields), len(LayerWeights._fields)
    starts = range(first, len(tensors), size)
    return Shared(*tensors[:first]), [LayerWeights(*tensors[i : i + size]) for i in starts]


def _buffers(shared: Shared, layers: list[LayerWeights]) -> Kept:
    (steps, paths, width), depth = shared.inputs.shape, len(layers)
    _, heads, inner = shared.null.shape
    new, each = shared.inputs.new_empty, (depth, steps, paths, width)
    hidden = new(*each[:-1], len(layers[0].up))
    chances = shared.inputs.new_zeros(paths * heads, steps, depth, 1 + steps)
    memory = (new(paths * heads, 1 + steps, inner) for _ in range(2))
    states = new(1 + depth, *each[1:])
    states[0] = shared.inputs
    return Kept(states, new(each), new(each), new(each), hidden, new(each[1:]), chances, *memory)


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
    chances = torch.softmax(scores, -1)
    kept.chances[:, t, depth, :seen] = chances[:, 0]
    torch.bmm(chances, kept.values[:, :seen], out=mixed.view(rows))
    middle = torch.addmm(x, mixed, layer.out, out=kept.middle[depth, t])
    hidden = kept.hidden[depth, t]
    torch.addmm(layer.up_bias, _normal(middle), layer.up, out=hidden).relu_()
    above = torch.addmm(middle, hidden, layer.down, out=kept.states[1 + depth, t])
    above.add_(layer.down_bias)


class _Normalised(NamedTuple):
    """Rows normalised, and what the way back needs."""

    before: Tensor
    after: Tensor
    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, x: Tensor) -> _Normalised:
        return cls(x, *torch.native_layer_norm(x, x.shape[-1:], None, None, 1e-5))

    def back(self, grad: Tensor, *at: int) -> Tensor:
        """Return the gradient of the rows at an index, given that of their normalised values."""
        return torch.ops.aten.native_layer_norm_backward(
            grad,
            self.before[at],
            grad.shape[-1:],
            self.mean[at],
            self.scale[at],
            None,
            None,
            [True, False, False],
        )[0]


class _Left(NamedTuple):
    """Gradients that the loop backward leaves: of what each product gave, for weights at the end.

    states [1 + L, T, B, d]; middle and queries [L, T, B, d]; hidden [L, T, B, 4 d]; memories
    [T, B, d]; both (keys and values) [T, B, 2 d]; and for the attention scores [N, T, L, 1 + T],
    mixed [N, T, L, d / H], keys and values [N, 1 + T, d / H].
    """

    states: Tensor
    middle: Tensor
    queries: Tensor
    hidden: Tensor
    memories: Tensor
    both: Tensor
    scores: Tensor
    mixed: Tensor
    keys: Tensor
    values: Tensor

    @classmethod
    def of(cls, kept: Kept) -> _Left:
        like = torch.empty_like
        inner = kept.keys.shape[-1]
        return cls(
            *map(like, (kept.states, kept.middle, kept.queries, kept.hidden, kept.memories)),
            kept.memories.new_empty(*kept.memories.shape[:2], 2 * kept.memories.shape[2]),
            torch.zeros_like(kept.chances),
            kept.chances.new_empty(*kept.chances.shape[:3], inner),
            torch.zeros_like(kept.keys),
            torch.zeros_like(kept.values),
        )


def _backward(
    shared: Shared, layers: list[LayerWeights], kept: Kept, grad: Tensor
) -> tuple[Tensor | None, ...]:
    left, steps = _Left.of(kept), len(grad)
    below, middle, memory = map(_Normalised.of, (kept.states[:-1], kept.middle, kept.memories))
    asked = kept.queries.permute(2, 1, 0, 3).unflatten(-1, (-1, kept.keys.shape[-1]))
    asked = asked.permute(0, 3, 1, 2, 4).flatten(0, 1).contiguous()  # [N, T, L, d / H]
    for t in reversed(range(steps)):
        end = min(steps, (t // BLOCK + 1) * BLOCK)
        _memory_backward(shared, left, memory, kept.chances, asked, t, end)
        left.states[-1, t] += grad[t]
        for depth, layer in reversed(list(enumerate(layers))):
            _layer_backward(kept, left, layer, below, middle, t, depth)
        if t % BLOCK == 0:
            _push(left.keys, left.scores, asked, t, end)
            _push(left.values, kept.chances, left.mixed, t, end)
    return _weight_gradients(shared, layers, kept, left, below.after, middle.after, memory.after)


def _push(grad: Tensor, weights: Tensor, vectors: Tensor, t: int, end: int) -> None:
    """Add to grad [N, 1 + T, .] what steps t to end give the null and memories before t."""
    by_memory = weights[:, t:end, :, : 1 + t].flatten(1, 2).mT
    grad[:, : 1 + t] += torch.bmm(by_memory, vectors[:, t:end].flatten(1, 2))


def _pull(grad: Tensor, weights: Tensor, vectors: Tensor, t: int, end: int) -> Tensor:
    """Return the gradient [N, .] of memory t, also from the steps of its block after it."""
    if t + 1 == end:
        return grad[:, 1 + t]
    near = weights[:, t + 1 : end, :, 1 + t].contiguous().view(len(grad), 1, -1)
    return grad[:, 1 + t] + torch.bmm(near, vectors[:, t + 1 : end].flatten(1, 2))[:, 0]


def _memory_backward(
    shared: Shared,
    left: _Left,
    memory: _Normalised,
    chances: Tensor,
    asked: Tensor,
    t: int,
    end: int,
) -> None:
    """Start the states' gradients with what step t's memory got from later steps."""
    both, width = left.both[t], shared.inputs.shape[-1]
    both[:, :width] = _pull(left.keys, left.scores, asked, t, end).reshape(-1, width)
    both[:, width:] = _pull(left.values, chances, left.mixed, t, end).reshape(-1, width)
    left.memories[t] = memory.back(both @ shared.memory, t)
    torch.mul(shared.mix[:, None, None], left.memories[t], out=left.states[:, t])


def _layer_backward(
    kept: Kept,
    left: _Left,
    layer: LayerWeights,
    below: _Normalised,
    middle: _Normalised,
    t: int,
    depth: int,
) -> None:
    at, seen, rows = (depth, t), 1 + t, (len(kept.keys), 1, -1)
    above, hidden, query = left.states[1 + depth, t], left.hidden[at], left.queries[at]
    torch.mm(above, layer.down, out=hidden)
    torch.ops.aten.threshold_backward.grad_input(hidden, kept.hidden[at], 0, grad_input=hidden)
    between = torch.add(above, middle.back(hidden @ layer.up, *at), out=left.middle[at])
    mixed = (between @ layer.out).view(rows)
    left.mixed[:, t, depth] = mixed[:, 0]
    chances = kept.chances[:, t, depth, None, :seen].contiguous()
    scores = torch.bmm(mixed, kept.values[:, :seen].mT)
    scores = torch.ops.aten._softmax_backward_data(scores, chances, -1, scores.dtype)
    left.scores[:, t, depth, :seen] = scores[:, 0]
    torch.bmm(scores, kept.keys[:, :seen], out=query.view(rows))
    left.states[at].add_(between)
    if layer.query is not None:
        left.states[at].add_(below.back(query @ layer.query, *at))


def _weight_gradients(
    shared: Shared,
    layers: list[LayerWeights],
    kept: Kept,
    left: _Left,
    below: Tensor,
    middle: Tensor,
    memory: Tensor,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of all that `scan` was given, in its order."""
    heads = len(shared.bias)
    mix = kept.states.flatten(1) @ left.memories.flatten()
    bias = left.scores.unflatten(0, (-1, heads)).sum((0, 3))
    null = [rows[:, 0].unflatten(0, (-1, heads)).sum(0) for rows in (left.keys, left.values)]
    found = [left.states[0], left.queries[0], mix, bias, torch.stack(null)]
    found += _of_product(left.both, memory)
    for depth, layer in enumerate(layers):
        query = _of_product(left.queries[depth], below[depth])
        found += (None, None) if layer.query is None else query
        found.append(_of_product(left.middle[depth], kept.mixed[depth])[0])
        found += _of_product(left.hidden[depth], middle[depth])
        found += _of_product(left.states[1 + depth], kept.hidden[depth])
    return tuple(found)


def _of_product(grad: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of W and b in W x + b over all rows."""
    grad = grad.flatten(0, -2)
    return grad.T @ rows.flatten(0, -2), grad.sum(0)
