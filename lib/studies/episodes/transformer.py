"""A causal transformer over a whole stream: nothing is forgotten, and everything grows."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from studies.episodes.attention import Attentive

Cache = tuple[Tensor, ...]


class Transformer(Attentive):
    """Full causal attention with relative positions over all steps of a stream.

    What is held is each layer's keys and values. `tap` is given what each layer attended,
    [B, T, width], which includes the step's own value: blanked, every output depends on its own
    input alone. The positions are those of Dai et al. 2019, so that the same weights run in
    `TransformerXL`.

    Args:
        width: of inputs and outputs, even. hidden: of the feed-forward networks.
        layers, heads: of the stack; heads divide the width.
    """

    grows: ClassVar[bool] = True

    def __init__(self, width: int, hidden: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__(width, hidden, layers, heads)

    def start(self, batch: int) -> Cache:
        """Return keys and values [batch, 0, 2 width] of every layer; see `Memory.start`."""
        return tuple(self.zeros(batch, 0, 2 * self.width) for _ in self.layers)

    def forward(self, x: Tensor, state: Cache | None = None) -> tuple[Tensor, Cache]:
        """See `Memory.forward`."""
        state = self.start(len(x)) if state is None else state
        if not x.shape[1]:
            return x, state
        scene = self.scene(x.shape[1], state[0].shape[1] + x.shape[1])
        caches = []
        for layer, cache in zip(self.layers, state, strict=True):
            cache = torch.cat((cache, self.kept(layer.keys_values(x))), 1)
            attended = layer.attend(layer.queries(x), cache, scene)
            x = layer.finish(x, self.read(attended))
            caches.append(cache)
        return self.norm(x), tuple(caches)

    def flops_per_step(self, earlier: int = 64) -> int:
        """Return the operations of one step after so many earlier ones; see `Memory`."""
        return self.flops_of_layers(earlier + 1, 1)
