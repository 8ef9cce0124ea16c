"""Places that small maps are cut from, some of them held out, and the maps with exact answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

from citypaths.files import sha256
from citypaths.map.great_circle import great_circle_km, unit_sphere

if TYPE_CHECKING:  # geopandas takes a second to import
    import geopandas as gpd

SPREAD = 4  # a map's cities are drawn from so many times as many places around its centre


@dataclass(frozen=True, eq=False)
class Atlas:
    """Places by latitude and longitude (degrees, float64 [N]), with a name for tables."""

    lat: np.ndarray
    lon: np.ndarray
    name: str = "places"

    @classmethod
    def of(cls, places: gpd.GeoDataFrame, name: str) -> Atlas:
        """Take the places of a City Dataset, as `citypaths.map.cities.load_cities` returns it."""
        return cls(places.geometry.y.to_numpy(), places.geometry.x.to_numpy(), name)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the positions."""
        return sha256(self.lat.tobytes(), self.lon.tobytes())[:16]

    @cached_property
    def _tree(self) -> cKDTree:
        return cKDTree(unit_sphere(self.lat, self.lon))

    def split(self, held: float = 0.2, degrees: float = 2.0) -> tuple[Atlas, Atlas]:
        """Return what is left and what is held out: a share of the cells of a grid, whole."""
        row, column = np.floor(self.lat / degrees), np.floor(self.lon / degrees)
        cells, cell = np.unique(np.stack([row, column], 1), axis=0, return_inverse=True)
        order = np.random.default_rng(0).permutation(len(cells))
        out = np.isin(cell.ravel(), order[: max(1, round(held * len(cells)))])
        rest = Atlas(self.lat[~out], self.lon[~out], self.name)
        return rest, Atlas(self.lat[out], self.lon[out], f"{self.name}, held out")

    def around(self, count: int, cities: int, random: np.random.Generator) -> np.ndarray:
        """Return windows, int64 [count, cities]: places drawn around a random centre.

        A ValueError says that there are fewer places than a window looks at.
        """
        near, places = SPREAD * cities, len(self.lat)
        if near > places:
            raise ValueError(f"{self.name}: {places} places, a map looks at {near} around it")
        centres = self._tree.data[random.integers(places, size=count)]
        _, around = self._tree.query(centres, k=near)
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

    @cached_property
    def open_km(self) -> np.ndarray:
        """Lengths of the hops that are left, float64 [B, n, n]."""
        return np.where(self.closed, np.inf, self.km)

    def city_of(self, symbols: int) -> np.ndarray:
        """Return the city that has each symbol, int64 [B, symbols], -1 for none."""
        out = np.full((len(self), symbols), -1)
        np.put_along_axis(out, self.symbols, np.arange(self.cities)[None], 1)
        return out


def draw_maps(
    atlas: Atlas, count: int, random: np.random.Generator, cities: int, edges: int, symbols: int,
    closures: int = 0,
) -> Maps:  # fmt: skip
    """Cut maps out of an atlas: the `edges` nearest pairs are joined, eastward.

    Cities get `symbols` by chance, then `closures` of the hops are closed. A ValueError says that
    there are more edges than pairs, cities than symbols, or closures than edges.
    """
    pairs = cities * (cities - 1) // 2
    if not (0 <= closures <= edges <= pairs and 2 <= cities <= symbols):
        counts = f"{cities} cities ({pairs} pairs) cannot have {edges} edges"
        raise ValueError(f"{counts}, {closures} of them closed, and {symbols} symbols")
    places = atlas.around(count, cities, random)
    lat, lon = atlas.lat[places], atlas.lon[places]
    eastward = np.lexsort((places, lat, lon), axis=1)
    lat, lon = (np.take_along_axis(a, eastward, 1) for a in (lat, lon))
    west, east = np.triu_indices(cities, 1)
    length = great_circle_km(lat[:, west], lon[:, west], lat[:, east], lon[:, east])
    np.put_along_axis(length, length.argsort(1, kind="stable")[:, edges:], np.inf, 1)
    km = np.full((count, cities, cities), np.inf)
    km[:, west, east] = length
    closed = np.zeros(km.shape, bool)
    if closures:
        score = np.where(np.isfinite(km), random.random(km.shape), 2.0).reshape(count, -1)
        shut = score.argsort(1, kind="stable")[:, :closures]
        np.put_along_axis(closed.reshape(count, -1), shut, True, 1)
    names = random.random((count, symbols)).argsort(1, kind="stable")[:, :cities]
    return Maps(lat, lon, names, km, closed, *solve(np.where(closed, np.inf, km)))


def solve(km: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return km to go, next city and hops of all shortest paths of eastward maps.

    Takes km, float64 [B, n, n], infinite where there is no hop and on and below the diagonal;
    returns togo float64, onward int64 (-1 without a path), hops int64, all [B, n, n].
    """
    cities = km.shape[1]
    togo = np.where(np.eye(cities, dtype=bool), 0.0, np.inf) + np.zeros((len(km), 1, 1))
    onward, hops = np.full(km.shape, -1), np.zeros(km.shape, np.int64)
    for city in range(cities - 2, -1, -1):
        through = km[:, city, city + 1 :, None] + togo[:, city + 1 :, :]
        best = through.argmin(1)
        shortest = np.take_along_axis(through, best[:, None], 1)[:, 0]
        found, step = np.isfinite(shortest), city + 1 + best
        after = np.take_along_axis(hops, step[:, None], 1)[:, 0]
        togo[:, city] = np.where(found, shortest, togo[:, city])
        onward[:, city], hops[:, city] = np.where(found, step, -1), np.where(found, after + 1, 0)
    return togo, onward, hops
