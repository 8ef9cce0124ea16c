"""Figures of memory: success after closures, and a query that one closed road sends elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from citypaths import plots
from citypaths.map.best_first import best_first
from citypaths.map.paths import Found
from studies.memory.editing import Edit
from studies.memory.rerouting import summary

GROUPS = {"all queries that can be answered": None, "old shortest path closed": "hit"}
HUES = {
    "weights": plots.INK,
    "lessons": plots.FAMILY["feedback"],
    "roads": plots.FAMILY["top"],
    "cache": plots.FAMILY["lstm"],
    "checked": plots.FAMILY["gru"],
    "stitched": plots.FAMILY["shortest"],
}


def after_closures(rerouted: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Draw success against the share closed, a line a method; all queries and those that were hit.

    Args:
        rerouted: of `rerouting.reroute`. methods: labels of those to draw, one of a kind.
    """
    kinds = rerouted.groupby("method")["kind"].first()
    fig, axes = plt.subplots(1, 2, figsize=(12.5, 4.6), layout="constrained", sharey=True)
    for ax, (title, group) in zip(axes, GROUPS.items(), strict=True):
        table = summary(rerouted[rerouted[group]] if group else rerouted)
        for number, method in enumerate(methods):
            rows = table.loc[method]
            apart = 1 + 0.04 * (number - (len(methods) - 1) / 2)
            bars = [rows["success"] - rows["low"], rows["high"] - rows["success"]]
            style = {"fmt": "o-", "ms": 5, "lw": 1.5, "capsize": 2, "elinewidth": 0.7}
            style |= {"color": HUES[kinds[method]], "label": method}
            x = 100 * rows.index.to_numpy(float) * apart
            ax.errorbar(x, rows["success"], np.clip(bars, 0, None), **style)
        shares = 100 * np.sort(rerouted["share"].unique())
        ax.set(xscale="log", xlabel="hops closed (%)", ylim=(-0.03, 1.03))
        ax.set_xticks(shares, [f"{share:g}" for share in shares])
        ax.minorticks_off()
        ax.set_title(title)
    axes[0].set_ylabel("success (bars: 95 % bootstrap)")
    axes[1].legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


def rerouted_query(edit: Edit, before: Found, weights: Found, memory: Found) -> int:
    """Return a query that a closure sends elsewhere: the memory answers it well, the weights not.

    Among those the one whose answers lie farthest apart, as the crow flies; where there is none,
    among all that the edit hit.

    Args:
        before: the memory's answers before the edit. weights, memory: after it; all for the
            queries of the edit.

    Raises:
        LookupError: the edit hit no query.
    """
    good, bad = edit.queries.judge(memory)["success"], edit.queries.judge(weights)["success"]
    was = _legal_before(edit, before) & _legal_before(edit, weights)
    best = edit.hit & good & ~bad & was
    fits = np.flatnonzero(best if best.any() else edit.hit)
    if not len(fits):
        raise LookupError("no query whose shortest path was closed")
    apart = [_apart(edit, memory.paths[i], weights.paths[i]) for i in fits]
    return int(fits[int(np.argmax(apart))])


def _legal_before(edit: Edit, found: Found) -> np.ndarray:
    ends, legal = edit.queries.rows.target, edit.before.is_edge
    pairs = zip(found.paths, ends, strict=True)
    return np.array([len(p) > 1 and p[-1] == t and legal(p[:-1], p[1:]).all() for p, t in pairs])


def _apart(edit: Edit, one: np.ndarray, other: np.ndarray) -> float:
    """The greatest distance (km) of a city of one path from the nearest city of the other."""
    return float(edit.before.distance_km(one[:, None], other[None]).min(1).max())


def reroute_map(edit: Edit, query: int, answers: Mapping[str, np.ndarray], ax: Axes) -> Axes:
    """Draw a query on the edited map: the old shortest path, the closed hop, and each answer.

    Args:
        answers: path by name; the weights' answer first.
    """
    graph, rows = edit.after, edit.queries.rows
    plots.map_axes(graph, ax)
    plots.draw_edges(graph, ax, linewidths=0.4)
    plots.draw_cities(graph, ax)
    ends = rows.source[[query]], rows.target[[query]]
    old = best_first(edit.before, *ends).paths[0]
    wide = {"color": plots.FAMILY["shortest"], "lw": 10, "alpha": 0.35, "zorder": 1}
    ax.plot(graph.lon[old], graph.lat[old], label="shortest before", **wide)
    hues, width = (plots.INK, plots.FAMILY["top"], plots.FAMILY["lstm"]), 5.5
    for hue, (name, path) in zip(hues, answers.items(), strict=False):
        place = {"color": hue, "lw": width, "label": name, "zorder": 2}
        ax.plot(graph.lon[path], graph.lat[path], "o-", ms=4, alpha=0.75, **place)
        width -= 2.5
    _draw_closed(edit, answers, ax)
    plots.draw_ends(graph, int(rows.source[query]), int(rows.target[query]), ax)
    seen = np.concatenate([old, *answers.values()]).astype(int)
    for axis, values in (("x", graph.lon[seen]), ("y", graph.lat[seen])):
        margin = 0.12 + 0.12 * np.ptp(values)
        ax.set(**{f"{axis}lim": (values.min() - margin, values.max() + margin)})
    ax.legend(loc="best", fontsize=10)
    return ax


def _draw_closed(edit: Edit, answers: Mapping[str, np.ndarray], ax: Axes) -> None:
    """Cross out each hop of an answer that the edited map does not have (to stay is no hop)."""
    graph, label = edit.after, "closed"
    hops = {hop for path in answers.values() for hop in pairwise(np.asarray(path).tolist())}
    cross = {"marker": "X", "ms": 13, "color": plots.RED, "mec": "white", "zorder": 5, "ls": ""}
    for a, b in sorted(hops):
        if a != b and not graph.is_edge(a, b):
            lon, lat = graph.lon[[a, b]], graph.lat[[a, b]]
            ax.plot(lon, lat, color=plots.RED, lw=3, zorder=4)
            ax.plot(lon.mean(), lat.mean(), label=label, **cross)
            label = None
