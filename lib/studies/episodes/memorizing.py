"""Memorizing transformer: one layer recalls the nearest of many old keys (Wu et al. 2022)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studies.episodes.attention import Layer, Scene, at_least, last, pushed
from studies.episodes.segments import Segmented

SHARPNESS = 10.0  # at the start: what a cosine is multiplied with before a softmax


class Rows(NamedTuple):
    """Keys and values of old steps, [B, heads, size, width / heads], the last `held` filled."""

    held: int
    keys: Tensor
    values: Tensor


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

    def _unit(self, x: Tensor) -> Tensor:
        """Heads of unit length [B, n, heads, width / heads]."""
        return F.normalize(x.unflatten(-1, (self.heads, -1)), dim=-1)

    def keys_values(self, x: Tensor) -> Tensor:
        """See `Layer.keys_values`."""
        keys, values = super().keys_values(x).chunk(2, -1)
        return torch.cat((self._unit(keys).flatten(2), values), -1)

    def content(self, queries: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `Layer.content`."""
        sharp = (self._unit(queries) * self.sharpness.exp()[:, None]).flatten(2)
        return sharp if bias is None else sharp + bias * self.scale

    def by_head(self, x: Tensor) -> Tensor:
        """Return [B, n, width] as [B, heads, n, width / heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def recalled(self, queries: Tensor, rows: Rows, k: int) -> Tensor:
        """Return what queries [B, t, width] recall, [B, t, width], no position told."""
        asked = self.by_head(self.content(queries))
        keys, values = (last(x, rows.held, 2) for x in (rows.keys, rows.values))
        return recall(asked, keys, values, k).transpose(1, 2).flatten(2)

    def mixed(self, local: Tensor, remote: Tensor) -> Tensor:
        """Return both [B, t, width] weighted by each head's gate."""
        gate = self.gate.sigmoid().repeat_interleave(local.shape[-1] // self.heads)
        return local + gate * (remote - local)


class Memorizing(Segmented):
    """Attention within segments; one layer also recalls from old segments' keys and values.

    The memory is first in, first out. It holds detached keys and values as they were computed; a
    softmax over the k nearest, apart from the local one, is mixed in by a gate per head. There is
    no other memory of old segments, and while it is empty the local attention stands alone. `tap`
    is given what was recalled, [B, T, width].

    Args:
        width: of inputs and outputs, even. hidden: of the feed-forward networks.
        layers, heads: of the stack; heads divide the width. segment: steps.
        memory, k: steps held and steps recalled; may be changed between streams.
        layer: which layer recalls; -1 is the last.
    """

    def __init__(
        self,
        width: int,
        hidden: int = 64,
        layers: int = 2,
        heads: int = 4,
        segment: int = 16,
        memory: int = 256,
        k: int = 32,
        layer: int = -1,
    ) -> None:
        if not -layers <= layer < layers:
            raise ValueError(f"there is no layer {layer} among {layers}")
        self._at = layer % layers
        super().__init__(width, hidden, layers, heads, segment)
        self.memory, self.k = memory, k
        self._check()

    def _check(self) -> None:
        at_least(0, memory=self.memory)
        at_least(1, k=self.k)

    def layer_of(self, index: int, depth: int, heads: int) -> Layer:
        """See `Attentive.layer_of`."""
        kind = RecallLayer if index == self._at else Layer
        return kind(self.width, self.hidden, heads, depth)

    @property
    def recaller(self) -> RecallLayer:
        """The layer that recalls."""
        return self.layers[self._at]

    def fresh(self, batch: int) -> Rows:
        """See `Segmented.fresh`."""
        self._check()
        heads = self.recaller.heads
        shape = (batch, heads, self.memory, self.width // heads)
        return Rows(0, self.zeros(*shape), self.zeros(*shape))

    def earlier(self, memory: Rows) -> list[Tensor]:
        """See `Segmented.earlier`: none, the memory is read elsewhere."""
        return [self.zeros(len(memory.keys), 0, self.width) for _ in self.layers]

    def run(self, index: int, x: Tensor, context: Tensor, scene: Scene, memory: Rows) -> Tensor:
        """See `Segmented.run`."""
        if index != self._at or not memory.held:
            return super().run(index, x, context, scene, memory)
        layer, queries = self.recaller, self.recaller.queries(x)
        local = layer.attend(queries, layer.keys_values(context), scene)
        remote = self.read(layer.recalled(queries, memory, self.k))
        return layer.finish(x, layer.mixed(local, remote))

    @torch.no_grad()
    def completed(self, memory: Rows, inputs: list[Tensor]) -> Rows:
        """See `Segmented.completed`."""
        new = self.kept(self.recaller.keys_values(inputs[self._at])).chunk(2, -1)
        old, size = (memory.keys, memory.values), memory.keys.shape[2]
        pairs = zip(old, map(self.recaller.by_head, new), strict=True)
        held = min(size, memory.held + inputs[0].shape[1])
        return Rows(held, *(pushed(rows, some, 2) for rows, some in pairs))

    def flops_per_step(self) -> int:
        """Return the operations of one step of a segment read at once; see `Memory`.

        The search for the largest products is left out: it multiplies nothing.
        """
        recalling = 4 * self.width * self.memory * (self.memory > 0)
        storing = 4 * self.width**2
        return self.flops_of_layers(self.segment, 1) + recalling + storing
