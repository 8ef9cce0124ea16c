"""Stores beside a frozen model: a key is a state of the model, its value the city that followed.

No weight is trained (Grave et al. 2017; Orhan 2018; Khandelwal et al. 2020). A shortest path never
comes back to a city, so a store must hold other paths than the one being written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from citypaths.data.batches import Batch, batch_of_paths
from citypaths.map.paths import Paths
from citypaths.models.base import PathModel

AT_ONCE = 2**14  # cities in one forward pass
BLOCK = 32  # keys of which only the nearest is looked at first
PIECE = 2**12  # keys compared together
STATES = 256  # states compared together
FEW = 2**15  # keys that are searched at once
ROUNDS = 8  # of k-means


def observed(model: PathModel, call: Callable[[], Any], *shape: int) -> tuple[Any, Tensor]:
    """Return what a call of the model returns, and the model's states [*shape, D] in that call.

    A state is what the model's `head` predicts the next city from.

    Raises:
        ValueError: the model has no `head`, or does not call it once for all steps.
    """
    head, seen = getattr(model, "head", None), []
    if not isinstance(head, nn.Module):
        raise ValueError(f"{type(model).__name__} has no head whose input could be a key")
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        returned = call()
    finally:
        hook.remove()
    if len(seen) != 1 or seen[0].shape[:-1].numel() != torch.Size(shape).numel():
        raise ValueError(f"{type(model).__name__} does not call its head once for all steps")
    return returned, seen[0].reshape(*shape, -1)


def states_of(model: PathModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return a model's states [B, T, D] and its logits [B, T, V]."""
    logits, states = observed(model, lambda: model(batch), *batch.cities.shape)
    return states, logits


class Store(ABC):
    """Rows of a key and a value, and a way to find those nearest to a state.

    Attributes:
        values: int64 [M], the city that followed.
    """

    values: Tensor

    @abstractmethod
    def nearest(self, states: Tensor, k: int, ends: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return similarities and rows [N, k] of the nearest keys to states [N, D].

        A similarity of minus infinity is no row.

        Args:
            ends: int64 [N, 2], source and target of the query that each state is of.
        """

    @property
    @abstractmethod
    def flops(self) -> int:
        """Operations to read once."""

    def predict(
        self, states: Tensor, cities: int, theta: float, k: int, ends: Tensor | None = None
    ) -> Tensor:
        """Return probabilities [N, cities]: softmax of theta times cosine over the k nearest.

        All zeros where there is no row.
        """
        near, rows = self.nearest(states, k, ends)
        shares = (theta * near).softmax(-1).nan_to_num(0.0)
        return shares.new_zeros(len(shares), cities).scatter_add_(1, self.values[rows], shares)


@dataclass(frozen=True, eq=False)
class KeyValueCache(Store):
    """A row for every hop of stored paths; edit it by `rows` and `joined`, which copy.

    Attributes:
        keys: float [M, D], of unit length. values: int64 [M], the city that followed.
        origins: int64 [M], the city that the hop starts from. owners: int64 [M], the path of each.
    """

    keys: Tensor
    values: Tensor
    origins: Tensor
    owners: Tensor

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def of(cls, model: PathModel, paths: Paths, owners: np.ndarray | None = None) -> KeyValueCache:
        """Store a row for every hop of paths (at least two cities each); `owners` name them."""
        owners = np.arange(len(paths)) if owners is None else np.asarray(owners)
        where, parts = next(model.parameters()).device, []
        order = np.argsort(paths.lengths, kind="stable")
        slices = np.array_split(order, max(1, -(-int(paths.lengths.sum()) // AT_ONCE)))
        model.eval()
        with torch.inference_mode():
            for some in (s for s in slices if len(s)):
                batch = batch_of_paths(paths.take(some), where)
                real = batch.labels >= 0
                owner = torch.as_tensor(owners[some], device=where)[:, None].expand_as(real)
                keys = F.normalize(states_of(model, batch)[0][real].float(), dim=-1)
                parts.append((keys, batch.labels[real], batch.cities[real], owner[real]))
        if not parts:
            raise ValueError("a cache holds at least one path")
        return cls(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def rows(self, keep: Tensor) -> KeyValueCache:
        """Return the cache with some of its rows: positions or a boolean mask."""
        return KeyValueCache(*(column[keep] for column in self._columns))

    def without_hops(self, hops: Tensor, cities: int) -> KeyValueCache:
        """Return the cache without hops [m, 2] of a map of so many cities: roads now closed."""
        closed = hops[:, 0] * cities + hops[:, 1]
        return self.rows(~torch.isin(self.origins * cities + self.values, closed))

    def joined(self, other: KeyValueCache) -> KeyValueCache:
        """Return both caches as one; owners are kept as they are."""
        pairs = zip(self._columns, other._columns, strict=True)
        return KeyValueCache(*(torch.cat(pair) for pair in pairs))

    @property
    def numbers(self) -> int:
        """How many numbers are held that a read needs."""
        return self.keys.numel() + self.values.numel()

    @property
    def _columns(self) -> tuple[Tensor, ...]:
        return self.keys, self.values, self.origins, self.owners

    @property
    def flops(self) -> int:
        """Operations to read once: a similarity a row."""
        return 2 * self.keys.numel()

    def nearest(self, states: Tensor, k: int, ends: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return similarities and rows [N, k] of the nearest keys: exact, by the cosine."""
        return nearest_keys(self.keys, F.normalize(states.float(), dim=-1), k)


class Private(Store):
    """A cache of which each query reads its own rows alone, all of them.

    Args:
        cache: a row's owner is the query's place in `source` and `target`.
        source, target: ids [Q]; a query among them twice reads the rows of its first place, one
            that is not among them reads none.
    """

    def __init__(self, cache: KeyValueCache, source: np.ndarray, target: np.ndarray) -> None:
        where = cache.keys.device
        ends = np.stack([np.asarray(source, np.int64), np.asarray(target, np.int64)], 1)
        self.asked, self.place = _pair(torch.as_tensor(ends, device=where)).sort(stable=True)
        order = cache.owners.argsort(stable=True)  # rows side by side: keys [Q, M, D], held [Q, M]
        owner, count = cache.owners[order], cache.owners.bincount(minlength=len(source))
        at = torch.arange(len(order), device=where) - (count.cumsum(0) - count)[owner]
        shape = (len(source), max(1, int(count.max())))
        self.keys = cache.keys.new_zeros(*shape, cache.keys.shape[1])
        self.held = torch.zeros(shape, dtype=torch.bool, device=where)
        values = cache.values.new_zeros(shape)
        self.keys[owner, at], self.held[owner, at] = cache.keys[order], True
        values[owner, at] = cache.values[order]
        self.values = values.flatten()

    @property
    def flops(self) -> int:
        """Operations to read once: a similarity a row of the mean query."""
        return round(2 * int(self.held.sum()) / max(1, len(self.held)) * self.keys.shape[-1])

    def nearest(self, states: Tensor, k: int, ends: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return similarities and rows [N, M] of all rows of each state's query, whatever `k`."""
        pair = _pair(ends)
        at = torch.searchsorted(self.asked, pair).clamp_max(len(self.asked) - 1)
        query, known = self.place[at], self.asked[at] == pair
        near = torch.bmm(self.keys[query], F.normalize(states.float(), dim=-1)[..., None])[..., 0]
        near = near.masked_fill(~(self.held[query] & known[:, None]), float("-inf"))
        most = self.held.shape[1]
        return near, query[:, None] * most + torch.arange(most, device=query.device)


def _pair(ends: Tensor) -> Tensor:
    """A number for each (source, target) [N, 2]."""
    return (ends[:, 0] << 32) + ends[:, 1]


def rounded(cache: KeyValueCache, kind: torch.dtype) -> KeyValueCache:
    """Return the cache with its keys rounded to a type of fewer bits; they no longer have length 1.

    Similarities are computed in single precision all the same.
    """
    return replace(cache, keys=cache.keys.to(kind).float())


class Truncated(Store):
    """A cache whose keys are cut to their `dimensions` principal directions."""

    def __init__(self, cache: KeyValueCache, dimensions: int) -> None:
        width = cache.keys.shape[1]
        if not 1 <= dimensions <= width:
            raise ValueError(f"keys of {width} numbers are cut to 1 to {width}, not {dimensions}")
        _, vectors = torch.linalg.eigh((cache.keys.T @ cache.keys).double())
        self.basis = vectors[:, -dimensions:].to(cache.keys)
        self.keys, self.values = cache.keys @ self.basis, cache.values

    @property
    def flops(self) -> int:
        """Operations to read once; the projection of the state is part of it."""
        return 2 * self.keys.numel() + 2 * self.basis.numel()

    def nearest(self, states: Tensor, k: int, ends: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return similarities and rows [N, k]; a similarity is the cosine in what is kept."""
        return nearest_keys(self.keys, F.normalize(states.float(), dim=-1) @ self.basis, k)


class Probed(Store):
    """A cache in lists around centroids (spherical k-means); a read probes the nearest lists alone.

    What lies in no probed list is never found: fewer than k rows come back as similarities of minus
    infinity.
    """

    def __init__(self, cache: KeyValueCache, centroids: int, probes: int) -> None:
        if not 1 <= probes <= centroids <= len(cache):
            raise ValueError(f"{probes} probes, {centroids} centroids, {len(cache)} rows")
        self.keys, self.values, self.probes = cache.keys, cache.values, probes
        self.centroids = spherical_means(cache.keys, centroids)
        of = (cache.keys @ self.centroids.T).argmax(1)
        self.lists = of.argsort(stable=True).split(of.bincount(minlength=centroids).tolist())

    @property
    def flops(self) -> int:
        """Operations to read once; lists are taken to be of like length."""
        lists = len(self.centroids)
        return 2 * self.centroids.numel() + self.probes * 2 * self.keys.numel() // lists

    def nearest(self, states: Tensor, k: int, ends: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return similarities and rows [N, k] of the nearest keys in the probed lists."""
        states = F.normalize(states.float(), dim=-1)
        probed = (states @ self.centroids.T).topk(self.probes).indices
        near = states.new_full((len(states), self.probes, k), float("-inf"))
        rows = torch.zeros_like(near, dtype=torch.int64)
        for number, some in enumerate(self.lists):
            who, place = (probed == number).nonzero(as_tuple=True)
            if len(who) and len(some):
                best, at = nearest_keys(self.keys[some], states[who], k)
                near[who, place, : best.shape[1]] = best
                rows[who, place, : best.shape[1]] = some[at]
        near, at = near.flatten(1).topk(k)
        return near, rows.flatten(1).gather(1, at)


def spherical_means(keys: Tensor, count: int) -> Tensor:
    """Return `count` unit vectors around which unit keys [M, D] lie: k-means by cosine."""
    random = torch.Generator().manual_seed(0)
    centres = keys[torch.randperm(len(keys), generator=random)[:count].to(keys.device)]
    for _ in range(ROUNDS):
        of = (keys @ centres.T).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, of, keys)
        centres = torch.where(sums.norm(dim=1, keepdim=True) > 0, F.normalize(sums), centres)
    return centres


def nearest_keys(keys: Tensor, states: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return dot products and rows [N, k] (all, of fewer than k) of the nearest keys, best first.

    Exact. Many keys on a processor are searched twice, at the pace of its cache: for the nearest
    key of each block, then within the k best blocks, which hold the k nearest.

    Args:
        keys: [M, D]. states: [N, D].
    """
    once = len(keys) <= FEW or keys.device.type != "cpu"
    search, step = (_at_once, 2**24 // max(1, len(keys))) if once else (_in_blocks, STATES)
    parts = [search(keys, some, min(k, len(keys))) for some in states.split(max(1, step))]
    near, rows = zip(*parts, strict=True)
    return torch.cat(near), torch.cat(rows)


def _at_once(keys: Tensor, states: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return tuple((states @ keys.T).topk(k))


def _in_blocks(keys: Tensor, states: Tensor, k: int) -> tuple[Tensor, Tensor]:
    best = []
    for part in keys.split(PIECE):
        near = states @ part.T
        near = F.pad(near, (0, -near.shape[1] % BLOCK), value=float("-inf"))
        best.append(near.unflatten(1, (-1, BLOCK)).amax(-1))
    maxima = torch.cat(best, 1)
    blocks = maxima.topk(min(k, maxima.shape[1])).indices
    pairs = zip(states.split(BLOCK), blocks.split(BLOCK), strict=True)
    near, rows = zip(*(_within(keys, some, k, theirs) for some, theirs in pairs), strict=True)
    return torch.cat(near), torch.cat(rows)


def _within(keys: Tensor, states: Tensor, k: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest keys among those of `blocks` [N, some], which are other ones for each state."""
    rows = (blocks[..., None] * BLOCK + torch.arange(BLOCK, device=keys.device)).flatten(1)
    outside, rows = rows >= len(keys), rows.clamp(max=len(keys) - 1)
    near = torch.bmm(keys[rows], states[..., None])[..., 0].masked_fill(outside, float("-inf"))
    near, at = near.topk(k)
    return near, rows.gather(1, at)
