"""Resampling segments: descent, hand counts, short-cuts, and where the worst hop is."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from test_evolution import Recorder, distinct_hops, kilometres
from test_search import START, STEP, Markov, lists, markov

from citypaths.decoding import Budget, PathLength, greedy, sample
from citypaths.map.graph import build_graph
from studies.refinement import resample_segments
from studies.refinement.resample import _in_proportion
from studies.search import variation


class ByHop(PathLength):
    """The exact verifier, which says that the hops from city `bad` are to blame for everything."""

    def __init__(self, graph, bad: int) -> None:
        super().__init__(graph)
        self.bad = bad

    def hop_energies(self, source, target, paths):
        ids = paths.padded()[:, :-1]
        return (ids == self.bad).astype(float)


@pytest.fixture(scope="module")
def eight(place):
    """Eight cities in two rows; two_way, each joined to a few."""
    return build_graph(place([(0.1 * (i % 2), 0.07 * i) for i in range(8)]), 20, "two_way")


@pytest.fixture(scope="module")
def pairs():
    return tuple(np.array([(a, b) for a in range(8) for b in range(8)]).T)


@pytest.fixture
def draws(monkeypatch):
    """Every draw that is made while the test runs, with its queries."""
    made = []

    def recording(model, source, target, *args, **options):
        made.append((source, target, sample(model, source, target, *args, **options)))
        return made[-1][2]

    monkeypatch.setattr(variation, "sample", recording)
    return made


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_energy_never_rises_and_costs_only_grow(eight, pairs, checked, seed):
    options = {"checked_by": eight} if checked else {}
    model, energy = markov(8, seed, 0.5), PathLength(eight)
    founds = resample_segments(model, *pairs, 7, energy=energy, rounds=6, seed=seed, **options)
    assert len(founds) == 7
    assert lists(founds[0]) == lists(greedy(model, *pairs, 7, **options))
    for before, after in pairwise(founds):
        assert (kilometres(eight, *pairs, after) <= kilometres(eight, *pairs, before)).all()
        assert (after.flops >= before.flops).all() and (after.lookups >= before.lookups).all()
        assert after.seconds >= before.seconds
    first, last = (kilometres(eight, *pairs, founds[r]) for r in (0, -1))
    assert (last < first).sum() > 10
    fewer = resample_segments(model, *pairs, 7, energy=energy, rounds=2, seed=seed, **options)
    for a, b in zip(fewer, founds, strict=False):
        assert lists(a) == lists(b) and (a.flops == b.flops).all()


def test_patience_finds_the_shortest_paths(eight, pairs):
    model, options = markov(8, 0, 0.0), {"rounds": 40, "tries": 6, "checked_by": eight}
    founds = resample_segments(model, *pairs, 7, energy=PathLength(eight), **options)
    shortest = dict(nx.all_pairs_dijkstra_path_length(eight.to_networkx()))
    expected = [shortest[a][b] for a, b in zip(*pairs, strict=True)]
    np.testing.assert_allclose(kilometres(eight, *pairs, founds[-1]), expected, rtol=1e-5)


def test_a_short_cut_needs_no_model(place):
    """The model goes through every city; each short-cut over one city is an edge."""
    graph = build_graph(place([(0.01 * (i % 2), 0.1 * i) for i in range(5)]), 24)
    steps = Markov(np.eye(5)[[1, 2, 3, 4, 4]] * 60)
    options = {"energy": PathLength(graph), "rounds": 60, "tries": 1}
    founds = resample_segments(steps, [0], [4], 6, **options)
    assert lists(founds[0]) == [[0, 1, 2, 3, 4]] and lists(founds[-1]) == [[0, 2, 4]]


# Counts


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("query", [(0, 7), (5, 1), (2, 6)])
def test_counts_are_those_of_all_draws_and_of_distinct_hops(eight, draws, query, checked):
    model, energy = markov(8, 2, 0.5), Recorder(eight, flops=2.0)
    options = {"checked_by": eight} if checked else {}
    first = greedy(model, *([end] for end in query), 7, **options)
    options |= {"rounds": 6, "tries": 3}
    found = resample_segments(model, *([end] for end in query), 7, energy=energy, **options)[-1]
    assert len(draws) == 6 and all(len(source) == 3 for source, *_ in draws)
    drawn = [path.tolist() for *_, draw in draws for path in draw.paths] + lists(first)
    judged = [path for scored in energy.rounds for _, path in scored]
    steps = sum(len(path) - 1 for path in drawn) * STEP
    starts = sum(len(path) > 1 for path in drawn) * START
    assert found.flops[0] == steps + starts + 2.0 * sum(map(len, judged))
    if checked:
        cuts = [(int(source[0]), int(target[0])) for source, target, _ in draws]
        taken = drawn + [list(cut) for cut in cuts]
        again = sum(len(path) - 1 for path in taken) - distinct_hops(taken)
        tried = sum(draw.lookups.sum() for *_, draw in draws) + first.lookups.sum() + len(cuts)
        assert found.lookups[0] == tried - again
    else:
        assert found.lookups[0] == distinct_hops(judged)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 600), st.integers(0, 120), st.booleans())
def test_budgets(eight, pairs, flops, lookups, checked):
    options = {"rounds": 4, "tries": 2, "checked_by": eight if checked else None}
    options |= {"energy": PathLength(eight), "budget": Budget(flops, lookups)}
    founds = resample_segments(markov(8, 2, 0.5), *pairs, 7, **options)
    free = resample_segments(markov(8, 2, 0.5), *pairs, 7, **(options | {"budget": None}))
    for found in founds:
        assert (found.flops <= flops).all() and (found.lookups <= lookups).all()
    within = (free[0].flops <= flops) & (free[0].lookups <= lookups)
    for q in range(len(pairs[0])):
        expected = free[0].paths[q] if within[q] else pairs[0][q : q + 1]
        assert founds[0].paths[q].tolist() == expected.tolist()
        assert within[q] or founds[-1].flops[q] == founds[-1].lookups[q] == 0


# Where


def test_the_worst_hop_is_within_every_segment(eight, draws):
    """City 2 is to blame: a segment begins there or before it, and ends after it."""
    line = Markov(np.eye(8)[[2, 3, 4, 5, 6, 7, 7, 7]] * 60)
    energy, n = ByHop(eight, 2), 200
    options = {"rounds": 1, "tries": 1, "where": "worst"}
    founds = resample_segments(line, [0] * n, [6] * n, 7, energy=energy, **options)
    assert lists(founds[0])[0] == [0, 2, 4, 6]
    (source, target, _), = draws  # fmt: skip
    spans = set(zip(source.tolist(), target.tolist(), strict=True))
    assert spans == {(0, 4), (0, 6), (2, 4), (2, 6)}
    draws.clear()
    resample_segments(line, [0] * n, [6] * n, 7, energy=energy, **(options | {"where": "random"}))
    assert set(zip(*(end.tolist() for end in draws[0][:2]), strict=True)) > spans


def test_choice_in_proportion():
    n, weights = 4000, np.array([[1.0, 0.0, 3.0, 5.0]])
    chance = np.random.default_rng(0).random(n)
    at = _in_proportion(weights.repeat(n, 0), np.full(n, 3), chance)
    assert set(at) == {0, 2}
    assert chisquare(np.bincount(at)[[0, 2]], [n / 4, 3 * n / 4]).pvalue > 0.01
    even = _in_proportion(np.zeros((n, 4)), np.full(n, 3), chance)
    assert chisquare(np.bincount(even)).pvalue > 0.01 and even.max() == 2


def test_a_path_that_does_not_arrive_is_drawn_anew_to_the_target(eight, draws):
    """Greedy goes back and forth between 0 and 1; by chance the model goes anywhere."""
    table = np.zeros((8, 8))
    table[0, 1] = table[1, 0] = 0.5
    options = {"energy": PathLength(eight), "rounds": 12, "checked_by": eight}
    founds = resample_segments(Markov(table), [0], [7], 9, **options)
    assert lists(founds[0])[0] == [0, 1] * 5
    assert all((target == 7).all() for _, target, _ in draws[:1])
    assert np.isfinite(kilometres(eight, [0], [7], founds[-1])).all()


# Edges of the interface


def test_resampling_follows_its_seed(eight, pairs):
    args, options = (markov(8, 2, 0.5), *pairs, 7), {"energy": PathLength(eight), "rounds": 3}
    first, again, other = (resample_segments(*args, seed=s, **options)[-1] for s in (1, 1, 2))
    assert lists(first) == lists(again) != lists(other)
    assert (first.flops == again.flops).all() and (first.lookups == again.lookups).all()


def test_equal_ends_dead_ends_and_no_queries(chain):
    options = {"energy": PathLength(chain), "checked_by": chain, "rounds": 2}
    found = resample_segments(markov(5, 0, 0.1), [2, 4, 0], [2, 0, 4], 5, **options)[-1]
    assert lists(found) == [[2], [4], [0, 1, 2, 3, 4]] and found.flops[0] == 0
    assert len(resample_segments(markov(5, 0), [], [], 5, **options)[-1].paths) == 0


def test_argument_errors(eight):
    model, options = markov(8, 0), {"energy": PathLength(eight)}
    for wrong in ({"rounds": -1}, {"tries": 0}):
        with pytest.raises(ValueError, match="0 or more and tries 1 or more"):
            resample_segments(model, [0], [1], 4, **options, **wrong)
    with pytest.raises(ValueError, match="random or worst"):
        resample_segments(model, [0], [1], 4, where="best", **options)
    with pytest.raises(TypeError, match="PathLength has no hop_energies"):
        resample_segments(model, [0], [1], 4, where="worst", **options)
    with pytest.raises(ValueError, match="2 sources but 1 targets"):
        resample_segments(model, [0, 1], [1], 4, **options)
    with pytest.raises(ValueError, match="max_hops is at least 1"):
        resample_segments(model, [0], [1], 0, **options)
