"""What a City DAG is like: degree, components, reach, stretch, hops, and where the traffic goes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from citypaths.judging.floors import walk
from citypaths.judging.metrics import judge
from citypaths.map.graph import CityGraph, Orientation, build_graph, unit_hash
from citypaths.map.paths import Paths
from citypaths.map.shortest_paths import Trees, paths, shortest_path_trees


@dataclass(frozen=True, eq=False)
class Sample:
    """Random reachable queries of a graph with their shortest paths.

    Attributes:
        pairs: int64 [queries, 2]. km, straight_km: network and great-circle length. paths: Paths.
        trees: the trees of the sampled targets, from all cities.
    """

    pairs: np.ndarray
    km: np.ndarray
    straight_km: np.ndarray
    paths: Paths
    trees: Trees


def draw_sample(
    graph: CityGraph, queries: int = 10_000, targets: int = 64, seed: int = 0
) -> Sample:
    """Draw `targets` cities at random and about `queries` reachable queries that end at them."""
    draw = unit_hash(seed, np.arange(len(graph)), 0x73757276)
    trees = shortest_path_trees(graph, np.sort(np.argsort(draw)[:targets]))
    source, column = np.nonzero(trees.reachable)
    keep = unit_hash(seed, source, trees.targets[column]) < queries / max(1, len(source))
    pairs = np.stack([source[keep], trees.targets[column[keep]]], 1).astype(np.int64)
    km = trees.km[pairs[:, 0], column[keep]]
    straight = graph.distance_km(pairs[:, 0], pairs[:, 1])
    return Sample(pairs, km, np.maximum(straight, 1e-3), paths(trees, pairs), trees)


def survey(graph: CityGraph, sample: Sample | None = None) -> dict[str, float]:
    """Return a graph's vital figures.

    Returns: cities, edges, mean_degree (edges per city), components, giant (share of cities in
    the largest component), reach (share of ordered pairs that could be joined and are: all pairs
    when two-way, west -> east when eastward), hops_mean, hops_p95, hops_max, stretch (mean network
    over great-circle km), geo_greedy (share of sampled queries that geo-greedy solves within 5 %).
    """
    sample = sample or draw_sample(graph)
    label = graph.components()
    rank = np.argsort(graph.order)
    possible = rank[:, None] < rank[sample.trees.targets][None, :]
    if graph.orientation == "two_way":
        possible = np.arange(len(graph))[:, None] != sample.trees.targets[None, :]
    hops = sample.paths.lengths - 1
    walked = walk(graph, sample.pairs[:, 0], sample.pairs[:, 1])
    judged = judge(graph, sample.pairs[:, 0], sample.pairs[:, 1], sample.km, walked.paths)
    return {
        "cities": len(graph),
        "edges": len(graph.indices),
        "mean_degree": len(graph.indices) / len(graph),
        "components": int(label.max()) + 1,
        "giant": float((label == 0).mean()),
        "reach": float(sample.trees.reachable.sum() / max(1, possible.sum())),
        "hops_mean": float(hops.mean()),
        "hops_p95": float(np.quantile(hops, 0.95)),
        "hops_max": int(hops.max()),
        "stretch": float((sample.km / sample.straight_km).mean()),
        "geo_greedy": float(judged["success"].mean()),
    }


def survey_distances(
    cities: pd.DataFrame, distances_km: list[float], orientation: Orientation = "eastward"
) -> pd.DataFrame:
    """Return one `survey` row for each connected distance."""
    graphs = (build_graph(cities, km, orientation) for km in distances_km)
    rows = [{"connected_km": g.connected_km} | survey(g) for g in graphs]
    return pd.DataFrame(rows).set_index("connected_km")


def hops_from(graph: CityGraph, city: str) -> pd.DataFrame:
    """Return the cities one hop from a city named as in `CityGraph.find`, the nearest first.

    Columns: id, city, km, bearing (degrees clockwise from north, in [0, 360)), population.
    """
    a = graph.find(city)
    b = graph.neighbours(a)
    frame = pd.DataFrame({"id": b, "city": graph.labels[b]})
    frame["km"] = graph.km[graph.indptr[a] : graph.indptr[a + 1]]
    frame["bearing"] = bearing(graph.lat[a], graph.lon[a], graph.lat[b], graph.lon[b])
    frame["population"] = graph.cities["population"].to_numpy()[b]
    return frame.sort_values("km", ignore_index=True)


def bearing(lat_a, lon_a, lat_b, lon_b) -> np.ndarray:
    """Return initial bearings from a to b in degrees clockwise from north, in [0, 360)."""
    lat_a, lon_a, lat_b, lon_b = (
        np.radians(np.asarray(x, float)) for x in (lat_a, lon_a, lat_b, lon_b)
    )
    east = np.sin(lon_b - lon_a) * np.cos(lat_b)
    north = np.cos(lat_a) * np.sin(lat_b) - np.sin(lat_a) * np.cos(lat_b) * np.cos(lon_b - lon_a)
    return np.degrees(np.arctan2(east, north)) % 360 % 360  # a tiny negative angle % 360 is 360


def traffic(graph: CityGraph, sample: Sample) -> np.ndarray:
    """Return the share of sampled shortest paths that pass through each city, ends left out."""
    inner = np.ones(len(sample.paths.tokens), bool)
    inner[sample.paths.offsets[:-1]] = inner[sample.paths.offsets[1:] - 1] = False
    counts = np.bincount(sample.paths.tokens[inner], minlength=len(graph))
    return counts / max(1, len(sample.pairs))


def stretch_by_city(graph: CityGraph, sample: Sample) -> np.ndarray:
    """Return each city's mean network over great-circle km to the sampled targets it reaches."""
    straight = graph.distance_km(np.arange(len(graph))[:, None], sample.trees.targets[None, :])
    far = sample.trees.reachable & (straight > 2 * graph.connected_km)
    ratio = np.where(far, sample.trees.km / np.maximum(straight, 1e-3), 0.0)
    return np.where(far.any(1), ratio.sum(1) / np.maximum(far.sum(1), 1), np.nan)
