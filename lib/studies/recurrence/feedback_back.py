"""The backward pass of the feedback transformer's scan, by hand.

The loop from the last step to the first takes only what the step before needs: gradients of states,
keys and values. It leaves the gradient of every product's result, and each weight's gradient is one
product over all steps at the end. What a step gives old keys and values waits for its block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from studies.recurrence.feedback_types import Kept, LayerWeights, Shared

BLOCK = 8  # steps whose gradients of older keys and values are taken in one product


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

    states [1 + L, T, B, d]; middle, queries and mixed [L, T, B, d]; hidden [L, T, B, 4 d];
    memories [T, B, d]; both (keys and values) [T, B, 2 d]; keys and values [N, 1 + T, d / H];
    bias [H, T, 1 + T].
    """

    states: Tensor
    middle: Tensor
    queries: Tensor
    mixed: Tensor
    hidden: Tensor
    memories: Tensor
    both: Tensor
    keys: Tensor
    values: Tensor
    bias: Tensor

    @classmethod
    def of(cls, shared: Shared, kept: Kept) -> _Left:
        empty = kept.states, kept.middle, kept.queries, kept.mixed, kept.hidden, kept.memories
        both = kept.memories.new_empty(*kept.memories.shape[:2], 2 * kept.memories.shape[2])
        zeros = kept.keys, kept.values, shared.bias
        return cls(*map(torch.empty_like, empty), both, *map(torch.zeros_like, zeros))


def scan_back(
    shared: Shared, layers: list[LayerWeights], kept: Kept, grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the gradients of all that `scan` was given, in its order, from that of its result."""
    left = _Left.of(shared, kept)
    below, middle, memory = map(_Normalised.of, (kept.states[:-1], kept.middle, kept.memories))
    scores: dict[int, Tensor] = {}  # gradients, of the steps of this block
    for t in reversed(range(len(grad))):
        _memory_backward(shared, left, memory, t)
        left.states[-1, t] += grad[t]
        scores[t] = torch.empty_like(kept.chances[t])
        for depth, layer in reversed(list(enumerate(layers))):
            _layer_backward(kept, left, layer, below, middle, scores[t], t, depth)
        summed = scores[t].unflatten(1, (-1, len(shared.bias))).sum((0, 1))
        left.bias[:, t, : 1 + t] = summed[:, 0]
        _push_near(left.keys, scores[t], kept.queries, t)
        _push_near(left.values, kept.chances[t], left.mixed, t)
        if t % BLOCK == 0:
            _push_far(left.keys, [scores[at] for at in sorted(scores)], kept.queries, t)
            _push_far(left.values, kept.chances[t : t + len(scores)], left.mixed, t)
            scores.clear()
    return _weight_gradients(layers, kept, left, below.after, middle.after, memory.after)


def _push_near(grad: Tensor, weights: Tensor, vectors: Tensor, t: int) -> None:
    """Add to grad [N, 1 + T, .] what step t gives the memories of its block."""
    first = t - t % BLOCK
    if t > first:
        by_memory = weights[:, :, 0, 1 + first :].permute(1, 2, 0)
        by_layer = vectors[:, t].view(len(weights), len(grad), -1).transpose(0, 1)
        grad[:, 1 + first : 1 + t] += torch.bmm(by_memory, by_layer)


def _push_far(grad: Tensor, weights: Sequence[Tensor], vectors: Tensor, first: int) -> None:
    """Add to grad [N, 1 + T, .] what the steps of a block give the null and memories before it."""
    by_memory = torch.cat([each[:, :, 0, : 1 + first] for each in weights]).permute(1, 2, 0)
    block = vectors[:, first : first + len(weights)].transpose(0, 1)
    by_step = block.reshape(by_memory.shape[2], len(grad), -1).transpose(0, 1)
    grad[:, : 1 + first] += torch.bmm(by_memory, by_step)


def _memory_backward(shared: Shared, left: _Left, memory: _Normalised, t: int) -> None:
    """Start the states' gradients with what step t's memory got from later steps."""
    both, width = left.both[t], shared.inputs.shape[-1]
    both[:, :width] = left.keys[:, 1 + t].reshape(-1, width)
    both[:, width:] = left.values[:, 1 + t].reshape(-1, width)
    left.memories[t] = memory.back(both @ shared.memory, t)
    torch.mul(shared.mix[:, None, None], left.memories[t], out=left.states[:, t])


def _layer_backward(
    kept: Kept,
    left: _Left,
    layer: LayerWeights,
    below: _Normalised,
    middle: _Normalised,
    scores: Tensor,
    t: int,
    depth: int,
) -> None:
    at, seen, rows = (depth, t), 1 + t, (len(kept.keys), 1, -1)
    above, hidden, query = left.states[1 + depth, t], left.hidden[at], left.queries[at]
    torch.mm(above, layer.down, out=hidden)
    torch.ops.aten.threshold_backward.grad_input(hidden, kept.hidden[at], 0, grad_input=hidden)
    between = torch.add(above, middle.back(hidden @ layer.up, *at), out=left.middle[at])
    mixed = torch.mm(between, layer.out, out=left.mixed[at]).view(rows)
    by_chance, chances = torch.bmm(mixed, kept.values[:, :seen].mT), kept.chances[t][depth]
    torch.ops.aten._softmax_backward_data.out(
        by_chance, chances, -1, mixed.dtype, grad_input=scores[depth]
    )
    torch.bmm(scores[depth], kept.keys[:, :seen], out=query.view(rows))
    left.states[at].add_(between)
    if layer.query is not None:
        left.states[at].add_(below.back(query @ layer.query, *at))


def _weight_gradients(
    layers: list[LayerWeights],
    kept: Kept,
    left: _Left,
    below: Tensor,
    middle: Tensor,
    memory: Tensor,
) -> tuple[Tensor | None, ...]:
    mix = kept.states.flatten(1) @ left.memories.flatten()
    null = [
        rows[:, 0].unflatten(0, (-1, len(left.bias))).sum(0) for rows in (left.keys, left.values)
    ]
    found = [left.states[0], left.queries[0], mix, left.bias, torch.stack(null)]
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
