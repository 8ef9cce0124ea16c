"""Figures: one style, one colour a model family, units on every axis, maps drawn by cities."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from citypaths.map.graph import CityGraph

INK, FAINT, RED = "#22313f", "#b8c0c8", "#c0392b"
FAMILY = {"gru": "#1f77b4", "lstm": "#e08214", "shortest": "#2a9d55", "floor": "#7f8c8d"}
FAMILY |= {"transformer": INK, "feedback": "#c2185b", "looped": "#00838f"}
FAMILY |= {"act": "#e6a100", "ponder": "#8d6e63", "top": "#7e57c2"}


def use_style() -> None:
    """Set the style of every figure."""
    sns.set_theme(style="ticks", context="notebook", palette="deep")
    look = {"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK}
    look |= {
        "figure.figsize": (9, 4),
        "figure.dpi": 90,
        "savefig.bbox": "tight",
        "axes.titlesize": 12,
    }
    look |= {
        "axes.titlelocation": "left",
        "legend.frameon": False,
        "text.color": INK,
        "font.size": 11,
    }
    plt.rcParams.update(look)


def colour(model: str, models: Sequence[str] = ()) -> tuple[float, float, float]:
    """Return a model's colour: its family's hue, lighter for the smaller of `models`."""
    family = model.split("-")[0]
    kin = [m for m in models if m.split("-")[0] == family]
    rank = (kin.index(model) + 1) / len(kin) if model in kin else 1.0
    base = np.array(sns.color_palette([FAMILY.get(family, INK)])[0])
    return tuple(1 - (1 - base) * (0.35 + 0.65 * rank))


def plain_log_ticks(ax: Axes, values: Sequence[float]) -> None:
    """Label a logarithmic x axis at the values themselves."""
    ax.set_xticks(list(values), [f"{value:,.0f}" for value in values])
    ax.minorticks_off()


def map_axes(graph: CityGraph, ax: Axes | None = None, width: float = 10.0) -> Axes:
    """Return axes for a map of the graph, longitude and latitude at true proportions."""
    aspect = 1 / np.cos(np.radians(graph.lat.mean()))
    if ax is None:
        spread = np.ptp(graph.lat) * aspect / max(np.ptp(graph.lon), 1e-9)
        _, ax = plt.subplots(figsize=(width, max(2.5, width * spread)))
    ax.set_aspect(aspect)
    ax.set(xlabel="longitude (degrees)", ylabel="latitude (degrees)")
    return ax


def draw_cities(
    graph: CityGraph, ax: Axes, values: np.ndarray | None = None, label: str = "", **options
) -> None:
    """Draw each city as a dot sized by population; `values` colour them, with a colour bar."""
    population = graph.cities["population"].to_numpy(float)
    scale = 4.0 if len(graph) < 2_000 else 0.6
    size = scale * (0.4 + np.sqrt(population / 5e4))
    order = np.argsort(values if values is not None else population)
    c = FAINT if values is None else values[order]
    style = {"s": size[order], "lw": 0} | ({"c": c} if "color" not in options else {}) | options
    dots = ax.scatter(graph.lon[order], graph.lat[order], **style)
    if values is not None:
        plt.colorbar(dots, ax=ax, label=label, shrink=0.7, pad=0.02)


def draw_edges(graph: CityGraph, ax: Axes, **options) -> None:
    """Draw every edge as a thin line."""
    a, b = graph.edge_sources, graph.indices
    place = np.stack([graph.lon, graph.lat], 1)
    lines = np.stack([place[a], place[b]], 1)
    style = {"colors": FAINT, "linewidths": 0.3, "zorder": 0, "rasterized": True} | options
    ax.add_collection(LineCollection(lines, **style))
    ax.autoscale_view()


def draw_path(
    graph: CityGraph, path: np.ndarray, ax: Axes, color=INK, label: str | None = None
) -> None:
    """Draw a path hop by hop; illegal hops are red and dashed."""
    path = np.asarray(path)
    for i, (a, b) in enumerate(pairwise(path)):
        legal = bool(graph.is_edge(a, b))
        style = {"color": color if legal else RED, "ls": "-" if legal else "--", "lw": 2}
        name = label if i == 0 else None
        ax.plot(
            graph.lon[[a, b]], graph.lat[[a, b]], marker="o", ms=3, label=name, zorder=3, **style
        )


def draw_ends(graph: CityGraph, source: int, target: int, ax: Axes) -> None:
    """Name the two ends of a query."""
    for city, mark in ((source, "o"), (target, "*")):
        ax.plot(graph.lon[city], graph.lat[city], mark, ms=11, mfc="white", mec=INK, zorder=4)
        spot = (graph.lon[city], graph.lat[city])
        above = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center", "fontsize": 9}
        ax.annotate(str(graph.labels[city]), spot, **above)


def draw_route(
    graph: CityGraph, route: np.ndarray, shortest: np.ndarray, ax: Axes, title: str, color=INK
) -> None:
    """Draw a model's route beside the shortest one, on the part of the map they cross."""
    map_axes(graph, ax)
    draw_edges(graph, ax)
    draw_cities(graph, ax)
    draw_path(graph, shortest, ax, FAMILY["shortest"], "shortest")
    draw_path(graph, route, ax, color, "model")
    draw_ends(graph, int(shortest[0]), int(shortest[-1]), ax)
    seen = np.concatenate([route, shortest])
    for axis, values in (("x", graph.lon[seen]), ("y", graph.lat[seen])):
        margin = 0.25 + 0.12 * np.ptp(values)
        ax.set(**{f"{axis}lim": (values.min() - margin, values.max() + margin)})
    ax.set_title(title, fontsize=10)
