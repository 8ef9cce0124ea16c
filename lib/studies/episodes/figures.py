"""Figures of episodes: what memories can hold, a map, learning, and success against a dial."""

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
from citypaths.plots import FAMILY, INK, RED, plain_log_ticks
from studies.episodes.ntm import CHANCE
from studies.episodes.task import Episodes

KEYS = {"gaussian": {"color": FAMILY["lstm"], "marker": "o", "ms": 6}}
KEYS |= {"unitary": {"color": FAMILY["gru"], "marker": "s", "ms": 7}}
KEYS |= {"fhrr": {"color": FAMILY["shortest"], "marker": "o", "ms": 4}}
WALKS = ("random walk", "nearest hop")


def capacity(table: pd.DataFrame) -> Figure:
    """Draw the noise that `associative.capacity` measured, as dots, over its law, as lines."""
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", sharey=True)
    alone, most = table[table["copies"] == 1], table["pairs"].max()
    several = table[(table["keys"] == "fhrr") & (table["pairs"] == most)]
    for ax, dial, part in ((axes[0], "pairs", alone), (axes[1], "copies", several)):
        for keys, some in part[part["law"] > 0].groupby("keys", sort=False):
            ax.plot(some[dial], some["law"], color=KEYS[keys]["color"], lw=1)
            ax.plot(some[dial], some["noise"], ls="", label=keys, **KEYS[keys])
        ax.set(xscale="log", yscale="log")
        plain_log_ticks(ax, part[dial].unique())
    off = (table["noise"] / table["law"] - 1)[table["law"] > 0].abs().max()
    axes[0].set(xlabel="pairs in one vector", title="A bound pair adds a value's energy of noise")
    title = f"Copies divide it (law within {off:.0%})"
    axes[1].set(xlabel=f"copies of {most} fhrr pairs", title=title)
    axes[0].set_ylabel("energy of the noise / of the value")
    axes[0].legend(title="keys; line: the law")
    return fig


def copy_curves(curves: pd.DataFrame) -> Figure:
    """Draw wrong bits a copied sequence against sequences shown, a line a memory."""
    fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
    ax.axhline(CHANCE, color=FAMILY["floor"], ls=":")
    ends = []
    for (memory, parameters), part in curves.groupby(["memory", "parameters"], sort=False):
        colour, side = (FAMILY["lstm"], "bottom") if memory == "lstm" else (INK, "top")
        ax.plot(part["sequences"], part["wrong_bits"], color=colour, marker="o", ms=4)
        end = part.iloc[-1][["sequences", "wrong_bits"]].tolist()
        ends.append(f"{memory} {end[1]:.1f}")
        name = f"  {memory}, {parameters:,} parameters"
        ax.annotate(name, end, color=colour, va=side, annotation_clip=False)
    ax.set(xlabel="sequences shown", ylabel="wrong bits a sequence", ylim=(0, None))
    ax.set_title(f"Wrong bits at the end: {' and '.join(ends)} (chance {CHANCE:.1f})")
    return fig


def some_maps(episodes: Episodes, count: int = 3) -> Figure:
    """Draw the first maps of episodes, cities by their symbols, with a query's shortest path."""
    fig, axes = plt.subplots(1, count, figsize=(4.2 * count, 3.6), layout="constrained")
    maps = episodes.maps
    for row, ax in enumerate(axes):
        lon, lat = maps.lon[row], maps.lat[row]
        for a, b in np.argwhere(np.isfinite(maps.km[row])):
            shut = maps.closed[row, a, b]
            style = {"color": RED, "ls": ":"} if shut else {"color": "#bbbbbb"}
            ax.plot(lon[[a, b]], lat[[a, b]], lw=1, zorder=1, **style)
        source, target = episodes.queries[row, 0]
        path = [source]
        while path[-1] != target and maps.onward[row, path[-1], target] >= 0:
            path.append(maps.onward[row, path[-1], target])
        ax.plot(lon[path], lat[path], color=FAMILY["shortest"], lw=2.5)
        ax.scatter(lon, lat, s=170, color="white", edgecolor=INK, zorder=2)
        for city, symbol in enumerate(maps.symbols[row]):
            place = (lon[city], lat[city])
            ax.text(*place, symbol, ha="center", va="center", fontsize=8, zorder=3)
        names = [str(maps.symbols[row, city]) for city in path]
        ax.set(title=" → ".join(names), xticks=[], yticks=[])
        ax.set_aspect(1 / np.cos(np.radians(lat.mean())), adjustable="datalim")
        sns.despine(ax=ax, left=True, bottom=True)
    return fig


def hues(arms: Sequence[str]) -> dict[str, Any]:
    """Return a colour an arm; a longer training has its arm's, the walks are grey."""
    plain = list(dict.fromkeys(a.split(",")[0] for a in arms if a not in WALKS))
    palette = dict(zip(plain, sns.color_palette("tab10", max(10, len(plain))), strict=False))
    return {a: palette.get(a.split(",")[0], FAMILY["floor"]) for a in arms}


def learning(curves: pd.DataFrame) -> Figure:
    """Draw recall and hard-subset success along training, against its seconds, a line a seed."""
    fig, axes = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained", sharex=True)
    colours = hues(list(dict.fromkeys(curves["arm"])))
    for (arm, seed), part in curves.groupby(["arm", "seed"], sort=False):
        style = {"color": colours[arm], "marker": ".", "ls": "--" if "," in arm else "-"}
        label = arm if seed == curves["seed"].min() else None
        for ax, column in zip(axes, ("recall", "hard_success"), strict=True):
            ax.plot(part["seconds"], part[column], label=label, **style)
    axes[0].set(xscale="log", ylabel="recall of a hop", ylim=(0, 1.02))
    axes[1].set(ylabel="success, no direct hop")
    for ax in axes:
        ax.set_xlabel("seconds of training")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    return fig


def against_dials(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw success and recall of ledger rows against cities on the map and solved paths shown."""
    frame = pd.DataFrame(list(rows)).assign(arm=arms_of)
    frame = frame[frame["subset"] == ""]
    colours = hues(list(dict.fromkeys(frame["arm"])))
    dials = {"cities": frame["shown"].isna(), "shown": frame["shown"].notna()}
    labels = ("cities on the map, its edges shown", "solved paths shown")
    fig, axes = plt.subplots(2, 2, figsize=(11.2, 7.2), layout="constrained")
    for (dial, chosen), name, (top, bottom) in zip(dials.items(), labels, axes.T, strict=True):
        for arm, part in frame[chosen].groupby("arm", sort=False):
            walk = arm in WALKS
            style = {"color": colours[arm], "ls": ":" if walk else "--" if "," in arm else "-"}
            _line(top, part, dial, "hard_success", arm, **style)
            if not walk:
                _line(bottom, part, dial, "recall", arm, **style)
        for ax in (top, bottom):
            ax.set_xticks(sorted(frame.loc[chosen, dial].unique()))
        top.set(ylabel="success, no direct hop", ylim=(0, None))
        bottom.set(ylabel="recall of a hop", ylim=(0, 1.02), xlabel=name)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper")
    return fig


def _line(ax: Axes, part: pd.DataFrame, dial: str, column: str, label: str, **style: Any) -> None:
    """A mean over seeds with its t interval; of one seed's success with Wilson's."""
    points = []
    for at, cells in part.dropna(subset=[column]).groupby(dial):
        each = cells[column].to_numpy()
        centre, half = over_few(each)
        bounds = (max(0, centre - half), min(1, centre + half))
        if len(each) == 1 and column == "hard_success":
            count = cells["hard_queries"].iloc[0]
            bounds = tuple(map(float, wilson(each[0] * count, count)))
        points.append((at, centre, *bounds))
    x, mean, low, high = zip(*points, strict=True) if points else [[]] * 4
    ax.plot(x, mean, marker="o", label=label, ms=4, lw=1.5, **style)
    ax.fill_between(x, low, high, alpha=0.12, lw=0, color=style["color"])
