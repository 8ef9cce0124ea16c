"""Figures of search: success against what is spent, and best-of-N curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from citypaths.plots import FAMILY, INK, RED, plain_log_ticks

REGIME = {"closed_book": INK, "checked": FAMILY["gru"], "open_map": FAMILY["floor"]}


def against_spending(rows: Sequence[Mapping[str, Any]], ax: Axes) -> None:
    """Draw hard-subset success of ledger rows against inference FLOPs, a colour a regime."""
    frame = pd.DataFrame(rows)
    frame = frame[frame["inference_flops"] > 0]
    for regime, group in frame.groupby("regime", sort=False):
        low = group["hard_success"] - group["hard_success_low"]
        high = group["hard_success_high"] - group["hard_success"]
        style = {"fmt": "o", "capsize": 2, "color": REGIME[str(regime)]}
        label = str(regime).replace("_", "-")
        x, y = group["inference_flops"], group["hard_success"]
        ax.errorbar(x, y, [low.clip(0), high.clip(0)], label=label, **style)
        for i, place in enumerate(group.itertuples()):
            above = 4 if i % 2 else -9  # neighbours in the list often cost the same
            beside = {"xytext": (6, above), "textcoords": "offset points", "fontsize": 9}
            name = place.method.replace(", checked", "")
            ax.annotate(name, (place.inference_flops, place.hard_success), **beside)
    ax.set(xscale="log", xlabel="inference FLOPs a query", ylabel="success, hard subset")
    ax.set_xlim(frame["inference_flops"].min() / 1.5, 4 * frame["inference_flops"].max())
    ax.legend(loc="lower right")


def best_of_curves(exact: pd.DataFrame, own: pd.DataFrame, groups: pd.Categorical) -> Figure:
    """Draw success of the best of N against N: both verifiers, and own likelihood by `groups`.

    Args:
        exact, own: success [queries, N], a column an N. groups: of the queries, such as hops.
    """
    fig, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained", sharey=True)
    for frame, hue, name in ((exact, FAMILY["shortest"], "exact length"), (own, RED, "likelihood")):
        mean, error = frame.mean(), 1.96 * frame.std() / np.sqrt(len(frame))
        axes[0].plot(frame.columns, mean, "o-", ms=4, color=hue, label=name)
        axes[0].fill_between(frame.columns, mean - error, mean + error, color=hue, alpha=0.15, lw=0)
    shades = np.linspace(0.3, 1, len(groups.categories))
    for shade, (name, frame) in zip(shades, own.groupby(groups, observed=True), strict=False):
        label = f"{name} hops (n={len(frame):,})"
        axes[1].plot(frame.columns, frame.mean(), "o-", ms=4, color=RED, alpha=shade, label=label)
    for ax in axes:
        ax.set(xscale="log", xlabel="attempts (N)", ylim=(0, 1.03))
        plain_log_ticks(ax, list(exact.columns))
        ax.legend(fontsize=9)
    axes[0].set_ylabel("success of the best of N")
    return fig
