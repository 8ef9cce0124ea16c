"""The causal transformer (Vaswani et al. 2017): pre-norm, rotary positions (Su et al. 2021)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from citypaths.data.batches import Batch
from citypaths.map.graph import CityGraph
from citypaths.models.base import CityInput, Head, PathModel, register, taken

ROOM = 16  # cities of room in the smallest store


@dataclass
class _Store:
    """Room [B, H, cities, d] for keys and values, of which so many cities are used."""

    keys: Tensor
    values: Tensor
    used: int


@dataclass(frozen=True)
class Cache:
    """A prefix of a store of keys and values; caches of one path's successive steps share it.

    Appending writes to the store in place, and copies it only where there is no room or where
    another continuation of the same cache has already written: a cache never changes.

    Attributes:
        length: cities. group: consecutive rows that belong to one path.
    """

    store: _Store
    length: int
    group: int = 1

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, group: int = 1) -> Cache:
        """Return a cache of keys and values [B, H, cities, d]."""
        return cls(_Store(keys, values, keys.shape[2]), keys.shape[2], group)

    @property
    def keys(self) -> Tensor:
        """Keys [B, H, length, d]."""
        return self.store.keys[:, :, : self.length]

    @property
    def values(self) -> Tensor:
        """Values [B, H, length, d]."""
        return self.store.values[:, :, : self.length]

    def append(self, keys: Tensor, values: Tensor) -> Cache:
        """Return the cache with more cities' keys and values [B, H, more, d] after it."""
        if torch.is_grad_enabled():  # what is saved for a backward pass must not be written to
            both = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
            return Cache.of(*both, self.group)
        store, end = self.store, self.length + keys.shape[2]
        if store.used != self.length or end > store.keys.shape[2]:
            store = self._moved(max(ROOM, 2 * end))
        store.keys[:, :, self.length : end] = keys
        store.values[:, :, self.length : end] = values
        store.used = end
        return replace(self, store=store, length=end)

    def take(self, index: Tensor) -> Cache:
        """Return the cache of paths `index`."""
        if self.group > 1:
            members = torch.arange(self.group, device=index.device)
            index = (index[:, None] * self.group + members).flatten()
        return Cache.of(self.keys[index], self.values[index], self.group)

    def _moved(self, room: int) -> _Store:
        rows, heads, _, width = self.store.keys.shape
        store = [self.store.keys.new_empty(rows, heads, room, width) for _ in range(2)]
        store[0][:, :, : self.length] = self.keys
        store[1][:, :, : self.length] = self.values
        return _Store(*store, self.length)


Memory = Any  # None, or tensors (a row a path) and caches in any nesting of lists, tuples, dicts


class SequenceModel(PathModel):
    """A `PathModel` made of input vectors, an encoder and a head; subclasses write the encoder.

    A subclass sets `loops`, the recurrent steps it takes a city when not told otherwise, and
    implements `encode`, `encode_step` and `core_flops`.
    """

    def __init__(
        self, graph: CityGraph, width: int, *, loops: int = 1, coordinates: str = "none"
    ) -> None:
        super().__init__()
        self.cities, self.width, self.loops = len(graph), width, taken(loops, 1)
        self.inputs = CityInput(graph, width, coordinates=coordinates)
        self.head = Head(width, len(graph), tied=self.inputs.embedding)

    @abstractmethod
    def encode(self, inputs: Tensor, loops: int) -> Tensor:
        """Return the states [B, T, width] that the head reads, for input vectors [B, T, width]."""

    @abstractmethod
    def encode_step(self, inputs: Tensor, memory: Memory, loops: int) -> tuple[Tensor, Memory]:
        """Take input vectors [B, width] (memory: None at first); return states and new memory."""

    @abstractmethod
    def core_flops(self, loops: int) -> int:
        """Return the operations of one `encode_step` of one path."""

    def states(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return the encoder's states [B, T, width] over `batch.cities`."""
        loops = self.take_loops(loops)
        return self.encode(self.embed(batch), loops)

    def take_loops(self, loops: int | None) -> int:
        """Return the loops to take, the model's own for None."""
        return taken(loops, self.loops)

    def embed(self, batch: Batch) -> Tensor:
        """Return input vectors [B, T, width]."""
        return self.inputs(batch.cities, self.inputs.goal(batch.target)[:, None])

    def forward(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return logits [B, T, V] for the city after each of `batch.cities`."""
        return self.head(self.states(batch, loops))

    def start(self, source: Tensor, target: Tensor, loops: int | None = None) -> dict[str, Any]:
        """Return the goal vectors, an empty memory and the loops to take."""
        return {"goal": self.inputs.goal(target), "memory": None, "loops": self.take_loops(loops)}

    def step(self, city: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Take the current city [B]; return logits [B, V] and the state with it in memory."""
        inputs = self.inputs(city, state["goal"])
        hidden, memory = self.encode_step(inputs, state["memory"], state["loops"])
        return self.head(hidden), state | {"memory": memory}

    def reorder(self, state: dict[str, Any], index: Tensor) -> dict[str, Any]:
        """Return the state of rows `index`."""

        def taken_from(part: Tensor | Cache) -> Tensor | Cache:
            return part.take(index) if isinstance(part, Cache) else part[index]

        return tree_map_only((Tensor, Cache), taken_from, state)

    def flops_per_step(self, loops: int | None = None) -> int:
        """Return the matrix products of the input, the encoder and the head."""
        return self.inputs.flops + self.core_flops(taken(loops, self.loops)) + self.head.flops

    @property
    def flops_to_start(self) -> int:
        """Return the operations of the target's projection."""
        return self.inputs.goal_flops


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
