"""Best-first search over out-edges: the compiled loop of Dijkstra, A* and their kin."""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np
from numba import njit

from citypaths.map.graph import CityGraph
from citypaths.map.great_circle import great_circle, unit_sphere


def sphere_points(graph: CityGraph) -> np.ndarray:
    """Return the cities' points on the unit sphere, float64 [V, 3], laid out for `great_circle`."""
    return np.ascontiguousarray(unit_sphere(graph.lat, graph.lon))


@njit(cache=True)
def _estimate(points, table, row, city, target):
    """Kilometres to go: from the table where it has rows, else the great circle."""
    if city == target:
        return 0.0
    return table[row, city] if len(table) else great_circle(points, city, target)


@njit(cache=True)
def _unseen(g, ends, target):
    """Count the cities among `ends` that no estimate was asked for yet."""
    count = 0
    for b in ends:
        count += g[b] == np.inf and b != target
    return count


@njit(cache=True)
def _route(parent, reached, source, target):
    route = [np.int32(source)]
    if reached:
        route = [np.int32(target)]
        while parent[route[-1]] >= 0:
            route.append(parent[route[-1]])
    return route[::-1]


@njit(cache=True)
def expand_best(
    indptr, indices, km, points, sources, targets, table, rows, g_weight, h_weight, reopen, limits
):  # fmt: skip
    """Expand the city of least g_weight * g + h_weight * km to go, until it is the target.

    `table` [tables, V] holds the kilometres to go of query q in row rows[q]; without rows the great
    circle stands in. With `reopen` a city is expanded again when a shorter way to it turns up. A
    query stops before it would exceed `limits` (look-ups, expansions, estimates). Returns tokens,
    offsets, and what each query spent, [queries, 3] in the order of the limits. An estimate is
    counted once for each city reached; the source and the target need none.
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
            low, high = indptr[city], indptr[city + 1]
            over = spent[q, 0] + high - low > limits[0] or spent[q, 1] + 1 > limits[1]
            if h_weight and limits[2] < np.inf:
                over |= spent[q, 2] + _unseen(g, indices[low:high], target) > limits[2]
            if city == target or over:
                break
            expanded[city] = q
            spent[q, 0] += high - low
            spent[q, 1] += 1
            for e in range(low, high):
                b = indices[e]
                candidate = reached + km[e]
                if candidate < g[b] and (reopen or expanded[b] != q):
                    if g[b] == np.inf:
                        touched.append(np.int64(b))
                        spent[q, 2] += h_weight != 0.0 and b != target
                    g[b], parent[b] = candidate, city
                    togo = _estimate(points, table, rows[q], b, target) if h_weight else 0.0
                    if togo < np.inf:
                        f = g_weight * candidate + h_weight * togo
                        heappush(heap, (f, np.int64(b), candidate))
        for city in _route(parent, g[target] < np.inf, source, target):
            tokens.append(city)
        offsets[q + 1] = len(tokens)
        for city in touched:
            g[city] = np.inf
    return np.array(tokens, dtype=np.int32), offsets, spent
