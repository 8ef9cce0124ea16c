"""Batches of paths of like length, about equal in tokens, in a reproducible order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from torch import Tensor

from citypaths.data.dataset import Dataset, Rows
from citypaths.data.splits import PARTS
from citypaths.map.paths import Paths

IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """Teacher-forcing input and labels.

    Attributes:
        source, target: int64 [B], the query.
        cities: int64 [B, T], the path without its last city (the source first), 0 after the end.
        labels: int64 [B, T], the city that follows each, -100 after the end.
    """

    source: Tensor
    target: Tensor
    cities: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.source)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device."""
        tensors = (self.source, self.target, self.cities, self.labels)
        return Batch(*(t.to(device, non_blocking=True) for t in tensors))

    def take(self, rows: Tensor) -> Batch:
        """Return the rows at `rows` (positions), padded as they are."""
        return Batch(*(t[rows] for t in (self.source, self.target, self.cities, self.labels)))


def pad(tokens: np.ndarray, start: np.ndarray, length: np.ndarray) -> Batch:
    """Gather `length` [B] cities (at least 2) from each `start` [B] of `tokens` as a Batch."""
    return Batch(*map(torch.from_numpy, _gather(tokens, start, length)))


@njit(cache=True, nogil=True)
def _gather(tokens, start, length):
    rows, steps = len(start), length.max() - 1
    source, target = np.empty(rows, np.int64), np.empty(rows, np.int64)
    cities, labels = np.empty((rows, steps), np.int64), np.empty((rows, steps), np.int64)
    for i in range(rows):
        path = tokens[start[i] : start[i] + length[i]]
        hops = len(path) - 1
        source[i], target[i] = path[0], path[hops]
        for t in range(hops):
            cities[i, t], labels[i, t] = path[t], path[t + 1]
        cities[i, hops:], labels[i, hops:] = 0, IGNORE
    return source, target, cities, labels


def batch_of(rows: Rows, device: torch.device | str = "cpu") -> Batch:
    """Return all of `rows` as one Batch."""
    return batch_of_paths(rows.paths, device)


def batch_of_paths(paths: Paths, device: torch.device | str = "cpu") -> Batch:
    """Return paths, of at least two cities each, as one Batch; each asks for its own ends."""
    return pad(_narrow(paths.tokens), paths.offsets[:-1], paths.lengths).to(device)


def _narrow(tokens: np.ndarray) -> np.ndarray:
    return tokens.astype(np.uint16 if tokens.max(initial=0) < 2**16 else np.int32)


@torch.no_grad()
def own_input(model: Callable[[Batch], Tensor], batch: Batch, probability: float) -> Batch:
    """Replace inputs after the source by the model's own prediction, with `probability` each."""
    predicted = model(batch).argmax(-1)[:, :-1]
    swap = torch.rand(predicted.shape, device=predicted.device) < probability
    cities = batch.cities.clone()
    inside = batch.labels[:, 1:] >= 0
    cities[:, 1:] = torch.where(swap & inside, predicted, cities[:, 1:])
    return Batch(batch.source, batch.target, cities, batch.labels)


class Batches:
    """The training paths of a dataset, again and again, each epoch in a new order.

    Shards are read in a shuffled order into pools of at most `pool_paths` paths; a pool is sorted
    by length with ties shuffled, cut into batches of about `batch_tokens` padded tokens, and the
    batches are shuffled. A share `hindsight` of the paths is cut to random sub-paths, which are
    shortest paths too. The order is a function of (seed, epoch, pool) alone; `position`, the
    (epoch, pool, batch) that come next, is all that a resumed training needs.
    """

    pool_paths = 2_000_000

    def __init__(
        self,
        dataset: Dataset,
        batch_tokens: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        hindsight: float = 0.0,
    ) -> None:
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens is a positive number, not {batch_tokens}")
        if not 0 <= hindsight <= 1:
            raise ValueError(f"hindsight is a share of the paths, not {hindsight}")
        if hindsight and dataset.recipe.split == "target":
            raise ValueError("hindsight would train on the held-out targets of the target split")
        if not dataset.counts["train"]:
            raise ValueError(f"{dataset.folder} has no training path: raise its train count")
        self.dataset, self.batch_tokens, self.seed = dataset, batch_tokens, seed
        self.device, self.hindsight, self.position = device, hindsight, (0, 0, 0)
        self._pool: tuple[tuple[int, ...], np.ndarray, np.ndarray] | None = None

    def __iter__(self) -> Iterator[Batch]:
        while True:
            epoch, first, _ = self.position
            for number, pool in enumerate(self._pools(epoch)[first:], first):
                tokens, offsets = self._load(pool)
                plan = self._plan(offsets, self._random(epoch, number))
                for index in range(self.position[2], len(plan)):
                    self.position = (epoch, number, index + 1)
                    yield self._take(tokens, offsets, plan[index])
                del tokens, offsets  # one pool at a time is in memory
                self.position = (epoch, number + 1, 0)
            self.position = (epoch + 1, 0, 0)

    def _random(self, epoch: int, pool: int, *more: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, *more, *([pool] if pool else [])])

    def _take(self, tokens: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> Batch:
        """The batch of `rows`; a `hindsight` share of them cut to a random sub-path."""
        start, length = offsets[rows], offsets[rows + 1] - offsets[rows]
        if self.hindsight:
            epoch, pool, index = self.position
            cut, first, last = self._random(epoch, pool, index).random((3, len(rows)))
            begin = (first * (length - 1)).astype(np.int64)
            keep = 2 + (last * (length - begin - 1)).astype(np.int64)
            start = np.where(cut < self.hindsight, start + begin, start)
            length = np.where(cut < self.hindsight, keep, length)
        return pad(tokens, start, length).to(self.device)

    def _pools(self, epoch: int) -> list[tuple[int, ...]]:
        """Shards in a shuffled order, in groups of one or of at most `pool_paths` together."""
        sizes = [shard["train"] for shard in self.dataset.shards]
        if sum(sizes) <= self.pool_paths:
            return [tuple(range(len(sizes)))]
        pools: list[list[int]] = [[]]
        for shard in self._random(epoch, 0).permutation(len(sizes)).tolist():
            if pools[-1] and sum(sizes[s] for s in pools[-1]) + sizes[shard] > self.pool_paths:
                pools.append([])
            pools[-1].append(shard)
        return [tuple(pool) for pool in pools]

    def _load(self, pool: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        if self._pool is None or self._pool[0] != pool:
            self._pool = None
            shards = (self.dataset.shard(i) for i in pool)
            rows = Rows.concatenate([s.take(s.part == PARTS.index("train")) for s in shards])
            self._pool = (pool, _narrow(rows.paths.tokens), rows.paths.offsets)
        return self._pool[1:]

    def _plan(self, offsets: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
        """Rows of each batch: alike in length, rows x longest <= batch_tokens, in random order."""
        steps = np.diff(offsets) - 1
        by_chance = np.argsort(generator.random(len(steps)), kind="stable")
        narrow = steps[by_chance].astype(np.uint16 if steps.max() < 2**16 else np.int64)
        by_length = by_chance[np.argsort(narrow, kind="stable")]  # a radix sort
        steps, batches, start = steps[by_length], [], 0
        while start < len(steps):
            end = start + max(1, self.batch_tokens // int(steps[start]))
            while end > start + 1:
                longest = int(steps[min(end, len(steps)) - 1])
                if (end - start) * longest <= self.batch_tokens:
                    break
                end = start + max(1, self.batch_tokens // longest)
            batches.append(by_length[start:end])
            start = end
        return [batches[i] for i in generator.permutation(len(batches))]
