"""Transformer-XL, which attends to segments before its own, and its heir that compresses them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studies.episodes.attention import Attentive, Layer, Positions
from studies.episodes.memory import at_least


class Past(NamedTuple):
    """Rows of the past in buffers [B, size, ...], first in first out; the last `held` are real."""

    held: int
    rows: tuple[Tensor, ...]

    def filled(self) -> list[Tensor]:
        """Return the filled rows, oldest first."""
        return [rows[:, rows.shape[1] - self.held :] for rows in self.rows]

    def after(self, new: list[Tensor]) -> Past:
        """Return the past after new rows, the oldest of which fall out."""
        size = self.rows[0].shape[1]
        joined = [torch.cat(pair, 1) for pair in zip(self.rows, new, strict=True)]
        rows = tuple(each[:, each.shape[1] - size :] for each in joined)
        return Past(min(size, self.held + new[0].shape[1]), rows)


class SegmentState(NamedTuple):
    """Where a stream stands: `position` steps of its segment are read.

    `stores` are each layer's inputs of the segment, [B, segment, width], filled from the end;
    `memory` is of the segments before it.
    """

    position: int
    stores: tuple[Tensor, ...]
    memory: Any


class TransformerXL(Attentive):
    """Attention to the last `memory` inputs of each layer, then to the segment (Dai et al. 2019).

    Segments follow the stream, not the pieces in which it is read; the memory changes only where
    one ends. Gradients flow within a segment, also from piece to piece; what enters the memory is
    detached. A piece that covers a segment reads it in one pass; keys and values are made anew in
    every piece, which makes reading step by step dearer than `flops_per_step` says. `tap` is given
    each layer's memory, [B, steps, width]; `rounding` acts on all that a step attends to, its own
    segment included. The parameters are those of `Transformer`. `memory` may be changed between
    streams.
    """

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
        memory = self.empty(batch)
        return SegmentState(0, self.past(batch, self.segment).rows, memory)

    def forward(self, x: Tensor, state: SegmentState | None = None) -> tuple[Tensor, SegmentState]:
        state = self.start(len(x)) if state is None else state
        outputs, done, size = [], 0, state.stores[0].shape[1]
        while done < x.shape[1]:
            end = min(x.shape[1], done + size - state.position)
            output, state = self.within(x[:, done:end], state)
            outputs.append(output)
            done = end
        return torch.cat(outputs, 1) if outputs else x, state

    def within(self, x: Tensor, state: SegmentState) -> tuple[Tensor, SegmentState]:
        """Read steps of one segment."""
        before, inputs = self.earlier(state.memory), []
        position, size = state.position + x.shape[1], state.stores[0].shape[1]
        positions = self.positions(x.shape[1], before[0].shape[1] + position)
        for layer, store, rows in zip(self.layers, state.stores, before, strict=True):
            own = torch.cat((store[:, size - state.position :], self.kept(x)), 1)
            inputs.append(own)
            x = self.attended(layer, x, torch.cat((rows, own), 1), positions, state.memory)
        if position < size:
            stores = tuple(F.pad(own, (0, 0, size - position, 0)) for own in inputs)
            return self.norm(x), SegmentState(position, stores, state.memory)
        memory = self.completed(state.memory, [own.detach() for own in inputs])
        empty = tuple(torch.zeros_like(store) for store in state.stores)
        return self.norm(x), SegmentState(0, empty, memory)

    def attended(
        self, layer: Layer, x: Tensor, context: Tensor, positions: Positions, memory: Any
    ) -> Tensor:
        """Return x [B, t, width] after a layer that attends to a context [B, n, width]."""
        seen = layer.attend(layer.queries(x), layer.keys_values(context), positions)
        return layer.finish(x, seen)

    def flops_per_step(self) -> int:
        """Return the operations of one step of a segment read at once, memory full."""
        projected = 1 + self.memory / self.segment
        return self.flops_of_layers(self.memory + self.segment, projected)


class Compressive(TransformerXL):
    """Transformer-XL whose oldest states are compressed instead of dropped (Rae et al. 2020).

    A layer attends to [compressed; memory; segment so far]; positions count a compressed state as
    one. `rate` states become one, by a convolution whose kernel is its stride; it divides segment
    and memory. `tap` is given [compressed; memory] of each layer. `memory` and `compressed` may be
    changed between streams.

    Attributes:
        reconstruction: scalar, the attention-reconstruction loss of the last forward pass: the mean
            square between what a segment attends by content in the old states and in their
            compressed form, summed over layers, averaged over compressions (Rae et al. 2020,
            algorithm 2). All but the compressor is stopped in it, and the compressor learns from
            it alone: add it to the loss. Zero where nothing was compressed and without gradients.
    """

    reconstruction: Tensor

    def __init__(
        self, width: int, memory: int = 16, compressed: int = 16, rate: int = 2, **more: int
    ) -> None:
        self.compressed, self.rate = compressed, rate
        super().__init__(width, memory=memory, **more)
        self.compressors = nn.ModuleList(nn.Linear(rate * width, width) for _ in self.layers)
        self.reconstruction = torch.zeros(())
        self._losses: list[Tensor] = []

    def __getstate__(self) -> dict[str, Any]:
        # A loss with a graph cannot be copied, and a copied model has read nothing.
        return {**self.__dict__, "reconstruction": self.reconstruction.detach(), "_losses": []}

    def empty(self, batch: int) -> tuple[Past, Past]:
        at_least(0, memory=self.memory, compressed=self.compressed)
        at_least(1, rate=self.rate)
        if self.segment % self.rate or self.memory % self.rate:
            raise ValueError(
                f"a rate of {self.rate} must divide the segment of {self.segment} and the memory "
                f"of {self.memory}: what leaves the memory is compressed without a remainder"
            )
        return self.past(batch, self.compressed), self.past(batch, self.memory)

    def earlier(self, memory: tuple[Past, Past]) -> list[Tensor]:
        pairs = zip(*(past.filled() for past in memory), strict=True)
        return [self.read(torch.cat(pair, 1)) for pair in pairs]

    def forward(self, x: Tensor, state: SegmentState | None = None) -> tuple[Tensor, SegmentState]:
        self._losses = []
        output, state = super().forward(x, state)
        losses, self._losses = self._losses, []
        self.reconstruction = torch.stack(losses).mean() if losses else self.u.new_zeros(())
        return output, state

    def completed(self, memory: tuple[Past, Past], inputs: list[Tensor]) -> tuple[Past, Past]:
        compressed, recent = memory
        leaving = recent.held + inputs[0].shape[1] - recent.rows[0].shape[1]
        if leaving <= 0 or not compressed.rows[0].shape[1]:
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
        """Return the operations of one step of a segment read at once, memory full.

        The reconstruction loss is left out: it is for training only.
        """
        before = self.memory + self.compressed
        compressing = 2 * self.width**2 * len(self.compressors) * (self.compressed > 0)
        layers = self.flops_of_layers(before + self.segment, 1 + before / self.segment)
        return layers + compressing


def reconstruction_loss(layer: Layer, states: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Return the mean square between what states attend in `old` and in `new`, by content alone.

    states: [B, t, width]. old: [B, n, width]. new: [B, m, width], the only one to get a gradient:
    the layer's weights are stopped (Rae et al. 2020, algorithm 2).
    """
    with torch.no_grad():
        queries = layer.split(layer.content(layer.queries(states)))
        wanted = _by_content(layer, queries, layer.keys_values(old))
    norm = layer.norm
    stopped = norm.weight.detach(), norm.bias.detach()
    normed = F.layer_norm(new, norm.normalized_shape, *stopped, norm.eps)
    keys_values = F.linear(normed, layer.key_value.weight.detach())
    return F.mse_loss(_by_content(layer, queries, keys_values), wanted)


def _by_content(layer: Layer, queries: Tensor, keys_values: Tensor) -> Tensor:
    """Attended values [heads * B, t, d] for queries that are split and scaled."""
    keys, values = (layer.split(part) for part in keys_values.chunk(2, -1))
    return torch.bmm(torch.bmm(queries, keys.transpose(1, 2)).softmax(-1), values)
