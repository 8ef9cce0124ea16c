"""The City DAG: cities joined when they are near enough, every edge oriented west to east."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import networkx as nx
import numpy as np
import pandas as pd
from numba import njit
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from citypaths.files import DataFileError, atomic_write, npz_fault, require_memory, sha256
from citypaths.map.great_circle import EARTH_RADIUS_KM, great_circle_km, unit_sphere

BYTES_A_PAIR = 200  # at the height of building, measured
MAKER = "notebook 01-city-dag"
Orientation = Literal["eastward", "two_way"]


@dataclass(frozen=True, eq=False)
class CityGraph:
    """Cities and the hops between them, as compressed sparse rows of out-edges.

    Attributes:
        cities: one row a city, positions 0..n-1 are the ids used everywhere.
        indptr, indices: int64 [n + 1] and int32 [edges]; neighbours sorted by id.
        km: float64 [edges], great-circle length.
        order: int32 [n], ids west to east (longitude, latitude, id): topological when eastward.
    """

    cities: pd.DataFrame
    connected_km: float
    orientation: Orientation
    indptr: np.ndarray
    indices: np.ndarray
    km: np.ndarray
    order: np.ndarray

    def __len__(self) -> int:
        return len(self.cities)

    def __repr__(self) -> str:
        return (
            f"CityGraph({len(self):,} cities, {len(self.indices):,} edges, {self.orientation}, "
            f"connected within {self.connected_km:g} km, {self.fingerprint[:12]})"
        )

    @cached_property
    def lat(self) -> np.ndarray:
        return self.cities["lat"].to_numpy(float)

    @cached_property
    def lon(self) -> np.ndarray:
        return self.cities["lon"].to_numpy(float)

    @cached_property
    def mm(self) -> np.ndarray:
        """Edge lengths in whole millimetres, at least 1, as float64: their sums are exact."""
        return np.maximum(np.rint(self.km * 1e6), 1.0)

    @cached_property
    def labels(self) -> np.ndarray:
        """City names with their state or region, such as "Springfield, IL"."""
        return (self.cities["name"] + ", " + self.cities["state"]).to_numpy(object)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over orientation, connected distance, coordinates and edges."""
        head = f"{self.orientation} {self.connected_km!r} {len(self)}".encode()
        arrays = (self.lat, self.lon, self.indptr, self.indices, self.mm)
        return sha256(head, *(array.tobytes() for array in arrays))

    @cached_property
    def sphere(self) -> np.ndarray:
        """Points on the unit sphere, float64 [n, 3]."""
        return unit_sphere(self.lat, self.lon)

    @cached_property
    def neighbour_table(self) -> np.ndarray:
        """The neighbours of each city, int64 [n, most], filled up with n."""
        return padded_neighbours(np.diff(self.indptr), self.indices)

    @cached_property
    def edge_sources(self) -> np.ndarray:
        """The source id of every edge, int32 [edges]."""
        return np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.indptr))

    @cached_property
    def _edge_keys(self) -> np.ndarray:
        return self.edge_sources.astype(np.int64) * len(self) + self.indices

    def edge_index(self, a, b) -> np.ndarray:
        """Return each edge's position in `indices`, -1 where a -> b is no edge (any id is safe)."""
        a, b = np.broadcast_arrays(np.asarray(a, np.int64), np.asarray(b, np.int64))
        inside = (a >= 0) & (a < len(self)) & (b >= 0) & (b < len(self))
        if not len(self.indices):
            return np.full(a.shape, -1)
        key = np.where(inside, a * len(self) + b, -1)
        at = np.minimum(np.searchsorted(self._edge_keys, key), len(self._edge_keys) - 1)
        return np.where(self._edge_keys[at] == key, at, -1)

    def is_edge(self, a, b) -> np.ndarray:
        """Return whether each hop a -> b is an edge; shapes broadcast, any id is safe."""
        return self.edge_index(a, b) >= 0

    def neighbours(self, city: int) -> np.ndarray:
        """Return the ids one hop away from `city`, ascending."""
        return self.indices[self.indptr[city] : self.indptr[city + 1]]

    def distance_km(self, a, b) -> np.ndarray:
        """Return great-circle km between cities, whether or not an edge joins them."""
        return great_circle_km(self.lat[a], self.lon[a], self.lat[b], self.lon[b])

    def sparse(self) -> csr_array:
        """Return the edges as a scipy sparse array weighted in whole millimetres."""
        return csr_array((self.mm, self.indices, self.indptr), shape=(len(self), len(self)))

    def components(self) -> np.ndarray:
        """Return a component label per city, int32 [n], ignoring direction; 0 is the largest."""
        _, label = connected_components(self.sparse(), directed=False)
        by_size = np.argsort(-np.bincount(label), kind="stable")
        return np.argsort(by_size)[label].astype(np.int32)

    def with_edges(self, kept: np.ndarray) -> CityGraph:
        """Return the graph of those of its edges that are `kept` (bool [edges]), cities as here."""
        ends = np.concatenate([[0], np.cumsum(kept)])
        edges = {"indices": self.indices[kept], "km": self.km[kept]}
        return replace(self, indptr=ends[self.indptr], **edges)

    def to_networkx(self) -> nx.DiGraph:
        """Return a DiGraph with `weight` in km on edges and the city's columns on nodes."""
        km = csr_array((self.km, self.indices, self.indptr), shape=(len(self), len(self)))
        digraph = nx.from_scipy_sparse_array(km, create_using=nx.DiGraph)
        digraph.graph.update(connected_km=self.connected_km, orientation=self.orientation)
        nx.set_node_attributes(digraph, self._columns.to_dict("index"))
        return digraph

    def find(self, text: str) -> int:
        """Return the id of a city written as "Springfield, IL", or "Springfield" where unique.

        Raises:
            LookupError: nothing or more than one city matches; the message lists what is near.
        """
        wanted = text.strip().casefold()
        labels = [str(label).casefold() for label in self.labels]
        hits = [i for i, label in enumerate(labels) if label == wanted]
        hits = hits or [i for i, name in enumerate(labels) if name.rsplit(", ", 1)[0] == wanted]
        if len(hits) == 1:
            return hits[0]
        if hits:
            places = [
                f"{self.labels[i]} (id {i}, {self.lat[i]:.3f} {self.lon[i]:.3f})" for i in hits
            ]
            listed = "; ".join(places[:8])
            raise LookupError(f"{text!r} is {len(hits)} cities, name one by id: {listed}")
        near = difflib.get_close_matches(wanted, labels, n=5, cutoff=0.6)
        listed = "; ".join(str(self.labels[labels.index(label)]) for label in near)
        raise LookupError(f"no city {text!r} here; near matches: {listed or 'nothing near'}")

    @property
    def _columns(self) -> pd.DataFrame:
        return pd.DataFrame(self.cities.drop(columns="geometry", errors="ignore"))

    def save(self, path: Path) -> None:
        """Write the graph to one .npz (arrays and city columns, no pickle)."""
        table = self._columns.to_json(orient="split", double_precision=15, index=False)
        head = {"connected_km": self.connected_km, "orientation": self.orientation}
        head |= {"fingerprint": self.fingerprint, "attrs": self.cities.attrs}
        texts = {"head": json.dumps(head, default=str), "cities": table}
        arrays = {name: np.frombuffer(text.encode(), np.uint8) for name, text in texts.items()}
        arrays |= {name: getattr(self, name) for name in _ARRAYS}
        with atomic_write(path) as part, open(part, "wb") as file:
            np.savez_compressed(file, **arrays)


_ARRAYS = ("lat", "lon", "indptr", "indices", "km")


def load_graph(path: Path) -> CityGraph:
    """Read a graph that `CityGraph.save` wrote.

    Raises:
        DataFileError: the file is missing, damaged, or its content fails its own fingerprint.
    """
    import geopandas  # here, for it takes a second

    try:
        with np.load(path, allow_pickle=False) as file:
            lat, lon, *edges = (file[name] for name in _ARRAYS)
            head, table = (json.loads(file[name].tobytes()) for name in ("head", "cities"))
        cities = pd.DataFrame(table["data"], columns=table["columns"]).assign(lat=lat, lon=lon)
        points = geopandas.points_from_xy(lon, lat)
        cities = geopandas.GeoDataFrame(cities, geometry=points, crs="EPSG:4326")
        cities.attrs.update(head["attrs"])
        settings = (cities, head["connected_km"], head["orientation"])
        graph = CityGraph(*settings, *edges, _west_to_east(lat, lon))
        whole = graph.fingerprint == head["fingerprint"]
    except FileNotFoundError:
        raise DataFileError(f"{path} is missing: {MAKER} makes it") from None
    except Exception as error:  # a damaged zip fails in many ways
        message = f"{path} is no saved CityGraph ({npz_fault(error)}): delete it and run {MAKER}"
        raise DataFileError(message) from error
    if not whole:
        raise DataFileError(f"{path} fails its fingerprint: delete it and run {MAKER}")
    return graph


def build_graph(
    cities: pd.DataFrame, connected_km: float, orientation: Orientation = "eastward"
) -> CityGraph:
    """Join every two cities at most `connected_km` apart.

    Args:
        cities: needs `name, state, lat, lon` (degrees) and `population`; row i is city i.
        connected_km: great-circle km, above 0 and below half the Earth's circumference.
        orientation: "eastward" keeps the hop to the later city in (longitude, latitude, id) order,
            which makes the graph acyclic; "two_way" keeps both directions.

    Raises:
        ValueError: an unknown orientation, a distance out of range, or non-finite coordinates.
    """
    if orientation not in ("eastward", "two_way"):
        raise ValueError(f"orientation is 'eastward' or 'two_way', not {orientation!r}")
    if not 0 < connected_km < np.pi * EARTH_RADIUS_KM:
        raise ValueError(f"connected_km is between 0 and 20,015 km, not {connected_km!r}")
    cities = cities.reset_index(drop=True)
    lat, lon = cities["lat"].to_numpy(float), cities["lon"].to_numpy(float)
    if not (np.isfinite(lat).all() and np.isfinite(lon).all()):
        raise ValueError("cities have coordinates that are not finite numbers")
    order = _west_to_east(lat, lon)
    a, b = _near_pairs(lat, lon, connected_km)
    rank = np.argsort(order)
    west, east = np.where(rank[a] < rank[b], (a, b), (b, a))
    if orientation == "two_way":
        west, east = np.concatenate([west, east]), np.concatenate([east, west])
    by_row = np.lexsort((east, west))
    west, east = west[by_row], east[by_row].astype(np.int32)
    indptr = np.searchsorted(west, np.arange(len(cities) + 1)).astype(np.int64)
    km = great_circle_km(lat[west], lon[west], lat[east], lon[east])
    return CityGraph(cities, float(connected_km), orientation, indptr, east, km, order)


def _west_to_east(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    return np.lexsort((np.arange(len(lat)), lat, lon)).astype(np.int32)


def _near_pairs(lat: np.ndarray, lon: np.ndarray, km: float) -> tuple[np.ndarray, np.ndarray]:
    """Unordered pairs at most `km` apart: a k-d tree over chords, then the exact distance."""
    reach = 2 * np.sin(km / (2 * EARTH_RADIUS_KM)) * (1 + 1e-9) + 1e-12  # above rounding errors
    tree = cKDTree(unit_sphere(lat, lon))
    count = (int(tree.count_neighbors(tree, reach)) - len(lat)) // 2
    what = f"a graph of {len(lat):,} cities and {count:,} pairs within {km:g} km"
    require_memory(BYTES_A_PAIR * count, what, "lower connected_km or take fewer cities")
    pairs = tree.query_pairs(reach, output_type="ndarray")
    a, b = pairs[:, 0], pairs[:, 1]
    near = great_circle_km(lat[a], lon[a], lat[b], lon[b]) <= km
    return a[near], b[near]


def padded_neighbours(degree: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the neighbours of each of n cities, int64 [n, most], filled up with n.

    Args: degree: of each city, [n]. ids: of the neighbours, those of one city after another's.
    """
    table = np.full((len(degree), max(1, int(degree.max(initial=0)))), len(degree))
    table[np.arange(table.shape[1]) < degree[:, None]] = ids
    return table


def rounded(graph: CityGraph, step_km: float = 0.1) -> CityGraph:
    """Return the graph with edge lengths rounded to `step_km`, as published tables often are."""
    return replace(graph, km=np.maximum(np.rint(graph.km / step_km), 1) * step_km)


def jittered(graph: CityGraph, seed: int = 0, spread: float = 0.1) -> CityGraph:
    """Return the graph with each edge lengthened by a factor in [1, 1 + spread), hashed per pair.

    Near-ties all but vanish, so every query has one clean label; both directions agree.
    """
    a, b = graph.edge_sources, graph.indices
    factor = 1 + spread * unit_hash(seed, np.minimum(a, b), np.maximum(a, b), 0x6A697474)
    return replace(graph, km=graph.km * factor)


# Random numbers that depend on what they are for, never on the order they are asked in.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x):
    """One round of SplitMix64's finalizer (Steele, Lea, Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def unit_hash(seed: int, *keys) -> np.ndarray:
    """Return uniform numbers in [0, 1), float64, one for each (seed, key, key, ...).

    Args: integer arrays whose shapes broadcast. The same keys give the same number anywhere.
    """
    return (hash_state(seed, *keys) >> np.uint64(11)) * 2.0**-53


def hash_state(seed: int, *keys) -> np.ndarray:
    """Return the uint64 states behind `unit_hash`; `hash_next` takes them one key further."""
    with np.errstate(over="ignore"):
        state = _mix(np.uint64(seed % 2**64) + _GOLDEN)
        for key in keys:
            state = _mix((state ^ np.asarray(key).astype(np.uint64)) + _GOLDEN)
    return state


_mix_compiled = njit(_mix, inline="always")


@njit(inline="always")
def hash_next(state, key):
    """Return, in compiled code, 2^53 times `unit_hash(..., key)`, from the state before the key."""
    return np.int64(_mix_compiled((state ^ np.uint64(key)) + _GOLDEN) >> np.uint64(11))
