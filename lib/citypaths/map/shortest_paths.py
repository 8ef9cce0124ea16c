"""Exact shortest paths: trees of all sources for many targets at once, ties broken by smallest ids.

A block of targets shares one table `mm[city, target]`. A sweep visits the cities in an order and
lets each take the minimum over its out-edges, for all targets of the block together. Eastward
graphs are settled by one sweep from east to west. Two-way graphs are swept east to west, west to
east, south to north and north to south until nothing changes; hops to cities that stood still are
passed over, so that it takes little more than one relaxation of each edge.

Lengths are whole millimetres, whose sums are exact, and a length and the next city share one
float64: the millimetres, and the id as their fraction. That is exact below 2^37 mm (137,000 km;
2^35 for 234,908 cities), so one minimum finds the shortest length and, among ties, the smallest
next city. The path of a query is the lexicographically smallest id sequence among its shortest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
from numba import config, njit
from scipy.sparse import csr_array

from citypaths.files import free_memory, require_memory
from citypaths.map.graph import CityGraph
from citypaths.map.paths import Paths

BLOCK = 128  # targets relaxed together: rows of 1 KiB
ROOM = 2**25  # tokens
Result = TypeVar("Result")


class Layout(NamedTuple):
    """A graph as the sweep reads it; `into` are the cities with an edge to each city."""

    keys: np.ndarray
    into_indptr: np.ndarray
    into: np.ndarray
    orders: np.ndarray
    base: float


@lru_cache(maxsize=2)  # it keeps the graphs in memory
def layout(graph: CityGraph) -> Layout:
    """Lay a graph out for `relax_block`."""
    n, base = len(graph), float(1 << max(16, len(graph).bit_length()))
    ones = np.ones(len(graph.indices), np.int8)
    into = csr_array((ones, graph.indices, graph.indptr), shape=(n, n)).T.tocsr()
    south_north = np.lexsort((graph.lon, graph.lat)).astype(np.int32)
    orders = [graph.order[::-1], graph.order, south_north, south_north[::-1]]
    orders = np.stack(orders[:1] if graph.orientation == "eastward" else orders)
    ends, ids = into.indptr.astype(np.int64), into.indices.astype(np.int32)
    return Layout(graph.mm + graph.indices / base, ends, ids, orders, base)


def _ids(graph: CityGraph) -> np.dtype:
    """The type of the ids of cities, and of one past the last."""
    return np.dtype(np.uint16 if len(graph) < 2**16 else np.uint32)


def _bytes(graph: CityGraph, trees: int) -> int:
    return trees * len(graph) * (8 + _ids(graph).itemsize)


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


@dataclass(frozen=True, eq=False)
class Trees:
    """Shortest-path trees rooted at targets.

    Attributes:
        targets: int32 [trees].
        mm: float64 [cities, trees], whole millimetres to the target; inf where unreachable.
        next_city: uint16 (uint32 past 65,534 cities) [cities, trees], the next city on the way; an
            id past the last city at the target itself and where unreachable.
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
        return self.next_city < len(self.next_city)


class Block:
    """The settled trees of one block of targets; the next block overwrites the arrays.

    Attributes:
        number: which block it is, from 0. targets: int32 [trees].
        mm: [cities, trees], as in `Trees`.
        next_city: [trees, cities], as in `Trees` but a row a tree, which fits a near cache.
    """

    def __init__(self, graph: CityGraph, width: int) -> None:
        self.graph, cells = graph, len(graph) * width
        self._tables = np.empty(cells), np.empty(cells, _ids(graph))
        self._room, self._last = np.empty(0, _ids(graph)), 0

    def settle(self, number: int, targets: np.ndarray) -> None:
        """Fill the arrays with the trees of other targets."""
        n, trees, laid = len(self.graph), len(targets), layout(self.graph)
        self.number, self.targets = number, targets
        self.mm = self._tables[0][: n * trees].reshape(n, trees)
        self.next_city = self._tables[1][: n * trees].reshape(trees, n)
        edges = (self.graph.indptr, self.graph.indices, *laid)
        farthest = relax_block(*edges, targets, self.mm, self.next_city)
        if farthest >= 2**53 / laid.base:
            what = f"{self.graph} has a shortest path of {farthest / 1e6:,.0f} km"
            raise ValueError(f"{what}: too long to sum exactly")

    def follow(self, sources: np.ndarray, trees: np.ndarray) -> Paths:
        """Return the path from each source [m] in the tree [m] of the same place.

        Paths of several blocks share an array of `ROOM` tokens or more: one large allocation, in
        huge pages, takes a fraction of the time of many small ones.
        """
        if len(self._room) < 1.2 * self._last:
            self._room = np.empty(ROOM, self._room.dtype)
        while (offsets := _follow(self.next_city, sources, trees, self._room))[-1] < 0:
            self._room = np.empty(max(ROOM, 2 * len(self._room)), self._room.dtype)
        self._last = int(offsets[-1])
        tokens, self._room = np.split(self._room, [self._last])
        return Paths(tokens, offsets)


def in_order(
    function: Callable[..., Result], jobs: Iterable[tuple], threads: int | None = None
) -> Iterator[Result]:
    """Yield `function(*job)` of each job, in order, computed in threads (default: one a core).

    It is for compiled functions that let other threads run. At most one result more than there are
    threads waits to be taken, so results may be large.
    """
    threads = threads or config.NUMBA_NUM_THREADS  # numba's own would set torch's number of threads
    pool, pending = ThreadPoolExecutor(threads), deque()
    try:
        for job in jobs:
            pending.append(pool.submit(function, *job))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def over_blocks(
    graph: CityGraph,
    blocks: Sequence[np.ndarray],
    use: Callable[[Block], Result],
    threads: int | None = None,
) -> Iterator[Result]:
    """Yield `use(block)` for the trees of each block of targets, in order, on all cores.

    Raises:
        ValueError: a target is no city, or a path is too long to be held exactly.
        MemoryError: the tables of that many threads do not fit.
    """
    for targets in blocks:
        if not ((targets >= 0) & (targets < len(graph))).all():
            raise ValueError(f"targets are ids from 0 to {len(graph) - 1}")
    width = max(map(len, blocks), default=0)
    threads = min(threads or config.NUMBA_NUM_THREADS, len(blocks)) or 1
    what = f"{threads} times {width} trees of {graph}"
    require_memory(_bytes(graph, threads * width), what, "use fewer threads")
    layout(graph)  # once, before the threads ask for it
    spare = [Block(graph, width) for _ in range(threads)]

    def work(number: int, targets: np.ndarray) -> Result:
        block = spare.pop()
        try:
            block.settle(number, targets)
            return use(block)
        finally:
            spare.append(block)

    yield from in_order(work, enumerate(blocks), threads)


def in_blocks(targets: np.ndarray, width: int = BLOCK) -> list[np.ndarray]:
    """Return targets cut into arrays of at most `width`."""
    return [targets[start : start + width] for start in range(0, len(targets), width)]


def shortest_path_trees(graph: CityGraph, targets) -> Trees:
    """Return the trees of shortest paths from every city to each of `targets` (ids [trees]).

    Raises:
        ValueError: a target is no city, or a path is too long to be held exactly.
        MemoryError: so many trees do not fit into memory; the message says how much each takes.
    """
    targets = np.atleast_1d(np.asarray(targets, np.int32))
    fit = f"at most {int(free_memory() / _bytes(graph, 1)):,} fit at once"
    remedy = f"{fit}; over_blocks goes through any number, a block at a time"
    require_memory(_bytes(graph, len(targets)), f"{len(targets):,} trees of {graph}", remedy)
    mm = np.empty((len(graph), len(targets)))
    next_city = np.empty((len(targets), len(graph)), _ids(graph))
    width = min(BLOCK, max(16, -(-len(targets) // 4)))  # several blocks a thread
    order = np.argsort(targets, kind="stable")  # neighbours share a block, and most of its work
    columns = in_blocks(order, width)[::-1]  # the eastern ones, which take longest, first
    if (order[:-1] < order[1:]).all():
        columns = [slice(some[0], some[-1] + 1) for some in columns]  # faster to write

    def keep(block: Block) -> None:
        where = columns[block.number]
        mm[:, where], next_city[where] = block.mm, block.next_city

    deque(over_blocks(graph, [targets[where] for where in columns], keep), maxlen=0)
    return Trees(targets, mm, next_city.T)


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
    room = np.empty(0, trees.next_city.dtype)
    while (offsets := _follow(trees.next_city.T, pairs[:, 0], columns, room))[-1] < 0:
        room = np.empty(2 * len(room) + 64 * len(pairs), room.dtype)
    return Paths(room[: offsets[-1]].astype(np.int32), offsets)


@njit(cache=True, nogil=True)
def _follow(next_city, sources, trees, room):
    """Write paths into `room` and return their offsets; the last is negative where it is full."""
    cities, total = next_city.shape[1], 0
    offsets = np.zeros(len(sources) + 1, np.int64)
    for i in range(len(sources)):
        row, city = next_city[trees[i]], np.int64(sources[i])
        while city < cities:
            if total == len(room):
                offsets[-1] = -1
                return offsets
            room[total] = city
            city, total = np.int64(row[city]), total + 1
        offsets[i + 1] = total
    return offsets


def count_reachable(graph: CityGraph) -> int:
    """Return how many ordered (source, target) pairs of distinct cities have a path."""
    blocks = in_blocks(np.arange(len(graph), dtype=np.int32))
    return sum(over_blocks(graph, blocks, lambda b: int((b.next_city < len(graph)).sum())))
