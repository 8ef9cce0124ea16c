"""Figures of episodes: a map, learning, and success against a dial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from citypaths.judging.ledger import arms_of
from citypaths.judging.metrics import over_few, wilson
from citypaths.plots import FAMILY, INK, RED
from studies.episodes.task import Episodes

WALKS = ("random walk", "nearest hop")


def some_maps(episodes: Episodes, count: int = 3) -> Figure:
    """Draw the first maps of episodes, cities by their symbols, with a query's shortest path."""
    fig, axes = plt.subplots(1, count, figsize=(4.2 * count, 3.6), layout="constrained")
    maps = episodes.maps
    for row, ax in enumerate(axes):
        lon, lat, symbols = maps.lon[row], maps.lat[row], maps.symbols[row].astype(str)
        for a, b in np.argwhere(np.isfinite(maps.km[row])):
            style = {"color": RED, "ls": ":"} if maps.closed[row, a, b] else {"color": "#bbbbbb"}
            ax.plot(lon[[a, b]], lat[[a, b]], lw=1, zorder=1, **style)
        source, target = episodes.queries[row, 0]
        path = [source]
        while path[-1] != target and maps.onward[row, path[-1], target] >= 0:
            path.append(maps.onward[row, path[-1], target])
        ax.plot(lon[path], lat[path], color=FAMILY["shortest"], lw=2.5)
        ax.scatter(lon, lat, s=170, color="white", edgecolor=INK, zorder=2)
        for place in zip(lon, lat, symbols, strict=True):
            ax.text(*place, ha="center", va="center", fontsize=8, zorder=3)
        ax.set(title=" → ".join(symbols[path]), xticks=[], yticks=[])
        ax.set_aspect(1 / np.cos(np.radians(lat.mean())), adjustable="datalim")
        sns.despine(ax=ax, left=True, bottom=True)
    return fig


def styles(arms: pd.Series) -> dict[str, dict[str, Any]]:
    """Return a line an arm: a longer training's is its arm's, dashed; the walks are grey dots."""
    plain = [arm for arm in arms.unique() if arm not in WALKS and "," not in arm]
    colours = dict(zip(plain, sns.color_palette("tab10", max(10, len(plain))), strict=False))
    colour = {arm: colours.get(arm.split(",")[0], FAMILY["floor"]) for arm in arms.unique()}
    line = {arm: ":" if arm in WALKS else "--" if "," in arm else "-" for arm in colour}
    return {arm: {"color": colour[arm], "ls": line[arm], "lw": 1.5} for arm in colour}


def learning(curves: pd.DataFrame) -> Figure:
    """Draw recall and hard-subset success along training, against its seconds, a line a seed."""
    fig, axes = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained", sharex=True)
    style, first = styles(curves["arm"]), curves["seed"].min()
    for (arm, seed), part in curves.groupby(["arm", "seed"], sort=False):
        label = arm if seed == first else None
        for ax, column in zip(axes, ("recall", "hard_success"), strict=True):
            ax.plot(part["seconds"], part[column], marker=".", label=label, **style[arm])
    axes[0].set(
        xscale="log", xlabel="seconds of training", ylabel="recall of a hop", ylim=(0, 1.02)
    )
    axes[1].set(xlabel="seconds of training", ylabel="success, no direct hop")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    return fig


def against_dials(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw success and recall of ledger rows against cities on the map and solved paths shown."""
    frame = pd.DataFrame(list(rows)).assign(arm=arms_of)
    frame = frame[frame["subset"] == ""]
    edges = frame["shown"].isna()
    labels = ("cities on the map, its edges shown", "solved paths shown")
    dials = {"cities": frame[edges], "shown": frame[~edges]}
    fig, axes = plt.subplots(2, 2, figsize=(11.2, 7.2), layout="constrained")
    style = styles(frame["arm"])
    for (dial, some), name, (top, bottom) in zip(dials.items(), labels, axes.T, strict=True):
        for arm, part in some.groupby("arm", sort=False):
            _line(top, part, dial, "hard_success", label=arm, **style[arm])
            if arm not in WALKS:
                _line(bottom, part, dial, "recall", **style[arm])
        ticks = sorted(some[dial].unique())
        top.set(ylabel="success, no direct hop", ylim=(0, None), xticks=ticks)
        bottom.set(ylabel="recall of a hop", ylim=(0, 1.02), xticks=ticks, xlabel=name)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper")
    return fig


def _line(ax: Axes, part: pd.DataFrame, dial: str, column: str, **style: Any) -> None:
    """A mean over seeds with its t interval; of one seed's success with Wilson's."""
    points = []
    for at, cells in part.dropna(subset=[column]).groupby(dial):
        mean, half = over_few(cells[column])
        low, high = np.clip([mean - half, mean + half], 0, 1)  # none for one seed
        if len(cells) == 1 and column == "hard_success":
            count = cells["hard_queries"].iloc[0]
            low, high = map(float, wilson(mean * count, count))
        points.append((at, mean, low, high))
    x, mean, low, high = np.array(points, float).reshape(-1, 4).T
    ax.plot(x, mean, marker="o", ms=4, **style)
    ax.fill_between(x, low, high, alpha=0.12, lw=0, color=style["color"])
