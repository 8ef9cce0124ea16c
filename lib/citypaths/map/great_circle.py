"""Great circles: distances and points on the sphere, for numpy, numba and torch."""

from __future__ import annotations

import numpy as np
from numba import njit
from torch import Tensor

EARTH_RADIUS_KM = 6371.0088  # mean radius R1 of the IUGG


def great_circle_km(lat_a, lon_a, lat_b, lon_b) -> np.ndarray:
    """Return great-circle distances by the haversine formula.

    Args: degrees, any shapes that broadcast. Returns: km, float64, exactly symmetric in a and b.
    """
    lat_a, lon_a, lat_b, lon_b = (
        np.radians(np.asarray(x, float)) for x in (lat_a, lon_a, lat_b, lon_b)
    )
    half = np.sin((lat_b - lat_a) / 2) ** 2
    half = half + np.cos(lat_a) * np.cos(lat_b) * np.sin((lon_b - lon_a) / 2) ** 2
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(half, 0, 1)))


def unit_sphere(lat, lon) -> np.ndarray:
    """Return points on the unit sphere, [n, 3], for degrees of latitude and longitude [n]."""
    lat, lon = np.radians(np.asarray(lat, float)), np.radians(np.asarray(lon, float))
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


@njit(cache=True)
def great_circle(points, a, b):
    """Return great-circle km between cities a and b of `points` [V, 3] on the unit sphere."""
    square = 0.0
    for axis in range(3):
        square += (points[a, axis] - points[b, axis]) ** 2
    return 2 * EARTH_RADIUS_KM * np.arcsin(min(1.0, np.sqrt(square) / 2))


def arc_km(sphere: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return great-circle km between cities of any shapes that broadcast.

    Args:
        sphere: unit-sphere positions [V, 3], float64 for differences of a few metres.
    """
    chord = (sphere[a] - sphere[b]).square().sum(-1).sqrt()
    return 2 * EARTH_RADIUS_KM * (chord / 2).clamp(max=1.0).asin()
