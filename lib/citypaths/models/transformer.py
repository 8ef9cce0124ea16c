"""The causal transformer (Vaswani et al. 2017): pre-norm, rotary positions (Su et al. 2021)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from citypaths.map.graph import CityGraph
from citypaths.models.base import register
from citypaths.models.sequence import Cache, Memory, SequenceModel

CONTEXT = 32  # cities attended, for counting operations: attention is a few per cent of them


class Rotary(nn.Module):
    """Turn queries and keys by their position, so that their product depends on the distance."""

    def __init__(self, width: int, base: float = 1_000.0, places: int = 256) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"a head's width is even, not {width}: choose other heads")
        speed = base ** (-torch.arange(0, width, 2) / width)
        self.register_buffer("speed", speed, persistent=False)
        self.register_buffer("known", self._angles(0, places), persistent=False)

    def _angles(self, first: int, end: int) -> Tensor:
        """Cosines and sines [2, end - first, width / 2] of the positions' angles."""
        angle = torch.arange(first, end, device=self.speed.device)[:, None] * self.speed
        return torch.stack([angle.cos(), angle.sin()])

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """Return x [..., T, width] turned, its first position being `first`."""
        end = first + x.shape[-2]
        within = end <= self.known.shape[1]
        cos, sin = (self.known[:, first:end] if within else self._angles(first, end)).to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Attention(nn.Module):
    """Causal multi-head self-attention with a cache for decoding."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.rotary = Rotary(width // heads)

    def forward(self, x: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """Attend from x [B, T, width] to what is cached, then to x; with a cache, T is 1."""
        split = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.rotary(split[:2], 0 if cache is None else cache.length)
        v = split[2]
        cache = Cache.of(k, v) if cache is None else cache.append(k, v)
        causal = x.shape[1] > 1
        mixed = F.scaled_dot_product_attention(q, cache.keys, cache.values, is_causal=causal)
        return self.out(mixed.transpose(1, 2).flatten(2)), cache


class Block(nn.Module):
    """A pre-norm layer: attention, then a feed-forward network of four times the width.

    Output matrices start 1 / sqrt(2 depth) smaller (Radford et al. 2019), `depth` being the
    layers in all.
    """

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        with torch.no_grad():
            for shrunk in (self.attention.out, self.down):
                shrunk.weight /= (2 * depth) ** 0.5
        self.flops = 24 * width * width + 4 * width * CONTEXT

    def forward(self, x: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """Return x [B, T, width] after the layer, and the keys and values of all cities so far."""
        attended, cache = self.attention(self.norm_attention(x), cache)
        x = x + attended
        return x + self.down(F.relu(self.up(self.norm_feed(x)))), cache


def run(
    blocks: nn.ModuleList, x: Tensor, caches: list[Cache] | None = None
) -> tuple[Tensor, list[Cache]]:
    """Run x [B, T, width] through blocks; return it and their caches."""
    kept: list[Cache] = []
    for block, cache in zip(blocks, caches or [None] * len(blocks), strict=True):
        x, cache = block(x, cache)
        kept.append(cache)
    return x, kept


@register("transformer")
class Transformer(SequenceModel):
    """A stack of causal layers over the cities of the path so far.

    Args:
        graph: decides the vocabulary and the coordinates.
        width, layers, heads: size of the stack.
        others: see `SequenceModel` and `CityInput`.
    """

    def __init__(
        self,
        graph: CityGraph,
        *,
        width: int = 128,
        layers: int = 3,
        heads: int = 4,
        **others: Any,
    ) -> None:
        super().__init__(graph, width, **others)
        blocks = (Block(width, heads, layers) for _ in range(layers))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)

    def encode(self, inputs: Tensor, loops: int) -> Tensor:
        """Return states [B, T, width]; there are no loops to vary."""
        return self.norm(run(self.blocks, inputs)[0])

    def encode_step(self, inputs: Tensor, memory: Memory, loops: int) -> tuple[Tensor, Memory]:
        """Advance one city with cached keys and values."""
        x, memory = run(self.blocks, inputs[:, None], memory)
        return self.norm(x[:, 0]), memory

    def core_flops(self, loops: int) -> int:
        """Operations of the layers."""
        return sum(block.flops for block in self.blocks)
