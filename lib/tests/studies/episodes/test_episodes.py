"""Episodes: maps against networkx, streams read back, answers judged by hand."""

from __future__ import annotations

from dataclasses import fields

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from citypaths.data.batches import IGNORE
from citypaths.map.great_circle import great_circle_km
from studies.episodes.exam import Answers, judge, recall, walks
from studies.episodes.maps import Atlas, Maps, draw_maps, solve
from studies.episodes.task import (
    BLANK,
    CLOSED,
    EDGE,
    KM_UNIT,
    RECALL,
    SOLVED,
    STEP,
    Episodes,
    Task,
    draw_episodes,
)


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    random = np.random.default_rng(0)
    return Atlas(random.uniform(35, 45, 600), random.uniform(-90, -75, 600), "here")


def drawn(atlas: Atlas, count: int = 20, seed: int = 1, **dials) -> Episodes:
    return draw_episodes(Task(**dials), atlas, count, np.random.default_rng(seed))


def digraph(maps: Maps, row: int) -> nx.DiGraph:
    km = maps.open_km[row]
    graph = nx.DiGraph()
    graph.add_nodes_from(range(maps.cities))
    graph.add_weighted_edges_from((int(a), int(b), km[a, b]) for a, b in np.argwhere(km < np.inf))
    return graph


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 14), st.integers(0, 3), st.floats(1, 3))
def test_shortest_paths_are_those_of_networkx(seed: int, cities: int, closures: int, degree: float):
    random = np.random.default_rng(0)
    atlas = Atlas(random.uniform(35, 45, 300), random.uniform(-90, -75, 300))
    task = Task(cities=cities, degree=degree)
    closures = min(closures, task.edges)
    random = np.random.default_rng(seed)
    maps = draw_maps(atlas, 3, random, cities, task.edges, 32, closures)
    for row in range(3):
        graph = digraph(maps, row)
        assert graph.number_of_edges() == task.edges - closures
        lengths = dict(nx.all_pairs_dijkstra_path_length(graph))
        for a in range(cities):
            for b in range(cities):
                if b not in lengths[a]:
                    assert maps.togo[row, a, b] == np.inf and maps.onward[row, a, b] == -1
                    assert maps.hops[row, a, b] == 0
                elif a != b:
                    assert maps.togo[row, a, b] == pytest.approx(lengths[a][b])
                    path = [a]
                    while path[-1] != b:
                        path.append(int(maps.onward[row, path[-1], b]))
                    assert len(path) - 1 == maps.hops[row, a, b]
                    assert nx.path_weight(graph, path, "weight") == pytest.approx(lengths[a][b])


def test_a_map_joins_its_nearest_pairs_eastward(atlas):
    maps = draw_maps(atlas, 5, np.random.default_rng(2), 10, 18, 32)
    assert (np.diff(maps.lon) >= 0).all()
    for row in range(5):
        lat, lon = maps.lat[row], maps.lon[row]
        km = great_circle_km(lat[:, None], lon[:, None], lat, lon)
        every = np.sort(km[np.triu_indices(10, 1)])
        joined = np.isfinite(maps.km[row])
        assert joined.sum() == 18 and not np.tril(joined).any()
        assert np.sort(maps.km[row][joined]) == pytest.approx(every[:18])
        assert len(set(maps.symbols[row])) == 10 and maps.symbols[row].max() < 32


def test_symbols_say_nothing_about_the_place(atlas):
    maps = draw_maps(atlas, 4_000, np.random.default_rng(3), 4, 4, 8)
    counts = np.stack([np.bincount(maps.symbols[:, city], minlength=8) for city in range(4)])
    assert (abs(counts - 500) < 5 * 500**0.5).all()


def test_held_out_places_are_on_no_training_map(atlas):
    rest, held = atlas.split(0.25, degrees=1.0)
    places = lambda a: set(zip(a.lat, a.lon, strict=True))  # noqa: E731
    assert places(rest).isdisjoint(places(held)) and len(rest.lat) + len(held.lat) == len(atlas.lat)
    assert 0.1 < len(held.lat) / len(atlas.lat) < 0.4
    maps = draw_maps(held, 30, np.random.default_rng(0), 6, 8, 32)
    assert places(held).issuperset(zip(maps.lat.ravel(), maps.lon.ravel(), strict=True))
    cells = lambda a: {(int(np.floor(x)), int(np.floor(y))) for x, y in places(a)}  # noqa: E731
    assert cells(rest).isdisjoint(cells(held))


def test_the_edges_shown_are_the_map(atlas):
    ep = drawn(atlas, cities=9, delay=3, closures=2)
    maps, shown = ep.maps, ep.shown
    for row in range(len(ep)):
        name = {int(s) + 1: c for c, s in enumerate(maps.symbols[row])}
        for kind, truth in ((EDGE, np.isfinite(maps.km[row])), (CLOSED, maps.closed[row])):
            at = shown.kind[row] == kind
            pairs = [
                (name[int(a)], name[int(b)])
                for a, b in zip(shown.here[row][at], shown.onward[row][at], strict=True)
            ]
            assert sorted(pairs) == sorted(map(tuple, np.argwhere(truth)))
            if kind == EDGE:
                km = [maps.km[row][pair] for pair in pairs]
                assert shown.km[row][at].numpy() * KM_UNIT == pytest.approx(km, rel=1e-5)
    assert (shown.kind[:, -3:] == BLANK).all() and (shown.labels == IGNORE).all()
    orders = {tuple(shown.here[row].tolist()) for row in range(len(ep))}
    assert len(orders) == len(ep)


def test_the_paths_shown_are_shortest_before_closures(atlas):
    ep = drawn(atlas, cities=9, show="paths", shown=7, closures=2)
    maps, shown, told = ep.maps, ep.shown, 0
    open_again = draw_episodes(Task(cities=9), atlas, len(ep), np.random.default_rng(1)).maps
    assert np.array_equal(open_again.km, maps.km)
    for row in range(len(ep)):
        name = {int(s) + 1: c for c, s in enumerate(maps.symbols[row])}
        graph, ends, last = digraph(open_again, row), 0, None
        for t in (shown.kind[row] == SOLVED).nonzero()[:, 0].tolist():
            a, b, goal = (name[int(x[row, t])] for x in (shown.here, shown.onward, shown.goal))
            assert last is None or last == (a, goal)
            left = nx.shortest_path_length(graph, a, goal, "weight")
            after = nx.shortest_path_length(graph, b, goal, "weight")
            assert maps.km[row, a, b] + after == pytest.approx(left)
            last, ends, told = (None, ends + 1, told + 1) if b == goal else ((b, goal), ends, told)
        assert ends == 7 and last is None
    assert told == 7 * len(ep)


def test_answers_are_shortest_paths_and_recalls_are_hops(atlas):
    ep = drawn(atlas, cities=10, closures=3, queries=3, recalls=5, think=2)
    steps, maps = ep.steps, ep.maps
    for row in range(len(ep)):
        name = {int(s) + 1: c for c, s in enumerate(maps.symbols[row])}
        asks = (steps.kind[row] == RECALL).nonzero()[:, 0]
        assert len(asks) == 5
        for t in asks.tolist():
            a, b = name[int(steps.here[row, t])], name[int(steps.labels[row, t]) + 1]
            assert np.isfinite(maps.open_km[row, a, b])
        found: list[list[int]] = []
        for t in (steps.kind[row] == STEP).nonzero()[:, 0].tolist():
            a, b, goal = (name[int(x)] for x in (
                steps.here[row, t], steps.labels[row, t] + 1, steps.goal[row, t]))  # fmt: skip
            if not found or found[-1][-1] == found[-1][0]:
                found.append([goal, a])
            assert maps.onward[row, a, goal] == b
            found[-1].append(b)
        ends = [(path[1], path[0]) for path in found]
        assert ends == [tuple(map(int, q)) for q in ep.queries[row]]


def test_every_number_of_hops_is_asked_alike(atlas):
    ep = drawn(atlas, 1_500, cities=10, hops=3, queries=4)
    row = np.arange(len(ep))[:, None]
    hops = ep.maps.hops[row, ep.queries[..., 0], ep.queries[..., 1]]
    has = np.stack([(ep.maps.hops == h).any((1, 2)) for h in (1, 2, 3)], 1)
    counts = np.bincount(hops[has.all(1)].ravel(), minlength=4)[1:]
    assert counts.sum() > 3_000 and (abs(counts / counts.sum() - 1 / 3) < 0.03).all()


def test_shortest_paths_succeed_and_faults_are_named(atlas):
    ep = drawn(atlas, 40, cities=9, queries=2, closures=4)
    maps, row = ep.maps, np.arange(40)
    path, here = [ep.queries[..., 0]], ep.queries[..., 0]
    goal = ep.queries[..., 1]
    for _ in range(9):
        step = maps.onward[row[:, None], np.maximum(here, 0), goal]
        here = np.where((here < 0) | (here == goal), -1, step)
        path.append(here)
    right = np.stack(path, 2)
    possible = np.isfinite(maps.togo[row[:, None], ep.queries[..., 0], goal])
    found = judge(ep, Answers(right, np.zeros((40, 4), int)))
    assert len(found) == possible.sum() and found["success"].all() and found["exact"].all()
    assert found["optimal"].all() and (found["hard"] == (found["shortest_hops"] > 1)).all()

    away = right.copy()
    away[..., 1] = np.where(right[..., 1] >= 0, right[..., 0], -1)  # stays: no such hop
    assert not judge(ep, Answers(away, np.zeros((40, 4), int)))["legal"].any()
    short = right.copy()
    short[..., 1:] = -1
    found = judge(ep, Answers(short, np.zeros((40, 4), int)))
    assert not found["arrives"].any() and not found["success"].any()


def test_a_detour_is_bounded_by_its_length():
    lat, lon = np.zeros((1, 3)), np.array([[0.0, 1.0, 2.0]])
    km = np.full((1, 3, 3), np.inf)
    km[0, 0, 2], km[0, 0, 1], km[0, 1, 2] = 100.0, 50.0, 53.0
    maps = Maps(lat, lon, np.array([[4, 0, 2]]), km, np.zeros(km.shape, bool), *solve(km))
    ep = drawn(Atlas(np.zeros(40), np.arange(40.0)), 1, cities=3, queries=1, recalls=1)
    ep = Episodes(ep.task, maps, ep.shown, ep.steps, np.array([[0]]), np.array([[[0, 2]]]))
    found = judge(ep, Answers(np.array([[[0, 1, 2]]]), np.array([[1]])))
    bounds = found.iloc[0][["bounded_00", "bounded_01", "bounded_05", "success", "optimal"]]
    assert bounds.tolist() == [False, False, True, True, False] and not found["exact"][0]
    assert recall(ep, Answers(np.zeros((1, 1, 2), int), np.array([[1]]))).all()
    assert not recall(ep, Answers(np.zeros((1, 1, 2), int), np.array([[0]]))).any()
    assert maps.city_of(6).tolist() == [[1, -1, 2, -1, 0, -1]]


def test_walks_take_open_hops_alone(atlas):
    ep = drawn(atlas, 50, cities=12, degree=2.5, closures=5)
    for answers in walks(ep).values():
        judged = judge(ep, answers)
        assert recall(ep, answers).all()
        assert (judged["legal"] | ~judged["arrives"]).all()
        assert judged["success"][~judged["hard"]].all()  # a hop to the target is seen
        assert 0.2 < judged["success"][judged["hard"]].mean() < 0.8


def test_dials_are_checked(atlas):
    with pytest.raises(ValueError, match="delay is at least 0, not -1"):
        Task(delay=-1)
    with pytest.raises(ValueError, match="edges or paths, not 'maps'"):
        Task(show="maps")
    with pytest.raises(ValueError, match="symbols"):
        drawn(atlas, cities=40, symbols=32)
    with pytest.raises(ValueError, match="looks at 80"):
        drawn(Atlas(np.zeros(40), np.arange(40.0)), cities=20)


def test_the_same_seed_draws_the_same_episodes(atlas):
    task = Task(cities=7, show="paths", closures=1, delay=2)
    one, two = (draw_episodes(task, atlas, 6, np.random.default_rng(5)) for _ in range(2))
    for column in fields(one.steps):
        assert torch.equal(getattr(one.steps, column.name), getattr(two.steps, column.name))
    other = draw_episodes(task.varied(delay=3), atlas, 6, np.random.default_rng(5))
    assert other.shown.kind.shape[1] == one.shown.kind.shape[1] + 1
