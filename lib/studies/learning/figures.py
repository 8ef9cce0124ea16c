"""Figures of learning against memorizing: accuracy by share, relative value, operations in all."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from citypaths.judging.ledger import quantity
from citypaths.judging.metrics import over_few
from citypaths.plots import FAINT, FAMILY, INK
from studies.learning.study import ALONE, CACHE, CACHE_OF_ALL, STITCHED, STORED
from studies.learning.values import METRICS, PUBLISHED, totals

HUES = {ALONE: INK, CACHE: FAMILY["gru"], CACHE_OF_ALL: FAMILY["looped"]}
HUES |= {STORED: FAMILY["lstm"], STITCHED: FAMILY["shortest"]}
LABELS = {
    ALONE: "x: the learner alone",
    CACHE: "z: with a cache of the others",
    CACHE_OF_ALL: "z': with a cache of all",
    STORED: "the learner among the others' hops",
    STITCHED: "stitched from the others' hops",
}
AGAINST = {CACHE: "a cache of the others", STITCHED: "stitching the others' hops"}
EVERYTHING = "y: everything learned"
LEARNED = "learned (% of the training paths)"
ASKED = (1e3, 1e5, 1e7)
TICKS = (-1, -0.5, 0, 0.5, 1, 2, 5, 10, 20, 50, 100)


def half_width(values: pd.Series) -> float:
    """Return half the 95 % t interval of a mean over seeds; 0 for one seed."""
    return 0.0 if len(values) < 2 else over_few(values)[1]


def accuracies(rows: pd.DataFrame) -> Figure:
    """Draw each metric against the share that is learned, a line a method; dashed is 100 %.

    Bars are 95 % t intervals over seeds, where there are several.
    """
    size = {"figsize": (12.5, 6.6), "layout": "constrained", "sharex": True, "sharey": True}
    fig, axes = plt.subplots(2, len(METRICS) // 2, **size)
    shares = sorted(set(rows["share"]) - {1.0})
    for ax, metric in zip(axes.flat, METRICS, strict=True):
        groups = rows.groupby(["method", "share"])[metric].agg(["mean", half_width])
        for method, hue in HUES.items():
            if method not in groups.index:
                continue
            line = groups.loc[method].reindex(shares).dropna()
            at = [shares.index(share) for share in line.index]
            style = {"fmt": "o-", "ms": 4, "capsize": 3, "color": hue, "label": LABELS[method]}
            ax.errorbar(at, line["mean"], line["half_width"], **style)
        everything = groups.loc[(ALONE, 1.0), "mean"]
        ax.axhline(everything, color=INK, ls="--", lw=1, label=EVERYTHING)
        ax.set_title(metric.replace("_", " "))
        _share_ticks(ax, shares)
    axes[0, 0].set(ylim=(-0.03, 1.03))
    axes[-1, len(METRICS) // 4].set_xlabel(LEARNED)
    fig.supylabel("share of queries (or hops)", fontsize=11)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=10)
    return fig


def _share_ticks(ax: Axes, shares: Sequence[float]) -> None:
    ax.set_xticks(range(len(shares)), [f"{100 * share:g}" for share in shares])


def relative_values(table: pd.DataFrame) -> Figure:
    """Draw the value of learning against a memory by share, a panel a memory, a line a metric.

    A share at which the memory does not help has no point. Hollow points have an interval without
    bounds.
    """
    fig, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained", sharey=True)
    shares = sorted(set(table["share"]))
    hues = dict(zip(METRICS, sns.color_palette("deep", len(METRICS)), strict=True))
    for ax, memory in zip(axes, AGAINST, strict=True):
        for i, (metric, hue) in enumerate(hues.items()):
            line = table[(table["memory"] == memory) & (table["metric"] == metric)]
            shift = (i - (len(hues) - 1) / 2) * 0.08
            _values(ax, line.dropna(subset="value"), shares, shift, hue, metric.replace("_", " "))
        for value, style in ((1, {"color": INK}), (0, {"color": FAINT})):
            ax.axhline(value, lw=1, **style)
        ax.axhline(PUBLISHED, color=FAINT, lw=1, ls="--")
        ax.text(0.01, PUBLISHED * 1.05, "CIFAR-10 (Orhan 2019)", transform=ax.get_yaxis_transform())
        ax.set_yscale("symlog", linthresh=1, linscale=1.5)
        ax.set_title(f"against {AGAINST[memory]}")
        _share_ticks(ax, shares)
    low, high = axes[0].get_ylim()
    low, high = max(-1.0, low), min(100.0, max(high, 1.5 * PUBLISHED))  # bars may leave
    axes[0].set_ylim(low, high)
    kept = [tick for tick in TICKS if low <= tick <= high]
    axes[0].set_yticks(kept, [f"{tick:g}" for tick in kept])
    axes[0].minorticks_off()
    axes[0].set_ylabel("value of learning, (y - x) / (z - x)")
    fig.supxlabel(LEARNED, fontsize=11)
    axes[1].legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


def _values(ax: Axes, line: pd.DataFrame, shares: list, shift: float, hue, label: str) -> None:
    at = np.array([shares.index(share) + shift for share in line["share"]])
    value, low, high = (line[name].to_numpy(float) for name in ("value", "low", "high"))
    bars = np.where(np.isfinite(low), [value - low, high - value], 0.0)
    ax.errorbar(at, value, bars, fmt="-", lw=1, capsize=2, color=hue, label=label)
    unbounded = np.isinf(low)
    for some, face in ((unbounded, "white"), (~unbounded, hue)):
        ax.plot(at[some], value[some], "o", ms=5, mec=hue, mfc=face)


def against_operations(rows: pd.DataFrame) -> Figure:
    """Draw success against training + inference operations a query, a panel a number of queries.

    A line joins the shares of a method, dots grow with what is learned; a star is all learned.
    """
    size = {"figsize": (13.2, 4.4), "layout": "constrained", "sharex": True, "sharey": True}
    fig, axes = plt.subplots(1, len(ASKED), **size)
    table = totals(rows, ASKED)
    for ax, n in zip(axes, ASKED, strict=True):
        for method, hue in HUES.items():
            line = table[(table["asked"] == n) & (table["method"] == method)]
            some, whole = line[line["share"] < 1], line[line["share"] == 1]
            ax.plot(some["total"], some["success"], lw=1, color=hue, label=LABELS[method])
            ax.scatter(some["total"], some["success"], 8 + 50 * some["share"], color=hue)
            if len(whole):
                style = {"ms": 14, "color": INK, "mec": "white", "label": EVERYTHING}
                ax.plot(whole["total"], whole["success"], "*", **style)
        ax.set(xscale="log", ylim=(-0.03, 1.03), title=f"{quantity(n)} queries asked")
    axes[0].set_ylabel("success")
    label = "operations a query, training included (dots grow with the share learned)"
    axes[len(ASKED) // 2].set_xlabel(label)
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=10)
    return fig
