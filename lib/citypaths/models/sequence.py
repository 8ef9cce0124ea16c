"""What models of a whole sequence share: inputs, head, and decoding that carries a memory along."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from citypaths.data.batches import Batch
from citypaths.map.graph import CityGraph
from citypaths.models.base import CityInput, Head, PathModel, taken

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
