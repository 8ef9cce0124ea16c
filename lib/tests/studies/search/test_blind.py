"""Blind search against the random walk of the floors, a plain loop and exact chances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from citypaths.decoding import Budget
from citypaths.judging.floors import walk
from citypaths.judging.metrics import judge
from citypaths.map.graph import build_graph, unit_hash
from studies.search import blind


@pytest.fixture(scope="module")
def five(place):
    """Five cities in a row, each joined to the next two; eastward."""
    return build_graph(place([(0.02 * (i % 2), 0.1 * i) for i in range(5)]), 24)


def lists(found) -> list[list[int]]:
    return [path.tolist() for path in found.paths]


def plain(graph, source, target, max_hops, walks, seed, budget):
    """The best path and what was looked at, by a loop over one query."""
    best, least, first, lookups, expansions = None, np.inf, None, 0, 0
    for w in range(walks):
        path, stopped = [source], False
        while path[-1] != target and len(path) <= max_hops:
            near = graph.neighbours(path[-1])
            if not len(near):
                break
            stopped = lookups + len(near) > budget.lookups or expansions + 1 > budget.expansions
            if stopped:
                break
            lookups, expansions = lookups + len(near), expansions + 1
            chance = unit_hash(seed, source, target, w * max_hops + len(path) - 1)
            path.append(int(near[int(chance * len(near))]))
        first = first or path
        total = graph.mm[graph.edge_index(path[:-1], path[1:])].sum()
        if path[-1] == target and total < least:
            best, least = path, total
        if stopped or source == target:
            break
    return best or first, lookups, expansions


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 9), st.integers(1, 12), st.integers(0, 300), st.integers(0, 60))
def test_blind_is_the_plain_loop(tennessee_two_way, seed, walks, lookups, expansions):
    graph = tennessee_two_way
    source, target = np.random.default_rng(seed).integers(0, 12, (2, 10))
    for budget in (Budget(), Budget(lookups=lookups), Budget(expansions=expansions)):
        found = blind(graph, source, target, 8, walks=walks, budget=budget, seed=seed)
        for q, path in enumerate(lists(found)):
            best, looked, opened = plain(
                graph, int(source[q]), int(target[q]), 8, walks, seed, budget
            )
            assert path == best
            assert (found.lookups[q], found.expansions[q]) == (looked, opened)
            assert looked <= budget.lookups and opened <= budget.expansions
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
    for city in (-1, 5):
        with pytest.raises(ValueError, match="are 0 to 4"):
            blind(chain, [city], [1], 3)
