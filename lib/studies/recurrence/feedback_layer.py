"""A layer that attends to keys and values from outside, and what it is made of."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studies.recurrence.feedback_types import LayerWeights

KeysValues = tuple[Tensor, Tensor]  # each [B, H, memories, width / H]


def attend(query: Tensor, memory: KeysValues, bias: Tensor) -> Tensor:
    """Return what queries [B, H, n, .] find in a memory, scores having a bias [H, n, memories]."""
    keys, values = memory
    scores = query @ keys.mT / math.sqrt(query.shape[-1]) + bias
    return torch.softmax(scores, -1) @ values


def joined(past: KeysValues, new: KeysValues) -> KeysValues:
    """Return a memory with new keys and values after the old."""
    return torch.cat([past[0], new[0]], 2), torch.cat([past[1], new[1]], 2)


def folded(norm: nn.LayerNorm, linear: nn.Linear, scale: float = 1.0) -> KeysValues:
    """Return matrix and bias that do to bare normalised rows what norm and linear do to rows."""
    bias = linear.weight @ norm.bias
    if linear.bias is not None:
        bias = bias + linear.bias
    return linear.weight * (norm.weight * scale), bias * scale


class FeedbackLayer(nn.Module):
    """A pre-norm layer with queries of its own and keys and values from outside.

    Output matrices start 1 / sqrt(2 depth) smaller (Radford et al. 2019), `depth` being the
    layers in all.
    """

    def __init__(self, width: int, heads: int, depth: int, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.out = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)
        with torch.no_grad():
            for shrunk in (self.out, self.down):
                shrunk.weight /= (2 * depth) ** 0.5

    def forward(self, x: Tensor, memory: KeysValues, bias: Tensor) -> Tensor:
        """Return x [B, n, width] after the layer; see `attend`."""
        query = self.query(self.norm_attention(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        x = x + self.out(attend(query, memory, bias).transpose(1, 2).flatten(2))
        return x + self.down(F.relu(self.up(self.norm_feed(x))))

    def first_query(self) -> KeysValues:
        """Return the query's matrix and bias of normalised rows, scaled for plain products."""
        scale = (self.query.in_features // self.heads) ** -0.5
        return folded(self.norm_attention, self.query, scale)

    def weights(self, first: bool) -> LayerWeights:
        """Return the layer as the scan takes it."""
        query = (None, None) if first else self.first_query()
        feed = folded(self.norm_feed, self.up)
        return LayerWeights(*query, self.out.weight, *feed, self.down.weight, self.down.bias)
