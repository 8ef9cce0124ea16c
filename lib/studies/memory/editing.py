"""Editing the map: roads closed, cities closed, bridges built; queries asked anew, exactly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from citypaths.data.shards import Rows
from citypaths.judging.floors import walk
from citypaths.judging.metrics import SLACK, judge
from citypaths.judging.queries import Queries
from citypaths.map.graph import CityGraph, unit_hash
from citypaths.map.great_circle import great_circle_km
from citypaths.map.paths import Paths
from citypaths.map.shortest_paths import paths, shortest_path_trees

TRIED = 2000  # candidate bridges


def closed(graph: CityGraph, hops) -> CityGraph:
    """Return the graph without hops ([m, 2] ids), in both directions on a two-way graph.

    Raises:
        ValueError: a hop is no edge.
    """
    hops = np.asarray(hops, np.int64).reshape(-1, 2)
    if graph.orientation == "two_way":
        hops = np.concatenate([hops, hops[:, ::-1]])
    at = graph.edge_index(hops[:, 0], hops[:, 1])
    if (at < 0).any():
        raise ValueError("{} -> {} is no hop of this graph".format(*hops[at < 0][0]))
    kept = np.ones(len(graph.indices), bool)
    kept[at] = False
    return graph.with_edges(kept)


def bridged(graph: CityGraph, pairs) -> CityGraph:
    """Return the graph with new hops between pairs of cities ([m, 2] ids) as the crow flies.

    They lead eastward, as all do, or both ways on a two-way graph; any distance will do.

    Raises:
        ValueError: a pair is joined already, twice in `pairs`, or not of two cities.
    """
    west, east = _oriented(graph, pairs)
    if (west == east).any() or graph.is_edge(west, east).any():
        raise ValueError("a bridge joins two cities between which there is no hop")
    a = np.concatenate([graph.edge_sources, west])
    b = np.concatenate([graph.indices, east])
    km = great_circle_km(graph.lat[west], graph.lon[west], graph.lat[east], graph.lon[east])
    order = np.lexsort((b, a))
    if len(np.unique(a * len(graph) + b)) < len(a):
        raise ValueError("a bridge is built once")
    indptr = np.searchsorted(a[order], np.arange(len(graph) + 1)).astype(np.int64)
    length = np.concatenate([graph.km, km])[order]
    return replace(graph, indptr=indptr, indices=b[order].astype(np.int32), km=length)


def _oriented(graph: CityGraph, pairs) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the hops that bridges between pairs add."""
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    if not ((pairs >= 0) & (pairs < len(graph))).all():
        raise ValueError(f"pairs are ids from 0 to {len(graph) - 1}")
    if graph.orientation == "two_way":
        return np.concatenate([pairs, pairs[:, ::-1]]).T
    rank = np.argsort(graph.order)
    turned = rank[pairs[:, 0]] > rank[pairs[:, 1]]
    return np.where(turned[:, None], pairs[:, ::-1], pairs).T


@dataclass(frozen=True, eq=False)
class Edit:
    """A map before and after an edit, and test queries that can still be answered.

    Attributes:
        before, after: the map. kept: int64 [Q], which of the queries asked before are left.
        queries: those, with the exact shortest paths of the edited map and its hard subset.
        hit: bool [Q], the old shortest path is closed, or the new one takes a bridge.
        needed: bool [Q], hit, and the old path does not succeed any more: always where it is
            closed; where a bridge is built, when it is now too long (`SLACK`).
    """

    before: CityGraph
    after: CityGraph
    kept: np.ndarray
    queries: Queries
    hit: np.ndarray
    needed: np.ndarray

    @classmethod
    def of(cls, queries: Queries, after: CityGraph) -> Edit:
        """Ask queries of a map again on the map after the edit."""
        old, before = queries.rows, queries.graph
        trees = shortest_path_trees(after, np.unique(old.target))
        column = np.searchsorted(trees.targets, old.target)
        kept = np.flatnonzero(np.isfinite(trees.mm[old.source, column]))
        asked, mm = old.take(kept), trees.mm[old.source[kept], column[kept]]
        found = paths(trees, np.stack([asked.source, asked.target], 1))
        rows = Rows(asked.source, asked.target, mm.astype(np.int64), asked.part, found)
        walked = walk(after, rows.source, rows.target)
        hard = ~judge(after, rows.source, rows.target, rows.km, walked.paths)["success"].to_numpy()
        anew = Queries(after, rows, queries.contained[kept], hard, queries.straight_km[kept])
        shut, built = ~_legal(after, asked.paths), ~_legal(before, found)
        late = asked.mm > (1 + SLACK) * mm
        return cls(before, after, kept, anew, shut | built, shut | (built & late))

    def take(self, keep: np.ndarray) -> Edit:
        """Return the edit with some of the queries that are left (positions or a boolean mask)."""
        some = (self.kept[keep], self.queries.take(keep), self.hit[keep], self.needed[keep])
        return Edit(self.before, self.after, *some)

    @cached_property
    def gone(self) -> np.ndarray:
        """Hops that the edit closed, int64 [m, 2]."""
        return _difference(self.before, self.after)

    @cached_property
    def new(self) -> np.ndarray:
        """Hops that the edit added, int64 [m, 2]."""
        return _difference(self.after, self.before)


def _difference(graph: CityGraph, other: CityGraph) -> np.ndarray:
    hops = np.stack([graph.edge_sources, graph.indices], 1).astype(np.int64)
    return hops[~other.is_edge(hops[:, 0], hops[:, 1])]


def _legal(graph: CityGraph, these: Paths) -> np.ndarray:
    """Whether every hop of each path is an edge, bool [paths]."""
    row, a, b = these.hops()
    return np.bincount(row[~graph.is_edge(a, b)], minlength=len(these)) == 0


def closures(graph: CityGraph, share: float, seed: int) -> CityGraph:
    """Return the graph with a share of its hops closed, at least one, drawn by chance.

    A larger share closes what a smaller one does with the same seed. On a two-way graph a road is
    drawn once, and closed in both directions.
    """
    if not 0 < share <= 1:
        raise ValueError(f"a share above 0 and at most 1, not {share}")
    hops = np.stack([graph.edge_sources, graph.indices], 1).astype(np.int64)
    if graph.orientation == "two_way":
        hops = hops[hops[:, 0] < hops[:, 1]]
    drawn = unit_hash(seed, hops[:, 0], hops[:, 1], 0xC105ED)
    return closed(graph, hops[np.argsort(drawn)[: max(1, round(share * len(hops)))]])


def best_bridges(
    graph: CityGraph,
    source: np.ndarray,
    target: np.ndarray,
    count: int,
    longest_km: float,
    seed: int,
) -> np.ndarray:
    """Return pairs [count, 2] that make most old paths too long to succeed, no two from one city.

    `TRIED` candidates are drawn by chance among pairs that no hop joins.

    Args:
        source, target: ids [Q] of queries, such as training ones. longest_km: of a bridge.
    """
    everyone = np.arange(len(graph))
    trees = shortest_path_trees(graph, everyone).mm
    a, b = np.nonzero(graph.distance_km(everyone[:, None], everyone) <= longest_km)
    west, east = _oriented(graph, np.stack([a, b], 1)[a < b])
    free = np.flatnonzero(~graph.is_edge(west, east))
    free = free[np.argsort(unit_hash(seed, west[free], east[free], 0xB81D6E))[:TRIED]]
    west, east = west[free], east[free]
    mm, direct = graph.distance_km(west, east) * 1e6, trees[source, target]
    saved = [
        (direct > (1 + SLACK) * (trees[source, w] + length + trees[e, target])).sum()
        for w, e, length in zip(west, east, mm, strict=True)
    ]
    chosen: list[tuple[int, int]] = []
    for i in np.argsort(-np.array(saved), kind="stable"):
        used = {city for pair in chosen for city in pair}
        if len(chosen) < count and not used & {int(west[i]), int(east[i])}:
            chosen.append((int(west[i]), int(east[i])))
    return np.array(chosen, np.int64).reshape(-1, 2)


def closing(
    queries: Queries, shares: Iterable[float], seeds: Sequence[int]
) -> dict[tuple[float, int], Edit]:
    """Return an edit for each (share of hops closed, seed)."""
    graph = queries.graph
    return {(s, n): Edit.of(queries, closures(graph, s, n)) for s in shares for n in seeds}


def bridging(
    queries: Queries, train: Rows, count: int, seeds: Sequence[int]
) -> dict[tuple[float, int], Edit]:
    """Return an edit with `count` bridges for each seed, by (their share of all hops, seed).

    A bridge is at most twice as long as the connected distance. A seed draws the candidates; of
    them those that shorten most training queries are built.
    """
    graph, edits = queries.graph, {}
    for seed in seeds:
        args = (train.source, train.target, count, 2 * graph.connected_km, seed)
        edits[count / len(graph.indices), seed] = Edit.of(
            queries, bridged(graph, best_bridges(graph, *args))
        )
    return edits
