"""Transformer-XL, which attends to segments before its own; heirs that compress or recall them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studies.episodes.attention import Attentive, Layer, Positions
from studies.memory.streams import at_least


class Past(NamedTuple):
    """Rows of the past in buffers [B, size, ...], first in first out; the last `held` are real."""

    held: int
    rows: tuple[Tensor, ...]

    @property
    def size(self) -> int:
        """Rows that fit in."""
        return self.rows[0].shape[1]

    def filled(self) -> list[Tensor]:
        """Return the real rows, oldest first."""
        return [rows[:, self.size - self.held :] for rows in self.rows]

    def after(self, new: list[Tensor]) -> Past:
        """Return the past after new rows, the oldest of which fall out."""
        joined = [torch.cat(pair, 1) for pair in zip(self.rows, new, strict=True)]
        rows = tuple(each[:, each.shape[1] - self.size :] for each in joined)
        return Past(min(self.size, self.held + new[0].shape[1]), rows)


class SegmentState(NamedTuple):
    """Each layer's inputs of the segment so far, and the memory of the segments before it."""

    segment: Past
    memory: Any


class TransformerXL(Attentive):
    """Attention to the last `memory` inputs of each layer, then to the segment (Dai et al. 2019).

    Segments follow the stream, not the pieces in which it is read; the memory changes only where
    one ends. Gradients flow within a segment, also from piece to piece; what enters the memory is
    detached. Keys and values are made anew in every piece, so that reading step by step is dearer
    than `flops_per_step` says. `tap` is given each layer's memory, [B, steps, width]; `rounding`
    acts on all that a step attends to. The parameters are those of `Transformer`.
    """

    sized = "memory"

    def __init__(self, width: int, segment: int = 16, memory: int = 32, **stack: int) -> None:
        super().__init__(width, **stack)
        at_least(1, segment=segment)
        self.segment, self.memory = segment, memory
        self.empty(1)

    def past(self, batch: int, size: int) -> Past:
        """Return an empty past of `size` inputs of every layer."""
        return Past(0, tuple(self.u.new_zeros(batch, size, self.width) for _ in self.layers))

    def empty(self, batch: int) -> Any:
        """Return an empty memory; a ValueError names a size that is out of range."""
        at_least(0, memory=self.memory)
        return self.past(batch, self.memory)

    def earlier(self, memory: Any) -> list[Tensor]:
        """Return the states [B, m, width] that each layer attends to before the segment."""
        return [self.read(rows) for rows in memory.filled()]

    def completed(self, memory: Any, inputs: list[Tensor]) -> Any:
        """Return the memory after a segment, given the layers' inputs [B, segment, width]."""
        return memory.after(inputs)

    def start(self, batch: int) -> SegmentState:
        return SegmentState(self.past(batch, self.segment), self.empty(batch))

    def forward(self, x: Tensor, state: SegmentState | None = None) -> tuple[Tensor, SegmentState]:
        state = self.start(len(x)) if state is None else state
        outputs = [x[:, :0]]
        while x.shape[1]:
            room = state.segment.size - state.segment.held
            output, state = self.within(x[:, :room], state)
            outputs.append(output)
            x = x[:, room:]
        return torch.cat(outputs, 1), state

    def within(self, x: Tensor, state: SegmentState) -> tuple[Tensor, SegmentState]:
        """Read steps of one segment."""
        (segment, memory), inputs = state, []
        before, held = self.earlier(memory), segment.held + x.shape[1]
        positions = self.positions(x.shape[1], before[0].shape[1] + held)
        for layer, old, own in zip(self.layers, before, segment.filled(), strict=True):
            inputs.append(torch.cat((own, self.kept(x)), 1))
            x = self.attended(layer, x, torch.cat((old, inputs[-1]), 1), positions, memory)
        if held < segment.size:
            rows = tuple(F.pad(own, (0, 0, segment.size - held, 0)) for own in inputs)
            return self.norm(x), SegmentState(Past(held, rows), memory)
        memory = self.completed(memory, [own.detach() for own in inputs])
        return self.norm(x), SegmentState(self.past(len(x), segment.size), memory)

    def attended(
        self, layer: Layer, x: Tensor, context: Tensor, positions: Positions, memory: Any
    ) -> Tensor:
        """Return x [B, t, width] after a layer that attends to a context [B, n, width]."""
        seen = layer.attend(layer.queries(x), layer.keys_values(context), positions)
        return layer.finish(x, seen)

    def flops_per_step(self) -> int:
        return self.flops_of_layers(self.memory + self.segment, 1 + self.memory / self.segment)


class Compressive(TransformerXL):
    """Transformer-XL whose oldest states are compressed instead of dropped (Rae et al. 2020).

    A layer attends to [compressed; memory; segment so far]; `tap` is given the first two. `rate`
    states become one, by a convolution whose kernel is its stride; it divides segment and memory.

    Attributes:
        reconstruction: scalar, the attention-reconstruction loss of the last forward pass, summed
            over layers, averaged over compressions (algorithm 2), zero without any. The compressor
            learns from it alone, and it teaches nothing else: add it to the loss.
    """

    def __init__(
        self, width: int, memory: int = 16, compressed: int = 16, rate: int = 2, **more: int
    ) -> None:
        self.compressed, self.rate = compressed, rate
        super().__init__(width, memory=memory, **more)
        self.compressors = nn.ModuleList(nn.Linear(rate * width, width) for _ in self.layers)
        self.reconstruction, self._losses = torch.zeros(()), []

    def __getstate__(self) -> dict[str, Any]:
        # A loss with a graph cannot be copied, and a copied model has read nothing.
        return {**self.__dict__, "reconstruction": self.reconstruction.detach(), "_losses": []}

    def empty(self, batch: int) -> tuple[Past, Past]:
        at_least(0, memory=self.memory, compressed=self.compressed)
        at_least(1, rate=self.rate)
        if self.segment % self.rate or self.memory % self.rate:
            sizes = f"the segment of {self.segment} and the memory of {self.memory}"
            raise ValueError(f"a rate of {self.rate} must divide {sizes} without a remainder")
        return self.past(batch, self.compressed), self.past(batch, self.memory)

    def earlier(self, memory: tuple[Past, Past]) -> list[Tensor]:
        pairs = zip(*(past.filled() for past in memory), strict=True)
        return [self.read(torch.cat(pair, 1)) for pair in pairs]

    def forward(self, x: Tensor, state: SegmentState | None = None) -> tuple[Tensor, SegmentState]:
        self._losses = [self.u.new_zeros(())]
        output, state = super().forward(x, state)
        self.reconstruction = torch.stack(self._losses[1:] or self._losses).mean()
        return output, state

    def completed(self, memory: tuple[Past, Past], inputs: list[Tensor]) -> tuple[Past, Past]:
        compressed, recent = memory
        leaving = recent.held + inputs[0].shape[1] - recent.size
        if leaving <= 0 or not compressed.size:
            return compressed, recent.after(inputs)
        pairs = zip(recent.filled(), inputs, strict=True)
        old = [torch.cat(pair, 1)[:, :leaving] for pair in pairs]
        new = [self.compress(i, states) for i, states in enumerate(old)]
        if torch.is_grad_enabled():
            each = map(reconstruction_loss, self.layers, inputs, old, new)
            self._losses.append(torch.stack(list(each)).sum())
        kept = [self.kept(states).detach() for states in new]
        return compressed.after(kept), recent.after(inputs)

    def compress(self, index: int, states: Tensor) -> Tensor:
        """Return states [B, n, width] of a layer as [B, n / rate, width]."""
        return self.compressors[index](states.unflatten(1, (-1, self.rate)).flatten(2))

    def flops_per_step(self) -> int:
        """Return the operations of a step but for the reconstruction loss, of training alone."""
        before = self.memory + self.compressed
        compressing = 2 * self.width**2 * len(self.compressors) * (self.compressed > 0)
        return compressing + self.flops_of_layers(before + self.segment, 1 + before / self.segment)


def reconstruction_loss(layer: Layer, states: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Return the mean square between what states attend in `old` and in `new`, by content alone.

    states: [B, t, width]. old: [B, n, width]. new: [B, m, width], the only one to get a gradient:
    the layer's weights are stopped.
    """

    def attended(keys_values: Tensor) -> Tensor:
        keys, values = (layer.split(part) for part in keys_values.chunk(2, -1))
        return torch.bmm(torch.bmm(queries, keys.transpose(1, 2)).softmax(-1), values)

    with torch.no_grad():
        queries = layer.split(layer.content(layer.queries(states)))
        wanted = attended(layer.keys_values(old))
    norm, weight = layer.norm, layer.key_value.weight.detach()
    stopped = norm.normalized_shape, norm.weight.detach(), norm.bias.detach(), norm.eps
    return F.mse_loss(attended(F.linear(F.layer_norm(new, *stopped), weight)), wanted)


def recall(queries: Tensor, keys: Tensor, values: Tensor, k: int) -> Tensor:
    """Return what queries [B, heads, t, d] recall: a softmax over the k largest products, exactly.

    keys, values: [B, heads, n, d], n at least 1.
    """
    scores = queries @ keys.transpose(-1, -2)
    top, rows = scores.topk(min(k, keys.shape[2]), -1, sorted=False)
    # Weights for all rows: on few rows a product is faster than to gather k values for each query.
    shares = top.softmax(-1)
    return torch.zeros_like(scores, dtype=shares.dtype).scatter(-1, rows, shares) @ values


class RecallLayer(Layer):
    """A layer whose keys and content queries have unit length, times a learned sharpness per head.

    `gate` [heads] is the recalled values' share before its sigmoid, `sharpness` [heads] a log.
    """

    def __init__(self, width: int, hidden: int, heads: int, depth: int) -> None:
        super().__init__(width, hidden, heads, depth)
        self.gate = nn.Parameter(torch.zeros(heads))
        self.sharpness = nn.Parameter(torch.full((heads,), 10.0).log())  # of cosines, at first

    def keys_values(self, x: Tensor) -> Tensor:
        keys, values = super().keys_values(x).chunk(2, -1)
        keys = F.normalize(keys.unflatten(-1, (self.heads, -1)), dim=-1)
        return torch.cat((keys.flatten(2), values), -1)

    def content(self, queries: Tensor, u: Tensor | float = 0.0) -> Tensor:
        unit = F.normalize(queries.unflatten(-1, (self.heads, -1)), dim=-1)
        return (unit * self.sharpness.exp()[:, None]).flatten(2) + u * self.scale

    def by_head(self, x: Tensor) -> Tensor:
        """Return [B, n, width] as [B, heads, n, width / heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Memorizing(TransformerXL):
    """Attention within segments; the last layer also recalls from old segments' keys and values.

    They are detached, kept as they were computed, first in first out, and tell no position. A
    softmax over the k nearest, apart from the local one, is mixed in by a gate per head; without
    any the local attention stands alone. `tap` is given what was recalled, [B, T, width].
    """

    last_layer = RecallLayer

    def __init__(self, width: int, memory: int = 256, k: int = 32, **more: int) -> None:
        self.k = k
        super().__init__(width, memory=memory, **more)

    def empty(self, batch: int) -> Past:
        at_least(0, memory=self.memory)
        at_least(1, k=self.k)
        return Past(0, (self.u.new_zeros(batch, self.memory, 2 * self.width),))

    def earlier(self, memory: Past) -> list[Tensor]:
        return [rows[:, :0, : self.width] for rows in memory.rows * len(self.layers)]

    def attended(
        self, layer: Layer, x: Tensor, context: Tensor, positions: Positions, memory: Past
    ) -> Tensor:
        if not isinstance(layer, RecallLayer) or not memory.held:
            return super().attended(layer, x, context, positions, memory)
        queries = layer.queries(x)
        local = layer.attend(queries, layer.keys_values(context), positions)
        keys, values = map(layer.by_head, memory.filled()[0].chunk(2, -1))
        recalled = recall(layer.by_head(layer.content(queries)), keys, values, self.k)
        recalled = self.read(recalled.transpose(1, 2).flatten(2))
        gate = layer.gate.sigmoid().repeat_interleave(self.width // layer.heads)
        return layer.finish(x, local + gate * (recalled - local))

    @torch.no_grad()
    def completed(self, memory: Past, inputs: list[Tensor]) -> Past:
        return memory.after([self.kept(self.layers[-1].keys_values(inputs[-1]))])

    def flops_per_step(self) -> int:
        """Return the operations of a step but for the search, which multiplies nothing."""
        recalling = 4 * self.width * self.memory * (self.memory > 0)
        return self.flops_of_layers(self.segment, 1) + recalling + 4 * self.width**2
