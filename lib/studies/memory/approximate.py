"""Cheaper retrieval: rounded keys, shorter keys, or only the rows near a few centroids."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from studies.memory.cache import KeyValueCache
from studies.memory.store import Store

ROUNDS = 8  # of k-means


def rounded(cache: KeyValueCache, kind: torch.dtype) -> KeyValueCache:
    """Return the cache with its keys rounded to a type of fewer bits; they no longer have length 1.

    Similarities are computed in single precision all the same.
    """
    return replace(cache, keys=cache.keys.to(kind).float())


class Truncated(Store):
    """Rows whose keys are cut to their `dimensions` principal directions.

    Made of a finished cache: edit the cache and make it anew.
    """

    def __init__(self, cache: KeyValueCache, dimensions: int) -> None:
        width = cache.keys.shape[1]
        if not 1 <= dimensions <= width:
            raise ValueError(f"keys of {width} numbers are cut to 1 to {width}, not {dimensions}")
        _, vectors = torch.linalg.eigh((cache.keys.T @ cache.keys).double())
        self.basis = vectors[:, -dimensions:].to(cache.keys)
        self.cache = replace(cache, keys=cache.keys @ self.basis)
        self.values, self.layer = cache.values, cache.layer

    def __len__(self) -> int:
        return len(self.cache)

    @property
    def flops(self) -> int:
        """See `Store.flops`; the projection of the state is part of it."""
        return self.cache.flops + 2 * self.basis.numel()

    def nearest(
        self, states: Tensor, k: int, owners: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Store.nearest`; a similarity is the cosine within the directions kept."""
        states = F.normalize(states.float(), dim=-1) @ self.basis
        return self.cache.compare(states, k, owners)


class Probed(Store):
    """Rows in lists around centroids (spherical k-means); a read probes the nearest lists alone.

    Made of a finished cache: edit the cache and make it anew. What lies in no probed list is never
    found: fewer than k rows come back as similarities of minus infinity.
    """

    def __init__(
        self, cache: KeyValueCache, centroids: int, probes: int = 1, seed: int = 0
    ) -> None:
        if not 1 <= probes <= centroids <= len(cache):
            raise ValueError(f"{probes} probes, {centroids} centroids, {len(cache)} rows")
        self.cache, self.probes = cache, probes
        self.values, self.layer = cache.values, cache.layer
        self.centroids = spherical_means(cache.keys, centroids, seed)
        of = (cache.keys @ self.centroids.T).argmax(1)
        order = of.argsort(stable=True)
        self.lists = order.split(of.bincount(minlength=centroids).tolist())

    def __len__(self) -> int:
        return len(self.cache)

    @property
    def flops(self) -> int:
        """See `Store.flops`; lists are taken to be of like length."""
        lists = len(self.centroids)
        return 2 * self.centroids.numel() + self.probes * self.cache.flops // lists

    def nearest(
        self, states: Tensor, k: int, owners: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Store.nearest`."""
        states = F.normalize(states.float(), dim=-1)
        probed = (states @ self.centroids.T).topk(self.probes).indices
        near = states.new_full((len(states), self.probes, k), float("-inf"))
        rows = torch.zeros_like(near, dtype=torch.int64)
        for number, some in enumerate(self.lists):
            who, place = (probed == number).nonzero(as_tuple=True)
            if len(who) and len(some):
                asked = None if owners is None else owners[who]
                best, at = self.cache.rows(some).compare(states[who], k, asked)
                near[who, place, : best.shape[1]] = best
                rows[who, place, : best.shape[1]] = some[at]
        near, at = near.flatten(1).topk(min(k, self.probes * k))
        return near, rows.flatten(1).gather(1, at)


def spherical_means(keys: Tensor, count: int, seed: int = 0) -> Tensor:
    """Return `count` unit vectors around which unit keys [M, D] lie: k-means by cosine."""
    random = torch.Generator().manual_seed(seed)
    centres = keys[torch.randperm(len(keys), generator=random)[:count].to(keys.device)]
    for _ in range(ROUNDS):
        of = (keys @ centres.T).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, of, keys)
        centres = torch.where(sums.norm(dim=1, keepdim=True) > 0, F.normalize(sums), centres)
    return centres


def recall(exact: Tensor, found: Tensor) -> float:
    """Return the share of the true neighbours [N, k] that are among those found [N, k]."""
    return float((exact[:, :, None] == found[:, None, :]).any(2).float().mean())
