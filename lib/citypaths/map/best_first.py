"""Best-first search over out-edges: Dijkstra, A* and their kin in one compiled loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from heapq import heappop, heappush
from math import inf

import numpy as np
from numba import njit

from citypaths.map.graph import CityGraph
from citypaths.map.great_circle import great_circle
from citypaths.map.paths import Found, Paths

ROUNDED = 1 - 1e-9  # keeps great circles admissible against edges rounded to millimetres
TABLE_CELLS = 2**23  # estimates in memory at once: 64 MiB


def best_first(
    graph: CityGraph,
    source,
    target,
    g_weight: float = 1.0,
    h_weight: float = 1.0,
    *,
    togo: Callable[[np.ndarray], np.ndarray] | None = None,
    flops: float = 0.0,
    reopen: bool = True,
) -> Found:
    """Search by least `g_weight` x km so far + `h_weight` x estimated km to go.

    Weights (1, 0) are Dijkstra, (1, 1) A*, (1, w) weighted A*, (0, 1) greedy best-first search
    (Hart, Nilsson and Raphael 1968; Pohl 1970). A query without a path gives the source alone. An
    expansion is a city whose out-edges are read; a look-up is one out-edge read. A city reached
    needs one estimate, and the source and the target none.

    Args:
        source, target: ids [Q].
        togo: kilometres to go from every city to each of some targets, [targets] -> [targets, V],
            infinite where there is no path; None is the great circle.
        flops: operations of one estimate.
        reopen: expand a city again when a shorter way to it turns up. An inconsistent estimate
            needs that to be exact where it is admissible; without it, the search is cheaper.
            Greedy best-first search never does.

    Raises:
        ValueError: weights below 0 or both 0, unlike numbers of sources and targets, an id that is
            no city, or an estimate that is NaN.
    """
    began = time.perf_counter()
    source, target = np.asarray(source, np.int64), np.asarray(target, np.int64)
    if len(source) != len(target):
        raise ValueError(f"{len(source)} sources but {len(target)} targets")
    if not (0 <= g_weight < inf and 0 <= h_weight < inf and g_weight + h_weight > 0):
        raise ValueError(f"weights are 0 or more, not both 0, not {g_weight} and {h_weight}")
    if not all(((ids >= 0) & (ids < len(graph))).all() for ids in (source, target)):
        raise ValueError(f"sources and targets are ids from 0 to {len(graph) - 1}")
    weights = float(g_weight), float(h_weight) * (1.0 if togo else ROUNDED)
    edges = (graph.indptr, graph.indices, graph.mm / 1e6, graph.sphere)
    goals, goal = np.unique(target, return_inverse=True)
    at_once = max(1, TABLE_CELLS // max(1, len(graph))) if togo else len(goals) or 1
    order, done = np.argsort(goal, kind="stable"), []
    for first in range(0, len(goals), at_once):
        mine = order[(goal[order] >= first) & (goal[order] < first + at_once)]
        table = np.zeros((0, 0))
        if togo and h_weight:
            table = np.ascontiguousarray(togo(goals[first : first + at_once]), np.float64)
        if np.isnan(table).any():
            raise ValueError("an estimate of the kilometres to go is not a number")
        queries = source[mine], target[mine], table, goal[mine] - first
        done.append(_expand(*edges, *queries, *weights, reopen and g_weight > 0))
    back = np.argsort(order)
    paths = Paths.concatenate([Paths(tokens, offsets) for tokens, offsets, _ in done]).take(back)
    spent = np.concatenate([np.zeros((0, 3)), *(part for _, _, part in done)])[back]
    seconds = time.perf_counter() - began
    return Found(paths, spent[:, 2] * flops, spent[:, 0], spent[:, 1], seconds)


@njit(cache=True)
def _expand(
    indptr, indices, km, sphere, sources, targets, table, rows, g_weight, h_weight, reopen
):  # fmt: skip
    """Return tokens, offsets, and the look-ups, expansions and estimates of each query [Q, 3].

    `table` [tables, V] holds the kilometres to go of query q in row rows[q]; without rows the great
    circle stands in.
    """
    n, count = len(indptr) - 1, len(sources)
    spent = np.zeros((count, 3))
    offsets = np.zeros(count + 1, np.int64)
    tokens = [np.int32(0) for _ in range(0)]
    expanded = np.full(n, np.int64(-1))
    g = np.full(n, np.inf)
    parent = np.full(n, np.int32(-1))
    for q in range(count):
        source, target = sources[q], targets[q]
        touched = [source]
        g[source], parent[source] = 0.0, -1
        heap = [(0.0, source, 0.0)]
        while len(heap):
            _, city, reached = heappop(heap)
            if reached > g[city] or (expanded[city] == q and not reopen):
                continue
            if city == target:
                break
            expanded[city] = q
            spent[q, 0] += indptr[city + 1] - indptr[city]
            spent[q, 1] += 1
            for e in range(indptr[city], indptr[city + 1]):
                b = indices[e]
                candidate = reached + km[e]
                if candidate < g[b] and (reopen or expanded[b] != q):
                    if g[b] == np.inf:
                        touched.append(np.int64(b))
                        spent[q, 2] += h_weight != 0.0 and b != target
                    g[b], parent[b] = candidate, city
                    togo = 0.0
                    if h_weight and b != target:
                        togo = table[rows[q], b] if len(table) else great_circle(sphere, b, target)
                    if togo < np.inf:
                        f = g_weight * candidate + h_weight * togo
                        heappush(heap, (f, np.int64(b), candidate))
        route = [np.int32(target if g[target] < np.inf else source)]
        while parent[route[-1]] >= 0:
            route.append(parent[route[-1]])
        for city in route[::-1]:
            tokens.append(city)
        offsets[q + 1] = len(tokens)
        for city in touched:
            g[city] = np.inf
    return np.array(tokens, dtype=np.int32), offsets, spent
