"""Evolution of paths against plain loops, hand counts and Dijkstra."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from toys import START, STEP, Recorder, distinct_hops, kilometres, lists, markov

from citypaths.decoding import PathLength, sample
from citypaths.map.graph import build_graph
from citypaths.map.paths import Paths
from studies.search import evolution
from studies.search.evolution import (
    Evolution,
    evolve,
    first_of_each,
    joined,
    segments,
    shared_city,
)

WIDTH = 6
rows_of_ids = st.lists(st.lists(st.integers(0, 3), max_size=WIDTH), min_size=1, max_size=6)


class Hops(Recorder):
    """Prefers few hops, however illegal, and looks nothing up."""

    def score(self, source, target, paths):
        super().score(source, target, paths)
        return paths.lengths.astype(float)

    def lookups(self, paths):
        return np.zeros(len(paths))


@pytest.fixture(scope="module")
def eight(place):
    """Eight cities in two rows; two_way, each joined to a few."""
    return build_graph(place([(0.1 * (i % 2), 0.07 * i) for i in range(8)]), 20, "two_way")


@pytest.fixture(scope="module")
def pairs():
    source, target = np.array([(a, b) for a in range(8) for b in range(8)]).T
    return source, target


@pytest.fixture
def draws(monkeypatch):
    """Every draw that is made while the test runs."""
    made = []

    def recording(*args, **options):
        made.append(sample(*args, **options))
        return made[-1]

    monkeypatch.setattr(evolution, "sample", recording)
    return made


def padded(rows) -> np.ndarray:
    return np.array([row + [-1] * (WIDTH - len(row)) for row in rows])


# Operators


@settings(deadline=None)
@given(st.data())
def test_joined_is_list_concatenation(data):
    row = st.lists(st.integers(0, 9), max_size=WIDTH)
    rows = data.draw(st.lists(st.tuples(row, row, row), min_size=1, max_size=4))
    head, middle, tail = (padded(part) for part in zip(*rows, strict=True))
    i = np.array([data.draw(st.integers(0, len(row[0]))) for row in rows])
    j = np.array([data.draw(st.integers(0, WIDTH)) for _ in rows])
    for n, child in enumerate(joined(head, i, middle, tail, j)):
        expected = rows[n][0][: i[n]] + rows[n][1] + rows[n][2][j[n] :]
        expected = expected if len(expected) <= WIDTH else []
        assert child.tolist() == expected + [-1] * (WIDTH - len(expected))


@settings(deadline=None)
@given(rows_of_ids, rows_of_ids, st.floats(0, 1, exclude_max=True))
def test_a_splice_is_at_a_city_of_both_parents(first, second, chance):
    count = min(len(first), len(second))
    at = shared_city(padded(first[:count]), padded(second[:count]), np.full(count, chance))
    for a, b, (i, j) in zip(first, second, at.tolist(), strict=False):
        if set(a[1:-1]) & set(b[1:-1]):
            assert a[i] == b[j] and 0 < i < len(a) - 1 and 0 < j < len(b) - 1
        else:
            assert (i, j) == (-1, -1)


def test_splices_are_uniform_over_shared_cities():
    a, b = padded([[0, 1, 2, 1, 5]]), padded([[0, 2, 1, 3, 5]])
    n = 3000
    chance = np.random.default_rng(0).random(n)
    at = shared_city(a.repeat(n, 0), b.repeat(n, 0), chance)
    found, counts = np.unique(at, axis=0, return_counts=True)
    assert found.tolist() == [[1, 2], [2, 1], [3, 2]]
    assert chisquare(counts).pvalue > 0.01


def test_segments_cover_every_pair_of_positions():
    n = 20_000
    i, j = segments(np.full(n, 5), np.random.default_rng(0).random((2, n)))
    assert {(a, b) for a in range(4) for b in range(a + 1, 5)} == set(zip(i, j, strict=True))
    assert chisquare(np.bincount(i)).pvalue > 0.01
    i, j = segments(np.array([1, 2]), np.full((2, 2), 0.999))
    assert i.tolist() == [0, 0] and j.tolist() == [0, 1]


@settings(deadline=None)
@given(st.lists(rows_of_ids, min_size=1, max_size=3))
def test_first_of_each_is_a_set(queries):
    size = max(map(len, queries))
    paths = np.stack([padded(q + [[]] * (size - len(q))) for q in queries])
    for query, flags in zip(paths.tolist(), first_of_each(paths), strict=True):
        assert flags.tolist() == [row not in query[:n] for n, row in enumerate(query)]


# Accounts


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), rows_of_ids), min_size=1, max_size=4))
def test_a_hop_is_looked_up_once_a_query(eight, rounds):
    account = Evolution(markov(8, 0), [0, 1], [0, 1], 7, 1, PathLength(eight), None, 0)
    known = [set(), set()]
    for query, rows in rounds:
        account.look_up(np.full(len(rows), query), padded(rows))
        known[query] |= {hop for row in rows for hop in pairwise(row)}
    assert account.found().lookups.tolist() == [len(hops) for hops in known]


def generations_of(
    model, source, target, hops, *, fitness, population=16, generations=8, checked_by=None, seed=0
):
    """What was found after the first draw and after each generation."""
    paths = Evolution(model, source, target, hops, population, fitness, checked_by, seed)
    founds = [paths.found()]
    for _ in range(generations):
        paths.advance()
        founds.append(paths.found())
    return founds


# Evolution


@pytest.mark.parametrize("checked", [True, False])
def test_exact_fitness_and_patience_find_the_shortest_paths(eight, pairs, checked):
    options = {"checked_by": eight} if checked else {}
    sizes = {"population": 24, "generations": 25}
    found = evolve(markov(8, 0, 0.0), *pairs, 7, fitness=PathLength(eight), **sizes, **options)
    shortest = dict(nx.all_pairs_dijkstra_path_length(eight.to_networkx()))
    expected = [shortest[a][b] for a, b in zip(*pairs, strict=True)]
    np.testing.assert_allclose(kilometres(eight, *pairs, found), expected, rtol=1e-6)


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_is_never_lost_and_costs_only_grow(eight, pairs, checked, seed):
    options = {"checked_by": eight} if checked else {}
    model, fitness = markov(8, seed, 0.5), PathLength(eight)
    options |= {"population": 4, "generations": 6, "seed": seed}
    founds = generations_of(model, *pairs, 7, fitness=fitness, **options)
    assert len(founds) == 7
    for before, after in pairwise(founds):
        assert (kilometres(eight, *pairs, after) <= kilometres(eight, *pairs, before)).all()
        assert (after.flops >= before.flops).all() and (after.lookups >= before.lookups).all()
        assert after.seconds >= before.seconds
    first, best = (kilometres(eight, *pairs, founds[g]) for g in (0, -1))
    assert (best < first).sum() > 10
    last = evolve(model, *pairs, 7, fitness=fitness, **options)
    assert lists(last) == lists(founds[-1]) and (last.lookups == founds[-1].lookups).all()


def test_the_survivors_are_the_best_and_no_child_equals_one(eight, pairs):
    size, fitness = 5, Recorder(eight)
    founds = generations_of(
        markov(8, 1, 0.5), *pairs, 7, fitness=fitness, population=size, generations=8
    )
    alive = defaultdict(list)
    assert len(fitness.rounds) == len(founds) == 9
    for scored, found in zip(fitness.rounds, founds, strict=True):
        born = defaultdict(list)
        for query, path in scored:
            assert (path[0], path[-1]) == query
            born[query].append(path)
        for query, paths in born.items():
            assert len(set(alive[query] + paths)) == len(alive[query] + paths)
            both = np.array([query] * len(alive[query] + paths)).T
            km = fitness.exact.score(*both, Paths.from_lists(alive[query] + paths))
            order = np.argsort(km, kind="stable")[:size]
            alive[query] = [(alive[query] + paths)[n] for n in order]
        for query, path in zip(zip(*pairs, strict=True), lists(found), strict=True):
            if alive[query]:
                assert tuple(path) == alive[query][0]


def test_a_path_that_does_not_arrive_ranks_below_every_one_that_does(eight, pairs):
    fitness = Hops(eight)
    found = evolve(markov(8, 3, 1.0), *pairs, 7, fitness=fitness, population=3, generations=3)
    arrived = {query for scored in fitness.rounds for query, _ in scored}
    assert len(arrived) > 50
    for query, path in zip(zip(*pairs, strict=True), lists(found), strict=True):
        assert path[0] == query[0] and ((path[-1] == query[1]) == (query in arrived))


def test_splices_alone_join_the_good_halves_of_two_parents_and_ask_no_model(place, monkeypatch):
    monkeypatch.setattr(evolution, "MIX", (0, 0, 1))
    lat, lon = (0, 0.05, -0.07, 0, 0.05, -0.07, 0), (0, 0.09, 0.09, 0.18, 0.27, 0.27, 0.36)
    points = list(zip(lat, lon, strict=True))
    graph = build_graph(place(points), 13)
    ways = nx.all_simple_paths(graph.to_networkx(), 0, 6)
    assert len(list(ways)) == 4, "two ways to city 3, which all paths visit, and two from there"
    n = 40
    founds = generations_of(
        markov(7, 0, 0.0), [0] * n, [6] * n, 6, fitness=PathLength(graph), checked_by=graph,
        population=3, generations=6,
    )  # fmt: skip
    first, last = lists(founds[0]), lists(founds[-1])
    assert first.count([0, 1, 3, 4, 6]) < last.count([0, 1, 3, 4, 6])
    assert (founds[0].flops == founds[-1].flops).all()
    assert (founds[0].lookups == founds[-1].lookups).all(), "every hop was looked up before"


@pytest.mark.parametrize("mix", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_every_operator_alone_improves(eight, pairs, mix, monkeypatch):
    monkeypatch.setattr(evolution, "MIX", np.cumsum(mix))
    options = {"population": 6, "generations": 8, "checked_by": eight}
    founds = generations_of(markov(8, 1, 0.5), *pairs, 7, fitness=PathLength(eight), **options)
    before, after = (kilometres(eight, *pairs, found) for found in (founds[0], founds[-1]))
    assert (after < before).sum() > 3


# Counts


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("query", [(0, 7), (5, 1), (3, 3)])
def test_counts_are_those_of_all_draws_and_of_distinct_hops(eight, draws, query, checked):
    """Of one query, so that draws need not be told apart."""
    fitness = Recorder(eight, flops=2.0)
    options = {"checked_by": eight} if checked else {}
    options |= {"population": 5, "generations": 6}
    source, target = query
    found = evolve(markov(8, 2, 0.5), [source], [target], 7, fitness=fitness, **options)
    drawn = [path.tolist() for draw in draws for path in draw.paths]
    judged = [path for scored in fitness.rounds for _, path in scored]
    assert len(draws) == 7 and judged
    steps = sum(len(path) - 1 for path in drawn) * STEP
    starts = sum(len(path) > 1 for path in drawn) * START
    assert found.flops[0] == steps + starts + 2.0 * sum(map(len, judged))
    assert found.expansions[0] == 0
    if checked:
        again = sum(len(path) - 1 for path in drawn) - distinct_hops(drawn)
        assert found.lookups[0] == sum(draw.lookups.sum() for draw in draws) - again
    else:
        assert found.lookups[0] == distinct_hops(judged)


def test_a_learned_fitness_looks_nothing_up(eight, pairs):
    found = evolve(markov(8, 2, 0.5), *pairs, 7, fitness=Hops(eight), generations=2)
    assert (found.lookups == 0).all()


def test_one_path_and_no_generation_is_sampling(eight, pairs, draws):
    options = {"population": 1, "generations": 0, "seed": 4}
    found = evolve(markov(8, 2), *pairs, 7, fitness=Hops(eight), checked_by=eight, **options)
    assert len(draws) == 1 and lists(found) == lists(draws[0])
    assert (found.flops == draws[0].flops).all()
    hops = np.array([len(p) - 1 - distinct_hops([p]) for p in lists(found)])
    assert (found.lookups == draws[0].lookups - hops).all()


# Edges of the interface


def test_evolution_follows_its_seed(eight, pairs):
    args = markov(8, 2, 0.5), *pairs, 7
    options = {"fitness": PathLength(eight), "population": 3, "generations": 2}
    state = torch.get_rng_state()
    first, again, other = (evolve(*args, seed=seed, **options) for seed in (1, 1, 2))
    assert lists(first) == lists(again) != lists(other)
    assert (first.lookups == again.lookups).all() and (first.flops == again.flops).all()
    assert torch.equal(state, torch.get_rng_state())


def test_source_that_is_the_target_dead_ends_and_no_queries(chain):
    options = {"fitness": PathLength(chain), "checked_by": chain, "generations": 2}
    found = evolve(markov(5, 0, 0.1), [2, 4, 0], [2, 0, 4], 5, **options)
    assert lists(found) == [[2], [4], [0, 1, 2, 3, 4]]
    assert found.flops[0] == 0 < found.flops[1]
    none = evolve(markov(5, 0), [], [], 5, **options)
    assert len(none.paths) == 0 and len(none.flops) == 0


def test_no_path_is_longer_than_allowed(eight, pairs):
    fitness = Recorder(eight)
    evolve(markov(8, 1, 0.2), *pairs, 3, fitness=fitness, generations=6, checked_by=eight)
    assert max(len(path) for scored in fitness.rounds for _, path in scored) == 4


def test_argument_errors(eight):
    model, options = markov(8, 0), {"fitness": PathLength(eight)}
    with pytest.raises(ValueError, match="population is at least 1"):
        evolve(model, [0], [1], 4, population=0, **options)
    with pytest.raises(ValueError, match="max_hops is at least 1"):
        evolve(model, [0], [1], 0, **options)
    with pytest.raises(ValueError, match="2 sources but 1 targets"):
        evolve(model, [0, 1], [1], 4, **options)
    with pytest.raises(TypeError, match="widht"):
        evolve(model, [0], [1], 4, widht=3, **options)
