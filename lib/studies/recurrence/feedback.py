"""The feedback transformer (Fan et al. 2020): every layer attends to memories of whole past steps.

A step's memory is a learned mixture of all its layers' states, the top one too, so that what the
highest layer found at one step is there for the lowest at the next: a recurrence over time of any
depth, where a transformer's stack ends. The file holds the model, its layer, and `scan`, which
trains it: the steps in order, with the backward pass written by hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from citypaths.data.batches import Batch
from citypaths.map.graph import CityGraph
from citypaths.models.base import register
from citypaths.models.transformer import CONTEXT, Memory, SequenceModel

BLOCK = 8  # steps whose gradients of older keys and values are taken in one product

KeysValues = tuple[Tensor, Tensor]  # each [B, H, memories, width / H]


@register("feedback")
class FeedbackTransformer(SequenceModel):
    """A stack whose layers all attend to one memory a past step, made of all layers' states.

    With `loops` every city is read that many times in a row, each reading a step with a memory.

    Args:
        graph: decides the vocabulary and the coordinates.
        width, layers, heads: size of the stack.
        others: of every sequence model, such as `loops` and `coordinates`.

    Raises:
        ValueError: heads that do not divide the width.
    """

    def __init__(
        self, graph: CityGraph, *, width: int = 128, layers: int = 3, heads: int = 4, **others: Any
    ) -> None:
        super().__init__(graph, width, **others)
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.heads = heads
        self.blocks = nn.ModuleList(FeedbackLayer(width, heads, layers) for _ in range(layers))
        self.mix = nn.Parameter(torch.zeros(1 + layers))
        self.norm_memory = nn.LayerNorm(width)
        self.to_memory = nn.Linear(width, 2 * width, bias=False)
        self.null = nn.Parameter(torch.zeros(2, heads, width // heads))
        self.log_slope = nn.Parameter(torch.logspace(math.log10(2), -1, heads).log())
        self.norm = nn.LayerNorm(width)

    def encode(self, inputs: Tensor, loops: int) -> Tensor:
        """Return states [B, T, width], one step after the other."""
        x = inputs.repeat_interleave(loops, 1)
        with torch.autocast(x.device.type, enabled=False):
            x, steps = x.to(self.mix.dtype).transpose(0, 1).contiguous(), x.shape[1]
            queries = F.linear(_normalised(x), *self.blocks[0].folded_query())
            mix, bias = self.mix.softmax(0), self.bias(0, steps, steps)
            memory = folded(self.norm_memory, self.to_memory)
            shared = Shared(x, queries, mix, bias, self.null, *memory)
            layers = [block.weights(first=not i) for i, block in enumerate(self.blocks)]
            top = scan(shared, layers).transpose(0, 1)
            return self.norm(top[:, loops - 1 :: loops])

    def encode_step(self, inputs: Tensor, memory: Memory, loops: int) -> tuple[Tensor, Memory]:
        """Advance `loops` steps; the memory holds keys and values of the past."""
        for _ in range(loops):
            memory = memory or self._empty(len(inputs))
            past = memory[0].shape[2] - 1
            states = self._stack(inputs[:, None], memory, self.bias(past, 1, past))
            memory = joined(memory, self._remember(states))
        return self.norm(states[-1][:, 0]), memory

    def sweeps(self, batch: Batch, count: int) -> Tensor:
        """Return logits [B, T, V] after some parallel sweeps towards the exact ones.

        The first sweep takes the inputs for memories, each later one the memories of the sweep
        before. After n sweeps the first n steps are exact (steps of loops count).

        Raises:
            ValueError: fewer than one sweep.
        """
        if count < 1:
            raise ValueError(f"at least one sweep, not {count}")
        x = self.embed(batch).repeat_interleave(self.loops, 1)
        bias, memory = self.bias(0, x.shape[1], x.shape[1]), self._keys_values(x)
        for _ in range(count):
            states = self._stack(x, joined(self._empty(len(x)), memory), bias)
            memory = self._remember(states)
        top = self.norm(states[-1][:, self.loops - 1 :: self.loops])
        return self.head(top)

    def bias(self, first: int, steps: int, memories: int) -> Tensor:
        """Return [H, steps, 1 + memories]: minus how far memories are, minus infinity if not past.

        Memories count from the first step of all, steps from `first`; the null comes before them.
        """
        at = torch.arange(first + steps, device=self.mix.device)
        gap = at[first:, None] - at[:memories]
        near = -self.log_slope.exp()[:, None, None] * gap.to(self.mix.dtype)
        return F.pad(near.masked_fill(gap <= 0, -math.inf), (1, 0))

    def _stack(self, x: Tensor, memory: KeysValues, bias: Tensor) -> list[Tensor]:
        """Return the states of input x [B, n, d] and of the layers, all attending to a memory."""
        states = [x]
        for block in self.blocks:
            states.append(block(states[-1], memory, bias))
        return states

    def _remember(self, states: list[Tensor]) -> KeysValues:
        """Return keys and values of the mixture of a step's states, each [B, n, width]."""
        weighed = zip(self.mix.softmax(0), states, strict=True)
        return self._keys_values(sum(weight * state for weight, state in weighed))

    def _keys_values(self, rows: Tensor) -> KeysValues:
        """Return keys and values [B, H, n, width / H] of memories (or inputs) [B, n, width]."""
        both = self.to_memory(self.norm_memory(rows)).unflatten(-1, (2, self.heads, -1))
        keys, values = both.permute(2, 0, 3, 1, 4)
        return keys, values

    def _empty(self, paths: int) -> KeysValues:
        """Return a memory of the null alone."""
        both = self.null[:, None, :, None].repeat(1, paths, 1, 1, 1)
        return both[0], both[1]

    def core_flops(self, loops: int) -> int:
        """Operations of `loops` inner steps, attending to all inner steps of CONTEXT cities."""
        square, depth = 2 * self.width**2, len(self.blocks)
        fixed = square * (depth * 10 + 2)
        seen = loops * (loops + 1) // 2 + loops**2 * (CONTEXT - 1)
        return loops * fixed + 4 * self.width * depth * seen


class FeedbackLayer(nn.Module):
    """A pre-norm layer with queries of its own and keys and values from outside.

    Output matrices start 1 / sqrt(2 depth) smaller (Radford et al. 2019), `depth` being the
    layers in all.
    """

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.out = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        with torch.no_grad():
            for shrunk in (self.out, self.down):
                shrunk.weight /= (2 * depth) ** 0.5

    def forward(self, x: Tensor, memory: KeysValues, bias: Tensor) -> Tensor:
        """Return x [B, n, width] after the layer; scores have a bias [H, n, memories]."""
        query = self.query(self.norm_attention(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        keys, values = memory
        scores = query @ keys.mT / math.sqrt(query.shape[-1]) + bias
        found = torch.softmax(scores, -1) @ values
        x = x + self.out(found.transpose(1, 2).flatten(2))
        return x + self.down(F.relu(self.up(self.norm_feed(x))))

    def folded_query(self) -> KeysValues:
        """Return the query's matrix and bias of normalised rows, scaled for plain products."""
        scale = (self.query.in_features // self.heads) ** -0.5
        return folded(self.norm_attention, self.query, scale)

    def weights(self, first: bool) -> LayerWeights:
        """Return the layer as the scan takes it."""
        query = (None, None) if first else self.folded_query()
        feed = folded(self.norm_feed, self.up)
        return LayerWeights(*query, self.out.weight, *feed, self.down.weight, self.down.bias)


def joined(past: KeysValues, new: KeysValues) -> KeysValues:
    """Return a memory with new keys and values after the old."""
    return torch.cat([past[0], new[0]], 2), torch.cat([past[1], new[1]], 2)


def folded(norm: nn.LayerNorm, linear: nn.Linear, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return matrix and bias that do to bare normalised rows what norm and linear do to rows."""
    bias = linear.weight @ norm.bias
    if linear.bias is not None:
        bias = bias + linear.bias
    return linear.weight * (norm.weight * scale), bias * scale


# The scan. Step t needs the top of step t - 1, so the loop over steps stays, and all that need not
# be in it is taken out: the first layer's queries, the gradient of every weight (one product over
# all steps at the end, from gradients that the loop leaves behind) and most of the gradient of old
# memories (one product a block of steps).


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


class Activations(NamedTuple):
    """What the forward pass leaves for the backward one (N = B H; 1 + T: the null comes first).

    states [1 + L, T, B, d]; middle (after attention), queries and mixed (attended values), all
    [L, T, B, d]; hidden [L, T, B, 4 d]; memories [T, B, d]; keys and values [N, 1 + T, d / H];
    attention, its probabilities, one tensor [L, N, 1, 1 + t] for each step t.
    """

    states: Tensor
    middle: Tensor
    queries: Tensor
    mixed: Tensor
    hidden: Tensor
    memories: Tensor
    keys: Tensor
    values: Tensor
    attention: tuple[Tensor, ...]


def scan(shared: Shared, layers: Sequence[LayerWeights]) -> Tensor:
    """Return the top layer's states [T, B, d].

    The loop runs in the inputs' type: cast them, and leave autocast, before the call.
    """
    return _Scan.apply(*shared, *(weight for layer in layers for weight in layer))


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor | None) -> Tensor:
        acts = _forward(*_grouped(tensors))
        ctx.given = len(tensors)
        ctx.save_for_backward(*tensors, *acts[:-1], *acts.attention)
        return acts.states[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        given, saved = ctx.saved_tensors[: ctx.given], ctx.saved_tensors[ctx.given :]
        single = len(Activations._fields) - 1
        acts = Activations(*saved[:single], saved[single:])
        with torch.autocast(grad.device.type, enabled=False):
            return _backward(*_grouped(given), acts, grad)


def _grouped(tensors: Sequence[Any]) -> tuple[Shared, list[LayerWeights]]:
    first, size = len(Shared._fields), len(LayerWeights._fields)
    starts = range(first, len(tensors), size)
    return Shared(*tensors[:first]), [LayerWeights(*tensors[i : i + size]) for i in starts]


def _forward(shared: Shared, layers: list[LayerWeights]) -> Activations:
    acts = _buffers(shared, layers)
    acts.queries[0] = shared.queries
    by_head = acts.keys.unflatten(0, (-1, shared.null.shape[1]))
    by_head[:, :, 0] = shared.null[0]
    acts.values.unflatten(0, by_head.shape[:2])[:, :, 0] = shared.null[1]
    layers = [LayerWeights(*map(_transposed, layer)) for layer in layers]
    to_memory = _transposed(shared.memory)
    for t in range(len(shared.inputs)):
        for depth, layer in enumerate(layers):
            _layer_forward(acts, shared.bias, layer, t, depth)
        memory, states = acts.memories[t], acts.states[:, t]
        torch.mm(shared.mix[None], states.flatten(1), out=memory.view(1, -1))
        both = torch.addmm(shared.memory_bias, _normalised(memory), to_memory)
        for rows, vectors in zip((acts.keys, acts.values), both.chunk(2, 1), strict=True):
            rows[:, 1 + t].copy_(vectors.reshape(len(rows), -1))
    return acts


def _buffers(shared: Shared, layers: list[LayerWeights]) -> Activations:
    (steps, paths, width), depth = shared.inputs.shape, len(layers)
    _, heads, inner = shared.null.shape
    new, each = shared.inputs.new_empty, (depth, steps, paths, width)
    hidden = new(*each[:-1], len(layers[0].up))
    memory = (new(paths * heads, 1 + steps, inner) for _ in range(2))
    attention = (new(depth, paths * heads, 1, 1 + t) for t in range(steps))
    states = new(1 + depth, *each[1:])
    states[0] = shared.inputs
    singles = new(each), new(each), new(each), hidden, new(each[1:])
    return Activations(states, *singles, *memory, tuple(attention))


def _transposed(weight: Tensor | None) -> Tensor | None:
    """Lay a matrix out so that a product of few rows with it is fastest."""
    return weight.T.contiguous() if weight is not None and weight.dim() == 2 else weight


def _normalised(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def _layer_forward(
    acts: Activations, bias: Tensor, layer: LayerWeights, t: int, depth: int
) -> None:
    x, query, mixed = acts.states[depth, t], acts.queries[depth, t], acts.mixed[depth, t]
    if layer.query is not None:
        torch.addmm(layer.query_bias, _normalised(x), layer.query, out=query)
    seen, rows = 1 + t, (len(acts.keys), 1, -1)
    scores = torch.bmm(query.view(rows), acts.keys[:, :seen].mT)
    scores.view(-1, len(bias), seen).add_(bias[:, t, :seen])
    attention = torch.softmax(scores, -1, out=acts.attention[t][depth])
    torch.bmm(attention, acts.values[:, :seen], out=mixed.view(rows))
    middle = torch.addmm(x, mixed, layer.out, out=acts.middle[depth, t])
    hidden = acts.hidden[depth, t]
    torch.addmm(layer.up_bias, _normalised(middle), layer.up, out=hidden).relu_()
    above = torch.addmm(middle, hidden, layer.down, out=acts.states[1 + depth, t])
    above.add_(layer.down_bias)


# Backwards, the loop from the last step to the first takes only what the step before needs:
# gradients of states, keys and values. What a step gives old keys and values waits for its block,
# and each weight's gradient is one product over all steps at the end.


class _Norm(NamedTuple):
    """Rows normalised, and what the way back needs."""

    before: Tensor
    after: Tensor
    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, x: Tensor) -> _Norm:
        return cls(x, *torch.native_layer_norm(x, x.shape[-1:], None, None, 1e-5))

    def back(self, grad: Tensor, *at: int) -> Tensor:
        """Return the gradient of the rows at an index, given that of their normalised values."""
        rows = self.before[at], grad.shape[-1:], self.mean[at], self.scale[at]
        only_rows = [True, False, False]
        return torch.ops.aten.native_layer_norm_backward(grad, *rows, None, None, only_rows)[0]


def _backward(
    shared: Shared, layers: list[LayerWeights], acts: Activations, grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the gradients of all that `scan` was given, in its order, from that of its result.

    `grads` are those of every product's result; keys and values are added to step by step.
    """
    zeros = map(torch.zeros_like, (acts.keys, acts.values))
    grads = Activations(*map(torch.empty_like, acts[:6]), *zeros, ())
    by_score = torch.zeros_like(shared.bias)
    both = acts.memories.new_empty(*acts.memories.shape[:2], 2 * acts.memories.shape[2])
    below, middle, memory = map(_Norm.of, (acts.states[:-1], acts.middle, acts.memories))
    scores: dict[int, Tensor] = {}  # gradients, of the steps of this block
    for t in reversed(range(len(grad))):
        _memory_backward(shared, grads, both[t], memory, t)
        grads.states[-1, t] += grad[t]
        scores[t] = torch.empty_like(acts.attention[t])
        for depth, layer in reversed(list(enumerate(layers))):
            _layer_backward(acts, grads, layer, below, middle, scores[t], t, depth)
        summed = scores[t].unflatten(1, (-1, len(by_score))).sum((0, 1))
        by_score[:, t, : 1 + t] = summed[:, 0]
        _add_recent(grads.keys, scores[t], acts.queries, t)
        _add_recent(grads.values, acts.attention[t], grads.mixed, t)
        if t % BLOCK == 0:
            _add_older(grads.keys, [scores[at] for at in sorted(scores)], acts.queries, t)
            _add_older(grads.values, acts.attention[t : t + len(scores)], grads.mixed, t)
            scores.clear()
    mix = acts.states.flatten(1) @ grads.memories.flatten()
    null = [x[:, 0].unflatten(0, (-1, len(by_score))).sum(0) for x in (grads.keys, grads.values)]
    found = [grads.states[0], grads.queries[0], mix, by_score, torch.stack(null)]
    found += _of_product(both, memory.after)
    for depth, layer in enumerate(layers):
        query = _of_product(grads.queries[depth], below.after[depth])
        found += (None, None) if layer.query is None else query
        found.append(_of_product(grads.middle[depth], acts.mixed[depth])[0])
        found += _of_product(grads.hidden[depth], middle.after[depth])
        found += _of_product(grads.states[1 + depth], acts.hidden[depth])
    return tuple(found)


def _memory_backward(
    shared: Shared, grads: Activations, both: Tensor, memory: _Norm, t: int
) -> None:
    """Start the states' gradients with what step t's memory got from later steps."""
    width = shared.inputs.shape[-1]
    both[:, :width] = grads.keys[:, 1 + t].reshape(-1, width)
    both[:, width:] = grads.values[:, 1 + t].reshape(-1, width)
    grads.memories[t] = memory.back(both @ shared.memory, t)
    torch.mul(shared.mix[:, None, None], grads.memories[t], out=grads.states[:, t])


def _layer_backward(
    acts: Activations,
    grads: Activations,
    layer: LayerWeights,
    below: _Norm,
    middle: _Norm,
    scores: Tensor,
    t: int,
    depth: int,
) -> None:
    at, seen, rows = (depth, t), 1 + t, (len(acts.keys), 1, -1)
    above, hidden, query = grads.states[1 + depth, t], grads.hidden[at], grads.queries[at]
    torch.mm(above, layer.down, out=hidden)
    torch.ops.aten.threshold_backward.grad_input(hidden, acts.hidden[at], 0, grad_input=hidden)
    between = torch.add(above, middle.back(hidden @ layer.up, *at), out=grads.middle[at])
    mixed = torch.mm(between, layer.out, out=grads.mixed[at]).view(rows)
    by_key, attention = torch.bmm(mixed, acts.values[:, :seen].mT), acts.attention[t][depth]
    torch.ops.aten._softmax_backward_data.out(
        by_key, attention, -1, mixed.dtype, grad_input=scores[depth]
    )
    torch.bmm(scores[depth], acts.keys[:, :seen], out=query.view(rows))
    grads.states[at].add_(between)
    if layer.query is not None:
        grads.states[at].add_(below.back(query @ layer.query, *at))


def _add_recent(grad: Tensor, weights: Tensor, vectors: Tensor, t: int) -> None:
    """Add to grad [N, 1 + T, .] what step t gives the memories of its block."""
    first = t - t % BLOCK
    if t > first:
        by_memory = weights[:, :, 0, 1 + first :].permute(1, 2, 0)
        by_layer = vectors[:, t].view(len(weights), len(grad), -1).transpose(0, 1)
        grad[:, 1 + first : 1 + t] += torch.bmm(by_memory, by_layer)


def _add_older(grad: Tensor, weights: Sequence[Tensor], vectors: Tensor, first: int) -> None:
    """Add to grad [N, 1 + T, .] what the steps of a block give the null and memories before it."""
    by_memory = torch.cat([each[:, :, 0, : 1 + first] for each in weights]).permute(1, 2, 0)
    block = vectors[:, first : first + len(weights)].transpose(0, 1)
    by_step = block.reshape(by_memory.shape[2], len(grad), -1).transpose(0, 1)
    grad[:, : 1 + first] += torch.bmm(by_memory, by_step)


def _of_product(grad: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of W and b in W x + b over all rows."""
    grad = grad.flatten(0, -2)
    return grad.T @ rows.flatten(0, -2), grad.sum(0)
