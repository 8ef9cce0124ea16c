"""Figures: one style, one colour a model family, units on every axis, maps drawn by cities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import NullFormatter

from citypaths.judging.metrics import wilson
from citypaths.map.graph import CityGraph

INK, FAINT, RED = "#22313f", "#b8c0c8", "#c0392b"
FAMILY = {"gru": "#1f77b4", "lstm": "#e08214", "shortest": "#2a9d55", "floor": "#7f8c8d"}
FAMILY |= {"transformer": INK, "feedback": "#c2185b", "looped": "#00838f"}
FAMILY |= {"act": "#e6a100", "ponder": "#8d6e63", "top": "#7e57c2"}
INTERVAL = "bars: 95 % Wilson intervals"
LOSS = "validation loss (nats a hop)"


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


def loss_curves(histories: Mapping[str, pd.DataFrame], ax: Axes) -> None:
    """Draw validation loss against training tokens, one line a model."""
    for name, history in histories.items():
        hue = colour(name, list(histories))
        ax.plot(history["tokens"], history["valid_loss"], "o-", ms=4, color=hue, label=name)
    ax.set(xscale="log", yscale="log", xlabel="training tokens", ylabel=LOSS)
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.legend()


def metrics_along_training(history: pd.DataFrame, ax: Axes, title: str) -> None:
    """Draw each rate against the validation loss at which it was reached."""
    rates = {"arrives": "^", "legal": "s", "bounded_05": "d", "success": "o"}
    for rate, mark in rates.items():
        label = rate.replace("_05", " at 5 %")
        ax.plot(history["valid_loss"], history[rate], mark + "-", ms=5, label=label)
    ax.set(xscale="log", xlabel=LOSS, ylabel="share of queries", ylim=(-0.03, 1.03))
    ax.set_title(title)
    ax.invert_xaxis()
    ax.legend()


def success_by(judged: Mapping[str, pd.DataFrame], by: str, ax: Axes, xlabel: str) -> None:
    """Draw success with 95 % intervals by group, one series a method."""
    names = list(judged)
    for i, (name, frame) in enumerate(judged.items()):
        groups = frame.groupby(by, observed=True)["success"]
        share, count = groups.mean(), groups.size()
        low, high = wilson(groups.sum(), count)
        x = np.arange(len(share)) + (i - (len(names) - 1) / 2) * 0.12
        bars = np.abs(np.stack([share - low, high - share]))
        learned = name.split("-")[0] in FAMILY
        color = colour(name, names) if learned else FAMILY["floor"]
        mark = "o" if learned else "v^<>"[i % 4]
        ax.errorbar(x, share, yerr=bars, fmt=mark, ms=5, capsize=2, color=color, label=name)
    ticks = [f"{group}\n(n={n:,})" for group, n in count.items()]
    ax.set_xticks(np.arange(len(ticks)), ticks)
    ax.set(xlabel=xlabel, ylabel="success", ylim=(-0.03, 1.03))
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def waterfall(
    labels: Sequence[str], values: Sequence[float], counts: Sequence[int], ax: Axes
) -> None:
    """Draw the share at each rung as a bar, its change from the rung before, and its interval."""
    values = np.asarray(values, float)
    low, high = wilson(values * np.asarray(counts), counts)
    before = np.concatenate([[0], values[:-1]])
    y = np.arange(len(values))
    ax.barh(y, values, color=FAINT, height=0.7)
    gain = np.where(values >= before, FAMILY["gru"], RED)
    ax.barh(y, np.abs(values - before), left=np.minimum(values, before), color=gain, height=0.7)
    ax.errorbar(
        values, y, xerr=np.abs([values - low, high - values]), fmt="none", ecolor=INK, capsize=3
    )
    for i, value in enumerate(values):
        beside = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        ax.annotate(f"{100 * value:.1f} %", (high[i], i), **beside)
    ax.set_yticks(y, labels)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1.12), xlabel=f"share of queries ({INTERVAL})")
