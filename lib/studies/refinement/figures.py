"""Figures of refinement: success against rounds and FLOPs, and a route over the rounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from citypaths import plots
from citypaths.judging.methods import Scored
from citypaths.judging.queries import Queries

MARKS = {"closed_book": "o", "checked": "s"}
SEARCHES = {"greedy": "D", "beam": "^", "best of N": "*"}


def _lines(scored: Iterable[Scored]) -> list[tuple[str, str, tuple, pd.DataFrame]]:
    """Name, regime, colour and rows (one a round) of each method."""
    frame = pd.DataFrame([s.row for s in scored])
    groups = list(frame.groupby("method", sort=False))
    hues = sns.color_palette("deep", len(groups))
    return [(n, g["regime"].iloc[0], h, g) for (n, g), h in zip(groups, hues, strict=True)]


def by_rounds(scored: Iterable[Scored]) -> Figure:
    """Draw success on all and on the hard queries against rounds, a line a method."""
    fig, axes = plt.subplots(1, 2, figsize=(11.5, 4), layout="constrained", sharey=True)
    for name, regime, hue, rows in _lines(scored):
        label = f"{name} ({regime.replace('_', '-')})"
        for ax, column in zip(axes, ("success", "hard_success"), strict=True):
            style = {"color": hue, "marker": MARKS[regime], "ms": 4, "label": label}
            ax.plot(rows["rounds"], rows[column], **style)
            low, high = rows[f"{column}_low"], rows[f"{column}_high"]
            ax.fill_between(rows["rounds"], low, high, color=hue, alpha=0.1, lw=0)
    for ax, title in zip(axes, ("all queries", "hard queries"), strict=True):
        ax.set(xlabel="rounds", ylim=(-0.02, 1.02))
        ax.set_title(title)
    axes[0].set_ylabel("success (bands: 95 % Wilson intervals)")
    axes[1].legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


def against_flops(scored: Iterable[Scored], references: Iterable[Scored]) -> Figure:
    """Draw success against inference FLOPs: a line of rounds a method, single points for search.

    The references' models are told apart by colour, their searches by mark.
    """
    others = pd.DataFrame([s.row for s in references])
    size = {"figsize": (6.5 * len(MARKS), 4.4), "layout": "constrained"}
    fig, axes = plt.subplots(1, len(MARKS), sharex=True, sharey=True, **size)
    for ax, regime in zip(axes, MARKS, strict=True):
        for name, own, hue, rows in _lines(scored):
            rows = rows[rows["inference_flops"] > 0]
            if own == regime:
                x, y = rows["inference_flops"], rows["success"]
                ax.plot(x, y, "o-", ms=4, color=hue, label=name)
        models = others[others["regime"] == regime].groupby("model", sort=False)
        for hue, (model, rows) in zip((plots.INK, plots.RED), models, strict=False):
            for family, points in rows.groupby("family", sort=False):
                y = points["success"]
                bars = [(y - points["success_low"]).clip(0), (points["success_high"] - y).clip(0)]
                style = {"fmt": SEARCHES[family], "ms": 8, "color": hue, "capsize": 2}
                ax.errorbar(points["inference_flops"], y, bars, **style, label=f"{model}, {family}")
        ax.set(xscale="log", xlabel="inference FLOPs a query", ylim=(-0.02, 1.02))
        ax.set_title(regime.replace("_", "-"))
    axes[0].set_ylabel("success")
    named = [zip(*ax.get_legend_handles_labels(), strict=True) for ax in axes]
    handles = {label: handle for pairs in named for handle, label in pairs}
    fig.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=9)
    return fig


def over_rounds(queries: Queries, rounds: Sequence[Scored], query: int, shown: int = 6) -> Figure:
    """Draw a query's path after each round that changed it, beside the shortest, on the map."""
    graph, shortest = queries.graph, queries.rows.paths[query]
    paths = [s.found.paths[query] for s in rounds]
    new = [i for i, p in enumerate(paths) if not i or not np.array_equal(p, paths[i - 1])]
    if len(new) > shown:
        new = [new[i] for i in np.linspace(0, len(new) - 1, shown).round().astype(int)]
    seen = np.concatenate([shortest, *(paths[i] for i in new)])
    limits = {}
    for axis, at in (("x", graph.lon[seen]), ("y", graph.lat[seen])):
        limits[f"{axis}lim"] = (at.min() - 0.35, at.max() + 0.35)
    high, wide = (np.ptp(limits[name]) for name in ("ylim", "xlim"))
    lines = -(-len(new) // 2)
    size = (11, lines * (1 + min(6.0, 5 * high / wide / np.cos(np.radians(graph.lat.mean())))))
    fig, axes = plt.subplots(lines, 2, figsize=size, layout="constrained", squeeze=False)
    for ax, i in zip(axes.flat, new, strict=False):
        missing = int((~graph.is_edge(paths[i][:-1], paths[i][1:])).sum())
        ratio = f"{rounds[i].judged['ratio'].iloc[query]:.3f} of the shortest length"
        verdict = f"hops that do not exist: {missing}" if missing else ratio
        title = f"{'first guess' if i == 0 else f'round {i}'}: {verdict}"
        plots.draw_route(graph, paths[i], shortest, ax, title)
        ax.set(**limits)
    for ax in axes.flat[len(new) :]:
        ax.set_axis_off()
    return fig
