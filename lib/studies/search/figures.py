"""Figures of search: success against what is spent, verifiers, and the ladder of sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from citypaths.judging.ledger import quantity
from citypaths.plots import FAINT, FAMILY, INK, plain_log_ticks
from studies.search.verifying import EXACT, OWN, Tried, powers

REGIME = {"closed_book": INK, "checked": FAMILY["gru"], "open_map": FAMILY["floor"]}
MARKS = {"greedy": "D", "beam": "^", "best of N": "*", "evolution": "s", "tree search": "o"}
HUES = {EXACT: FAMILY["shortest"], OWN: INK}


def against_spending(rows: Sequence[Mapping[str, Any]], ax: Axes) -> None:
    """Draw hard-subset success of ledger rows against inference FLOPs.

    A colour a regime, a mark a family; what costs no operation is left out.
    """
    frame = pd.DataFrame(rows)
    frame = frame[frame["inference_flops"] > 0]
    for (regime, family), group in frame.groupby(["regime", "family"], sort=False):
        x, y = group["inference_flops"], group["hard_success"]
        bars = [(y - group["hard_success_low"]).clip(0), (group["hard_success_high"] - y).clip(0)]
        style = {"fmt": MARKS[str(family)], "ms": 7, "capsize": 2, "color": REGIME[str(regime)]}
        ax.errorbar(x, y, bars, **style, label=f"{str(regime).replace('_', '-')}: {family}")
    best = frame.groupby("regime", sort=False)["hard_success"].max()
    told = ", ".join(f"{share:.0%} {name.replace('_', '-')}" for name, share in best.items())
    ax.set(xscale="log", xlabel="inference FLOPs a query", ylabel="success, hard subset")
    ax.set_title(f"Hard queries solved at best: {told}")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)


def _hues(names: Sequence[str]) -> dict[str, Any]:
    """A colour a verifier: its own, or the next of a palette."""
    others = [name for name in names if name not in HUES]
    palette = [hue for i, hue in enumerate(sns.color_palette("deep")) if i != 2]  # green is exact
    return HUES | dict(zip(others, cycle(palette), strict=False))


def verifiers(tried: Tried, energies: Mapping[str, np.ndarray], likely: Sequence[str]) -> Figure:
    """Draw verifiers: success of the best of N, ROC, and reliability of the `likely` ones."""
    fig, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    hues, ns = _hues(list(energies)), powers(int(tried.drawn.count.sum() / len(tried.queries)))
    for name, energy in energies.items():
        curve, roc = tried.curve(energy, ns), tried.roc(energy)
        mean, error = curve.mean(), 1.96 * curve.std() / np.sqrt(len(curve))
        axes[0].plot(ns, mean, "o-", ms=3, color=hues[name], label=name)
        axes[0].fill_between(ns, mean - error, mean + error, color=hues[name], alpha=0.1, lw=0)
        if name != EXACT:
            axes[1].plot(roc["false"], roc["true"], color=hues[name], lw=1.5)
    for name in likely:
        bins = tried.reliability(energies[name])
        axes[2].plot(bins["predicted"], bins["observed"], "o-", ms=4, color=hues[name], label=name)
    for ax in axes[1:]:
        ax.plot([0, 1], [0, 1], ls="--", color=FAINT, lw=1)
    axes[0].set(xscale="log", xlabel="attempts (N)", ylabel="success of the best of N", ylim=(0, 1))
    plain_log_ticks(axes[0], ns[::2])
    axes[1].set(xlabel="bad attempts passed", ylabel="good attempts passed")
    axes[2].set(xlabel="probability given to the attempt", ylabel="share that succeed")
    axes[2].legend(fontsize=9, loc="lower right")
    _legend_below(fig, axes[0])
    return fig


def _legend_below(fig: Figure, ax: Axes) -> None:
    handles = ax.get_legend_handles_labels()
    fig.legend(*handles, loc="outside lower center", ncols=5, fontsize=9)


def by_groups(rows: pd.DataFrame) -> Figure:
    """Draw success of the best of N against N, a panel a subset of queries, a line a verifier.

    Args:
        rows: of the ledger, such as `curve_rows` makes; those of all queries are left out.
    """
    rows = rows[rows["subset"] != ""]
    panels = list(dict.fromkeys(rows["subset"]))
    size = {"figsize": (3.1 * len(panels), 3.6), "layout": "constrained", "sharey": True}
    fig, axes = plt.subplots(1, len(panels), squeeze=False, **size)
    hues = _hues(list(dict.fromkeys(rows["verifier"])))
    for ax, subset in zip(axes[0], panels, strict=True):
        part = rows[rows["subset"] == subset]
        for name, line in part.groupby("verifier", sort=False):
            ax.plot(line["attempts"], line["success"], "o-", ms=4, color=hues[name], label=name)
        ax.set(xscale="log", xlabel="attempts (N)", ylim=(0, 1.03), title=subset)
        plain_log_ticks(ax, sorted(set(part["attempts"]))[::2])
    axes[0, 0].set_ylabel("success of the best of N")
    _legend_below(fig, axes[0, 0])
    return fig


def ladder(rows: pd.DataFrame, axes: Sequence[Axes]) -> None:
    """Draw success against inference FLOPs for each rung, closed-book and checked.

    A rung's line joins its methods by cost, seeds averaged; stars are greedy decoding alone.
    """
    sizes = rows.groupby("model")["parameters"].first().sort_values()
    hues = dict(zip(sizes.index, sns.color_palette("viridis_r", len(sizes)), strict=True))
    greedy = rows[(rows["method"] == "greedy") & (rows["regime"] == "closed_book")]
    alone = greedy.groupby("model")[["inference_flops", "success"]].mean()
    for ax, regime in zip(axes, ("closed_book", "checked"), strict=True):
        for name, hue in hues.items():
            part = rows[(rows["model"] == name) & (rows["regime"] == regime)]
            seeds = part.groupby("method")[["inference_flops", "success"]].agg(["mean", "std"])
            seeds = seeds.sort_values(("inference_flops", "mean"))
            x, y = seeds[("inference_flops", "mean")], seeds[("success", "mean")]
            style = {"fmt": "o-", "ms": 4, "lw": 1, "capsize": 2, "color": hue}
            label = f"{name} ({quantity(sizes[name])})"
            ax.errorbar(x, y, seeds[("success", "std")].fillna(0), label=label, **style)
            ax.plot(*alone.loc[name], "*", ms=13, color=hue, mec=INK, mew=0.5)
        ax.set(xscale="log", xlabel="inference FLOPs a query", ylim=(0, 1.02))
        ax.set_title(regime.replace("_", "-"))
    axes[0].set_ylabel("success")
    axes[0].legend(fontsize=9)
