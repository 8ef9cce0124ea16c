"""The City DAG: distances, edges and order against brute force, and the file it is kept in."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from citypaths.files import DataFileError
from citypaths.map import graph as graph_module
from citypaths.map.cities import load_cities
from citypaths.map.graph import build_graph, jittered, load_graph, rounded
from citypaths.map.great_circle import EARTH_RADIUS_KM, great_circle_km
from citypaths.map.shortest_paths import count_reachable

HALF_WAY_ROUND = np.pi * EARTH_RADIUS_KM
latitudes = st.floats(-90, 90)
longitudes = st.floats(-180, 180)
quick = settings(max_examples=60, deadline=None)


def vincenty_km(lat_a, lon_a, lat_b, lon_b):
    """Great-circle km by Vincenty's formula on the sphere, accurate at every distance."""
    a, b = np.radians(lat_a), np.radians(lat_b)
    turn = np.radians(np.asarray(lon_b) - lon_a)
    across = np.cos(b) * np.sin(turn)
    along = np.cos(a) * np.sin(b) - np.sin(a) * np.cos(b) * np.cos(turn)
    dot = np.sin(a) * np.sin(b) + np.cos(a) * np.cos(b) * np.cos(turn)
    return EARTH_RADIUS_KM * np.arctan2(np.hypot(across, along), dot)


def edge_list(graph) -> list[tuple[int, int]]:
    return list(zip(graph.edge_sources.tolist(), graph.indices.tolist(), strict=True))


def brute_edges(cities, km: float, orientation: str) -> set[tuple[int, int]]:
    """Edges from all pairs of cities, oriented by comparing (lon, lat, id) one by one."""
    lat, lon = cities["lat"].to_numpy(), cities["lon"].to_numpy()
    near = vincenty_km(lat[:, None], lon[:, None], lat, lon) <= km
    rank = [(lon[i], lat[i], i) for i in range(len(cities))]
    pairs = [(int(a), int(b)) for a, b in np.argwhere(near) if a != b]
    return {(a, b) for a, b in pairs if orientation == "two_way" or rank[a] < rank[b]}


# Distances and bearings


@quick
@given(latitudes, longitudes, latitudes, longitudes)
def test_great_circle_equals_an_independent_formula(lat_a, lon_a, lat_b, lon_b):
    km, expected = (f(lat_a, lon_a, lat_b, lon_b) for f in (great_circle_km, vincenty_km))
    near_antipodes = expected > 0.99 * HALF_WAY_ROUND  # where the haversine is ill conditioned
    assert km == pytest.approx(expected, rel=1e-11, abs=1e-3 if near_antipodes else 1e-8)
    assert km == great_circle_km(lat_b, lon_b, lat_a, lon_a)
    assert 0 <= km <= HALF_WAY_ROUND


@pytest.mark.parametrize(
    ("a", "b", "km"),
    [
        ((35, -80), (35, -80), 0),
        ((0, 0), (0, 180), HALF_WAY_ROUND),
        ((36.5, -79.25), (-36.5, 100.75), HALF_WAY_ROUND),
        ((90, 0), (-90, 0), HALF_WAY_ROUND),
        ((90, -120), (90, 77), 0),
        ((90, 13), (0, -55), HALF_WAY_ROUND / 2),
        ((0, 179.5), (0, -179.5), HALF_WAY_ROUND / 180),
        ((0, -180), (0, 180), 0),
        ((0, 0), (1, 0), HALF_WAY_ROUND / 180),
    ],
)
def test_great_circle_at_special_places(a, b, km):
    assert great_circle_km(*a, *b) == pytest.approx(km, rel=1e-9, abs=1e-6 if km < 2e4 else 1e-3)


def test_great_circle_of_known_cities():
    new_york, los_angeles = (40.7128, -74.0060), (34.0522, -118.2437)
    assert great_circle_km(*new_york, *los_angeles) == pytest.approx(3935.75, abs=0.05)


def test_great_circle_does_not_depend_on_the_company_of_a_pair():
    rng = np.random.default_rng(0)
    lat_a, lon_a = rng.uniform(-60, 60, (2, 1003))
    lat_b, lon_b = lat_a + rng.normal(size=1003), lon_a + rng.normal(size=1003)
    km = great_circle_km(lat_a, lon_a, lat_b, lon_b)
    for start, size in [(0, 1), (7, 1), (500, 3), (991, 12), (3, 1000)]:
        some = slice(start, start + size)
        alone = great_circle_km(lat_a[some], lon_a[some], lat_b[some], lon_b[some])
        np.testing.assert_array_equal(alone, km[some])


def test_great_circle_broadcasts():
    lat, lon = np.array([10.0, 20.0, 30.0]), np.array([-5.0, 0.0, 5.0])
    table = great_circle_km(lat[:, None], lon[:, None], lat, lon)
    assert table.shape == (3, 3)
    np.testing.assert_array_equal(table, table.T)
    np.testing.assert_array_equal(np.diag(table), 0)


# Edges and order


@pytest.mark.parametrize("orientation", ["eastward", "two_way"])
def test_edges_equal_brute_force_on_random_places(nation_cities, orientation):
    rows = np.random.default_rng(3).choice(len(nation_cities), 2000, replace=False)
    cities = nation_cities.iloc[rows]  # in no order
    graph = build_graph(cities, 75, orientation)
    edges = edge_list(graph)
    assert edges == sorted(brute_edges(cities, 75, orientation))
    expected = vincenty_km(*(x[i] for i in np.transpose(edges) for x in (graph.lat, graph.lon)))
    np.testing.assert_allclose(graph.km, expected, rtol=1e-9)


globe = st.lists(st.tuples(latitudes, longitudes), min_size=1, max_size=12)
lattice = st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=12)


@quick
@given(globe | lattice, st.floats(50, 12_000), st.sampled_from(["eastward", "two_way"]))
def test_edges_equal_brute_force_anywhere_on_earth(place, points, km, orientation):
    cities = place(points)
    lat, lon = cities["lat"].to_numpy(), cities["lon"].to_numpy()
    km_of_pairs = vincenty_km(lat[:, None], lon[:, None], lat, lon)
    assume((np.abs(km_of_pairs - km) > 1e-3).all())  # no pair on the boundary
    graph = build_graph(cities, km, orientation)
    assert edge_list(graph) == sorted(brute_edges(cities, km, orientation))
    assert nx.is_directed_acyclic_graph(graph.to_networkx()) or orientation == "two_way"


def test_national_graph_is_the_measured_dag(nation):
    assert len(nation) == 21_408
    assert len(nation.indices) == 1_700_497
    digraph = nx.DiGraph(edge_list(nation))
    assert nx.is_directed_acyclic_graph(digraph)
    assert nation.km.max() <= 75
    assert nation.km.min() == pytest.approx(0.005, abs=0.001)


def test_order_is_topological(nation):
    rank = np.argsort(nation.order)
    assert (rank[nation.edge_sources] < rank[nation.indices]).all()
    np.testing.assert_array_equal(np.sort(nation.order), np.arange(len(nation)))


def test_states_have_the_measured_sizes(tennessee, tennessee_two_way, north_carolina):
    assert (len(tennessee), len(tennessee.indices)) == (371, 1888)
    assert len(tennessee_two_way.indices) == 2 * 1888
    assert (len(north_carolina), len(north_carolina.indices)) == (593, 4176)
    assert count_reachable(north_carolina) == 141_475


def test_two_way_is_eastward_and_back(tennessee, tennessee_two_way):
    there = set(edge_list(tennessee))
    assert set(edge_list(tennessee_two_way)) == there | {(b, a) for a, b in there}
    a, b = tennessee_two_way.edge_sources, tennessee_two_way.indices
    back = tennessee_two_way.edge_index(b, a)
    np.testing.assert_array_equal(tennessee_two_way.km, tennessee_two_way.km[back])


def test_rows_are_sorted_and_hold_no_loops(tennessee_two_way):
    keys = tennessee_two_way.edge_sources.astype(int) * len(tennessee_two_way)
    assert (np.diff(keys + tennessee_two_way.indices) > 0).all()
    assert (tennessee_two_way.edge_sources != tennessee_two_way.indices).all()


def test_ties_go_by_longitude_then_latitude_then_id(place):
    points = [(1, 0), (0, 0), (0, 0), (0.5, -0.1), (1, 0), (0.2, 0.1)]
    graph = build_graph(place(points), 500)
    assert graph.order.tolist() == [3, 1, 2, 0, 4, 5]
    rank = {3: 0, 1: 1, 2: 2, 0: 3, 4: 4, 5: 5}
    assert set(edge_list(graph)) == {(a, b) for a in rank for b in rank if rank[a] < rank[b]}


def test_edges_cross_the_antimeridian(place):
    graph = build_graph(place([(10, 179.9), (10, -179.9)]), 30)
    assert edge_list(graph) == [(1, 0)]  # by longitude -179.9 is the western one
    assert graph.km[0] == pytest.approx(vincenty_km(10, 0, 10, 0.2))


def test_edges_cross_the_pole(place):
    graph = build_graph(place([(89.95, 0), (89.95, 180), (89.95, -90)]), 12, "two_way")
    assert len(graph.indices) == 6


@settings(max_examples=200, deadline=None)
@given(st.floats(-80, 80), longitudes, st.floats(1e-8, 50), st.floats(0, 6.28))
def test_a_pair_exactly_at_the_connected_distance_is_joined(place, lat, lon, size, angle):
    points = [(lat, lon), (lat + size * np.sin(angle) / 10, lon + size * np.cos(angle))]
    corners = np.array(points)[:, :, None]  # arrays, for scalars may round otherwise
    km = float(great_circle_km(*corners[0], *corners[1])[0])
    assume(0 < km < HALF_WAY_ROUND)
    assert len(build_graph(place(points), km).indices) == 1
    assert len(build_graph(place(points), np.nextafter(km, 0)).indices) == 0


def test_components_are_those_of_networkx(tennessee, scattered, lonely):
    assert scattered.components().tolist() == [0, 1, 2]
    assert lonely.components().tolist() == [0]
    label = tennessee.components()
    expected = {frozenset(c) for c in nx.weakly_connected_components(tennessee.to_networkx())}
    assert {frozenset(np.flatnonzero(label == i)) for i in range(label.max() + 1)} == expected
    assert (np.diff(np.bincount(label)) <= 0).all()


# Edge look-ups


def test_is_edge_equals_the_edge_set_for_any_ids(oriented_tennessee):
    graph = oriented_tennessee
    rng = np.random.default_rng(0)
    a, b = rng.integers(-400, 800, (2, 20_000))
    edges = set(edge_list(graph))
    expected = [(i, j) in edges for i, j in zip(a.tolist(), b.tolist(), strict=True)]
    np.testing.assert_array_equal(graph.is_edge(a, b), expected)
    assert graph.is_edge(graph.edge_sources, graph.indices).all()
    at = graph.edge_index(graph.edge_sources, graph.indices)
    np.testing.assert_array_equal(at, np.arange(len(graph.indices)))


def test_is_edge_broadcasts_and_takes_wild_ids(chain):
    ids = np.arange(5)
    table = chain.is_edge(ids[:, None], ids)
    np.testing.assert_array_equal(table, np.eye(5, k=1, dtype=bool))
    wild = np.array([-1, 5, 2**31, -(2**40), 2**62])
    assert not chain.is_edge(wild, 1).any()
    assert not chain.is_edge(3, wild).any()
    assert chain.is_edge(0, 1)
    assert not chain.is_edge(1, 0)


def test_one_city_and_no_edges(lonely, scattered, tmp_path):
    for graph in (lonely, scattered):
        assert len(graph.indices) == len(graph.km) == len(graph.mm) == 0
        assert not graph.is_edge(np.arange(len(graph)), 0).any()
        assert graph.neighbours(0).size == 0
        assert graph.to_networkx().number_of_nodes() == len(graph)
        assert count_reachable(graph) == 0
        graph.save(tmp_path / "graph.npz")
        assert load_graph(tmp_path / "graph.npz").fingerprint == graph.fingerprint


def test_duplicate_positions_are_a_millimetre_apart(place):
    points = [(35, -80), (35, -80), (35, -80), (35, -79.9)]
    graph = build_graph(place(points), 20)
    assert edge_list(graph) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert graph.mm[[0, 1, 3]].tolist() == [1, 1, 1]
    assert (graph.sparse().toarray() > 0).sum() == 6
    assert (rounded(graph).mm >= 1).all()
    assert (jittered(graph).mm >= 1).all()


def test_millimetres_are_the_rounded_kilometres(nation):
    assert (nation.mm == np.rint(nation.mm)).all()
    assert np.abs(nation.mm / 1e6 - nation.km).max() <= 0.5e-6 + 1e-12


@pytest.mark.parametrize("orientation", ["westward", "", None, "Eastward"])
def test_unknown_orientation_is_refused(place, orientation):
    with pytest.raises(ValueError, match="orientation is 'eastward' or 'two_way'"):
        build_graph(place([(0, 0)]), 10, orientation)


@pytest.mark.parametrize("km", [0, -5, np.nan, np.inf, HALF_WAY_ROUND, 1e9])
def test_silly_distances_are_refused(place, km):
    with pytest.raises(ValueError, match="connected_km"):
        build_graph(place([(0, 0), (1, 1)]), km)


@pytest.mark.parametrize("bad", [(np.nan, 0), (0, np.nan), (np.inf, 0), (0, -np.inf)])
def test_coordinates_that_are_no_numbers_are_refused(place, bad):
    with pytest.raises(ValueError, match="not finite"):
        build_graph(place([(0, 0), bad]), 10)


def test_building_leaves_the_cities_alone_and_ignores_their_index(place):
    cities = place([(0, 0), (0, 0.1), (0, 0.2)])
    cities.index = [7, 3, 5]
    before = cities.copy()
    graph = build_graph(cities, 12)
    pd.testing.assert_frame_equal(cities, before)
    assert edge_list(graph) == [(0, 1), (1, 2)]


# What people ask of a graph


def test_find_takes_a_label_or_a_unique_name(tennessee):
    nashville = tennessee.find("Nashville, TN")
    assert tennessee.cities["name"][nashville] == "Nashville"
    assert tennessee.find("  nashVILLE ") == nashville
    label, count = np.unique(tennessee.labels.astype(str), return_counts=True)
    for text in label[count == 1][::40]:
        assert tennessee.labels[tennessee.find(text)] == text


def test_find_lists_the_cities_of_an_ambiguous_name(place):
    cities = place([(1, 2), (3, 4), (5, 6)], ["Springfield", "Springfield", "Spring, West"])
    graph = build_graph(cities.assign(state=["IL", "MO", "IL"]), 10)
    with pytest.raises(LookupError, match=r"2 cities.*Springfield, IL \(id 0.*MO \(id 1"):
        graph.find("springfield")
    assert graph.find("Springfield, MO") == 1
    assert graph.find("Spring, West") == 2


def test_find_suggests_near_misses(tennessee):
    with pytest.raises(LookupError, match="near matches: .*Nashville, TN"):
        tennessee.find("Nashvile, TN")
    with pytest.raises(LookupError, match="nothing near"):
        tennessee.find("Qqqqqqqqqqqqqqq")


def test_networkx_copy_has_every_weight_and_column(oriented_tennessee):
    graph, digraph = oriented_tennessee, oriented_tennessee.to_networkx()
    assert digraph.graph == {"connected_km": 30, "orientation": graph.orientation}
    weights = zip(edge_list(graph), graph.km.tolist(), strict=True)
    assert {(a, b): km for a, b, km in digraph.edges(data="weight")} == dict(weights)
    assert list(digraph) == list(range(len(graph)))
    assert digraph.nodes[17]["name"] == graph.cities["name"][17]
    assert digraph.nodes[17]["lat"] == graph.lat[17]
    assert "geometry" not in digraph.nodes[17]


# Changed weights and the fingerprint


def test_fingerprint_changes_with_all_that_decides_paths(tennessee, tennessee_two_way):
    moved = tennessee.cities.copy()
    moved.loc[100, "lat"] = np.nextafter(moved["lat"][100], 90)
    prints = [
        tennessee.fingerprint,
        tennessee_two_way.fingerprint,
        build_graph(tennessee.cities, 30.000001).fingerprint,
        build_graph(moved, 30).fingerprint,
        build_graph(tennessee.cities.iloc[::-1], 30).fingerprint,
        rounded(tennessee).fingerprint,
        rounded(tennessee, 1.0).fingerprint,
        jittered(tennessee).fingerprint,
        jittered(tennessee, seed=1).fingerprint,
        jittered(tennessee, spread=0.2).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert build_graph(tennessee.cities.copy(), 30).fingerprint == tennessee.fingerprint
    assert jittered(tennessee, seed=1).fingerprint == prints[8]


@pytest.mark.parametrize("change", [rounded, jittered])
def test_changed_weights_agree_in_both_directions(tennessee_two_way, change):
    graph = change(tennessee_two_way)
    back = graph.edge_index(graph.indices, graph.edge_sources)
    np.testing.assert_array_equal(graph.km, graph.km[back])
    np.testing.assert_array_equal(graph.indices, tennessee_two_way.indices)


def test_rounded_weights_are_the_nearest_steps(tennessee):
    for step in (0.1, 2.5):
        km = rounded(tennessee, step).km
        assert np.abs(km / step - np.rint(km / step)).max() < 1e-9
        assert (km >= step).all()
        assert np.abs(km - np.maximum(tennessee.km, step)).max() <= step / 2 + 1e-9


def test_jittered_weights_fill_their_range(tennessee, tennessee_two_way):
    factor = jittered(tennessee, spread=0.1).km / tennessee.km
    assert factor.min() >= 1 and factor.max() < 1.1
    assert abs(factor.mean() - 1.05) < 0.003
    assert len(np.unique(factor)) > 1850
    both = jittered(tennessee_two_way, spread=0.1)
    at = both.edge_index(tennessee.edge_sources, tennessee.indices)
    np.testing.assert_array_equal(both.km[at], jittered(tennessee, spread=0.1).km)


# The file


@pytest.fixture
def saved(tennessee, tmp_path):
    tennessee.save(tmp_path / "graph.npz")
    return tmp_path / "graph.npz"


def test_a_saved_graph_comes_back_whole(oriented_tennessee, tmp_path):
    graph = rounded(oriented_tennessee, 0.5)
    graph.save(tmp_path / "deep" / "graph.npz")
    again = load_graph(tmp_path / "deep" / "graph.npz")
    assert again.fingerprint == graph.fingerprint
    assert (again.connected_km, again.orientation) == (30, graph.orientation)
    for name in ("indptr", "indices", "km", "order", "lat", "lon", "labels"):
        np.testing.assert_array_equal(getattr(again, name), getattr(graph, name))
        assert getattr(again, name).dtype == getattr(graph, name).dtype
    pd.testing.assert_frame_equal(again.cities, graph.cities)
    assert again.cities.attrs == graph.cities.attrs
    assert os.listdir(tmp_path / "deep") == ["graph.npz"]


def test_names_in_any_script_survive(place, tmp_path):
    names = ['Cañon "City"', "São Paulo\\", "東京", "l'Étang\n"]
    build_graph(place([(0, i) for i in range(4)], names), 200).save(tmp_path / "graph.npz")
    assert load_graph(tmp_path / "graph.npz").cities["name"].tolist() == names


def test_no_graph_is_a_clear_error(tmp_path):
    with pytest.raises(DataFileError, match=r"gone\.npz is missing: notebook 01-city-dag"):
        load_graph(tmp_path / "gone.npz")


@pytest.mark.parametrize("name", ["lat", "lon", "indptr", "indices", "km"])
def test_a_tampered_graph_fails_its_fingerprint(saved, name):
    arrays = dict(np.load(saved))
    arrays[name] = arrays[name].copy()
    arrays[name][5] += 1
    np.savez_compressed(saved, **arrays)
    with pytest.raises(DataFileError, match=r"graph\.npz fails its fingerprint: delete it"):
        load_graph(saved)


def test_the_sweep_order_is_never_taken_from_a_file(saved, tennessee):
    arrays = dict(np.load(saved))
    np.savez_compressed(saved, **arrays | {"order": tennessee.order[::-1]})
    np.testing.assert_array_equal(load_graph(saved).order, tennessee.order)


@pytest.mark.parametrize("damage", ["no head", "empty head", "list head", "foreign", "text", "npy"])
def test_a_foreign_file_is_refused(saved, damage):
    arrays = dict(np.load(saved))
    heads = {"empty head": {}, "list head": [1]}
    if damage in heads:
        arrays["head"] = np.frombuffer(json.dumps(heads[damage]).encode(), np.uint8)
        np.savez(saved, **arrays)
    elif damage == "no head":
        np.savez(saved, **{k: v for k, v in arrays.items() if k != "head"})
    elif damage == "foreign":
        np.savez(saved, weights=np.zeros(3))
    elif damage == "text":
        saved.write_text("id,name,lat\n1,Raleigh,35.8\n")
    else:
        with open(saved, "wb") as file:
            np.save(file, np.zeros(3))
    with pytest.raises(DataFileError, match=r"graph\.npz is no saved CityGraph"):
        load_graph(saved)


def test_a_save_that_fails_keeps_the_old_file(saved, tennessee, monkeypatch):
    before = saved.read_bytes()

    def full_disk(file, **arrays):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(graph_module.np, "savez_compressed", full_disk)
    with pytest.raises(OSError, match="no space"):
        replace(tennessee, connected_km=31.0).save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == ["graph.npz"]


def test_the_whole_world_is_one_graph():
    """Every place of every country; edges of some, against every distance."""
    world = load_cities(country="world")
    assert len(world) == len(world["key"].unique()) > 230_000
    assert {"US", "FJ", "RU", "CN"} <= set(world["country"])
    graph = build_graph(world, 10)
    ids = np.random.default_rng(0).choice(len(graph), 40, replace=False)
    km = graph.distance_km(ids[:, None], np.arange(len(graph)))
    rank = np.argsort(graph.order)
    near = (km <= 10) & (rank[ids][:, None] < rank)
    for a, row in zip(ids, near, strict=True):
        assert graph.neighbours(a).tolist() == np.flatnonzero(row).tolist()


def test_graphs_that_cannot_fit_are_refused_with_numbers(nation_cities, monkeypatch):
    monkeypatch.setattr("citypaths.files.free_memory", lambda: 2.0**30)
    refusal = r"21,408 cities and [\d,]+ pairs within 300 km needs about \d\.\d GiB; 1\.0 GiB may"
    with pytest.raises(MemoryError, match=refusal):
        build_graph(nation_cities, 300)
    assert len(build_graph(nation_cities, 10).indices) > 10_000
