"""Judging: every way a path can be wrong, slack to the millimetre, intervals and breakdowns."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, sem
from scipy.stats import t as student

from citypaths.judging.metrics import (
    RATES,
    SLACK,
    SLACKS,
    by_count,
    by_detour,
    by_hops,
    judge,
    ledger_rates,
    over_few,
    wilson,
)
from citypaths.map.graph import build_graph
from citypaths.map.paths import Paths
from citypaths.map.shortest_paths import paths, shortest_path_trees


def judged(graph, queries, found, km=None, reference=None) -> pd.DataFrame:
    """Judge lists of ids against (source, target) queries."""
    source, target = np.array(queries, np.int64).reshape(-1, 2).T
    if km is None:
        trees = shortest_path_trees(graph, np.arange(len(graph)))
        km = trees.km[source, target]
    reference = Paths.from_lists(reference) if reference is not None else None
    return judge(graph, source, target, np.asarray(km, float), Paths.from_lists(found), reference)


@pytest.fixture(scope="module")
def triangle(place):
    """Edges 0 -> 1 -> 2 and 0 -> 2; the lengths are set by `stretched`."""
    return build_graph(place([(0, 0), (0, 0.5), (0, 1)]), 150)


def stretched(graph, extra_mm: int):
    """The direct hop is 100 km, the way round 100 km and `extra_mm` millimetres."""
    return replace(graph, km=np.array([40.0, 100.0, 60.0 + extra_mm / 1e6]))


# Legality


@pytest.mark.parametrize(
    "path, kind",
    [
        ([0, 1, 2, 3, 4], ""),
        ([0, 5, 4], "not_a_city"),
        ([0, 1, 10**12, 4], "not_a_city"),
        ([0, -1, 4], "not_a_city"),
        ([0, -7, -7, 4], "not_a_city"),
        ([0, 1, 2, -2, -2], "not_a_city"),
        ([-7, -7, 0, 4], "not_a_city"),
        ([0, 2, 3, 4], "too_far"),
        ([0, 4], "too_far"),
        ([0, 1, 0, 1, 2, 3, 4], "wrong_way"),
        ([0, 1, 1, 2, 3, 4], "wrong_way"),
        ([0, 2, 1, 0, 9, 4], "too_far"),
        ([0, 1, 0, 9, 4], "wrong_way"),
    ],
)
def test_first_illegal_hop_is_named(chain, path, kind):
    row = judged(chain, [(0, 4)], [path]).iloc[0]
    assert row["illegal"] == kind
    assert row["legal"] == (kind == "")
    assert row["success"] == row["optimal"] == (kind == "")
    assert row["arrives"] == (path[-1] == 4)
    assert row["hops"] == len(path) - 1


def test_too_far_against_the_orientation_is_too_far(chain):
    assert judged(chain, [(4, 0)], [[4, 0]], [1.0])["illegal"][0] == "too_far"


def test_wrong_way_is_legal_on_a_two_way_graph(chain):
    two_way = build_graph(chain.cities, 12, "two_way")
    table = judged(two_way, [(0, 1), (0, 1)], [[0, 1, 0, 1], [0, 0, 1]])
    assert table["legal"].tolist() == [True, False]
    assert table["illegal"].tolist() == ["", "wrong_way"]
    assert table["ratio"][0] == pytest.approx(3) and not table["success"][0]


def test_wrong_source_is_not_legal(chain):
    row = judged(chain, [(0, 4)], [[1, 2, 3, 4]]).iloc[0]
    assert not row["legal"] and row["arrives"] and row["bounded_00"]
    assert not row["success"] and not row["optimal"] and row["illegal"] == ""


def test_empty_path_is_nothing(chain):
    table = judged(chain, [(0, 4), (0, 1)], [[], [0, 1]])
    assert not table.loc[0, ["legal", "arrives", "success", "optimal"]].any()
    assert table.loc[0, "hops"] == -1 and table.loc[0, "km"] == 0
    assert table.loc[1, "success"]


def test_all_paths_empty(chain):
    table = judged(chain, [(0, 4), (0, 1)], [[], []])
    assert not table[["legal", "arrives", "success", "optimal", "exact"]].any(axis=None)


def test_no_queries(chain):
    assert len(judged(chain, np.zeros((0, 2)), [], [])) == 0


def test_stopping_early_and_overshooting(chain):
    table = judged(chain, [(0, 3)] * 3, [[0], [0, 1, 2], [0, 1, 2, 3, 4]])
    assert table["legal"].all() and not table["arrives"].any() and not table["success"].any()
    assert table["bounded_00"].tolist() == [True, True, False]


def test_a_graph_without_edges(scattered):
    table = judged(scattered, [(0, 1)] * 3, [[0, 1], [0], [0, 3]], [9.0, 9.0, 9.0])
    assert table["illegal"].tolist() == ["too_far", "", "not_a_city"]
    assert not table["success"].any()


def test_query_and_path_counts_must_agree(chain):
    with pytest.raises(ValueError, match="2 queries but 1 paths"):
        judged(chain, [(0, 1), (1, 2)], [[0, 1]])


# Length


@pytest.mark.parametrize("name", [*SLACKS, "success"])
def test_slack_is_exact_to_the_millimetre(triangle, name):
    slack = SLACKS.get(name, SLACK)
    at = round(slack * 1e8)  # of 100 km, in millimetres
    for extra, inside in ((at - 1, True), (at, True), (at + 1, False)):
        row = judged(stretched(triangle, extra), [(0, 2)], [[0, 1, 2]], [100.0]).iloc[0]
        assert row[name] == inside


def test_optimal_is_tie_aware(triangle):
    for extra, inside in ((0, True), (10_000, True), (10_001, False)):
        table = judged(stretched(triangle, extra), [(0, 2)], [[0, 1, 2]], [100.0], [[0, 2]])
        assert table["optimal"][0] == inside and not table["exact"][0]


def test_illegal_hops_count_as_the_crow_flies(chain):
    row = judged(chain, [(0, 4)], [[0, 2, 1, 4]]).iloc[0]
    flights = chain.distance_km(np.array([0, 2, 1]), np.array([2, 1, 4]))
    assert row["km"] == pytest.approx(flights.sum(), abs=2e-6)


def test_exact_is_the_reference_itself(chain):
    found = [[0, 1, 2], [0, 1], [0, 1, 2, 3], [], [0, 1, 2, -1]]
    table = judged(chain, [(0, 2)] * 5, found, reference=[[0, 1, 2]] * 5)
    assert table["exact"].tolist() == [True, False, False, False, False]
    assert not judged(chain, [(0, 2)], [[0, 1, 2]])["exact"].any()


def test_shortest_paths_are_within_no_slack_at_all(oriented_tennessee):
    trees = shortest_path_trees(oriented_tennessee, np.arange(len(oriented_tennessee)))
    source, target = np.nonzero(trees.reachable)
    keep = np.random.default_rng(0).choice(len(source), 2000, replace=False)
    source, target = source[keep], target[keep]
    found = paths(trees, np.stack([source, target], 1))
    table = judge(oriented_tennessee, source, target, trees.km[source, target], found, found)
    assert (table["ratio"] == 1).all()
    assert table[list(RATES)].all(axis=None)


@pytest.mark.parametrize("kind", ["uint16", "int32", "int64"])
def test_any_integer_type(chain, kind):
    found = Paths(np.array([0, 1, 2], kind), np.array([0, 3]))
    assert judge(chain, np.array([0]), np.array([2]), np.array([22.3]), found)["legal"].all()


@pytest.fixture(scope="module")
def ladder(place):
    """A two-by-four grid of cities, eastward."""
    points = [(0.1 * row, 0.1 * i + 0.01 * row) for row in (0, 1) for i in range(4)]
    graph = build_graph(place(points), 17)
    return graph, shortest_path_trees(graph, np.arange(8))


ids = st.one_of(st.integers(0, 7), st.integers(-3, 10), st.integers(-(2**40), 2**40))


@settings(max_examples=150, deadline=None)
@given(found=st.lists(st.lists(ids, max_size=7), min_size=1, max_size=5), data=st.data())
def test_any_ragged_ids_are_judged(ladder, found, data):
    graph, trees = ladder
    source, target = np.nonzero(trees.reachable)
    rows = data.draw(st.lists(st.integers(0, len(source) - 1), min_size=5, max_size=5))
    source, target = source[rows][: len(found)], target[rows][: len(found)]
    table = judge(graph, source, target, trees.km[source, target], Paths.from_lists(found))
    assert len(table) == len(found) and np.isfinite(table["ratio"]).all()
    success = table[table["success"]]
    assert success[["legal", "arrives"]].all(axis=None)
    assert (success["ratio"] <= 1 + SLACK + 1e-9).all()
    assert table.loc[table["optimal"], "success"].all()
    tight = [table[name].to_numpy() for name in SLACKS]
    assert all((a <= b).all() for a, b in pairwise(tight))
    for row, path in zip(table.to_dict("records"), found, strict=True):
        hops = list(pairwise(path))
        inside = all(0 <= city < 8 for city in path)
        legal = inside and all(b in graph.neighbours(a) for a, b in hops)
        assert row["legal"] == (bool(path) and path[0] == row["source"] and legal)
        assert row["arrives"] == (bool(path) and path[-1] == row["target"])
        assert (row["illegal"] == "") == (not hops or legal)


# Intervals, summaries, groups


@pytest.mark.parametrize("count", [1, 2, 10, 997, 10**6])
def test_wilson_is_scipys(count):
    for k in sorted({0, 1, count // 3, count - 1, count}):
        expected = binomtest(k, count).proportion_ci(method="wilson")
        assert np.allclose(wilson(k, count), expected, atol=1e-7)
    low, high = wilson([0, count], [count, count])
    assert low[0] == 0 and high[1] == 1


def test_wilson_of_nothing_is_anything():
    low, high = wilson(np.array([0, 3]), np.array([0, 4]))
    assert low[0] == 0 and high[0] == 1
    assert 0 < low[1] < 0.75 < high[1] < 1


@pytest.fixture(scope="module")
def mixed(chain):
    found = [[0, 1, 2], [0, 2], [0, 1], [0, 1, 2], []]
    reference = [[0, 1, 2]] * 5
    return judged(chain, [(0, 2)] * 5, found, reference=reference).assign(group=list("aabbb"))


def test_rates_of_the_ledger(mixed):
    hard = mixed["group"] == "a"
    row = ledger_rates(mixed.assign(hard=hard))
    assert row["queries"] == 5
    assert row["legal"] == 3 / 5 and row["arrives"] == 3 / 5 and row["success"] == 2 / 5
    assert row["exact"] == 2 / 5
    assert (row["success_low"], row["success_high"]) == wilson(2, 5)
    assert row["hard_queries"] == 2 and row["hard_success"] == 1 / 2
    assert (row["hard_success_low"], row["hard_success_high"]) == wilson(1, 2)
    assert np.isnan(ledger_rates(mixed.assign(hard=False))["hard_success"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=300))
def test_by_hops_is_a_partition(hops):
    hops = np.array(hops)
    group = by_hops(hops)
    assert len(group) == len(hops) and (group.codes >= 0).all()
    assert len(set(group.categories)) == len(group.categories)
    for name in group.categories:
        low, high = ([int(x) for x in name.split("-")] * 2)[:2]
        inside = hops[np.asarray(group == name)]
        assert len(inside) and low <= inside.min() and inside.max() <= high
    order = np.argsort(hops, kind="stable")
    assert (np.diff(group.codes[order]) >= 0).all()


def test_by_hops_of_many_lengths_is_quartiles_and_the_longest_twentieth():
    counts = pd.Series(by_hops(np.arange(1, 1001))).value_counts(sort=False)
    assert counts.tolist() == pytest.approx([250, 250, 250, 200, 50], abs=2)
    assert counts.index[-1] == "951-1000"


def test_by_hops_of_one_length():
    assert by_hops(np.full(9, 4)).categories.tolist() == ["4"]


def test_by_detour():
    ratio = np.array([0.9999999, 1.0, 1.0199, 1.02, 1.05, 1.1, 1.1999, 1.2, 9.0, np.inf])
    assert by_detour(ratio).codes.tolist() == [0, 0, 0, 1, 2, 3, 3, 4, 4, 4]


def test_by_count():
    count = np.array([0, 1, 9, 10, 99, 100, 999, 1000, 10**9])
    assert by_count(count).codes.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_the_mean_of_a_few_has_a_t_interval():
    mean, half = over_few([0.2, 0.4, 0.9])
    assert mean == pytest.approx(0.5)
    low, high = student.interval(0.95, 2, loc=0.5, scale=sem([0.2, 0.4, 0.9]))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    mean, half = over_few([0.3])
    assert mean == 0.3 and np.isnan(half)
