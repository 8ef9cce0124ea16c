"""Beams by value and tree search: shortest where they should be, counted by hand."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from toys import START, STEP, ExactValue, counted_flops, lists, markov, same, spent

from citypaths.data.batches import Batch
from citypaths.map.graph import CityGraph, build_graph
from citypaths.map.paths import Found
from citypaths.models import build
from studies.search import tree, worlds
from studies.search.tree import beam_with_value, grown, mcts
from studies.search.worlds import LatentWorld, MapWorld, enter

COST, ASK = 5, START + STEP  # operations of a value, and of asking `Markov` from a city
SEARCHES = {
    "beam": beam_with_value,
    "narrow beam": partial(beam_with_value, width=1),
    "mcts": mcts,
}
every_search = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())


class Costly:
    """A value at a price; `table` [V] replaces the exact kilometres, whatever the target."""

    flops_per_call = COST

    def __init__(self, graph: CityGraph, table: list[float] | None = None) -> None:
        self.exact = ExactValue(graph, np.arange(len(graph)))
        self.table = None if table is None else torch.tensor(table, dtype=torch.float64)

    def togo(self, city, target):
        return self.exact.togo(city, target) if self.table is None else self.table[city]


class Roadless:
    """The places of a graph; whoever asks for its roads is stopped."""

    def __init__(self, graph: CityGraph) -> None:
        self.lat, self.lon, self.count = graph.lat, graph.lon, len(graph)

    def __len__(self) -> int:
        return self.count

    def __getattr__(self, name: str):
        raise AssertionError(f"looked at {name}")


def scatter(seed: int, cities: int, orientation: str) -> CityGraph:
    lat, lon = np.random.default_rng(seed).uniform(0, 1, (2, cities))
    names = {"name": [f"City {i}" for i in range(cities)], "state": "XX", "population": 1}
    return build_graph(pd.DataFrame(names | {"lat": lat, "lon": lon}), 40, orientation)


def every_pair(graph: CityGraph) -> tuple[np.ndarray, np.ndarray]:
    return np.divmod(np.arange(len(graph) ** 2), len(graph))


def kilometres(graph: CityGraph, target, found) -> np.ndarray:
    """Length of each path, all of whose hops must be edges; infinite where it does not arrive."""
    hops = [graph.edge_index(path[:-1], path[1:]) for path in found.paths]
    assert all((at >= 0).all() for at in hops)
    km = [graph.mm[at].sum() / 1e6 if len(at) else 0.0 for at in hops]
    return np.where([p[-1] for p in found.paths] == np.asarray(target), km, np.inf)


@pytest.fixture(scope="module", params=["eastward", "two_way"])
def random_graph(request):
    return scatter(3, 10, request.param)


@pytest.fixture(scope="module")
def diamond(place):
    """0 -> 1, 0 -> 2, 1 -> 3, 2 -> 3, 3 -> 4, and by way of 2 it is shorter."""
    points = [(0, 0), (0.1, 0.1), (-0.08, 0.1), (0, 0.2), (0, 0.33)]
    graph = build_graph(place(points), 17)
    assert graph.indices.tolist() == [1, 2, 3, 3, 4]
    return graph


@pytest.fixture(scope="module")
def zigzag(place):
    """Seven cities in a zigzag, each joined to the next alone: detours of up to 1.74."""
    graph = build_graph(place([(0.1 * (i % 2), 0.07 * i) for i in range(7)]), 14)
    assert graph.indices.tolist() == [1, 2, 3, 4, 5, 6]
    return graph


@pytest.fixture(scope="module")
def paths_of(zigzag) -> Batch:
    """Every path of the zigzag."""
    source, target = np.triu_indices(7, 1)
    rows = [list(range(a, b + 1)) for a, b in zip(source, target, strict=True)]
    cities = torch.tensor([row[:-1] + [0] * (7 - len(row)) for row in rows])
    labels = torch.tensor([row[1:] + [-100] * (7 - len(row)) for row in rows])
    return Batch(torch.as_tensor(source), torch.as_tensor(target), cities, labels)


@pytest.fixture(scope="module")
def planner(zigzag, paths_of):
    """A planner that never sees a road, after a short training on the paths."""
    torch.manual_seed(0)
    model = build("planner", Roadless(zigzag), width=16)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(200):
        optimizer.zero_grad()
        model.loss(paths_of).backward()
        optimizer.step()
    return model.eval()


# On the map


@every_search
def test_the_exact_value_finds_a_shortest_path(random_graph, search):
    graph, (source, target) = random_graph, every_pair(random_graph)
    shortest = dict(nx.all_pairs_dijkstra_path_length(graph.to_networkx()))
    expected = [shortest[a].get(b, np.inf) for a, b in zip(source, target, strict=True)]
    assert np.isinf(expected).any() or graph.orientation == "two_way"
    for policy in (None, markov(len(graph), 0)):
        found = search(MapWorld(graph, policy, Costly(graph)), source, target, 9)
        np.testing.assert_allclose(kilometres(graph, target, found), expected, rtol=1e-6)


@pytest.mark.parametrize("value", [Costly, lambda _: None], ids=["exact", "great circle"])
def test_more_simulations_never_hurt_and_end_at_the_shortest(random_graph, value, monkeypatch):
    monkeypatch.setattr(tree, "PRIOR", 1.0)
    graph, (source, target) = random_graph, every_pair(random_graph)
    world = MapWorld(graph, markov(len(graph), 1, 3.0), value(graph))
    km, costs = [], []
    for n in (1, 2, 4, 8, 64):
        found = mcts(world, source, target, 9, simulations=n)
        km.append(kilometres(graph, target, found))
        costs.append(found.expansions)
    assert all((b <= a).all() for a, b in pairwise(km))
    assert all((b >= a).all() for a, b in pairwise(costs))
    exact = ExactValue(graph, np.arange(len(graph))).km[target, source].numpy()
    assert (km[0] > exact * (1 + 1e-6)).any(), "at first the policy leads astray"
    np.testing.assert_allclose(km[-1], exact, rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_one_simulation_without_a_value_follows_the_policy(random_graph, seed, monkeypatch):
    monkeypatch.setattr(tree, "PRIOR", 1000000.0)
    graph, (source, target) = random_graph, every_pair(random_graph)
    model, nothing = markov(len(graph), seed), Costly(graph, [0.0] * len(graph))
    world = MapWorld(graph, model, nothing)
    found = mcts(world, source, target, 9, simulations=1)
    seen = 0
    for path, goal in zip(lists(found), target, strict=True):
        near = graph.indices[graph.indptr[path[0]] : graph.indptr[path[0] + 1]]
        if len(path) > 1 and goal not in near:
            assert path[1] == max(near, key=lambda city, a=path[0]: model.table[a, city].item())
            seen += 1
    assert seen > 15


def test_counts_on_a_chain(chain):
    """Each city has one road: 0 -> 4 reads those of 0 to 3, a look-up and a value each."""
    world, policy = (
        MapWorld(chain, None, Costly(chain)),
        MapWorld(chain, markov(5, 0), Costly(chain)),
    )
    queries = [0, 2, 4, 4], [4, 3, 4, 0]
    ways = [[0, 1, 2, 3, 4], [2, 3], [4], [4]]
    once = [(4 * COST, 4, 4), (COST, 1, 1), (0, 0, 0), (0, 0, 1)]
    for name in ("beam", "narrow beam"):
        found = SEARCHES[name](world, *queries, 4)
        assert spent(found) == once and lists(found) == ways, name
    found = mcts(policy, *queries, 4)
    asked = [(f + ASK * n, looked, n) for f, looked, n in once]
    assert spent(found) == asked and lists(found) == ways


def test_counts_where_ways_meet(diamond, monkeypatch):
    exact = MapWorld(diamond, markov(5, 0, 0.0), Costly(diamond))
    alone = MapWorld(diamond, None, Costly(diamond))
    assert spent(beam_with_value(alone, [0], [4], 4, width=2)) == [(5 * COST, 5, 4)]
    assert spent(beam_with_value(alone, [0], [4], 4, width=1)) == [(4 * COST, 4, 3)]
    for n in (1, 9):  # by great circle city 1 cannot be on a shorter way: the search ends
        found = mcts(exact, [0], [4], 4, simulations=n)
        assert spent(found) == [(4 * COST + 3 * ASK, 4, 3)] and lists(found) == [[0, 2, 3, 4]]
    wrong = MapWorld(diamond, markov(5, 0, 0.0), Costly(diamond, [0.0, 0.0, 40.0, 0.0, 0.0]))
    monkeypatch.setattr(tree, "PRIOR", 0.0)
    first = mcts(wrong, [0], [4], 4, simulations=1)
    assert spent(first) == [(4 * COST + 3 * ASK, 4, 3)] and lists(first) == [[0, 1, 3, 4]]
    second = mcts(wrong, [0], [4], 4, simulations=2)
    assert spent(second) == [(6 * COST + 5 * ASK, 6, 5)], "3 is expanded again, sooner reached"
    assert lists(second) == [[0, 2, 3, 4]]


@every_search
def test_the_batch_decides_nothing(random_graph, search):
    graph, (source, target) = random_graph, every_pair(random_graph)
    ends = np.stack([source, target])
    world = MapWorld(graph, markov(len(graph), 2), None)
    whole = search(world, source, target, 9)
    parts = [search(world, *some, 9) for some in np.array_split(ends, 7, 1)]
    same(Found.concatenate(parts), whole)
    back = search(world, source[::-1], target[::-1], 9)
    assert lists(back) == lists(whole)[::-1] and spent(back) == spent(whole)[::-1]


def test_visits_are_simulations(random_graph, monkeypatch):
    monkeypatch.setattr(tree, "PRIOR", 1.0)
    graph, (source, target) = random_graph, every_pair(random_graph)
    source, target = source[source != target], target[source != target]
    world = MapWorld(graph, markov(len(graph), 1, 0.5), None)
    full = 0
    for n in (1, 3, 7):
        trees, _ = grown(world, source, target, 9, simulations=n)
        visits, node = trees.kids["visits"], trees.kids["node"]
        at_root = visits[:, 0].sum(1)
        open_ = trees.alive(torch.zeros(len(source), dtype=torch.long)).any(1)
        assert (at_root <= n).all() and (at_root[open_] == n).all()
        full += int(open_.sum())
        for q, m, c in (node >= 0).nonzero().tolist():  # some end below a child, some at it
            assert visits[q, node[q, m, c]].sum() <= visits[q, m, c]
        made = trees.nodes["km"][:, 1 : trees.count].isfinite().sum(1)
        assert (at_root <= made).all() and (at_root > 0).equal(made > 0)
    assert full > 20


@every_search
def test_no_path_is_longer_than_allowed(random_graph, search):
    graph, (source, target) = random_graph, every_pair(random_graph)
    found = search(MapWorld(graph, None, None), source, target, 2)
    assert max(map(len, lists(found))) == 3
    kilometres(graph, target, found)


# In latents


def test_the_value_is_calibrated(zigzag, planner):
    togo = ExactValue(zigzag, np.arange(7))
    with torch.no_grad():
        for source in range(5):
            target = torch.arange(source + 2, 7)
            city = torch.full_like(target, source + 1)
            latent = LatentWorld(planner).begin(city - 1, target)
            after = planner.transition(latent, city, target)
            km, astray = planner.outlook(after, city, target)
            np.testing.assert_allclose(km, togo.togo(city, target), rtol=0.05)
            assert (astray < 0.2).all()
            wrong = (city + 3) % 7
            wrong = wrong.where(wrong != target, (wrong + 1) % 7)
            _, lost = planner.outlook(planner.transition(latent, wrong, target), wrong, target)
            assert lost.mean() > 0.5 and (lost > astray).all()


@every_search
def test_a_planner_finds_its_way_without_a_road(planner, search, monkeypatch):
    """The planner was built from places alone: whoever looked at a road would have raised."""
    monkeypatch.setattr(worlds, "BREADTH", 3)
    source, target = np.triu_indices(7, 1)
    found = search(LatentWorld(planner), source, target, 6)
    assert lists(found) == [list(range(a, b + 1)) for a, b in zip(source, target, strict=True)]
    assert not found.lookups.any() and not found.expansions.any()
    some = search(LatentWorld(planner), source[:4], target[:4], 6)
    assert lists(some) == lists(found)[:4] and spent(some) == spent(found)[:4]


def test_latent_operations_are_torchs_and_counted(planner, monkeypatch):
    monkeypatch.setattr(worlds, "BREADTH", 2)
    city, n, world = torch.tensor([0, 1, 2]), 3, LatentWorld(planner)
    with torch.no_grad():
        latent = world.begin(city, city + 2)
        goal, foresee = planner.inputs.goal_flops, planner.outlook_flops
        ask = partial(planner.transition, latent, city + 1, city + 2)
        assert counted_flops(ask) == n * (planner.transition_flops + goal)
        assert counted_flops(lambda: planner.outlook(latent, city, city + 2)) == n * foresee
        began = counted_flops(lambda: world.begin(city, city + 2))
        assert began == n * world.begin_flops
        asked = counted_flops(lambda: world.expand(city, city + 2, latent))
        assert asked == n * (world.flops + 2 * goal), "the goal is at hand after the first"
    found = beam_with_value(world, [0, 3], [4, 3], 6, width=1)
    assert found.flops.tolist() == [world.begin_flops + 4 * world.flops, 0]
    found = mcts(world, [0, 4], [4, 6], 6, simulations=1)
    assert found.flops.tolist() == [world.begin_flops + i * world.flops for i in (4, 2)]
    assert lists(found)[1] == [4, 5, 6]


def test_each_head_has_its_gradient(zigzag, paths_of, monkeypatch):
    def gradients(**weights) -> dict[str, bool]:
        for name, weight in ({"VALUE_WEIGHT": 0.25, "ASTRAY_WEIGHT": 0.25} | weights).items():
            monkeypatch.setattr(worlds, name, weight)
        torch.manual_seed(0)
        model = build("planner", zigzag, width=8)
        model.loss(paths_of).backward()
        named = model.named_parameters()
        return {name: p.grad is not None and bool(p.grad.any()) for name, p in named}

    assert all(gradients().values())
    alone = gradients(VALUE_WEIGHT=0.0, ASTRAY_WEIGHT=0.0)
    assert [name for name, any_ in alone.items() if not any_] == ["value.weight", "value.bias"]
    for name in ("VALUE_WEIGHT", "ASTRAY_WEIGHT"):
        assert all(gradients(**{name: 0.0}).values()), "the other one reaches the value"


# Edges of the interface


def test_networks_keep_their_mode(chain):
    model = markov(5, 0).train()
    mcts(MapWorld(chain, model, Costly(chain)), [0], [4], 4)
    assert model.training


def test_no_queries_and_a_city_alone(chain, lonely):
    for search in SEARCHES.values():
        none = search(MapWorld(chain, None, Costly(chain)), [], [], 4)
        assert len(none.paths) == len(none.flops) == 0
        alone = search(MapWorld(lonely, None, Costly(lonely)), [0], [0], 4)
        assert lists(alone) == [[0]] and spent(alone) == [(0, 0, 0)]


def test_nothing_is_paid_where_there_is_no_way_to_go(planner):
    *_, going, paid = enter(LatentWorld(planner), [1, 2], [1, 3])
    assert going.tolist() == [False, True] and (paid[:, 0] > 0).tolist() == [False, True]


def test_argument_errors(chain):
    world, queries = MapWorld(chain, None, Costly(chain)), ([0], [4], 4)
    with pytest.raises(ValueError, match="simulations are 1 or more"):
        mcts(world, *queries, simulations=0)
    with pytest.raises(ValueError, match="width is at least 1, not 0"):
        beam_with_value(world, *queries, width=0)
    for search in SEARCHES.values():
        with pytest.raises(ValueError, match="2 sources but 1 targets"):
            search(world, [0, 1], [4], 4)
        for wrong in (-1, 5):
            with pytest.raises(ValueError, match="ids from 0 to 4"):
                search(world, [0], [wrong], 4)
        with pytest.raises(TypeError, match="widht"):
            search(world, *queries, widht=3)
