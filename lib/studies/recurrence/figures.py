"""Figures of test-time recurrence: success against loops, where halting stops, routes by loop."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from citypaths import decoding
from citypaths.judging.queries import Queries
from citypaths.models import PathModel
from citypaths.plots import FAINT, colour, draw_route, plain_log_ticks

MARKS = "o^sDvP*X"


def loops_curves(dial: pd.DataFrame, column: str, ax: Axes, label: str) -> None:
    """Draw a ledger column against loops: a line a recurrent arm, its band the least to the most.

    Args:
        dial: ledger rows of recurrent arms, `budget` being the loops, several seeds or one.
    """
    names = list(dict.fromkeys(dial["model"]))
    for i, (name, rows) in enumerate(dial.groupby("model", sort=False)):
        seeds = rows.groupby("budget")[column].agg(["mean", "min", "max"])
        hue, mark = colour(name, names), MARKS[i % len(MARKS)]
        ax.plot(seeds.index, seeds["mean"], mark + "-", ms=5, lw=1.5, color=hue, label=name)
        ax.fill_between(seeds.index, seeds["min"], seeds["max"], color=hue, alpha=0.15, lw=0)
    ax.set(xscale="log", xlabel="loops a city at test time", ylabel=label)
    plain_log_ticks(ax, sorted(set(dial["budget"])))


def plain_lines(plain: pd.DataFrame, column: str, ax: Axes) -> None:
    """Draw arms without loops as dashed level lines, their seeds as faint bands."""
    names = list(dict.fromkeys(plain["model"]))
    for name, rows in plain.groupby("model", sort=False):
        hue = colour(name, names)
        ax.axhline(rows[column].mean(), ls="--", lw=1.2, color=hue, label=name)
        ax.axhspan(rows[column].min(), rows[column].max(), color=hue, alpha=0.07, lw=0)


def crossover(rows: pd.DataFrame, steady: Sequence[str], most_trained: int) -> Figure:
    """Draw success, success on the hard subset and loss against loops at test time.

    Args:
        rows: ledger rows of the dial. steady: the arms without loops, drawn as level lines.
        most_trained: the most loops that any arm was trained with; beyond is shaded.
    """
    plain, dial = rows[rows["model"].isin(steady)], rows[~rows["model"].isin(steady)]
    fig, axes = plt.subplots(1, 3, figsize=(13.5, 4.4), layout="constrained")
    labels = {"success": "success", "hard_success": "success, hard subset", "loss": "nats a hop"}
    for ax, (column, label) in zip(axes, labels.items(), strict=True):
        plain_lines(plain, column, ax)
        loops_curves(dial, column, ax, label)
        if dial["budget"].max() > most_trained:
            ax.axvspan(most_trained, 1.1 * dial["budget"].max(), color=FAINT, alpha=0.2, lw=0)
    for ax in axes[:2]:
        ax.set_ylim(0, max(0.1, 1.05 * rows[["success", "hard_success"]].max().max()))
    axes[2].set_yscale("log")
    for plain in (axes[2].yaxis.set_major_formatter, axes[2].yaxis.set_minor_formatter):
        plain(StrMethodFormatter("{x:g}"))
    axes[2].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    return fig


def against_compute(rows: pd.DataFrame, ax: Axes) -> None:
    """Draw success against inference FLOPs a query; the loops of an arm are joined by a line."""
    names = list(dict.fromkeys(rows["model"]))
    for i, (name, arm) in enumerate(rows.groupby("model", sort=False)):
        means = arm.groupby("budget")[["inference_flops", "success"]].mean()
        line = MARKS[i % len(MARKS)] + ("-" if len(means) > 1 else "")
        hue = colour(name, names)
        ax.plot(means["inference_flops"], means["success"], line, ms=6, color=hue, label=name)
    ax.set(xscale="log", xlabel="inference FLOPs a query", ylabel="success")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)


def halting_curves(spent: dict[str, pd.DataFrame], by: str, ax: Axes, bins: Sequence) -> None:
    """Draw the mean loops spent by group of `by`, with the middle half as a band."""
    for name, frame in spent.items():
        groups = frame.groupby(pd.cut(frame[by], list(bins)), observed=True)
        x = groups[by].mean()
        ax.plot(x, groups["loops"].mean(), "o-", ms=4, color=colour(name), label=name)
        low, high = (groups["loops"].quantile(q) for q in (0.25, 0.75))
        ax.fill_between(x, low, high, color=colour(name), alpha=0.15, lw=0)
    ax.set(xlabel=by, ylabel="loops spent")
    ax.legend()


def routes_by_loops(model: PathModel, queries: Queries, counts: Sequence[int], hue) -> Figure:
    """Draw a query's route after each number of loops; the query is one that loops mend.

    It is a hard query solved at the most loops and not at the fewest, in the middle by hops among
    such; where there is none, one that is solved in the end, or else the first.
    """
    found = [queries.decode(decoding.greedy, model, loops=count) for count in counts]
    solved = np.stack([queries.judge(f)["success"].to_numpy() for f in found])
    mended = solved[-1] & ~solved[0]
    kinds = (mended & queries.hard, mended, solved[-1], np.ones(len(queries), bool))
    pick = np.flatnonzero(next(kind for kind in kinds if kind.any()))
    chosen = int(pick[np.argsort(queries.rows.hops[pick], kind="stable")[len(pick) // 2]])
    fig, axes = plt.subplots(2, 2, figsize=(12, 7), layout="constrained")
    for ax, count, each, good in zip(axes.flat, counts, found, solved[:, chosen], strict=False):
        title = f"{count} loop{'s' * (count > 1)}: {'success' if good else 'no success'}"
        shortest = queries.rows.paths[chosen]
        draw_route(queries.graph, each.paths[chosen], shortest, ax, title, hue)
    axes[0, 0].legend(loc="best")
    return fig
