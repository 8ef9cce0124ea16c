"""Relaxation of a block of targets at once, the work behind `shortest_paths`.

A block of targets shares one table `mm[city, target]`. A sweep visits the cities in an order and
lets each take the minimum over its out-edges, for all targets of the block together. Eastward
graphs are settled by one sweep from east to west. Two-way graphs are swept east to west, west to
east, south to north and north to south until nothing changes; hops to cities that stood still are
passed over, so that it takes little more than one relaxation of each edge.

Lengths are whole millimetres, and a length and the next city share one float64: the millimetres,
and the id as their fraction. That is exact below 2^37 mm (137,000 km; 2^35 for 234,908 cities), so
one minimum finds the shortest length and, among ties, the smallest next city. The path that
follows is the lexicographically smallest of the shortest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numba import njit
from scipy.sparse import csr_array

from citypaths.map.graph import CityGraph


@dataclass(frozen=True, eq=False)
class Packed:
    """A graph as the sweep reads it; `into` are the cities with an edge to each city."""

    cities: int
    base: float
    ids: np.dtype
    keys: np.ndarray
    into_indptr: np.ndarray
    into: np.ndarray
    orders: np.ndarray

    @property
    def bytes_a_tree(self) -> int:
        return self.cities * (8 + self.ids.itemsize)


@lru_cache(maxsize=2)  # it keeps the graphs in memory
def pack(graph: CityGraph) -> Packed:
    """Lay a graph out for `relax_block`."""
    n = len(graph)
    base = 1 << max(16, n.bit_length())
    ones = np.ones(len(graph.indices), np.int8)
    into = csr_array((ones, graph.indices, graph.indptr), shape=(n, n)).T.tocsr()
    west_east = graph.order
    south_north = np.lexsort((graph.lon, graph.lat)).astype(np.int32)
    orders = [west_east[::-1], west_east, south_north, south_north[::-1]]
    return Packed(
        cities=n,
        base=float(base),
        ids=np.dtype(np.uint16 if base == 1 << 16 else np.uint32),
        keys=graph.mm + graph.indices / base,
        into_indptr=into.indptr.astype(np.int64),
        into=into.indices.astype(np.int32),
        orders=np.stack(orders[:1] if graph.orientation == "eastward" else orders),
    )


@njit(cache=True, nogil=True, error_model="numpy")
def relax_block(indptr, indices, keys, into_indptr, into, orders, base, targets, mm, next_city):
    """Fill mm [cities, targets] and next_city [targets, cities]; return the farthest, in mm."""
    width, none = len(targets), base - 1
    changed, seen = np.zeros(len(indptr), np.int32), np.zeros(len(indptr), np.int32)
    due = np.zeros(len(indptr), np.bool_)
    fresh = np.empty(len(indices) + 4, np.int64)
    row = np.empty(width)
    next_city[:] = none
    for j in range(width):
        if not changed[targets[j]]:
            mm[targets[j]] = np.inf
        mm[targets[j], j] = 0.0
        changed[targets[j]] = 1
        due[into[into_indptr[targets[j]] : into_indptr[targets[j] + 1]]] = True
    clock, sweeps, quiet, farthest = 1, 0, False, 0.0
    while not quiet and not (sweeps == 1 and len(orders) == 1):
        quiet = True
        for a in orders[sweeps % len(orders)]:
            if not due[a]:
                continue
            due[a], edges = False, 0
            for e in range(indptr[a], indptr[a + 1]):  # to cities that changed since a last looked
                fresh[edges] = e
                edges += changed[indices[e]] > seen[a]
            fresh[edges : edges + 3] = fresh[0]
            if not (seen[a] or changed[a]):  # the first visit: a row is filled when it is near
                mm[a] = np.inf
            for j in range(width):
                row[j] = mm[a, j] + next_city[j, a] / base
            for e in range(0, edges, 4):  # four edges a pass spare three loads and stores of `row`
                _relax(fresh[e], fresh[e + 1], fresh[e + 2], fresh[e + 3], indices, keys, mm, row)
            clock += 1
            seen[a], nearer = clock, False
            for j in range(width):
                length = np.floor(row[j])
                nearer |= length < mm[a, j]
                farthest = max(farthest, length if length < np.inf else 0.0)
                row[j] = (row[j] - length) * base if length < np.inf else none
                mm[a, j] = length
            for j in range(width):  # apart, so that the loop above runs in vector registers
                next_city[j, a] = np.int32(row[j])
            if nearer:
                quiet, changed[a] = False, clock
                due[into[into_indptr[a] : into_indptr[a + 1]]] = True
        sweeps += 1
    for a in range(len(mm)):
        if not (seen[a] or changed[a]):
            mm[a] = np.inf
    return farthest


@njit(inline="always")
def _relax(e, f, g, h, indices, keys, mm, row):
    a, b, c, d = indices[e], indices[f], indices[g], indices[h]
    to_a, to_b, to_c, to_d = keys[e], keys[f], keys[g], keys[h]
    for j in range(len(row)):
        best = _lesser(mm[a, j] + to_a, row[j])
        best = _lesser(mm[b, j] + to_b, best)
        best = _lesser(mm[c, j] + to_c, best)
        row[j] = _lesser(mm[d, j] + to_d, best)


@njit(inline="always")
def _lesser(x, y):
    return x if x < y else y  # one instruction; min() would also look for NaN
