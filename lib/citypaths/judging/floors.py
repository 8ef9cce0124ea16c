"""Walks over the map, and the map of a memorizer: what needs no learning.

What a walk looks at is counted. An expansion is a city whose out-edges are read; a look-up is one
out-edge read.
"""

from __future__ import annotations

import time

import numpy as np
from numba import njit

from citypaths.map.graph import CityGraph, unit_hash
from citypaths.map.great_circle import great_circle
from citypaths.map.paths import Found, Paths


@njit(cache=True)
def _walk(indptr, indices, km, points, sources, targets, hop_weight, random, limit):
    """Walk to the neighbour with the least hop_weight * km + distance to go (random below 0)."""
    n, count = len(indptr) - 1, len(sources)
    out = np.full((count, limit + 1), -1, np.int32)
    lengths = np.ones(count, np.int64)
    spent = np.zeros((count, 2))
    seen = np.full(n, -1, np.int64)
    for q in range(count):
        city, out[q, 0] = sources[q], sources[q]
        while city != targets[q] and lengths[q] <= limit and seen[city] != q:
            seen[city] = q
            low, high = indptr[city], indptr[city + 1]
            if low == high:
                break
            spent[q, 0] += high - low
            spent[q, 1] += 1
            best = -1
            if hop_weight < 0:
                best = indices[low + int(random[q, lengths[q] - 1] * (high - low))]
                seen[city] = -1
            else:
                least = np.inf
                for e in range(low, high):
                    cost = hop_weight * km[e] + great_circle(points, indices[e], targets[q])
                    if cost < least:
                        least, best = cost, indices[e]
            city = best
            out[q, lengths[q]] = city
            lengths[q] += 1
    return out, lengths, spent


def walk(
    graph: CityGraph, source, target, hop_weight: float = 0.0, seed: int = 0, limit: int = 0
) -> Found:
    """Walk greedily: to the neighbour with the least `hop_weight` x hop km + great-circle to go.

    0 is geo-greedy, 1 counts the hop as well, below 0 draws a neighbour uniformly. A walk ends at
    the target, at a dead end, at a city seen before (unless random), or after `limit` hops
    (default: as many as there are cities, 1,000 at most).
    """
    began, limit = time.perf_counter(), limit or min(len(graph), 1000)
    source, target = np.asarray(source, np.int64), np.asarray(target, np.int64)
    random = np.zeros((1, 1))
    if hop_weight < 0:
        random = unit_hash(seed, source[:, None], target[:, None], np.arange(limit + 1))
    args = (graph.indptr, graph.indices, graph.km, graph.sphere, source, target)
    out, lengths, spent = _walk(*args, float(hop_weight), random, limit)
    seconds = time.perf_counter() - began
    paths, nothing = Paths.from_padded(out, lengths), np.zeros(len(source))
    return Found(paths, nothing, spent[:, 0], spent[:, 1], seconds)


def hop_use(graph: CityGraph, paths: list[Paths]) -> np.ndarray:
    """Return how many of `paths` take each edge, int64 [edges]."""
    counts = np.zeros(len(graph.indices), np.int64)
    for part in paths:
        _, a, b = part.hops()
        at = graph.edge_index(a, b)
        counts += np.bincount(at[at >= 0], minlength=len(counts))
    return counts


def rarest_hop(graph: CityGraph, use: np.ndarray, paths: Paths) -> np.ndarray:
    """Return the least `use` among the hops of each legal path, int64 [paths]."""
    row, a, b = paths.hops()
    rarest = np.full(len(paths), np.iinfo(np.int64).max)
    np.minimum.at(rarest, row, use[graph.edge_index(a, b)])
    return rarest


def stored_hops(graph: CityGraph, paths: list[Paths]) -> CityGraph:
    """Return the graph of only those edges that some of `paths` used: a memorizer's map."""
    return graph.with_edges(hop_use(graph, paths) > 0)
