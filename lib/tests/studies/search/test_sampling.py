"""Search by chance against the random walk of the floors, plain loops and exact chances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from toys import START, STEP, Markov, every_path, lists

from citypaths.judging.floors import walk
from citypaths.judging.metrics import judge
from citypaths.map.graph import build_graph, unit_hash
from citypaths.map.paths import Paths
from studies.search.sampling import blind, stochastic_beam


@pytest.fixture(scope="module")
def five(place):
    """Five cities in a row, each joined to the next two; eastward."""
    return build_graph(place([(0.02 * (i % 2), 0.1 * i) for i in range(5)]), 24)


def plain(graph, source, target, max_hops, walks, seed):
    """The best path and what was looked at, by a loop over one query."""
    best, least, first, lookups, expansions = None, np.inf, None, 0, 0
    for w in range(walks):
        path = [source]
        while path[-1] != target and len(path) <= max_hops:
            near = graph.neighbours(path[-1])
            if not len(near):
                break
            lookups, expansions = lookups + len(near), expansions + 1
            chance = unit_hash(seed, source, target, w * max_hops + len(path) - 1)
            path.append(int(near[int(chance * len(near))]))
        first = first or path
        total = graph.mm[graph.edge_index(path[:-1], path[1:])].sum()
        if path[-1] == target and total < least:
            best, least = path, total
        if source == target:
            break
    return best or first, lookups, expansions


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 9), st.integers(1, 12))
def test_blind_is_the_plain_loop(tennessee_two_way, seed, walks):
    graph = tennessee_two_way
    source, target = np.random.default_rng(seed).integers(0, 12, (2, 10))
    found = blind(graph, source, target, 8, walks=walks, seed=seed)
    for q, path in enumerate(lists(found)):
        best, looked, opened = plain(graph, int(source[q]), int(target[q]), 8, walks, seed)
        assert path == best
        assert (found.lookups[q], found.expansions[q]) == (looked, opened)
    assert (found.flops == 0).all()


def test_one_walk_is_the_random_floor(oriented_tennessee):
    graph = oriented_tennessee
    source, target = np.random.default_rng(1).integers(0, len(graph), (2, 50))
    found, floor = (
        blind(graph, source, target, 30, walks=1, seed=5),
        walk(graph, source, target, hop_weight=-1.0, seed=5, limit=30),
    )
    assert lists(found) == lists(floor)
    np.testing.assert_array_equal(found.lookups, floor.lookups)
    np.testing.assert_array_equal(found.expansions, floor.expansions)


def test_walks_are_uniform_over_out_edges(five):
    """From 0 to 4 by the next or the one after: five ways, of chances that are exact."""
    chances = {
        (0, 1, 2, 3, 4): 1 / 8, (0, 1, 2, 4): 1 / 8, (0, 1, 3, 4): 1 / 4,
        (0, 2, 3, 4): 1 / 4, (0, 2, 4): 1 / 4,
    }  # fmt: skip
    n = 4000
    ways = [lists(blind(five, [0], [4], 4, walks=1, seed=seed))[0] for seed in range(n)]
    counts = [ways.count(list(way)) for way in chances]
    assert chisquare(counts, n * np.array(list(chances.values()))).pvalue > 0.01


def test_the_chance_to_find_the_best_way_in_several_walks(five):
    n, walks = 3000, 3
    best = [lists(blind(five, [0], [4], 4, walks=walks, seed=s))[0] == [0, 2, 4] for s in range(n)]
    missed = (3 / 4) ** walks
    counts = [n - sum(best), sum(best)]
    assert chisquare(counts, [n * missed, n * (1 - missed)]).pvalue > 0.01


def test_more_walks_are_never_worse_and_all_legal(tennessee_two_way):
    graph = tennessee_two_way
    source, target = np.random.default_rng(2).integers(0, len(graph), (2, 40))
    km = np.ones(40)
    before = None
    for walks in (1, 10, 100):
        found = blind(graph, source, target, 60, walks=walks)
        judged = judge(graph, source, target, km, found.paths)
        assert judged["legal"].all()
        length = np.where(judged["arrives"], judged["km"], np.inf)
        assert before is None or (length <= before).all()
        before = length
    assert np.isfinite(before).any()


def test_a_query_does_not_depend_on_the_others(tennessee):
    source, target = np.random.default_rng(3).integers(0, len(tennessee), (2, 20))
    found = blind(tennessee, source, target, 30, walks=20, seed=1)
    back = blind(tennessee, source[::-1], target[::-1], 30, walks=20, seed=1)
    assert lists(found) == lists(back)[::-1]
    assert lists(found) != lists(blind(tennessee, source, target, 30, walks=20, seed=2))


def test_dead_ends_equal_ends_and_no_queries(chain):
    found = blind(chain, [2, 4, 3], [2, 0, 4], 9, walks=2)
    assert lists(found) == [[2], [4], [3, 4]]
    assert found.lookups.tolist() == found.expansions.tolist() == [0, 0, 2]
    assert len(blind(chain, [], [], 4).paths) == 0


def test_argument_errors(chain):
    for options in ({"walks": 0}, {"max_hops": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            blind(chain, [0], [1], **({"max_hops": 3} | options))
    with pytest.raises(ValueError, match="2 sources but 1 targets"):
        blind(chain, [0, 1], [1], 3)


# Stochastic beams


@pytest.fixture(scope="module")
def model():
    return Markov(torch.randn(6, 6, generator=torch.Generator().manual_seed(3)))


def test_stochastic_beams_draw_without_replacement(model):
    """The first of two beams by score is a draw from the model: its perturbation is the largest."""
    expected = every_path(model, 0, 4, 2)
    paths = [stochastic_beam(model, [0] * 4_000, [4] * 4_000, 2, width=1, seed=s).paths
             for s in (0, 1)]  # fmt: skip
    counts = {path: 0 for path in expected}
    for path in Paths.concatenate(paths):
        counts[tuple(path.tolist())] += 1
    hoped = np.array([p * 8_000 for p in expected.values()])
    assert chisquare(list(counts.values()), hoped).pvalue > 1e-3


def test_a_beam_of_all_paths_finds_the_most_probable(model):
    expected = every_path(model, 0, 4, 3)
    arriving = {path: p for path, p in expected.items() if path[-1] == 4}
    found = stochastic_beam(model, [0], [4], 3, width=len(expected))
    assert tuple(found.paths[0].tolist()) == max(arriving, key=arriving.get)
    prefixes = {path[:i] for path in expected for i in range(1, len(path))}
    assert found.flops.tolist() == [START + STEP * len(prefixes)]
    assert not found.lookups.any()
    with pytest.raises(ValueError, match="width is at least 1"):
        stochastic_beam(model, [0], [4], 3, width=0)
