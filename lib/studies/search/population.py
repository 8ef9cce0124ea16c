"""Populations of whole paths: a model varies them, a scorer selects them, every hop is counted.

Paths are rows of ids padded with -1; all operators take many rows at once.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

import numpy as np
from numba import njit

from citypaths.decoding import Scorer, sample
from citypaths.map.graph import CityGraph
from citypaths.map.paths import PAD, Found, Paths
from citypaths.models.base import PathModel


class Population(ABC):
    """The best `size` paths found so far for each of Q queries: mu + lambda selection.

    No two paths of a query are equal and its best is never lost (Rechenberg 1973). A subclass makes
    `children`. Attributes: `paths` int64 [Q, size, W], best first, and their `energy` [Q, size],
    infinite for a path that does not arrive, NaN for none.

    Args:
        scorer: energies of paths that arrive; hops that it looks up are counted.
        checked_by: draws take no hop that is not an edge of this graph, and look hops up.

    Raises:
        ValueError: an empty population, or not as many sources as targets.
    """

    def __init__(
        self, model: PathModel, source, target, max_hops: int, size: int, scorer: Scorer,
        checked_by: CityGraph | None, seed: int,
    ) -> None:  # fmt: skip
        self.source, self.target = np.asarray(source, np.int64), np.asarray(target, np.int64)
        if size < 1 or len(self.source) != len(self.target):
            given = f"{size} for {len(self.source)} sources but {len(self.target)} targets"
            raise ValueError(f"a population is at least 1 path, of as many targets, not {given}")
        self.model, self.max_hops, self.scorer, self.graph = model, max_hops, scorer, checked_by
        self.random, self.began = np.random.default_rng(seed), time.perf_counter()
        queries, width = len(self.source), max(1, max_hops) + 1
        self.paths = np.full((queries, size, width), PAD)
        self.energy = np.full((queries, size), np.nan)
        self.flops, self.refused = np.zeros(queries), np.zeros(queries)
        self.known = np.zeros(0, np.int64)  # hops looked up, (query * V + city) * V + next, rising

    @abstractmethod
    def children(self) -> np.ndarray:
        """Return new paths [Q, C, W]; a row without a city is no path."""

    def advance(self) -> None:
        """Replace each population by the best of itself and its children."""
        self.select(self.children())

    def found(self) -> Found:
        """Return the best paths so far, with the compute from the beginning."""
        best = self.paths[:, 0].copy()
        best[:, 0] = self.source
        queries, cities = len(best), self.model.cities
        lookups = self.refused + np.bincount(self.known // cities**2, minlength=queries)
        paths, seconds = Paths.from_padded(best, lengths_of(best)), time.perf_counter() - self.began
        return Found(paths, self.flops.copy(), lookups, np.zeros(queries), seconds)

    def draw(self, query: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Sample paths for rows [N] of these queries, at their cost; return ids [N, W].

        The model is asked afresh, as if `source` were a query's source. A hop that is taken is
        looked up once a query; hops that were tried and refused are paid each time.
        """
        seed = int(self.random.integers(2**31))
        options = {"seed": seed, "checked_by": self.graph}
        return self.pay(query, sample(self.model, source, target, self.max_hops, **options))

    def pay(self, query: np.ndarray, drawn: Found) -> np.ndarray:
        """Charge the queries [N] for paths that were drawn; return their ids [N, W]."""
        ids = padded_to(drawn.paths, self.paths.shape[2])
        tried = drawn.lookups
        if self.graph is not None:
            self.look_up(query, ids)
            tried = tried - np.maximum(lengths_of(ids) - 1, 0)
        self.flops += np.bincount(query, drawn.flops, len(self.flops))
        self.refused += np.bincount(query, tried, len(self.flops))
        return ids

    def look_up(self, query: np.ndarray, ids: np.ndarray) -> None:
        """Note all hops of paths [N, W] as known to their queries [N]."""
        a, b, cities = ids[:, :-1].astype(np.int64), ids[:, 1:], self.model.cities
        keys = (np.asarray(query)[:, None] * cities + a) * cities + b
        self.known = np.union1d(self.known, keys[(a >= 0) & (b >= 0)])

    def select(self, born: np.ndarray) -> None:
        """Keep the best of what is there and new paths: those that arrive first, then the older.

        A path is scored if it arrives and equals none of its query's and none born before it.
        """
        paths, had = np.concatenate([self.paths, born], 1), self.paths.shape[1]
        fresh = first_of_each(paths)[:, had:] & (born[..., 0] >= 0)
        judged = fresh & arriving(born, self.source, self.target)
        energy = np.where(fresh, np.inf, np.nan)
        energy[judged] = self._score(np.nonzero(judged)[0], born[judged])
        energy = np.concatenate([self.energy, energy], 1)
        arrive = arriving(paths, self.source, self.target)
        rank = np.where(np.isnan(energy), 2, np.where(arrive, 0, 1))
        order, rows = np.lexsort((energy, rank), axis=1)[:, :had], np.arange(len(paths))[:, None]
        self.energy = energy[rows, order]
        self.paths = np.where(np.isnan(self.energy)[..., None], PAD, paths[rows, order])

    def _score(self, query: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Energies of paths [N, W] of queries [N], which pay for them."""
        paths = Paths.from_padded(ids, lengths_of(ids))
        self.flops += np.bincount(query, self.scorer.flops(paths), len(self.flops))
        asked = self.scorer.lookups(paths) > 0
        self.look_up(query[asked], ids[asked])
        return self.scorer.score(self.source[query], self.target[query], paths)


def lengths_of(paths: np.ndarray) -> np.ndarray:
    """Return the cities of each padded path [..., W], int64 [...]."""
    return (paths >= 0).sum(-1)


def padded_to(paths: Paths, width: int) -> np.ndarray:
    """Return ids [paths, width] of paths that are no longer, padded with -1."""
    ids = paths.padded()
    return np.pad(ids, ((0, 0), (0, width - ids.shape[1])), constant_values=PAD)


def last_of(paths: np.ndarray) -> np.ndarray:
    """Return the last city of each padded path [..., W]; -1 where there is none."""
    at = np.maximum(lengths_of(paths) - 1, 0)[..., None]
    return np.take_along_axis(paths, at, -1)[..., 0]


def arriving(paths: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return whether paths [Q, C, W] go from source to target [Q], bool [Q, C]."""
    return (paths[..., 0] == source[:, None]) & (last_of(paths) == target[:, None])


def first_of_each(paths: np.ndarray) -> np.ndarray:
    """Return which of the rows [Q, N, W] of a query equal none before them, bool [Q, N]."""
    query = np.broadcast_to(np.arange(len(paths))[:, None, None], (*paths.shape[:2], 1))
    rows = np.concatenate([query, paths], 2).reshape(-1, paths.shape[2] + 1)
    flags = np.zeros(len(rows), bool)
    flags[np.unique(rows, axis=0, return_index=True)[1]] = True
    return flags.reshape(paths.shape[:2])


def joined(
    head: np.ndarray, i: np.ndarray, middle: np.ndarray, tail: np.ndarray, j: np.ndarray
) -> np.ndarray:
    """Return head[:i] + middle + tail[j:] of rows [N, W], [N, .], [N, W]; none if that exceeds W.

    Args:
        i, j: int64 [N]; from `j` at or past its length a tail adds nothing.
    """
    size, column = lengths_of(middle), np.arange(head.shape[1])[None]
    end = i + size + np.maximum(lengths_of(tail) - j, 0)
    parts = (head, 0 * i), (middle, i), (tail, i + size - j)
    picked = [
        np.take_along_axis(rows, np.clip(column - shift[:, None], 0, rows.shape[1] - 1), 1)
        for rows, shift in parts
    ]
    out = np.where(column < (i + size)[:, None], picked[1], picked[2])
    out = np.where(column < i[:, None], picked[0], out)
    inside = (column < end[:, None]) & (end <= head.shape[1])[:, None]
    return np.where(inside, out, PAD)


def segments(lengths: np.ndarray, chance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return positions i < j in paths of `lengths` [N], by uniform numbers `chance` [2, N].

    i is any but the last, then j any after it; both are 0 in a path of one city.
    """
    i = (chance[0] * (lengths - 1)).astype(np.int64)
    j = i + 1 + (chance[1] * (lengths - 1 - i)).astype(np.int64)
    return i, np.minimum(j, np.maximum(lengths - 1, 0))


@njit(cache=True)
def shared_city(first, second, chance):
    """Return positions [N, 2] of a city in both rows [N, W] by `chance` [N], else -1.

    One of all pairs of positions, ends of either path left out, is chosen uniformly.
    """
    rows, width = first.shape
    at = np.full((rows, 2), -1, np.int64)
    pairs = np.empty((width * width, 2), np.int64)
    for r in range(rows):
        ends = (first[r] >= 0).sum() - 1, (second[r] >= 0).sum() - 1
        count = 0
        for i in range(1, ends[0]):
            for j in range(1, ends[1]):
                if first[r, i] == second[r, j]:
                    pairs[count, 0], pairs[count, 1] = i, j
                    count += 1
        if count:
            at[r, :] = pairs[int(chance[r] * count)]
    return at
