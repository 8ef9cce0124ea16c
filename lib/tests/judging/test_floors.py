"""Floors: exact where they claim to be, counted where they look, the same as plain loops."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest

from citypaths.judging.floors import hop_use, rarest_hop, stored_hops, walk
from citypaths.judging.metrics import judge
from citypaths.map.best_first import best_first
from citypaths.map.graph import build_graph, jittered, rounded
from citypaths.map.paths import Found, Paths
from citypaths.map.shortest_paths import paths, shortest_path_trees
from studies.baselines.study import floors


def queries(graph, count: int = 1500, seed: int = 0):
    """Random reachable queries: sources, targets, exact millimetres."""
    trees = shortest_path_trees(graph, np.arange(len(graph)))
    source, target = np.nonzero(trees.reachable)
    keep = np.random.default_rng(seed).choice(len(source), min(count, len(source)), replace=False)
    source, target = source[keep], target[keep]
    return source, target, trees.mm[source, target]


def judged(graph, source, target, mm, found):
    return judge(graph, source, target, mm / 1e6, found.paths)


def millimetres(graph, found) -> np.ndarray:
    """Length of each path, every hop of which must be an edge."""
    at = [graph.edge_index(path[:-1], path[1:]) for path in found.paths]
    assert all((row >= 0).all() for row in at)
    return np.array([graph.mm[row].sum() for row in at])


@pytest.fixture(scope="module")
def asked(oriented_tennessee):
    return (oriented_tennessee, *queries(oriented_tennessee))


# Exactness


def test_dijkstra_and_a_star_are_exact(asked):
    graph, source, target, mm = asked
    dijkstra, a_star = (best_first(graph, source, target, 1, h) for h in (0, 1))
    for found in (dijkstra, a_star):
        np.testing.assert_array_equal(millimetres(graph, found), mm)
        assert judged(graph, source, target, mm, found)["success"].all()
    assert (a_star.expansions <= dijkstra.expansions).all()
    assert a_star.lookups.sum() < dijkstra.lookups.sum()


@pytest.mark.parametrize("change", [rounded, jittered])
def test_dijkstra_is_exact_with_other_lengths(oriented_tennessee, change):
    graph = change(oriented_tennessee)
    source, target, mm = queries(graph, 300)
    np.testing.assert_array_equal(millimetres(graph, best_first(graph, source, target, 1, 0)), mm)
    a_star = millimetres(graph, best_first(graph, source, target))
    np.testing.assert_allclose(a_star, mm, rtol=0 if change is jittered else 0.01)


def test_weighted_a_star_keeps_its_bound(asked):
    graph, source, target, mm = asked
    found = best_first(graph, source, target, 1.0, 1.05, reopen=False)
    assert (millimetres(graph, found) <= 1.05 * mm).all()
    assert found.expansions.sum() <= best_first(graph, source, target).expansions.sum()


def test_greedy_best_first_arrives(asked):
    graph, source, target, mm = asked
    found = best_first(graph, source, target, 0.0, 1.0)
    table = judged(graph, source, target, mm, found)
    assert table["legal"].all() and table["arrives"].all()
    assert found.expansions.mean() < best_first(graph, source, target).expansions.mean()


def test_every_floor_starts_at_the_source_and_moves_along_edges(asked):
    graph, source, target, mm = (asked[0], *(x[:200] for x in asked[1:]))
    trees = shortest_path_trees(graph, np.unique(target))
    memory = [paths(trees, np.stack([source, target], 1))]
    table = floors(graph, memory)
    assert list(table)[-1] == "stitched hops" and len(table) == len(floors(graph)) + 1
    for find in table.values():
        found = find(source, target)
        assert judged(graph, source, target, mm, found)["legal"].all()
        assert found.cost()["expansions"] == found.expansions.mean()
    assert judged(graph, source, target, mm, table["stitched hops"](source, target))[
        "success"
    ].all()


def test_best_first_matches_networkx_on_two_way_roads(tennessee_two_way):
    graph = tennessee_two_way
    source, target, _ = queries(graph, 40, seed=3)
    roads = graph.to_networkx()
    found = millimetres(graph, best_first(graph, source, target))
    expected = [nx.dijkstra_path_length(roads, a, b) for a, b in zip(source, target, strict=True)]
    np.testing.assert_allclose(found / 1e6, expected, rtol=1e-7)


# Counts by hand


@pytest.fixture(scope="module")
def five(place):
    """Edges 0 -> 1, 0 -> 2, 1 -> 3, 2 -> 3; city 4 is out of reach."""
    graph = build_graph(place([(0, 0), (0.1, 0.1), (-0.08, 0.1), (0, 0.2), (0, 9)]), 17)
    edges = list(zip(graph.edge_sources.tolist(), graph.indices.tolist(), strict=True))
    assert edges == [(0, 1), (0, 2), (1, 3), (2, 3)]
    return graph


def test_counts_of_five_cities(five):
    def spent(found: Found):
        return found.expansions.tolist(), found.lookups.tolist(), [p.tolist() for p in found.paths]

    ask = np.array([0, 0, 3, 2]), np.array([3, 4, 3, 3])
    way = [[0, 2, 3], [0], [3], [2, 3]]
    assert spent(best_first(five, *ask, 1, 0)) == ([3, 4, 0, 1], [4, 4, 0, 1], way)
    assert spent(best_first(five, *ask, 1, 1)) == ([2, 4, 0, 1], [3, 4, 0, 1], way)
    assert spent(best_first(five, *ask, 0, 1)) == ([2, 4, 0, 1], [3, 4, 0, 1], way)
    dead_end = [[0, 2, 3], [0, 2, 3], [3], [2, 3]]
    assert spent(walk(five, *ask)) == ([2, 2, 0, 1], [3, 3, 0, 1], dead_end)
    assert walk(five, *ask).flops.tolist() == [0] * 4


def test_unreachable_gives_the_source_alone_and_is_counted(five):
    for find in floors(five).values():
        found = find([1, 4], [2, 0])
        assert [path[0] for path in found.paths] == [1, 4]
        table = judge(five, np.array([1, 4]), np.array([2, 0]), [1, 1], found.paths)
        assert not table["arrives"].any()
    found = best_first(five, [1, 4], [2, 0])
    assert [path.tolist() for path in found.paths] == [[1], [4]]
    assert found.expansions.tolist() == [2, 1] and found.lookups.tolist() == [1, 0]


def test_no_queries(five):
    for find in floors(five).values():
        found = find([], [])
        assert len(found.paths) == 0 and found.cost()["lookups"] == 0


def test_a_graph_without_edges(scattered):
    for find in floors(scattered, [Paths.from_lists([[0], [1]])]).values():
        found = find([0, 1], [1, 1])
        assert [path.tolist() for path in found.paths] == [[0], [1]]


# Walks


def plain_walk(graph, source, target, hop_weight, limit):
    """Geo-greedy without numba: path, look-ups, expansions."""
    path, seen, lookups, expansions = [source], set(), 0, 0
    while path[-1] != target and len(path) <= limit and path[-1] not in seen:
        city = path[-1]
        seen.add(city)
        near = graph.neighbours(city)
        if not len(near):
            break
        lookups, expansions = lookups + len(near), expansions + 1
        km = graph.km[graph.indptr[city] : graph.indptr[city + 1]]
        cost = hop_weight * km + graph.distance_km(near, np.full(len(near), target))
        path.append(int(near[np.argmin(cost)]))
    return path, lookups, expansions


@pytest.mark.parametrize("hop_weight", [0.0, 1.0])
def test_greedy_walks_are_the_plain_ones(asked, hop_weight):
    graph, source, target, _ = (asked[0], *(x[:300] for x in asked[1:]))
    found = walk(graph, source, target, hop_weight)
    for i, (a, b) in enumerate(zip(source.tolist(), target.tolist(), strict=True)):
        path, lookups, expansions = plain_walk(graph, a, b, hop_weight, len(graph))
        assert found.paths[i].tolist() == path
        assert (found.lookups[i], found.expansions[i]) == (lookups, expansions)


def test_a_walk_ends_at_a_city_seen_before(tennessee_two_way):
    source, target, _ = queries(tennessee_two_way, 400)
    found = walk(tennessee_two_way, source, target)
    stuck = [p for p, t in zip(found.paths, target, strict=True) if p[-1] != t]
    assert stuck
    assert all(p[-1] in p[:-1] and len(set(p.tolist())) == len(p) - 1 for p in stuck)


@pytest.mark.parametrize("hop_weight", [-1.0, 0.0])
@pytest.mark.parametrize("limit", [1, 2, 7])
def test_a_walk_takes_at_most_its_limit(asked, hop_weight, limit):
    graph, source, target, _ = asked
    found = walk(graph, source, target, hop_weight, limit=limit)
    assert found.paths.lengths.max() == limit + 1
    assert (found.expansions == found.paths.lengths - 1).all()


def test_random_walks_are_legal_and_reproducible(asked):
    graph, source, target, mm = asked
    found, again, other = (walk(graph, source, target, -1.0, seed=s) for s in (3, 3, 4))
    assert judged(graph, source, target, mm, found)["legal"].all()
    assert np.array_equal(found.paths.tokens, again.paths.tokens)
    assert not np.array_equal(found.paths.tokens[:1000], other.paths.tokens[:1000])
    few = walk(graph, source[5:9], target[5:9], -1.0, seed=3)
    assert [p.tolist() for p in few.paths] == [found.paths[i].tolist() for i in range(5, 9)]


def test_random_walks_draw_neighbours_uniformly(tennessee):
    city = int(np.argmax(np.diff(tennessee.indptr)))
    near = tennessee.neighbours(city)
    targets = np.setdiff1d(np.arange(len(tennessee)), [city])
    targets = np.repeat(targets, 8), np.tile(np.arange(8), len(targets))
    first = [
        walk(tennessee, np.full(len(t), city), t, -1.0, seed=s, limit=1).paths.padded()[:, 1]
        for s, t in ((s, targets[0][targets[1] == s]) for s in range(8))
    ]
    counts = np.bincount(np.searchsorted(near, np.concatenate(first)), minlength=len(near))
    expected = counts.sum() / len(near)
    assert ((counts - expected) ** 2 / expected).sum() < len(near) + 5 * np.sqrt(2 * len(near))


# Memory


def test_stitched_hops_are_those_of_the_paths(tennessee):
    source, target, _ = queries(tennessee, 60)
    trees = shortest_path_trees(tennessee, np.unique(target))
    memory = paths(trees, np.stack([source, target], 1))
    known = {(int(a), int(b)) for p in memory for a, b in pairwise(p)}
    stored = stored_hops(tennessee, [memory.take(np.arange(25)), memory.take(np.arange(25, 60))])
    assert set(zip(stored.edge_sources.tolist(), stored.indices.tolist(), strict=True)) == known
    kept = tennessee.edge_index(stored.edge_sources, stored.indices)
    np.testing.assert_array_equal(stored.km, tennessee.km[kept])
    assert stored.fingerprint != tennessee.fingerprint


def test_stitched_search_is_networkx_on_the_subgraph(tennessee):
    source, target, _ = queries(tennessee, 60)
    trees = shortest_path_trees(tennessee, np.unique(target))
    memory = paths(trees, np.stack([source, target], 1))
    sub = nx.DiGraph()
    for path in memory:
        for a, b in pairwise(path.tolist()):
            sub.add_edge(a, b, weight=tennessee.mm[tennessee.edge_index(a, b)])
    ask, goal, _ = queries(tennessee, 400, seed=9)
    found = floors(tennessee, [memory])["stitched hops"](ask, goal)
    arrived = 0
    for path, a, b in zip(found.paths, ask.tolist(), goal.tolist(), strict=True):
        if a in sub and b in sub and nx.has_path(sub, a, b):
            arrived += 1
            mm = tennessee.mm[tennessee.edge_index(path[:-1], path[1:])].sum()
            assert path[-1] == b and mm == nx.dijkstra_path_length(sub, a, b)
            assert all(sub.has_edge(*hop) for hop in pairwise(path.tolist()))
        else:
            assert path.tolist() == [a]
    assert 20 < arrived < 400


def test_stored_hops_of_empty_and_single_paths(five):
    memory = Paths.from_lists([[], [0, 1], [2], [1], [], [2, 3], []])
    stored = stored_hops(five, [memory, Paths.from_lists([])])
    assert stored.edge_sources.tolist() == [0, 2] and stored.indices.tolist() == [1, 3]
    illegal = stored_hops(five, [Paths.from_lists([[0, 3], [3, 0], [0, 0, 1]])])
    assert illegal.indices.tolist() == [1]


def test_hops_are_counted_and_the_rarest_found(five):
    memory = [Paths.from_lists([[0, 1, 3], [], [0, 1], [2, 3]]), Paths.from_lists([[0, 1], [3]])]
    use = hop_use(five, memory)
    assert use.tolist() == [3, 0, 1, 1]
    asked = Paths.from_lists([[0, 1], [0, 1, 3], [0, 2, 3], [2, 3]])
    assert rarest_hop(five, use, asked).tolist() == [3, 1, 0, 1]


def test_a_memory_of_nothing_finds_nothing(five):
    found = floors(five, [])["stitched hops"]([0], [3])
    assert found.paths[0].tolist() == [0] and found.expansions[0] == 1


def test_lengths_that_shrink_below_the_straight_line(five):
    """Edge lengths need not respect geometry: Dijkstra is exact, A* still arrives."""
    graph = replace(five, km=np.array([1e-7, 20.0, 1e-7, 20.0]))
    for h in (0, 1):
        assert best_first(graph, [0], [3], 1, h).paths[0][-1] == 3
    assert best_first(graph, [0], [3], 1, 0).paths[0].tolist() == [0, 1, 3]
