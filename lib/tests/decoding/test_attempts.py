"""Attempts, best of N, stitching and stochastic beams against enumeration and brute force."""

from __future__ import annotations

from itertools import combinations, pairwise

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from toys import START, STEP, ExactValue, Markov, every_path

from citypaths import decoding
from citypaths.decoding import PathLength, in_parts
from citypaths.decoding.attempts import Attempts, stitch
from citypaths.map.graph import build_graph
from citypaths.map.paths import Found, Paths


@pytest.fixture(scope="module")
def six(place):
    """Six cities in two rows; two_way, each joined to a few."""
    return build_graph(place([(0.1 * (i % 2), 0.08 * i) for i in range(6)]), 20, "two_way")


@pytest.fixture(scope="module")
def model(six):
    return Markov(torch.randn(6, 6, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("checked", [False, True])
def test_attempts_are_draws_from_the_model(model, six, checked):
    graph = six if checked else None
    n, expected = 20_000, every_path(model, 0, 4, 3, graph)
    found = decoding.draw(model, [0], [4], 3, n, checked_by=graph, seed=1)
    counts = dict(zip((tuple(p.tolist()) for p in found.paths), found.count, strict=True))
    assert sum(counts.values()) == n and set(counts) <= set(expected)
    common = [path for path, p in expected.items() if p * n >= 5]
    seen = np.array([counts.get(path, 0) for path in common] + [0])
    hoped = np.array([expected[path] * n for path in common] + [0])
    seen[-1], hoped[-1] = n - seen.sum(), n - hoped.sum()
    assert chisquare(seen[hoped > 0], hoped[hoped > 0]).pvalue > 1e-3
    logs = [np.log(expected[tuple(p.tolist())]) for p in found.paths]
    np.testing.assert_allclose(found.log_p, logs, atol=1e-4)


def test_a_shared_prefix_is_computed_once(model):
    found = decoding.draw(model, [0, 2], [4, 2], 3, 500, seed=2)
    prefixes = {tuple(p[:i].tolist()) for p in found.paths.take(found.query == 0) for i in (1, 2, 3)
                if len(p) > i}  # fmt: skip
    assert found.flops.tolist() == [START + STEP * len(prefixes), 0]
    assert found.paths[len(found.paths) - 1].tolist() == [2] and found.count[-1] == 500


def test_checked_attempts_look_each_hop_up_once(model, six):
    found = decoding.draw(model, [0, 1], [5, 5], 4, 300, checked_by=six, seed=3)
    assert len(np.unique(found.hops, axis=0)) == len(found.hops) == found.lookups.sum()
    looked = {tuple(hop) for hop in found.hops.tolist()}
    assert {tuple(hop) for hop in found.used_hops().tolist()} <= looked
    assert all(six.is_edge(a, b) for p in found.paths for a, b in pairwise(p.tolist()))


def test_a_dead_end_ends_there(chain):
    """Towards a city in the west there is no hop but to the east, and then none."""
    found = decoding.draw(Markov(torch.zeros(5, 5)), [3], [0], 9, 50, checked_by=chain)
    assert [p.tolist() for p in found.paths] == [[3, 4]] and found.count.tolist() == [50]


@pytest.mark.parametrize("wrong", [{"n": 0}, {"max_hops": 0}])
def test_attempts_refuse(model, wrong):
    with pytest.raises(ValueError, match="attempts and hops are 1 or more"):
        decoding.draw(model, [0], [4], **({"max_hops": 3, "n": 4} | wrong))


# Best of N


def attempts_of(query, count) -> Attempts:
    queries = max(query) + 1
    zeros, paths = np.zeros(queries), Paths.from_lists([[i] for i in range(len(query))])
    arrays = (np.array(query), np.array(count), np.zeros(len(query)), np.zeros((0, 3), int))
    return Attempts(paths, *arrays, zeros, zeros, 0.0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_expected_best_is_the_mean_over_all_subsets(data):
    counts = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    total = sum(counts)
    levels = st.sampled_from([0.0, 1.0, np.inf])
    energies = np.array([data.draw(levels) for _ in counts])
    good = np.array([data.draw(st.sampled_from([0.0, 0.5, 1.0])) for _ in counts])
    n = data.draw(st.integers(1, total))
    drawn = np.repeat(np.arange(len(counts)), counts)
    shares = []
    for subset in combinations(range(total), n):
        rows = drawn[list(subset)]
        rows = rows[energies[rows] == energies[rows].min()]
        shares.append(np.mean(good[rows]))
    attempts = attempts_of([0] * len(counts) + [1], [*counts, total])
    value = decoding.expected_best(attempts, np.append(energies, 0), np.append(good, 1), [n])
    np.testing.assert_allclose(value[:, 0], [np.mean(shares), 1.0])


def test_more_attempts_never_hurt_an_exact_verifier(tennessee):
    random = np.random.default_rng(0)
    energies, query = random.exponential(size=60), np.repeat(np.arange(3), 20)
    attempts = attempts_of(query, random.integers(1, 5, 60))
    good = (energies < 0.1).astype(float)
    ns = range(1, int(np.bincount(query, attempts.count).min()))
    curve = decoding.expected_best(attempts, energies, good, list(ns))
    assert (np.diff(curve, axis=1) >= -1e-12).all()
    with pytest.raises(ValueError, match="were drawn, not 99999"):
        decoding.expected_best(attempts, energies, good, [99999])


def shortest(graph, pairs) -> list[float]:
    net = graph.to_networkx()
    return [nx.shortest_path_length(net, *pair, weight="weight") for pair in pairs]


def test_enough_attempts_and_an_exact_verifier_are_dijkstra(six):
    pairs = [(0, 5), (5, 0), (1, 4), (3, 3)]
    source, target = np.array(pairs).T
    flat, verify = Markov(torch.zeros(6, 6)), PathLength(six)
    for found in (
        decoding.best_of(flat, source, target, 6, n=20_000, scorer=verify),
        decoding.best_of(flat, source, target, 6, n=4_000, scorer=verify, checked_by=six),
        decoding.stitched(flat, source, target, 6, n=200, checked_by=six),
    ):
        km = verify.score(source, target, found.paths)
        np.testing.assert_allclose(km, shortest(six, pairs), rtol=1e-6)
        assert found.flops[3] == 0 and (found.lookups[:3] > 0).all()


def test_a_closed_book_verifier_pays_for_its_look_ups(model, six):
    found = decoding.best_of(model, [0], [4], 3, n=300, scorer=PathLength(six), seed=5)
    attempts = decoding.draw(model, [0], [4], 3, 300, seed=5)
    assert found.lookups.tolist() == [len(attempts.used_hops())]


def test_stitching_joins_what_no_attempt_took_whole(six):
    hops = np.array([[0, 0, 1], [0, 1, 3], [0, 3, 5], [0, 0, 5], [1, 0, 1], [1, 2, 3]])
    paths = stitch(six, hops[six.edge_index(hops[:, 1], hops[:, 2]) > -2], [0, 0], [5, 3])
    assert paths[0].tolist() == [0, 1, 3, 5] and not len(paths[1])


# The exact scorers, and searches in parts


def test_path_length_refuses_what_is_illegal_or_elsewhere(chain):
    lists = [[0, 1, 2], [0, 2], [0, 1], [1, 2], [], [2], [0, 9, 2]]
    source = np.array([0, 0, 0, 0, 0, 2, 0])
    energies = PathLength(chain).score(source, np.full(7, 2), Paths.from_lists(lists))
    assert np.isfinite(energies).tolist() == [True, False, False, False, False, True, False]
    assert energies[0] == pytest.approx(chain.km[:2].sum()) and energies[5] == 0


def test_exact_value_is_dijkstras(tennessee):
    value = ExactValue(tennessee, np.array([7, 300]))
    lengths = nx.single_source_dijkstra_path_length(
        tennessee.to_networkx().reverse(), 300, weight="weight"
    )
    togo = value.togo(torch.arange(len(tennessee)), torch.full((len(tennessee),), 300))
    expected = [lengths.get(i, np.inf) for i in range(len(tennessee))]
    np.testing.assert_allclose(togo.numpy(), expected, rtol=1e-6)


class Stops:
    """A search that is interrupted at its third part, once."""

    def __init__(self) -> None:
        self.calls, self.firsts = 0, []

    def __call__(self, source, target, seed) -> Found:
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        self.firsts.append((int(source[0]), seed))
        costs = (np.ones(len(source)), np.zeros(len(source)), np.zeros(len(source)))
        return Found(Paths.from_lists(np.stack([source, target], 1)), *costs, 1.0)


def test_an_interrupt_loses_no_finished_query():
    method, ids = Stops(), np.arange(10)
    with pytest.raises(decoding.Interrupted, match="6 of 10 queries are finished") as stopped:
        in_parts(method, ids, ids + 1, part=3, seed=4)
    found = stopped.value.found
    assert len(found.paths) == 6 and found.seconds == 2
    assert method.firsts == [(0, 4), (3, 7)], "a seed a part"
    assert found.paths.tokens.tolist() == np.stack([ids, ids + 1], 1)[:6].flatten().tolist()
    found = in_parts(method, ids, ids + 1, part=3, seed=4, name="again")
    assert found.paths.tokens.tolist() == np.stack([ids, ids + 1], 1).flatten().tolist()
    assert found.flops.tolist() == [1.0] * 10
    with pytest.raises(ValueError, match="10 sources but 9 targets"):
        in_parts(method, ids, ids[1:], seed=4)
