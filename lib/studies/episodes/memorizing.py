"""Memorizing transformer: one layer recalls the nearest of many old keys (Wu et al. 2022)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studies.episodes.attention import Layer, Positions
from studies.episodes.transformer_xl import Past, TransformerXL
from studies.memory.streams import at_least


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
