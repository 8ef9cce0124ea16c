"""Resampling segments: descent, hand counts, short-cuts, and where the worst hop is."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from toys import START, STEP, Markov, Recorder, distinct_hops, kilometres, lists, markov

from citypaths.decoding import PathLength, greedy, sample
from citypaths.map.graph import build_graph
from studies.refinement import resample, resample_segments
from studies.search import evolution


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

    monkeypatch.setattr(evolution, "sample", recording)
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


def test_patience_finds_the_shortest_paths(eight, pairs, monkeypatch):
    monkeypatch.setattr(resample, "TRIES", 6)
    model, options = markov(8, 0, 0.0), {"rounds": 40, "checked_by": eight}
    founds = resample_segments(model, *pairs, 7, energy=PathLength(eight), **options)
    shortest = dict(nx.all_pairs_dijkstra_path_length(eight.to_networkx()))
    expected = [shortest[a][b] for a, b in zip(*pairs, strict=True)]
    np.testing.assert_allclose(kilometres(eight, *pairs, founds[-1]), expected, rtol=1e-5)


def test_a_short_cut_needs_no_model(place):
    """The model goes through every city; each short-cut over one city is an edge."""
    graph = build_graph(place([(0.01 * (i % 2), 0.1 * i) for i in range(5)]), 24)
    steps = Markov(np.eye(5)[[1, 2, 3, 4, 4]] * 60)
    options = {"energy": PathLength(graph), "rounds": 60}
    founds = resample_segments(steps, [0], [4], 6, **options)
    assert lists(founds[0]) == [[0, 1, 2, 3, 4]] and lists(founds[-1]) == [[0, 2, 4]]


# Counts


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("query", [(0, 7), (5, 1), (2, 6)])
def test_counts_are_those_of_all_draws_and_of_distinct_hops(eight, draws, query, checked):
    model, energy = markov(8, 2, 0.5), Recorder(eight, flops=2.0)
    options = {"checked_by": eight} if checked else {}
    first = greedy(model, *([end] for end in query), 7, **options)
    options |= {"rounds": 6}
    found = resample_segments(model, *([end] for end in query), 7, energy=energy, **options)[-1]
    assert len(draws) == 6 and all(len(source) == resample.TRIES for source, *_ in draws)
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
    with pytest.raises(ValueError, match="2 sources but 1 targets"):
        resample_segments(model, [0, 1], [1], 4, **options)
    with pytest.raises(ValueError, match="max_hops is at least 1"):
        resample_segments(model, [0], [1], 0, **options)
