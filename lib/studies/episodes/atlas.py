"""Places that small maps are cut from, some of them held out, and the maps with exact answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from citypaths.files import sha256
from citypaths.map.great_circle import great_circle_km, unit_sphere

SPREAD = 4  # a map's cities are drawn from so many times as many places around its centre


@dataclass(frozen=True, eq=False)
class Atlas:
    """Places by latitude and longitude (degrees, float64 [N]).

    Attributes:
        name: for tables, such as "US, held out".
    """

    lat: np.ndarray
    lon: np.ndarray
    name: str = "places"

    def __len__(self) -> int:
        return len(self.lat)

    @classmethod
    def of(cls, places: Any, name: str) -> Atlas:
        """Take the places of a `CityGraph`, or of a GeoDataFrame of `load_cities`."""
        if hasattr(places, "geometry"):
            return cls(places.geometry.y.to_numpy(), places.geometry.x.to_numpy(), name)
        return cls(np.asarray(places.lat), np.asarray(places.lon), name)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the positions."""
        return sha256(self.lat.tobytes(), self.lon.tobytes())[:16]

    @cached_property
    def _sphere(self) -> tuple[np.ndarray, cKDTree]:
        points = unit_sphere(self.lat, self.lon)
        return points, cKDTree(points)

    def split(self, held: float = 0.2, degrees: float = 2.0, seed: int = 0) -> tuple[Atlas, Atlas]:
        """Return what is left and what is held out: a share of the cells of a grid, whole.

        No place is in both, so that no map of one has a city of the other.
        """
        row, column = np.floor(self.lat / degrees), np.floor(self.lon / degrees)
        cells, cell = np.unique(np.stack([row, column], 1), axis=0, return_inverse=True)
        chosen = np.zeros(len(cells), bool)
        order = np.random.default_rng(seed).permutation(len(cells))
        chosen[order[: max(1, round(held * len(cells)))]] = True
        out = chosen[cell.ravel()]
        return self._take(~out, self.name), self._take(out, f"{self.name}, held out")

    def _take(self, keep: np.ndarray, name: str) -> Atlas:
        return Atlas(self.lat[keep], self.lon[keep], name)

    def around(self, count: int, cities: int, random: np.random.Generator) -> np.ndarray:
        """Return `count` windows, int64 [count, cities]: places drawn around a random centre.

        Raises:
            ValueError: there are fewer places than a window looks at.
        """
        near = SPREAD * cities
        if near > len(self):
            raise ValueError(f"{self.name}: {len(self)} places, a map looks at {near} around it")
        points, tree = self._sphere
        _, around = tree.query(points[random.integers(len(self), size=count)], k=near)
        drawn = random.random(around.shape).argsort(1, kind="stable")[:, :cities]
        return np.take_along_axis(around, drawn, 1)


@dataclass(frozen=True, eq=False)
class Maps:
    """B maps of n cities each, numbered from west to east, with all shortest paths.

    Attributes:
        lat, lon: degrees [B, n]. symbols: int64 [B, n], the arbitrary name of each city.
        km: float64 [B, n, n], length of the hop, infinite where there is none, before closures.
        closed: bool [B, n, n], hops that were closed.
        togo: float64 [B, n, n], km of the shortest path on what is open, infinite without one.
        onward: int64 [B, n, n], the next city on it (-1). hops: int64 [B, n, n], its hops (0).
    """

    lat: np.ndarray
    lon: np.ndarray
    symbols: np.ndarray
    km: np.ndarray
    closed: np.ndarray
    togo: np.ndarray
    onward: np.ndarray
    hops: np.ndarray

    def __len__(self) -> int:
        return len(self.km)

    @property
    def cities(self) -> int:
        """Cities on each map."""
        return self.km.shape[1]

    @property
    def open_km(self) -> np.ndarray:
        """Lengths of the hops that are left, float64 [B, n, n]."""
        return np.where(self.closed, np.inf, self.km)

    def city_of(self, symbols: int) -> np.ndarray:
        """Return the city that has each symbol, int64 [B, symbols], -1 for none."""
        out = np.full((len(self), symbols), -1)
        np.put_along_axis(out, self.symbols, np.arange(self.cities)[None], 1)
        return out


def draw_maps(
    atlas: Atlas,
    count: int,
    cities: int,
    edges: int,
    symbols: int,
    random: np.random.Generator,
    closures: int = 0,
) -> Maps:
    """Cut maps out of an atlas: the `edges` nearest pairs are joined, eastward.

    Cities get `symbols` by chance; then `closures` of the hops, by chance, are closed.

    Raises:
        ValueError: more edges than pairs, more cities than symbols, or more closures than edges.
    """
    pairs = cities * (cities - 1) // 2
    if not (0 <= closures <= edges <= pairs and 2 <= cities <= symbols):
        raise ValueError(
            f"{cities} cities ({pairs} pairs) cannot have {edges} edges, {closures} of them "
            f"closed, and {symbols} symbols"
        )
    places = atlas.around(count, cities, random)
    lat, lon = atlas.lat[places], atlas.lon[places]
    eastward = np.lexsort((places, lat, lon), axis=1)
    lat, lon = (np.take_along_axis(a, eastward, 1) for a in (lat, lon))
    km = _joined(lat, lon, edges)
    closed = np.zeros(km.shape, bool)
    if closures:
        score = np.where(np.isfinite(km), random.random(km.shape), 2.0).reshape(count, -1)
        shut = score.argsort(1, kind="stable")[:, :closures]
        np.put_along_axis(closed.reshape(count, -1), shut, True, 1)
    names = random.random((count, symbols)).argsort(1, kind="stable")[:, :cities]
    return Maps(lat, lon, names, km, closed, *solve(np.where(closed, np.inf, km)))


def _joined(lat: np.ndarray, lon: np.ndarray, edges: int) -> np.ndarray:
    """The nearest pairs of each map as an upper triangle of km, infinite elsewhere."""
    count, cities = lat.shape
    west, east = np.triu_indices(cities, 1)
    length = great_circle_km(lat[:, west], lon[:, west], lat[:, east], lon[:, east])
    far = length.argsort(1, kind="stable")[:, edges:]
    np.put_along_axis(length, far, np.inf, 1)
    km = np.full((count, cities, cities), np.inf)
    km[:, west, east] = length
    return km


def solve(km: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return km to go, next city and hops of all shortest paths of eastward maps.

    Args:
        km: float64 [B, n, n], infinite where there is no hop and on and below the diagonal.

    Returns:
        togo float64, onward int64 (-1 without a path), hops int64, all [B, n, n].
    """
    cities = km.shape[1]
    togo = np.full(km.shape, np.inf)
    togo[:, np.arange(cities), np.arange(cities)] = 0
    onward, hops = np.full(km.shape, -1), np.zeros(km.shape, np.int64)
    for city in range(cities - 2, -1, -1):
        through = km[:, city, city + 1 :, None] + togo[:, city + 1 :, :]
        best = through.argmin(1)
        shortest = np.take_along_axis(through, best[:, None], 1)[:, 0]
        found = np.isfinite(shortest)
        togo[:, city] = np.where(found, shortest, togo[:, city])
        step = city + 1 + best
        after = np.take_along_axis(hops, step[:, None], 1)[:, 0]
        onward[:, city] = np.where(found, step, -1)
        hops[:, city] = np.where(found, after + 1, 0)
    return togo, onward, hops
