"""Shortest paths against scipy, networkx and brute force, to the millimetre and to the tie."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from citypaths import files
from citypaths.map import shortest_paths
from citypaths.map.graph import CityGraph, build_graph, jittered, rounded
from citypaths.map.paths import Paths
from citypaths.map.shortest_paths import (
    BLOCK,
    count_reachable,
    in_blocks,
    over_blocks,
    paths,
    shortest_path_trees,
)

REACH = 2**53  # whole numbers up to here are exact in float64


def all_trees(graph: CityGraph):
    return shortest_path_trees(graph, np.arange(len(graph)))


def reachable_pairs(trees, count: int, seed: int = 0) -> np.ndarray:
    """Random (source, target) pairs that have a path, [count, 2]."""
    source, column = np.nonzero(trees.reachable)
    rows = np.random.default_rng(seed).choice(len(source), count, replace=False)
    return np.stack([source[rows], trees.targets[column[rows]]], 1)


def brute_matrix(graph: CityGraph) -> csr_array:
    """Weights in km from all pairs of cities, by nothing that the graph's edges are made of."""
    ids = np.arange(len(graph))
    km = graph.distance_km(ids[:, None], ids)
    keep = (km <= graph.connected_km) & (ids[:, None] != ids)
    if graph.orientation == "eastward":
        key = np.rec.fromarrays([graph.lon, graph.lat, ids])
        rank = np.argsort(np.argsort(key))
        keep &= rank[:, None] < rank
    return csr_array(np.where(keep, km, 0))


def weighted_digraph(graph: CityGraph) -> nx.DiGraph:
    """A networkx graph in whole millimetres, as Python integers."""
    digraph = nx.DiGraph()
    digraph.add_nodes_from(range(len(graph)))
    edges = zip(graph.edge_sources.tolist(), graph.indices.tolist(), graph.mm.tolist(), strict=True)
    digraph.add_weighted_edges_from((a, b, int(mm)) for a, b, mm in edges)
    return digraph


def path_mm(graph: CityGraph, path) -> float:
    return graph.mm[graph.edge_index(path[:-1], path[1:])].sum()


# Lengths


def test_lengths_equal_scipy_over_brute_force_edges(oriented_tennessee):
    graph, matrix = oriented_tennessee, brute_matrix(oriented_tennessee)
    trees = all_trees(graph)
    in_mm = csr_array((np.rint(matrix.data * 1e6), matrix.indices, matrix.indptr), matrix.shape)
    np.testing.assert_array_equal(trees.mm, dijkstra(in_mm))
    in_km, reachable = dijkstra(matrix), np.isfinite(trees.mm)
    hops = dijkstra(matrix, unweighted=True)
    rounding = 0.5e-6 * len(graph)  # km; each hop is off by at most half a millimetre
    np.testing.assert_allclose(trees.km, in_km, rtol=1e-9, atol=rounding)
    assert (hops[reachable] < len(graph)).all()
    np.testing.assert_array_equal(trees.reachable, reachable & ~np.eye(len(graph), dtype=bool))


@pytest.mark.parametrize("change", [lambda g: g, lambda g: rounded(g, 2), jittered])
def test_returned_paths_are_as_long_as_networkx_says(oriented_tennessee, change):
    graph = change(oriented_tennessee)
    targets = np.random.default_rng(1).choice(len(graph), 40, replace=False)
    trees = shortest_path_trees(graph, targets)
    pairs = reachable_pairs(trees, 1000)
    backwards = weighted_digraph(graph).reverse()
    exact = {
        int(t): nx.single_source_dijkstra_path_length(backwards, int(t)) for t in np.unique(targets)
    }
    for (source, target), path in zip(pairs.tolist(), paths(trees, pairs), strict=True):
        assert (path[0], path[-1]) == (source, target)
        assert path_mm(graph, path) == exact[target][source] < REACH


@pytest.mark.parametrize("orientation", ["eastward", "two_way"])
def test_national_paths_equal_scipy(nation, orientation):
    if orientation == "two_way":
        nation = build_graph(nation.cities, 75, "two_way")
    targets = np.random.default_rng(2).choice(len(nation), 8, replace=False)
    trees = shortest_path_trees(nation, targets)
    np.testing.assert_array_equal(trees.mm, dijkstra(nation.sparse().T.tocsr(), indices=targets).T)
    pairs = reachable_pairs(trees, 1000)
    found = paths(trees, pairs)
    _, a, b = found.hops()
    assert len(a) == (found.lengths - 1).sum() and nation.is_edge(a, b).all()
    assert found.lengths.max() > 40


def test_every_path_is_legal_and_has_its_length(oriented_tennessee):
    graph, trees = oriented_tennessee, all_trees(oriented_tennessee)
    pairs = reachable_pairs(trees, 5000)
    found = paths(trees, pairs)
    assert found.tokens.dtype == np.int32
    for (source, target), path in zip(pairs, found, strict=True):
        assert graph.is_edge(path[:-1], path[1:]).all()
        assert len(set(path.tolist())) == len(path)
        assert path_mm(graph, path) == trees.mm[source, target]


def test_two_way_paths_are_as_long_there_as_back(tennessee_two_way):
    trees = all_trees(tennessee_two_way)
    np.testing.assert_array_equal(trees.mm, trees.mm.T)


# Ties


def with_weights(graph: CityGraph, mm) -> CityGraph:
    return replace(graph, km=np.asarray(mm, float)[: len(graph.indices)] / 1e6)


cells = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=10, unique=True
)
orientations = st.sampled_from(["eastward", "two_way"])


def assert_paths_are_first_of_all_shortest(graph: CityGraph) -> None:
    """Compare every query with the least id sequence among all of networkx's shortest paths."""
    trees, digraph = all_trees(graph), weighted_digraph(graph)
    pairs = np.argwhere(trees.reachable)
    for (source, target), path in zip(pairs.tolist(), paths(trees, pairs), strict=True):
        ties = nx.all_shortest_paths(digraph, source, target, weight="weight")
        assert path.tolist() == min(ties)


@settings(max_examples=60, deadline=None)
@given(cells, st.sampled_from([12, 16, 23, 26]), orientations)
def test_ties_on_a_lattice_go_to_the_smallest_ids(place, points, km, orientation):
    """Rounded to 5 km, a lattice's steps are 10, its diagonals 15 and its double steps 20."""
    graph = build_graph(place(np.array(points) / 10), km, orientation)
    assert_paths_are_first_of_all_shortest(rounded(graph, 5.0))


@settings(max_examples=60, deadline=None)
@given(cells, st.lists(st.integers(1, 3), min_size=90, max_size=90), orientations)
def test_ties_among_small_random_weights_go_to_the_smallest_ids(place, points, mm, orientation):
    """The two directions of a hop may differ here: an engine that mixes them up is caught."""
    graph = build_graph(place(np.array(points) / 10), 26, orientation)
    assert_paths_are_first_of_all_shortest(with_weights(graph, mm))


def test_lattice_has_many_ties(place):
    graph = rounded(build_graph(place([(i / 10, j / 10) for i in range(4) for j in range(4)]), 12))
    ties = nx.all_shortest_paths(weighted_digraph(rounded(graph, 5.0)), 0, 15, weight="weight")
    assert len(list(ties)) == 20


def test_rounded_tennessee_ties_go_to_the_smallest_ids(oriented_tennessee):
    graph = rounded(oriented_tennessee, 5.0)
    digraph, trees = weighted_digraph(graph), all_trees(graph)
    pairs = reachable_pairs(trees, 400, seed=4)
    tied = 0
    for (source, target), path in zip(pairs.tolist(), paths(trees, pairs), strict=True):
        first = [source]
        while first[-1] != target:  # the smallest neighbour that still leads to the optimum
            a = first[-1]
            left = trees.mm[a, target]
            good = [b for b in digraph[a] if digraph[a][b]["weight"] + trees.mm[b, target] == left]
            tied += len(good) > 1
            first.append(min(good))
        assert path.tolist() == first
    assert tied > 400


def test_part_of_a_path_is_the_path_of_that_part(oriented_tennessee):
    trees = all_trees(rounded(oriented_tennessee, 1.0))
    whole = paths(trees, reachable_pairs(trees, 200))
    parts = [p[i:j] for p in whole for i in range(len(p)) for j in range(i + 2, len(p) + 1)]
    again = paths(trees, [(p[0], p[-1]) for p in parts])
    assert len(parts) > 5000
    np.testing.assert_array_equal(again.tokens, np.concatenate(parts))


# Targets in any grouping, cities in any order


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 200])
def test_grouping_of_targets_changes_nothing(oriented_tennessee, size):
    graph = rounded(oriented_tennessee, 1.0)
    whole = all_trees(graph)
    order = np.random.default_rng(size).permutation(len(graph))[: 12 * size]
    for start in range(0, len(order), size):
        targets = order[start : start + size]
        trees = shortest_path_trees(graph, targets)
        np.testing.assert_array_equal(trees.targets, targets)
        np.testing.assert_array_equal(trees.mm, whole.mm[:, targets])
        np.testing.assert_array_equal(trees.next_city, whole.next_city[:, targets])


def test_repeated_targets_have_the_same_tree(oriented_tennessee):
    trees = shortest_path_trees(oriented_tennessee, [9, 300, 9])
    np.testing.assert_array_equal(trees.next_city[:, 0], trees.next_city[:, 2])
    np.testing.assert_array_equal(trees.mm[:, 0], trees.mm[:, 2])


@pytest.mark.parametrize("orientation", ["eastward", "two_way"])
def test_cities_in_any_order_give_the_same_lengths(tennessee, tennessee_two_way, orientation):
    plain = tennessee if orientation == "eastward" else tennessee_two_way
    new_to_old = np.random.default_rng(6).permutation(len(plain))
    graph = build_graph(plain.cities.iloc[new_to_old], 30, orientation)
    trees, expected = all_trees(graph), all_trees(plain)
    np.testing.assert_array_equal(trees.mm, expected.mm[np.ix_(new_to_old, new_to_old)])
    pairs = reachable_pairs(trees, 500)
    for path, (source, target) in zip(paths(trees, pairs), pairs, strict=True):
        assert path_mm(graph, path) == trees.mm[source, target]


def test_duplicate_positions_cost_a_millimetre(place):
    graph = build_graph(place([(0, 0.2), (0, 0.1), (0, 0.1), (0, 0)]), 12)
    trees = all_trees(graph)
    step = graph.mm.max()
    assert trees.mm[3, 0] == 2 * step
    assert paths(trees, [(3, 0)])[0].tolist() == [3, 1, 0]
    assert trees.mm[1, 2] == 1
    assert np.isinf(trees.mm[2, 1])


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(oriented_tennessee, threads):
    graph = rounded(oriented_tennessee, 1.0)
    blocks = in_blocks(np.arange(len(graph), dtype=np.int32), 29)
    tables = list(over_blocks(graph, blocks, lambda block: block.next_city.copy(), threads))
    np.testing.assert_array_equal(np.concatenate(tables), all_trees(graph).next_city.T)


def test_paths_of_blocks_are_those_of_the_trees(oriented_tennessee, monkeypatch):
    """Also where the array that several blocks share is full after each."""
    graph, trees = oriented_tennessee, all_trees(oriented_tennessee)
    source, target = np.nonzero(trees.reachable)
    expected = paths(trees, np.stack([source, target], 1))
    for room in (2**25, 100):
        monkeypatch.setattr(shortest_paths, "ROOM", room)
        blocks = in_blocks(np.arange(len(graph), dtype=np.int32), 50)

        def walk(block):
            mine = np.flatnonzero(np.isin(target, block.targets))
            return mine, block.follow(source[mine], target[mine] - block.targets[0])

        found = list(over_blocks(graph, blocks, walk))
        order = np.concatenate([mine for mine, _ in found])
        joined = Paths.concatenate([some for _, some in found]).take(np.argsort(order))
        np.testing.assert_array_equal(joined.tokens, expected.tokens)
        np.testing.assert_array_equal(joined.offsets, expected.offsets)


def test_targets_in_any_order_have_their_own_trees(oriented_tennessee):
    targets = np.random.default_rng(8).permutation(len(oriented_tennessee))[:150]
    trees, whole = shortest_path_trees(oriented_tennessee, targets), all_trees(oriented_tennessee)
    np.testing.assert_array_equal(trees.targets, targets)
    np.testing.assert_array_equal(trees.mm, whole.mm[:, targets])
    np.testing.assert_array_equal(trees.next_city, whole.next_city[:, targets])


def test_an_error_in_a_block_ends_the_walk(oriented_tennessee):
    def fail(block):
        raise RuntimeError(f"block {block.number}")

    with pytest.raises(RuntimeError, match="block 0"):
        list(over_blocks(oriented_tennessee, in_blocks(np.arange(300), 10), fail))


# Limits


@pytest.mark.parametrize("orientation", ["eastward", "two_way"])
def test_more_cities_than_sixteen_bits(place, orientation):
    """70,000 cities in a row, a hop to the next and the next but one: 35,000 hops of 55 m."""
    n = 70_000
    graph = build_graph(place(np.stack([np.zeros(n), np.arange(n) * 5e-4], 1)), 0.12, orientation)
    targets = np.array([n - 1, 9, 65_535])
    trees = shortest_path_trees(graph, targets)
    assert trees.next_city.dtype == np.uint32
    expected = dijkstra(graph.sparse().T.tocsr(), indices=targets).T
    np.testing.assert_array_equal(trees.mm, expected)
    path = paths(trees, [(3, n - 1)])[0]
    assert path_mm(graph, path) == trees.mm[3, 0]


def test_paths_too_long_to_sum_exactly_are_refused(chain):
    longest = with_weights(chain, [2.0**35] * 4)  # four hops: 2^37 mm
    with pytest.raises(ValueError, match="a shortest path of 137,439 km: too long to sum exactly"):
        all_trees(longest)
    almost = with_weights(chain, [2.0**35, 2.0**35, 2.0**35, 2.0**35 - 1])
    trees = all_trees(almost)
    assert trees.mm[0, 4] == 2.0**37 - 1
    assert paths(trees, [(0, 4)])[0].tolist() == [0, 1, 2, 3, 4]


def test_trees_that_cannot_fit_are_refused_with_numbers(nation, monkeypatch):
    monkeypatch.setattr(files.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**31))
    refusal = r"21,408 trees of .* needs about 4\.3 GiB; 1\.8 GiB may be used: at most 9,0\d\d fit"
    with pytest.raises(MemoryError, match=refusal):
        shortest_path_trees(nation, np.arange(len(nation)))
    assert shortest_path_trees(nation, [0]).mm.shape == (len(nation), 1)


# Queries without an answer, and none at all


def test_unreachable_queries_are_refused(chain, scattered):
    with pytest.raises(ValueError, match="target 0 cannot be reached from source 3"):
        paths(all_trees(chain), [(0, 3), (3, 0)])
    with pytest.raises(ValueError, match="target 2 cannot be reached from source 1"):
        paths(all_trees(scattered), [(1, 2)])


def test_targets_without_a_tree_are_refused(chain):
    trees = shortest_path_trees(chain, [3, 4])
    assert paths(trees, [(0, 4)])[0].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="target 2 has no tree"):
        paths(trees, [(0, 4), (0, 2)])


@pytest.mark.parametrize("pair", [(-1, 4), (5, 4), (0, -1), (0, 5)])
def test_ids_that_are_no_city_are_refused(chain, pair):
    with pytest.raises(ValueError, match="ids from 0 to 4"):
        paths(all_trees(chain), [pair])


@pytest.mark.parametrize("targets", [[-1], [5], [0, 99]])
def test_targets_that_are_no_city_are_refused(chain, targets):
    with pytest.raises(ValueError, match="targets are ids from 0 to 4"):
        shortest_path_trees(chain, targets)


def test_no_targets_and_no_queries(oriented_tennessee):
    trees = shortest_path_trees(oriented_tennessee, [])
    assert trees.mm.shape == trees.next_city.shape == (371, 0)
    found = paths(all_trees(oriented_tennessee), [])
    assert len(found) == 0
    assert found.tokens.size == 0


def test_a_city_reaches_itself_without_a_hop(chain):
    trees = shortest_path_trees(chain, 2)
    assert trees.mm[2, 0] == 0
    assert not trees.reachable[2, 0]
    assert paths(trees, [(2, 2)])[0].tolist() == [2]


def test_one_city(lonely):
    trees = all_trees(lonely)
    assert trees.mm.tolist() == [[0]]
    assert trees.next_city.dtype == np.uint16
    assert trees.next_city.tolist() == [[2**16 - 1]]  # no city: none on the way


def test_count_reachable_equals_networkx(oriented_tennessee):
    closure = nx.transitive_closure(weighted_digraph(oriented_tennessee), reflexive=None)
    assert count_reachable(oriented_tennessee) == closure.number_of_edges()


# Ragged paths

ragged = st.lists(st.lists(st.integers(0, 500), min_size=1, max_size=6), max_size=8)


@settings(max_examples=60, deadline=None)
@given(ragged, st.data())
def test_ragged_paths_hold_what_went_in(lists, data):
    held = Paths.from_lists(lists)
    assert [p.tolist() for p in held] == lists
    assert len(held) == len(lists)
    assert held.lengths.tolist() == [len(p) for p in lists]
    again = Paths.from_padded(held.padded(), held.lengths)
    assert [p.tolist() for p in again] == lists
    hops = [(i, a, b) for i, p in enumerate(lists) for a, b in itertools.pairwise(p)]
    assert list(zip(*(x.tolist() for x in held.hops()), strict=True)) == hops
    rows = data.draw(st.lists(st.sampled_from(range(len(lists))))) if lists else []
    assert [p.tolist() for p in held.take(rows)] == [lists[i] for i in rows]
    mask = np.array([len(p) > 2 for p in lists], bool)
    assert [p.tolist() for p in held.take(mask)] == [p for p in lists if len(p) > 2]
    joined = Paths.concatenate([held, held.take(rows), held])
    assert [p.tolist() for p in joined] == [*lists, *(lists[i] for i in rows), *lists]


def test_padding_is_minus_one():
    held = Paths.from_lists([[0, 5], [7], [1, 2, 3]])
    assert held.padded().tolist() == [[0, 5, -1], [7, -1, -1], [1, 2, 3]]


def test_ragged_paths_index_like_a_list():
    held = Paths.from_lists([[1, 2], [3, 4, 5]])
    assert held[-1].tolist() == [3, 4, 5]
    assert held[-2].tolist() == [1, 2]
    for i in (2, -3):
        with pytest.raises(IndexError):
            held[i]
