"""Attention within segments of a stream, and a memory of the segments before."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from studies.episodes.attention import Attentive, Scene, at_least, last, pushed


class SegmentState(NamedTuple):
    """Where a stream stands.

    Attributes:
        position: steps read of the segment. memory: of the segments before it.
        stores: each layer's inputs of the segment, [B, segment, width], filled from the end.
    """

    position: int
    stores: tuple[Tensor, ...]
    memory: Any


class Past(NamedTuple):
    """Rows of the past, the last `held` of which are filled.

    Attributes:
        rows: of every layer, [B, size, width].
    """

    held: int
    rows: tuple[Tensor, ...]

    def filled(self) -> list[Tensor]:
        """Return the filled rows of every layer, oldest first."""
        return [last(rows, self.held) for rows in self.rows]

    def after(self, new: list[Tensor]) -> Past:
        """Return the past after new rows of every layer, the oldest of which fall out."""
        held = min(self.rows[0].shape[1], self.held + new[0].shape[1])
        return Past(held, tuple(map(pushed, self.rows, new)))


class Segmented(Attentive):
    """A memory that attends within a segment and changes only where a segment ends.

    Segments follow the stream, not the pieces in which it is read. A step attends to what
    `earlier` returns and to its segment up to itself. Gradients flow within a segment, also from
    piece to piece; what enters the memory is detached (Dai et al. 2019). A piece that covers a
    segment reads it in one pass; keys and values are made anew in every piece, which makes reading
    step by step dearer than `flops_per_step` says. `rounding` acts on all the past that a step
    attends to, its own segment included.

    Args:
        width, hidden, layers, heads: see `Attentive`. segment: steps.
    """

    def __init__(self, width: int, hidden: int, layers: int, heads: int, segment: int) -> None:
        super().__init__(width, hidden, layers, heads)
        at_least(1, segment=segment)
        self.segment = segment

    @abstractmethod
    def fresh(self, batch: int) -> Any:
        """Return an empty memory."""

    @abstractmethod
    def earlier(self, memory: Any) -> list[Tensor]:
        """Return the states [B, m, width] that each layer attends to before the segment."""

    @abstractmethod
    def completed(self, memory: Any, inputs: list[Tensor]) -> Any:
        """Return the memory after a segment, given the layers' inputs [B, segment, width]."""

    def past(self, batch: int, size: int) -> Past:
        """Return an empty past of so many rows."""
        return Past(0, tuple(self.zeros(batch, size, self.width) for _ in self.layers))

    def start(self, batch: int) -> SegmentState:
        """See `Memory.start`."""
        memory = self.fresh(batch)
        return SegmentState(0, self.past(batch, self.segment).rows, memory)

    def forward(self, x: Tensor, state: SegmentState | None = None) -> tuple[Tensor, SegmentState]:
        """See `Memory.forward`."""
        state = self.start(len(x)) if state is None else state
        outputs, done, size = [], 0, state.stores[0].shape[1]
        while done < x.shape[1]:
            end = min(x.shape[1], done + size - state.position)
            output, state = self._within(x[:, done:end], state)
            outputs.append(output)
            done = end
        return torch.cat(outputs, 1) if outputs else x, state

    def _within(self, x: Tensor, state: SegmentState) -> tuple[Tensor, SegmentState]:
        """Read steps of one segment."""
        before, inputs = self.earlier(state.memory), []
        keys = before[0].shape[1] + state.position + x.shape[1]
        scene = self.scene(x.shape[1], keys)
        for index, store in enumerate(state.stores):
            own = torch.cat((last(store, state.position), self.kept(x)), 1)
            inputs.append(own)
            x = self.run(index, x, torch.cat((before[index], own), 1), scene, state.memory)
        return self.norm(x), self._moved(state, inputs)

    def run(self, index: int, x: Tensor, context: Tensor, scene: Scene, memory: Any) -> Tensor:
        """Return x [B, t, width] after a layer that attends to a context [B, n, width]."""
        layer = self.layers[index]
        attended = layer.attend(layer.queries(x), layer.keys_values(context), scene)
        return layer.finish(x, attended)

    def _moved(self, state: SegmentState, inputs: list[Tensor]) -> SegmentState:
        """Return the state after the segment's inputs so far."""
        size, position = state.stores[0].shape[1], inputs[0].shape[1]
        if position < size:
            stores = tuple(F.pad(own, (0, 0, size - position, 0)) for own in inputs)
            return SegmentState(position, stores, state.memory)
        memory = self.completed(state.memory, [own.detach() for own in inputs])
        empty = tuple(torch.zeros_like(store) for store in state.stores)
        return SegmentState(0, empty, memory)
