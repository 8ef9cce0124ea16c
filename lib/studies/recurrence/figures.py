"""Figures of test-time recurrence: what each arm computes; success by loops; halting; routes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations, pairwise, product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import StrMethodFormatter

from citypaths import decoding
from citypaths.judging.queries import Queries
from citypaths.models import PathModel
from citypaths.plots import FAINT, FAMILY, INK, RED, colour, draw_route, plain_log_ticks

MARKS = "o^sDvP*X"


def loops_curves(dial: pd.DataFrame, column: str, ax: Axes, label: str) -> None:
    """Draw a ledger column against loops: a line a recurrent arm, its band the least to the most.

    Args:
        dial: ledger rows of recurrent arms, of several seeds or one.
    """
    names = list(dict.fromkeys(dial["model"]))
    for i, (name, rows) in enumerate(dial.groupby("model", sort=False)):
        seeds = rows.groupby("loops")[column].agg(["mean", "min", "max"])
        hue, mark = colour(name, names), MARKS[i % len(MARKS)]
        ax.plot(seeds.index, seeds["mean"], mark + "-", ms=5, lw=1.5, color=hue, label=name)
        ax.fill_between(seeds.index, seeds["min"], seeds["max"], color=hue, alpha=0.15, lw=0)
    ax.set(xscale="log", xlabel="loops a city at test time", ylabel=label)
    plain_log_ticks(ax, sorted(set(dial["loops"])))


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
    labels = {"success": "success", "hard_success": "success, hard subset", "loss": "nats a hop"}
    size = {"figsize": (4.5 * len(labels), 4.4), "layout": "constrained"}
    fig, axes = plt.subplots(1, len(labels), **size)
    for ax, (column, label) in zip(axes, labels.items(), strict=True):
        plain_lines(plain, column, ax)
        loops_curves(dial, column, ax, label)
        if dial["loops"].max() > most_trained:
            ax.axvspan(most_trained, 1.1 * dial["loops"].max(), color=FAINT, alpha=0.2, lw=0)
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
        means = arm.groupby("loops")[["inference_flops", "success"]].mean()
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
    lines = -(-len(counts) // 2)
    size = {"figsize": (12, 3.5 * lines), "layout": "constrained", "squeeze": False}
    fig, axes = plt.subplots(lines, 2, **size)
    for ax, count, each, good in zip(axes.flat, counts, found, solved[:, chosen], strict=False):
        title = f"{count} loop{'s' * (count > 1)}: {'success' if good else 'no success'}"
        shortest = queries.rows.paths[chosen]
        draw_route(queries.graph, each.paths[chosen], shortest, ax, title, hue)
    for ax in axes.flat[len(counts) :]:
        ax.set_axis_off()
    axes[0, 0].legend(loc="best")
    return fig


# The arms: cities run rightwards, computation upwards

ACROSS = 4  # panels in a line
COLUMNS = (0.62, 1.92, 3.22)  # one a city
FOOT, TOP = 0.0, 4.1  # heights of the cities read and of those said
SINGLE, LEVELS = (2.05,), (0.92, 1.68, 2.44, 3.2)  # heights of one layer, and of four
MEMORY = 3.1  # height of what a city leaves to later ones
WIDE, HIGH = 0.56, 0.42  # of a box
ALL, HALTS = (4, 4, 4), (2, 4, 1)  # layers that each city goes through
LAYER, CELL, SHADES = "#8a63b0", FAMILY["gru"], (0.25, 0.42, 0.59, 0.76)
MARK = {"ls": "none", "mfc": "white", "mec": INK, "zorder": 5}
STOP = MARK | {"marker": (8, 0, 22.5), "ms": 9, "mfc": INK, "mec": "white"}
LOSS = MARK | {"marker": "D", "ms": 4.5}
KEPT = MARK | {"marker": "s", "ms": 6.5, "mec": RED}


def _tint(hue: str, strength: float) -> tuple[float, ...]:
    return tuple(1 - (1 - part) * strength for part in to_rgb(hue))


def _box(ax: Axes, x: float, y: float, name: str, fill) -> None:
    """Draw a layer, named by its weights; without a name it is one that is not applied."""
    look = {"fc": fill, "ec": INK} if name else {"fc": "none", "ec": FAINT, "ls": (0, (2, 2))}
    corner, style = (x - WIDE / 2, y - HIGH / 2), "round,pad=0,rounding_size=0.09"
    ax.add_patch(FancyBboxPatch(corner, WIDE, HIGH, style, lw=0.9, zorder=3, **look))
    centred = {"ha": "center", "va": "center_baseline", "zorder": 4}
    ax.text(x, y, name, fontsize=8.5, color=INK, **centred)


def _arrow(ax: Axes, start, end, color=INK, bend: str = "arc3", zorder: float = 2) -> None:
    """Draw an arrow, straight unless a connection style bends it."""
    look = {"arrowstyle": "-|>,head_width=0.16,head_length=0.32", "connectionstyle": bend}
    look |= {"color": color, "lw": 1.1, "shrinkA": 0, "shrinkB": 0, "zorder": zorder}
    ax.annotate("", end, start, arrowprops=look)


def _up(ax: Axes, x: float, low: float, high: float, color=INK) -> None:
    """Draw an arrow from the top of what stands at `low` to the foot of what stands at `high`."""
    _arrow(ax, (x, low + HIGH / 2), (x, high - HIGH / 2), color)


def _over(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw a recurrence that runs rightwards, down, and rightwards again."""
    _arrow(ax, start, end, RED, "arc,angleA=0,angleB=180,armA=9,armB=26,rad=6")


def _stack(ax: Axes, names: str, hue: str, link=INK, loops: Sequence[int] = ALL) -> None:
    """Draw a layer a name over every city, applied so many `loops`, and the next city on top."""
    levels = LEVELS[: len(names)] if len(names) > 1 else SINGLE
    shades = dict(zip(sorted(set(names)), SHADES, strict=False))
    for i, (x, count) in enumerate(zip(COLUMNS, loops, strict=True), 1):
        for n, (name, y) in enumerate(zip(names, levels, strict=True)):
            _box(ax, x, y, name if n < count else "", _tint(hue, shades[name]))
        for low, high in pairwise(levels[:count]):
            _up(ax, x, low, high, link)
        _up(ax, x, FOOT, levels[0])
        _up(ax, x, levels[:count][-1], TOP)
        for y, city in ((FOOT, f"$c_{i}$"), (TOP, rf"$\hat{{c}}_{i + 1}$")):
            ax.text(x, y, city, ha="center", va="center", fontsize=10.5, color=INK)


def _attend(ax: Axes, levels: Sequence[float]) -> None:
    """Draw every city's attention to those before it, layer by layer."""
    for y in levels:
        for a, b in combinations(COLUMNS, 2):
            far = b - a > 2
            start, end = ((x, y + 0.1 * far) for x in (a + WIDE / 2, b - WIDE / 2))
            _arrow(ax, start, end, FAINT, f"arc3,rad={-0.17 * far}", zorder=1)


def _inject(ax: Axes, loops: Sequence[int] = ALL) -> None:
    """Draw each city entering every box that it goes through above the first."""
    for x, count in zip(COLUMNS, loops, strict=True):
        rail, heights = x - WIDE / 2 - 0.17, [y - 0.1 for y in LEVELS[1:count]]
        for y in heights:
            _arrow(ax, (rail, y), (x - WIDE / 2, y))
        if heights:
            ax.plot([x - 0.17, rail, rail], [FOOT, FOOT, heights[-1]], color=INK, lw=1.1)


def _times(ax: Axes, text: str) -> None:
    """Brace the levels of the last column: so many times."""
    x, low, high = COLUMNS[-1] + WIDE / 2 + 0.1, LEVELS[0] - HIGH / 2, LEVELS[-1] + HIGH / 2
    ax.plot([x, x + 0.07, x + 0.07, x], [low, low, high, high], color=RED, lw=1.1)
    ax.text(x + 0.13, (low + high) / 2, text, va="center", fontsize=9, color=RED)


def _plain(ax: Axes, names: str = "A") -> None:
    _stack(ax, names, LAYER)
    _attend(ax, LEVELS if len(names) > 1 else SINGLE)


def _gru(ax: Axes) -> None:
    _stack(ax, "G", CELL)
    for a, b in pairwise(COLUMNS):
        _arrow(ax, (a + WIDE / 2, SINGLE[0]), (b - WIDE / 2, SINGLE[0]), RED)


def _think(ax: Axes) -> None:
    _stack(ax, "GGGG", CELL, RED)
    _inject(ax)
    for a, b in pairwise(COLUMNS):
        _over(ax, (a + WIDE / 2, LEVELS[-1]), (b - WIDE / 2, LEVELS[0]))


def _feedback(ax: Axes) -> None:
    _stack(ax, "A", LAYER)
    ax.plot(COLUMNS, [MEMORY] * 3, **KEPT)
    for a, b in combinations(COLUMNS, 2):
        _over(ax, (a + 0.08, MEMORY), (b - WIDE / 2, SINGLE[0] + 0.1 * (b - a > 2)))


def _looped(ax: Axes) -> None:
    _stack(ax, "AAAA", LAYER, RED)
    _attend(ax, LEVELS)
    _inject(ax)
    _times(ax, "× k")


def _halting(ax: Axes) -> None:
    _stack(ax, "AAAA", LAYER, RED, HALTS)
    _attend(ax, LEVELS)
    _inject(ax, HALTS)
    for x, halt in zip(COLUMNS, HALTS, strict=True):
        ax.plot(x + WIDE / 2, LEVELS[halt - 1] + HIGH / 2, **STOP)
    _times(ax, "≤ k")


def _top(ax: Axes) -> None:
    _stack(ax, "AAAA", LAYER, RED)
    _attend(ax, LEVELS)
    for x, y in product(COLUMNS, LEVELS):
        ax.plot(x + WIDE / 2, y + HIGH / 2, **LOSS)
    _times(ax, "× k")


FOUR = "no recurrence\nfour layers' compute and weights"
SHARED = "\nk layers' compute, one layer's weights"
LOOPED = "recurs over depth: k fixed, drawn, from noise" + SHARED
HALTED = "recurs over depth until each city stops\none layer's weights; stops save no compute"
# Arms; how to draw them; what recurs, and what it costs.
PANELS: Sequence[tuple[str, Callable[[Axes], None], str]] = (
    ("transformer", _plain, "no recurrence\none layer's compute and weights"),
    ("transformer-deep", partial(_plain, names="ABCD"), FOUR),
    ("gru, gru-wide", _gru, "recurs over cities\none step a city; wide: twice the units"),
    ("gru-think", _think, "recurs over cities, and in each\nfour steps' compute, one's weights"),
    (
        "feedback",
        _feedback,
        "recurs over cities: sees past outputs\none layer, but city after city",
    ),
    ("looped-fixed, -sampled, -noise", _looped, LOOPED),
    ("act, ponder", _halting, HALTED),
    ("top (2021)", _top, "recurs over depth, the input given once" + SHARED),
)


def _legend(figure: Figure) -> None:
    """Say below what the arrows and marks mean."""
    arrows = {"input, output": INK, "recurrence": RED, "attention to earlier cities": FAINT}
    head = {"lw": 1.6, "marker": ">", "ms": 5, "markevery": [1]}
    looks = {name: head | {"color": hue} for name, hue in arrows.items()}
    box = MARK | {"marker": "s", "ms": 9, "mfc": _tint(LAYER, SHADES[0])}
    looks |= {"same letter: same weights": box, "memory": KEPT}
    looks |= {"stop": STOP, "loss in training": LOSS}
    keys = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    style = {"fontsize": 9, "frameon": False, "labelcolor": INK, "columnspacing": 1.6}
    figure.legend(handles=keys, loc="lower center", ncols=len(keys), **style)


def arms_diagram() -> Figure:
    """Draw every arm of the race as its layers over three cities, a panel a kind."""
    lines = -(-len(PANELS) // ACROSS)
    figure, axes = plt.subplots(lines, ACROSS, figsize=(12, 3.3 * lines), dpi=90)
    figure.subplots_adjust(0.01, 0.24 / lines, 0.99, 1 - 0.1 / lines, 0.06, 0.38)
    for ax in axes.flat:
        ax.set(xlim=(0, 4), ylim=(-0.2, 4.4), xticks=[], yticks=[])
        ax.set_axis_off()
    for ax, (title, draw, caption) in zip(axes.flat, PANELS, strict=False):
        draw(ax)
        ax.set_title(title, loc="left", fontsize=11, color=INK, weight="bold")
        below = {"transform": ax.transAxes, "va": "top", "fontsize": 8.5, "color": INK}
        ax.text(0, -0.03, caption, **below)
    _legend(figure)
    return figure
