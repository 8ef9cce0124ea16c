"""Keys and values of the cities so far, for decoding one city at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

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
