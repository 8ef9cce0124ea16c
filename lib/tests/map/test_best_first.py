"""A* with any kilometres to go: exact where it should be, bounded, and counted by hand."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import ExactValue, same

from citypaths.map import best_first as best_first_module
from citypaths.map.best_first import best_first
from citypaths.map.graph import CityGraph, build_graph
from citypaths.map.shortest_paths import shortest_path_trees

COST = 7


@dataclass
class Wrapped:
    """Exact kilometres, scaled and with hashed noise: mostly inconsistent, admissible where low."""

    value: ExactValue
    low: float = 1.0
    high: float = 1.0
    flops_per_call: int = COST

    def togo(self, city, target):
        chance = torch.frac(torch.sin((city * 131 + target * 71).double()) * 4e4).abs()
        return self.value.togo(city, target) * (self.low + (self.high - self.low) * chance)


@pytest.fixture(scope="module")
def asked(oriented_tennessee):
    """A graph, 300 queries with their kilometres, and the exact value of all targets."""
    graph = oriented_tennessee
    trees = shortest_path_trees(graph, np.arange(len(graph)))
    source, target = np.nonzero(trees.reachable)
    keep = np.random.default_rng(1).choice(len(source), 300, replace=False)
    source, target = source[keep], target[keep]
    return graph, source, target, trees.km[source, target], ExactValue(graph, np.arange(len(graph)))


def km_of(graph, found) -> np.ndarray:
    """Length of each path, every hop of which must be an edge."""
    at = [graph.edge_index(path[:-1], path[1:]) for path in found.paths]
    assert all((row >= 0).all() for row in at)
    return np.array([graph.mm[row].sum() / 1e6 for row in at])


def a_star(graph, source, target, *, value=None, weight=1.0, g_weight=1.0, reopen=True):
    """Best-first search with a value of (city, target) pairs, or the great circle."""
    if value is None:
        return best_first(graph, source, target, g_weight, weight, reopen=reopen)
    cities = torch.arange(len(graph))

    def togo(targets):
        goals = torch.as_tensor(targets)
        return torch.stack([value.togo(cities, goal.expand(len(cities))) for goal in goals]).numpy()

    options = {"togo": togo, "flops": value.flops_per_call, "reopen": reopen}
    return best_first(graph, source, target, g_weight, weight, **options)


# Exactness


def test_the_exact_value_expands_the_path_alone(asked):
    graph, source, target, km, exact = asked
    found, dijkstra = a_star(graph, source, target, value=exact), best_first(graph, source, target)
    np.testing.assert_allclose(km_of(graph, found), km, rtol=1e-12)
    assert (found.expansions <= dijkstra.expansions).all()
    extra = found.expansions - (found.paths.lengths - 1)
    assert (extra == 0).mean() > 0.95 and extra.max() <= 3, "ties alone may cost more"


def test_without_a_value_it_is_the_floor(asked):
    graph, source, target, *_ = asked
    for weights in ((1.0, 0.0), (1.0, 1.0), (0.0, 1.0)):
        g_weight, weight = weights
        found = a_star(graph, source, target, weight=weight, g_weight=g_weight)
        same(found, best_first(graph, source, target, *weights))
    found = a_star(graph, source, target, weight=1.05, reopen=False)
    same(found, best_first(graph, source, target, 1.0, 1.05, reopen=False))


@pytest.mark.parametrize("low, high", [(0.5, 0.5), (0.9, 0.9), (0.0, 1.0), (0.8, 1.0)])
def test_admissible_estimates_are_optimal(asked, low, high):
    graph, source, target, km, exact = asked
    value = Wrapped(exact, low, high)
    found = a_star(graph, source, target, value=value)
    np.testing.assert_allclose(km_of(graph, found), km, rtol=1e-12)
    if low == high:  # consistent: no city is expanded twice
        dijkstra = a_star(graph, source, target, weight=0.0)
        assert (found.expansions <= dijkstra.expansions).all()
        once = a_star(graph, source, target, value=value, reopen=False)
        np.testing.assert_allclose(km_of(graph, once), km, rtol=1e-8)


@pytest.mark.parametrize("reopen", [True, False])
@pytest.mark.parametrize("weight", [1.05, 1.5, 4.0])
def test_weights_bound_the_length(asked, weight, reopen):
    graph, source, target, km, exact = asked
    for value in (None, Wrapped(exact, 0.9, 0.9)):
        found = a_star(graph, source, target, value=value, weight=weight, reopen=reopen)
        assert (km_of(graph, found) <= weight * km * (1 + 1e-9)).all()
        assert [p[-1] for p in found.paths] == target.tolist()


def test_overestimates_bound_the_length_when_cities_are_reopened(asked):
    graph, source, target, km, exact = asked
    found = a_star(graph, source, target, value=Wrapped(exact, 0.9, 1.1))
    assert (km_of(graph, found) <= 1.1 * km).all()
    assert (km_of(graph, found) > km * (1 + 1e-6)).any(), "this one is not admissible"


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 25), st.booleans())
def test_networkx_finds_the_same_lengths(seed, cities, two_way):
    graph = scatter(seed, cities, two_way)
    roads, exact = graph.to_networkx(), ExactValue(graph, np.arange(cities))
    source, target = np.divmod(np.arange(cities**2), cities)
    found = a_star(graph, source, target, value=Wrapped(exact, 0.3, 1.0))
    for path, a, b in zip(found.paths, source.tolist(), target.tolist(), strict=True):
        if nx.has_path(roads, a, b):
            km = nx.astar_path_length(roads, a, b, lambda u, v: float(graph.distance_km(u, v)))
            hops = graph.edge_index(path[:-1], path[1:])
            assert path[-1] == b and graph.km[hops].sum() == pytest.approx(km, abs=1e-5)
        else:
            assert path.tolist() == [a]


def scatter(seed: int, cities: int, two_way: bool) -> CityGraph:
    lat, lon = np.random.default_rng(seed).uniform(0, 1, (2, cities))
    names = {"name": [f"City {i}" for i in range(cities)], "state": "XX", "population": 1}
    frame = pd.DataFrame(names | {"lat": lat, "lon": lon})
    return build_graph(frame, 40, "two_way" if two_way else "eastward")


# Counts by hand


def spent(found) -> list[tuple]:
    columns = (found.flops / COST, found.lookups, found.expansions)
    return [tuple(row) for row in np.stack(columns, 1).tolist()]


def test_counts_on_a_chain(chain):
    """Each city has one edge, to the next: 0 -> 4 asks of 1, 2, 3, not of itself or the target."""
    value = Wrapped(ExactValue(chain, np.arange(5)))
    found = a_star(chain, [0, 2, 4, 4, 0], [4, 3, 4, 0, 1], value=value)
    assert spent(found) == [(3, 4, 4), (0, 1, 1), (0, 0, 0), (0, 0, 1), (0, 1, 1)]
    ways = [[0, 1, 2, 3, 4], [2, 3], [4], [4], [0, 1]]
    assert [p.tolist() for p in found.paths] == ways
    blind = a_star(chain, [0], [4], value=value, weight=0.0)
    assert spent(blind) == [(0, 4, 4)], "Dijkstra asks for nothing"


def test_counts_where_ways_meet(place):
    """0 -> 1, 0 -> 2, 1 -> 3, 2 -> 3, 3 -> 4: city 3 is reached twice and asked for once."""
    points = [(0, 0), (0.1, 0.1), (-0.08, 0.1), (0, 0.2), (0, 0.33)]
    graph = build_graph(place(points), 17)
    assert graph.indices.tolist() == [1, 2, 3, 3, 4]

    value = Wrapped(ExactValue(graph, np.arange(5)))
    value.togo = lambda city, target: torch.tensor([0.0, 0.0, 40.0, 0.0, 99.0])[city]
    found = a_star(graph, [0], [4], value=value)
    assert spent(found) == [(3, 4, 3)] and found.paths[0].tolist() == [0, 1, 3, 4]
    value.togo = lambda city, target: torch.tensor([0.0, 0.0, 25.0, 0.0, 99.0])[city]
    again = a_star(graph, [0], [4], value=value)
    assert spent(again) == [(3, 6, 5)] and again.paths[0].tolist() == [0, 2, 3, 4]
    once = a_star(graph, [0], [4], value=value, reopen=False)
    assert spent(once) == [(3, 5, 4)] and once.paths[0].tolist() == [0, 1, 3, 4]


# The table


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_change_nothing(asked, chunk, monkeypatch):
    graph, source, target, _, exact = asked
    value = Wrapped(exact, 0.8, 1.1)
    whole = a_star(graph, source, target, value=value)
    monkeypatch.setattr(best_first_module, "TABLE_CELLS", chunk * len(graph))
    same(a_star(graph, source, target, value=value), whole)


def test_unreachable_targets_and_no_queries(scattered, chain):
    value = ExactValue(scattered, np.arange(3))
    found = a_star(scattered, [0, 1], [1, 1], value=value)
    assert [p.tolist() for p in found.paths] == [[0], [1]]
    nothing = a_star(chain, [], [], value=ExactValue(chain, np.arange(5)))
    assert len(nothing.paths) == 0 and nothing.cost()["expansions"] == 0


def test_argument_errors(chain):
    with pytest.raises(ValueError, match="1 sources but 2 targets"):
        a_star(chain, [0], [1, 2])
    with pytest.raises(ValueError, match="weights are 0 or more"):
        a_star(chain, [0], [1], weight=-1.0)
    with pytest.raises(ValueError, match="weights are 0 or more"):
        a_star(chain, [0], [1], weight=0.0, g_weight=0.0)
    with pytest.raises(ValueError, match="weights are 0 or more"):
        a_star(chain, [0], [1], weight=inf)
    with pytest.raises(ValueError, match="ids from 0 to 4"):
        a_star(chain, [0], [5])
    broken = Wrapped(ExactValue(chain, np.arange(5)))
    broken.togo = lambda city, target: torch.full(city.shape, torch.nan)
    with pytest.raises(ValueError, match="not a number"):
        a_star(chain, [0], [1], value=broken)
