"""The survey of a graph against networkx and brute force; who lives there; what training shows."""

from __future__ import annotations

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from citypaths import lab
from citypaths.judging.floors import walk
from citypaths.judging.metrics import judge
from citypaths.map.graph import build_graph
from citypaths.map.great_circle import EARTH_RADIUS_KM, great_circle_km, unit_sphere
from citypaths.sizes import get_size
from studies.city_map.survey import (
    bearing,
    compare_splits,
    density,
    draw_demographics,
    draw_sample,
    hops_from,
    leak_by_training_size,
    stretch_between,
    stretch_by_city,
    survey,
    survey_distances,
    traffic,
)

HALF_WAY_ROUND = np.pi * EARTH_RADIUS_KM
longitudes = st.floats(-180, 180)


def test_hops_from_lists_the_neighbours(tennessee):
    city = tennessee.find("Nashville")
    hops = hops_from(tennessee, "Nashville, TN")
    assert sorted(hops["id"]) == tennessee.neighbours(city).tolist()
    assert hops["km"].is_monotonic_increasing
    assert hops["bearing"].between(0, 180).all()  # eastward
    for row in hops.itertuples():
        assert row.km == tennessee.distance_km(city, row.id) <= 30
        assert row.city == tennessee.labels[row.id]
        assert row.population == tennessee.cities["population"][row.id]


@pytest.mark.parametrize(
    ("b", "degrees"), [((1, 0), 0), ((0, 1), 90), ((-1, 0), 180), ((0, -1), 270), ((90, 50), 0)]
)
def test_bearing_of_the_four_winds(b, degrees):
    assert bearing(0, 0, *b) == pytest.approx(degrees, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.floats(-89, 89), longitudes, st.floats(-89, 89), longitudes)
def test_bearing_points_at_the_destination(lat_a, lon_a, lat_b, lon_b):
    assume(1 < great_circle_km(lat_a, lon_a, lat_b, lon_b) < HALF_WAY_ROUND - 1)
    angle = bearing(lat_a, lon_a, lat_b, lon_b)
    assert 0 <= angle < 360
    here, there = unit_sphere([lat_a], [lon_a])[0], unit_sphere([lat_b], [lon_b])[0]
    east = np.cross([0, 0, 1], here)
    east /= np.linalg.norm(east)
    north = np.cross(here, east)
    expected = np.degrees(np.arctan2(there @ east, there @ north))
    assert abs((angle - expected + 180) % 360 - 180) < 1e-6


def test_bearing_a_hair_west_of_north_stays_below_360():
    assert 0 <= bearing(0, 0, 10, -1e-20) < 360
    assert 0 <= bearing(0, -180, 10, 180) < 360
    assert bearing(0, 179.9, 0, -179.9) == pytest.approx(90)


# The survey


@pytest.fixture(scope="module", params=["eastward", "two_way"])
def surveyed(request, place):
    """Forty cities on a jagged grid and two far away, and all of their queries."""
    random = np.random.default_rng(0)
    points = [(35 + 0.1 * i, -80 + 0.1 * j) for i in range(5) for j in range(8)]
    points = np.array(points) + random.uniform(-0.03, 0.03, (40, 2))
    graph = build_graph(place([*points, (50, -100), (50, -100.05)]), 16, request.param)
    return graph, draw_sample(graph, queries=10**9, targets=len(graph))


def test_survey_against_networkx(surveyed):
    graph, sample = surveyed
    roads = graph.to_networkx()
    lengths = dict(nx.all_pairs_dijkstra_path_length(roads))
    routes = dict(nx.all_pairs_dijkstra_path(roads))
    pairs = {(a, b) for a in routes for b in routes[a] if a != b}
    assert set(map(tuple, sample.pairs.tolist())) == pairs
    km = np.array([lengths[a][b] for a, b in sample.pairs.tolist()])
    hops = np.array([len(routes[a][b]) - 1 for a, b in sample.pairs.tolist()])
    straight = graph.distance_km(*sample.pairs.T)
    pieces = list(nx.weakly_connected_components(roads))
    n = len(graph)
    figures = survey(graph, sample)
    possible = n * (n - 1) / (1 if graph.orientation == "two_way" else 2)
    walked = judge(graph, *sample.pairs.T, km, walk(graph, *sample.pairs.T).paths)
    expected = {
        "cities": n,
        "edges": roads.number_of_edges(),
        "mean_degree": roads.number_of_edges() / n,
        "components": len(pieces),
        "giant": max(map(len, pieces)) / n,
        "reach": len(pairs) / possible,
        "hops_mean": hops.mean(),
        "hops_p95": np.quantile(hops, 0.95),
        "hops_max": hops.max(),
        "stretch": (km / straight).mean(),
        "geo_greedy": walked["success"].mean(),
    }
    assert figures == pytest.approx(expected, rel=1e-6)


def test_traffic_is_betweenness(surveyed):
    graph, sample = surveyed
    between = nx.betweenness_centrality(graph.to_networkx(), normalized=False, weight="weight")
    expected = [between[i] / len(sample.pairs) for i in range(len(graph))]
    np.testing.assert_allclose(traffic(graph, sample), expected, atol=1e-9)


def test_stretch_by_city(surveyed):
    graph, sample = surveyed
    found = stretch_by_city(graph, sample)
    straight = graph.distance_km(*sample.pairs.T)
    far = straight > 2 * graph.connected_km
    for city in range(len(graph)):
        rows = far & (sample.pairs[:, 0] == city)
        expected = (sample.km[rows] / straight[rows]).mean() if rows.any() else np.nan
        np.testing.assert_allclose(found[city], expected, rtol=1e-9)


def test_a_sample_is_of_about_the_size_asked_for(tennessee):
    graph = tennessee
    sample = draw_sample(graph, queries=500, targets=32)
    assert len(np.unique(sample.pairs[:, 1])) <= 32
    assert len(sample.pairs) == pytest.approx(500, rel=0.2)
    again, other = (draw_sample(graph, queries=500, targets=32, seed=s) for s in (0, 1))
    assert np.array_equal(sample.pairs, again.pairs)
    assert not np.array_equal(sample.pairs[:50], other.pairs[:50])
    assert survey(graph, sample)["hops_mean"] == (sample.paths.lengths - 1).mean()


def test_survey_of_several_distances(tennessee):
    table = survey_distances(tennessee.cities, [20, 30])
    assert table.index.tolist() == [20, 30]
    assert table.loc[20, "edges"] < table.loc[30, "edges"] == len(tennessee.indices)


def test_stretch_between_bands_of_longitude(tennessee):
    bands = {"west to east": (-91, -88, -85, -81), "nowhere": (0, 1, 2, 3)}
    table = stretch_between(tennessee.cities, bands, [30], seed=1)
    sample = draw_sample(tennessee, 30_000, 128, seed=1)
    a, b = tennessee.lon[sample.pairs].T
    far = (a < -88) & (b > -85)
    assert table.loc["west to east", ("sampled", 30)] == far.sum() > 100
    expected = (sample.km[far] / sample.straight_km[far]).mean()
    assert table.loc["west to east", ("mean stretch", 30)] == pytest.approx(expected, rel=1e-12)
    assert table.loc["nowhere", ("sampled", 30)] == 0
    assert np.isnan(table.loc["nowhere", ("mean stretch", 30)])


# Who lives there


def title_of(ax) -> str:
    """A title wherever the style puts it."""
    return "".join(ax.get_title(loc=place) for place in ("left", "center", "right"))


def test_demographics_of_what_a_source_knows(tennessee):
    cities = tennessee.cities
    assert density(cities) is None and len(draw_demographics(cities).axes) == 2
    half = np.sort(cities["population"])[::-1].cumsum() < cities["population"].sum() / 2
    title = title_of(draw_demographics(cities).axes[0])
    assert f"the {half.sum() + 1:,} largest of {len(cities)} places" in title
    dense = cities.assign(density=2.0, county_name=["Shelby"] * 30 + ["Knox"] * (len(cities) - 30))
    axes = draw_demographics(dense).axes
    assert "2 people per square km" in title_of(axes[1])
    assert title_of(axes[2]) == "Knox, TN has the most people\nof 2 counties"
    census = cities.assign(aland=[0.0, np.nan] + [2e6] * (len(cities) - 2))
    found = density(census)
    assert found[:2].isna().all() and found[2] == cities["population"][2] / 2
    plt.close("all")


# What training has shown


def test_leaks_grow_with_training_and_splits_compare(empty_home):
    size = get_size("tiny", {"train": 1500, "valid": 80, "test": 400})
    graph = lab.size_graph(size, make=True)
    leak = leak_by_training_size(size, graph)
    assert leak["training paths"].is_monotonic_increasing and leak["contained"].between(0, 1).all()
    assert leak["contained"].iloc[-1] > leak["contained"].iloc[0]
    table = compare_splits(size, graph).set_index("split")
    assert table.loc["long", "hops, test"] > table.loc["pair", "hops, test"]
    assert (table["train"] > 0).all()
