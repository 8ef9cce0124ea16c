"""Transformer-XL: segments that attend to the states of the segments before (Dai et al. 2019)."""

from __future__ import annotations

from torch import Tensor

from studies.episodes.attention import at_least
from studies.episodes.segments import Past, Segmented


class TransformerXL(Segmented):
    """Attention to the last `memory` detached inputs of each layer, then to the segment so far.

    `tap` is given each layer's memory, [B, steps, width]. See `Segmented` for gradients and cost.
    Its parameters are those of `Transformer` and may be loaded from one another.

    Args:
        width: of inputs and outputs, even. hidden: of the feed-forward networks.
        layers, heads: of the stack; heads divide the width. segment: steps.
        memory: steps before the segment; may be changed between streams.
    """

    def __init__(
        self,
        width: int,
        hidden: int = 64,
        layers: int = 2,
        heads: int = 4,
        segment: int = 16,
        memory: int = 32,
    ) -> None:
        super().__init__(width, hidden, layers, heads, segment)
        at_least(0, memory=memory)
        self.memory = memory

    def fresh(self, batch: int) -> Past:
        """See `Segmented.fresh`."""
        at_least(0, memory=self.memory)
        return self.past(batch, self.memory)

    def earlier(self, memory: Past) -> list[Tensor]:
        """See `Segmented.earlier`."""
        return [self.read(rows) for rows in memory.filled()]

    def completed(self, memory: Past, inputs: list[Tensor]) -> Past:
        """See `Segmented.completed`."""
        return memory.after(inputs)

    def flops_per_step(self) -> int:
        """Return the operations of one step of a segment read at once; see `Memory`."""
        projected = 1 + self.memory / self.segment
        return self.flops_of_layers(self.memory + self.segment, projected)
