"""Figures of episodes: a map and its stream, learning, and success against what is shown."""

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
from citypaths.plots import FAMILY, INK
from studies.episodes.task import Episodes

RANDOM = "random walk"


def hues(arms: Sequence[str]) -> dict[str, Any]:
    """Return a colour an arm; a longer training has its arm's, the walks are grey."""
    plain = list(dict.fromkeys(a.split(",")[0] for a in arms if a not in (RANDOM, "nearest hop")))
    palette = dict(zip(plain, sns.color_palette("tab10", max(10, len(plain))), strict=False))
    return {a: palette.get(a.split(",")[0], FAMILY["floor"]) for a in arms}


def some_maps(episodes: Episodes, count: int = 3) -> Figure:
    """Draw the first maps of episodes, cities by their symbols, with a query's shortest path."""
    fig, axes = plt.subplots(1, count, figsize=(4.2 * count, 3.6), layout="constrained")
    maps = episodes.maps
    for row, ax in enumerate(axes):
        for a, b in np.argwhere(np.isfinite(maps.km[row])):
            shut = maps.closed[row, a, b]
            style = {"color": "#c0392b", "ls": ":"} if shut else {"color": "#bbbbbb"}
            ax.plot(maps.lon[row, [a, b]], maps.lat[row, [a, b]], lw=1, zorder=1, **style)
        source, target = episodes.queries[row, 0]
        path = [source]
        while path[-1] != target and maps.onward[row, path[-1], target] >= 0:
            path.append(maps.onward[row, path[-1], target])
        ax.plot(maps.lon[row, path], maps.lat[row, path], color=FAMILY["shortest"], lw=2.5)
        ax.scatter(maps.lon[row], maps.lat[row], s=170, color="white", edgecolor=INK, zorder=2)
        for city, symbol in enumerate(maps.symbols[row]):
            place = (maps.lon[row, city], maps.lat[row, city])
            ax.text(*place, symbol, ha="center", va="center", fontsize=8, zorder=3)
        names = [str(maps.symbols[row, city]) for city in path]
        ax.set(title=" → ".join(names), xticks=[], yticks=[])
        ax.set_aspect(1 / np.cos(np.radians(maps.lat[row].mean())), adjustable="datalim")
        sns.despine(ax=ax, left=True, bottom=True)
    return fig


def learning(curves: pd.DataFrame) -> Figure:
    """Draw recall and hard-subset success along training, against its seconds, a line a seed."""
    fig, axes = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained", sharex=True)
    colours = hues(list(dict.fromkeys(curves["arm"])))
    for (arm, seed), part in curves.groupby(["arm", "seed"], sort=False):
        style = {"color": colours[arm], "lw": 1.5, "ls": "--" if "," in arm else "-"}
        label = arm if seed == curves["seed"].min() else None
        for ax, column in zip(axes, ("recall", "hard_success"), strict=True):
            ax.plot(part["seconds"], part[column], label=label, **style)
    axes[0].set(xscale="log", ylabel="recall of a hop", ylim=(0, 1.02))
    axes[1].set(ylabel="success, no direct hop")
    for ax in axes:
        ax.set_xlabel("seconds of training")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    return fig


def _line(ax: Axes, part: pd.DataFrame, column: str, label: str, **style: Any) -> None:
    """A mean over seeds with its interval: t over seeds, or Wilson's for one."""
    x, mean, low, high = [], [], [], []
    for at, cells in part.groupby("dial"):
        each = cells[column].to_numpy()
        centre, half = over_few(each)
        bounds = (max(0, centre - half), min(1, centre + half))
        if len(each) == 1:
            count = cells["hard_queries"].iloc[0]
            bounds = tuple(map(float, wilson(each[0] * count, count)))
        for values, value in zip((x, mean, low, high), (at, centre, *bounds), strict=True):
            values.append(value)
    ax.plot(x, mean, marker="o", label=label, ms=4, lw=1.5, **style)
    ax.fill_between(x, low, high, alpha=0.12, lw=0, color=style["color"])


def against_dial(rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]) -> Figure:
    """Draw success and recall against a dial of episodes, a column for each kind of exam.

    `kinds` maps a pattern of `split` to the name of its axis; the first number in it is the dial.
    """
    frame = pd.DataFrame(list(rows))
    frame["arm"] = arms_of(frame)
    colours = hues(list(dict.fromkeys(frame["arm"])))
    size = (5.6 * len(kinds), 7.2)
    fig, axes = plt.subplots(2, len(kinds), figsize=size, layout="constrained", squeeze=False)
    for column, (pattern, name) in enumerate(kinds.items()):
        some = frame[frame["split"].str.fullmatch(pattern)]
        some = some.assign(dial=some["split"].str.extract(r"(\d+)")[0].astype(int))
        for arm, part in some.groupby("arm", sort=False):
            walk = part["model"].iloc[0] == "none"
            style = {"color": colours[arm], "ls": ":" if walk else "--" if "," in arm else "-"}
            _line(axes[0, column], part, "hard_success", arm, **style)
            if not walk:
                _line(axes[1, column], part, "recall", arm, **style)
        for ax in axes[:, column]:
            ax.set_xticks(sorted(some["dial"].unique()))
        axes[0, column].set(ylabel="success, no direct hop", ylim=(0, None))
        axes[1, column].set(ylabel="recall of a hop", ylim=(0, 1.02), xlabel=name)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper")
    return fig
