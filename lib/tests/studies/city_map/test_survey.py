"""What a person asks of the map: where one can go from a city, and in which direction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from citypaths.map.great_circle import EARTH_RADIUS_KM, great_circle_km, unit_sphere
from studies.city_map.survey import bearing, hops_from

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
