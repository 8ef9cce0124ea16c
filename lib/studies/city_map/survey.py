"""What a City Dataset, its graph and its dataset of shortest paths are like.

In order: who lives there; degree, components, reach, stretch, hops and traffic of the graph; how
much of a test set training has already shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from citypaths.data.dataset import make_dataset
from citypaths.data.splits import SPLITS, recipe_for
from citypaths.files import digest
from citypaths.judging.floors import walk
from citypaths.judging.metrics import judge
from citypaths.lab import size_dataset
from citypaths.map.graph import CityGraph, build_graph, unit_hash
from citypaths.map.paths import Paths
from citypaths.map.shortest_paths import Trees, paths, shortest_path_trees
from citypaths.plots import FAINT, FAMILY, INK, RED
from citypaths.sizes import Size


def density(cities: pd.DataFrame) -> pd.Series | None:
    """Return people per square km: the source's own figure, or by its land area in square m.

    None where the source (GeoNames) gives neither.
    """
    if "density" in cities:
        return cities["density"]
    if "aland" in cities:
        return cities["population"] / (cities["aland"].where(cities["aland"] > 0) / 1e6)
    return None


def draw_demographics(cities: pd.DataFrame) -> Figure:
    """Draw who lives where: by size of place, by density where it is known, by county or state."""
    dense, people = density(cities), np.sort(cities["population"].to_numpy())[::-1]
    fig, axes = plt.subplots(1, 2 + (dense is not None), figsize=(12, 3.4), layout="constrained")
    half = int(np.searchsorted(people.cumsum(), people.sum() / 2)) + 1
    axes[0].loglog(np.arange(1, len(people) + 1), people, color=INK)
    axes[0].axvline(half, color=RED, lw=1)
    axes[0].set(xlabel="rank of a place", ylabel="people")
    axes[0].set_title(f"Half of the people live in\nthe {half:,} largest of {len(people):,} places")
    if dense is not None:
        known = dense[dense > 0]
        axes[1].hist(known, bins=np.geomspace(known.min(), known.max(), 50), color=FAMILY["gru"])
        axes[1].axvline(known.median(), color=RED, lw=1)
        axes[1].set(xscale="log", xlabel="people per square km", ylabel="places")
        axes[1].set_title(
            f"Half of the places have at most\n{known.median():,.0f} people per square km"
        )
    county = "county_name" in cities
    area = cities["county_name"] + ", " + cities["state"] if county else cities["state"]
    total = cities["population"].groupby(area).sum().nlargest(12)[::-1]
    axes[-1].barh(total.index, total, color=FAINT)
    axes[-1].xaxis.set_major_formatter(EngFormatter(sep=""))
    axes[-1].set(xlabel="people in its places")
    kind = "counties" if county else "states"
    axes[-1].set_title(f"{total.index[-1]} has the most people\nof {area.nunique():,} {kind}")
    return fig


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
    over great-circle km), geo_greedy (share of sampled queries that geo-greedy solves).
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


def survey_distances(cities: pd.DataFrame, distances_km: Sequence[float]) -> pd.DataFrame:
    """Return one row of `survey` for the City DAG of each connected distance."""
    graphs = (build_graph(cities, km) for km in distances_km)
    rows = [{"connected_km": g.connected_km} | survey(g) for g in graphs]
    return pd.DataFrame(rows).set_index("connected_km")


def stretch_between(
    cities: pd.DataFrame,
    bands: Mapping[str, tuple[float, float, float, float]],
    distances_km: Sequence[float],
    seed: int = 0,
) -> pd.DataFrame:
    """Return mean network over great-circle km of eastward queries from one band to another.

    Args:
        bands: by name the longitudes in degrees that bound the sources, then the targets.

    Returns: one row a band; columns `sampled` (queries) and `mean stretch` by connected distance.
    """
    rows = []
    for km in distances_km:
        net = build_graph(cities, km)
        drawn = draw_sample(net, queries=30_000, targets=128, seed=seed)
        a, b = net.lon[drawn.pairs].T
        for name, (west, east, near, far) in bands.items():
            inside = (a > west) & (a < east) & (b > near) & (b < far)
            stretch = (drawn.km / drawn.straight_km)[inside]
            entry = {"connected km": km, "queries": name, "sampled": inside.sum()}
            rows.append(entry | {"mean stretch": stretch.mean() if len(stretch) else np.nan})
    return pd.DataFrame(rows).pivot(index="queries", columns="connected km")


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


def draw_tree(graph: CityGraph, fan: Sequence[np.ndarray], km: np.ndarray, ax: Axes) -> None:
    """Draw paths from one city as a tree, their ends coloured by length in km [paths]."""
    for path in fan:
        ax.plot(graph.lon[path], graph.lat[path], color=FAMILY["shortest"], lw=0.6, alpha=0.5)
    ends = np.array([path[-1] for path in fan])
    dots = ax.scatter(graph.lon[ends], graph.lat[ends], c=km, s=10, cmap="viridis_r", zorder=3)
    plt.colorbar(dots, ax=ax, label="shortest path (km)", shrink=0.7, pad=0.02)


def leak_by_training_size(size: Size, graph: CityGraph) -> pd.DataFrame:
    """Return, for growing training sets, which share of random test pairs lies inside one.

    Columns: training paths, queries, contained (share), and mean hops of both kinds.
    """
    rows = []
    for goal in np.geomspace(size.train / 16, size.train, 5).round().astype(int):
        recipe = recipe_for(graph, train=int(goal), valid=0, test=size.test, seed=1)
        smaller = make_dataset(graph, recipe, size.folder / "leak" / digest(recipe.to_json(), 12))
        held, inside = smaller.queries("test")
        row = {"training paths": smaller.counts["train"], "queries": len(held)}
        row |= {"contained": inside.mean(), "hops, contained": held.hops[inside].mean()}
        rows.append(row | {"hops, uncontained": held.hops[~inside].mean()})
    return pd.DataFrame(rows)


def compare_splits(size: Size, graph: CityGraph) -> pd.DataFrame:
    """Return one row a split of the size's dataset: counts, share contained, mean hops."""
    rows = []
    for name in SPLITS:
        dataset = size_dataset(size, graph, name, make=True)
        held, inside = dataset.queries("test")
        row = {"split": name, **dataset.counts, "contained": inside.mean()}
        middle = dataset.shard(len(dataset.shards) // 2)
        rows.append(row | {"hops, a shard": middle.hops.mean(), "hops, test": held.hops.mean()})
    return pd.DataFrame(rows)
