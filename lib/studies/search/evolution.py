"""Evolution of whole paths: a model varies them, a scorer selects them, every hop is counted.

Paths are rows of ids padded with -1; all operators take many rows at once.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

import numpy as np

from citypaths.decoding import Scorer, sample
from citypaths.map.graph import CityGraph
from citypaths.map.paths import PAD, Found, Paths
from citypaths.models.base import PathModel

SEGMENT, SPLICE = 1, 2  # 0: a re-route
MIX = (1 / 3, 2 / 3, 1.0)  # cumulative chances of a re-route, a segment and a splice


def evolve(
    model: PathModel,
    source,
    target,
    max_hops: int,
    *,
    fitness: Scorer,
    population: int = 16,
    generations: int = 8,
    checked_by: CityGraph | None = None,
    seed: int = 0,
) -> Found:
    """Evolve `population` paths a query, as many children a generation; return the best of each.

    Args:
        fitness: energies of paths that arrive; hops that it looks up are counted.
        checked_by: draws take no hop that is no edge of this graph, and look hops up.

    Raises:
        ValueError: an empty population, or queries that are not pairs.
    """
    args = (model, source, target, max_hops, population, fitness, checked_by, seed)
    paths = Evolution(*args)
    for _ in range(generations):
        paths.advance()
    return paths.found()


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
        ids = drawn.paths.padded()
        wide = self.paths.shape[2] - ids.shape[1]
        ids, tried = np.pad(ids, ((0, 0), (0, wide)), constant_values=PAD), drawn.lookups
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


class Evolution(Population):
    """Paths drawn from a model, and as many children as parents in each generation."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        queries, size, width = self.paths.shape
        wide = (np.repeat(x, size) for x in (np.arange(queries), self.source, self.target))
        self.select(self.draw(*wide).reshape(queries, size, width))

    def children(self) -> np.ndarray:
        """Vary parents drawn uniformly with replacement; where two share no city, re-route."""
        queries, size, width = self.paths.shape
        chance = self.random.random((6, queries, size))
        alive = (lengths_of(self.paths) > 0).sum(1)[:, None]
        first, second = (
            self.paths[np.arange(queries)[:, None], (u * alive).astype(int)].reshape(-1, width)
            for u in chance[:2]
        )
        kind = np.searchsorted(MIX, chance[2].ravel(), "right")
        i, j = segments(lengths_of(first), chance[3:5].reshape(2, -1))
        shared = shared_city(first, second, chance[5].ravel())
        spliced, inner = (kind == SPLICE) & (shared[:, 0] >= 0), kind == SEGMENT
        rows, query = np.arange(len(first)), np.repeat(np.arange(queries), size)
        goal = np.where(inner, first[rows, j], self.target[query])
        middle, drawn = np.full_like(first, PAD), ~spliced
        middle[drawn] = self.draw(query[drawn], first[rows, i][drawn], goal[drawn])
        tail = np.where(spliced[:, None], second, first)
        after = np.where(spliced, shared[:, 1], np.where(inner, j + 1, width))
        born = joined(first, np.where(spliced, shared[:, 0], i), middle, tail, after)
        born[inner & (last_of(middle) != goal)] = PAD
        return born.reshape(queries, size, width)


def lengths_of(paths: np.ndarray) -> np.ndarray:
    """Return the cities of each padded path [..., W], int64 [...]."""
    return (paths >= 0).sum(-1)


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


def shared_city(first: np.ndarray, second: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """Return positions [N, 2] of a city in both rows [N, W] by `chance` [N], else -1.

    One of all pairs of positions, ends of either path left out, is chosen uniformly.
    """
    at = np.arange(first.shape[1])
    inner = [(at > 0) & (at < lengths_of(rows)[:, None] - 1) for rows in (first, second)]
    same = (first[:, :, None] == second[:, None]) & inner[0][:, :, None] & inner[1][:, None]
    row, *pairs = np.nonzero(same)
    count = np.bincount(row, minlength=len(first))
    pick = np.cumsum(count) - count + (chance * count).astype(np.int64)
    out = np.full((len(first), 2), -1)
    out[count > 0] = np.stack(pairs, 1)[pick[count > 0]]
    return out
