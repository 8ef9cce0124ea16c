"""Exact shortest paths: one tree of all sources for each target, ties broken by smallest ids.

Edge lengths are whole millimetres in float64, so sums are exact and ties are real. Among the
shortest paths of a query the one returned is the lexicographically smallest id sequence: at every
city, the smallest neighbour that lies on a shortest path to the target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit, prange
from scipy.sparse.csgraph import dijkstra

from citypaths.graph import CityGraph
from citypaths.paths import Paths

BLOCK = 64  # targets relaxed together, one vector register row after another


@dataclass(frozen=True, eq=False)
class Trees:
    """Shortest-path trees rooted at targets.

    Attributes:
        targets: int32 [trees].
        mm: float64 [cities, trees], whole millimetres to the target; inf where unreachable.
        next_city: int32 [cities, trees], the next city on the way; -1 at the target or unreachable.
    """

    targets: np.ndarray
    mm: np.ndarray
    next_city: np.ndarray

    @property
    def km(self) -> np.ndarray:
        """Kilometres to each target, float64 [cities, trees]; inf where unreachable."""
        return self.mm / 1e6

    @property
    def reachable(self) -> np.ndarray:
        """Whether each city reaches each target and is not it, bool [cities, trees]."""
        return self.next_city >= 0


def shortest_path_trees(graph: CityGraph, targets) -> Trees:
    """Return the trees of shortest paths from every city to each of `targets` (ids [trees]).

    Eastward graphs take one sweep over the topological order for a block of targets at once;
    two-way graphs take scipy's Dijkstra (Fibonacci heap) and one pass that picks the next cities.
    """
    targets = np.atleast_1d(np.asarray(targets, np.int32))
    if not ((targets >= 0) & (targets < len(graph))).all():
        raise ValueError(f"targets are ids from 0 to {len(graph) - 1}")
    if graph.orientation == "eastward":
        mm, nearest = _sweep(graph.indptr, graph.indices, graph.mm, graph.order, targets)
    else:
        to_target = graph.sparse().T.tocsr()
        mm = np.ascontiguousarray(dijkstra(to_target, indices=targets).T)
        nearest = _pick_next(graph.indptr, graph.indices, graph.mm, mm)
    return Trees(targets, mm, nearest)


@njit(parallel=True, cache=True)
def _sweep(indptr, indices, weight, order, targets):
    n, trees = len(order), len(targets)
    distance = np.full((n, trees), np.inf)
    nearest = np.full((n, trees), np.int32(-1))
    for block in prange((trees + BLOCK - 1) // BLOCK):
        low, high = block * BLOCK, min(trees, (block + 1) * BLOCK)
        width = high - low
        best = np.full((n, width), np.inf)
        hop = np.full((n, width), np.int32(-1))
        reached = np.zeros(n, np.bool_)
        for j in range(width):
            best[targets[low + j], j] = 0.0
            reached[targets[low + j]] = True
        for i in range(n - 1, -1, -1):
            a = order[i]
            for e in range(indptr[a], indptr[a + 1]):
                b = indices[e]
                if reached[b]:
                    reached[a] = True
                    for j in range(width):
                        candidate = best[b, j] + weight[e]
                        if candidate < best[a, j]:  # neighbours ascend: the smallest id keeps a tie
                            best[a, j] = candidate
                            hop[a, j] = b
        distance[:, low:high] = best
        nearest[:, low:high] = hop
    return distance, nearest


@njit(parallel=True, cache=True)
def _pick_next(indptr, indices, weight, distance):
    n, trees = distance.shape
    nearest = np.full((n, trees), np.int32(-1))
    for a in prange(n):
        for e in range(indptr[a + 1] - 1, indptr[a] - 1, -1):  # descending: the smallest id stays
            b = indices[e]
            for j in range(trees):
                if distance[b, j] + weight[e] == distance[a, j] and distance[a, j] < np.inf:
                    nearest[a, j] = b
    return nearest


def paths(trees: Trees, pairs) -> Paths:
    """Return the shortest path of each (source, target) in `pairs` ([m, 2] ids), as int32 tokens.

    Raises:
        ValueError: an id is no city, or a target has no tree here or cannot be reached.
    """
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    if not ((pairs >= 0) & (pairs < len(trees.mm))).all():
        raise ValueError(f"pairs are ids from 0 to {len(trees.mm) - 1}")
    column_of = np.full(len(trees.mm), -1)
    column_of[trees.targets] = np.arange(len(trees.targets))
    columns = column_of[pairs[:, 1]]
    if (columns < 0).any():
        raise ValueError(f"target {pairs[columns < 0][0, 1]} has no tree among those given")
    lost = ~np.isfinite(trees.mm[pairs[:, 0], columns])
    if lost.any():
        raise ValueError("target {1} cannot be reached from source {0}".format(*pairs[lost][0]))
    return Paths(*_walk(trees.next_city, pairs[:, 0], columns))


@njit(cache=True)
def _walk(next_city, sources, columns):
    offsets = np.zeros(len(sources) + 1, np.int64)
    for i in range(len(sources)):
        city, cities = sources[i], 1
        while next_city[city, columns[i]] >= 0:
            city, cities = next_city[city, columns[i]], cities + 1
        offsets[i + 1] = offsets[i] + cities
    tokens = np.empty(offsets[-1], np.int32)
    for i in range(len(sources)):
        city = sources[i]
        for at in range(offsets[i], offsets[i + 1]):
            tokens[at] = city
            city = next_city[city, columns[i]]
    return tokens, offsets


def count_reachable(graph: CityGraph, block: int = 512) -> int:
    """Return how many ordered (source, target) pairs of distinct cities have a path."""
    blocks = (np.arange(a, min(a + block, len(graph))) for a in range(0, len(graph), block))
    return sum(int(shortest_path_trees(graph, targets).reachable.sum()) for targets in blocks)
