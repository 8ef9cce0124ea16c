"""Memorizing transformer: one layer recalls the nearest of many old keys (Wu et al. 2022)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studies.episodes.attention import Layer, Positions
from studies.episodes.memory import at_least
from studies.episodes.transformer_xl import Past, TransformerXL

SHARPNESS = 10.0  # at the start: what a cosine is multiplied with before a softmax


def recall(queries: Tensor, keys: Tensor, values: Tensor, k: int) -> Tensor:
    """Return what each query recalls: a softmax over its k largest products, exactly.

    Takes queries [B, heads, t, d], keys and values [B, heads, n, d], n at least 1; returns
    [B, heads, t, d].
    """
    scores = queries @ keys.transpose(-1, -2)
    top, rows = scores.topk(min(k, keys.shape[2]), -1, sorted=False)
    # Weights for all rows: on few rows a product is faster than to gather k values for each query.
    shares = top.softmax(-1)
    return torch.zeros_like(scores, dtype=shares.dtype).scatter(-1, rows, shares) @ values


class RecallLayer(Layer):
    """A layer whose keys and content queries have unit length, times a learned sharpness per head.

    Attributes:
        gate: [heads], before its sigmoid: the recalled values' share. sharpness: [heads], a log.
    """

    def __init__(self, width: int, hidden: int, heads: int, depth: int) -> None:
        super().__init__(width, hidden, heads, depth)
        self.gate = nn.Parameter(torch.zeros(heads))
        self.sharpness = nn.Parameter(torch.full((heads,), SHARPNESS).log())

    def keys_values(self, x: Tensor) -> Tensor:
        keys, values = super().keys_values(x).chunk(2, -1)
        keys = F.normalize(keys.unflatten(-1, (self.heads, -1)), dim=-1)
        return torch.cat((keys.flatten(2), values), -1)

    def content(self, queries: Tensor, u: Tensor | None = None) -> Tensor:
        unit = F.normalize(queries.unflatten(-1, (self.heads, -1)), dim=-1)
        sharp = (unit * self.sharpness.exp()[:, None]).flatten(2)
        return sharp if u is None else sharp + u * self.scale

    def by_head(self, x: Tensor) -> Tensor:
        """Return [B, n, width] as [B, heads, n, width / heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def mixed(self, local: Tensor, recalled: Tensor) -> Tensor:
        """Return both [B, t, width] weighted by each head's gate."""
        gate = self.gate.sigmoid().repeat_interleave(local.shape[-1] // self.heads)
        return local + gate * (recalled - local)


class Memorizing(TransformerXL):
    """Attention within segments; the last layer also recalls from old segments' keys and values.

    The memory is first in, first out. It holds detached keys and values as they were computed, and
    tells no position; a softmax over the k nearest, apart from the local one, is mixed in by a
    gate per head. There is no other memory of old segments, and while it is empty the local
    attention stands alone. `tap` is given what was recalled, [B, T, width]. `memory` and `k` may be
    changed between streams.
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
        return layer.finish(x, layer.mixed(local, self.read(recalled.transpose(1, 2).flatten(2))))

    @torch.no_grad()
    def completed(self, memory: Past, inputs: list[Tensor]) -> Past:
        return memory.after([self.kept(self.layers[-1].keys_values(inputs[-1]))])

    def flops_per_step(self) -> int:
        """Return the operations of one step of a segment read at once, memory full.

        The search for the largest products is left out: it multiplies nothing.
        """
        recalling = 4 * self.width * self.memory * (self.memory > 0)
        return self.flops_of_layers(self.segment, 1) + recalling + 4 * self.width**2
