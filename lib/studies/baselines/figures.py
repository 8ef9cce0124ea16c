"""Figures of the baselines: training, success by kind of query, and why 2021 failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from citypaths.judging.metrics import wilson
from citypaths.plots import FAINT, FAMILY, INK, RED, colour

INTERVAL = "bars: 95 % Wilson intervals"
LOSS = "validation loss (nats a hop)"


def loss_curves(histories: Mapping[str, pd.DataFrame], ax: Axes) -> None:
    """Draw validation loss against training tokens, one line a model."""
    for name, history in histories.items():
        hue = colour(name, list(histories))
        ax.plot(history["tokens"], history["valid_loss"], "o-", ms=4, color=hue, label=name)
    ax.set(xscale="log", yscale="log", xlabel="training tokens", ylabel=LOSS)
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.legend()


def metrics_along_training(history: pd.DataFrame, ax: Axes, title: str) -> None:
    """Draw each rate against the validation loss at which it was reached."""
    rates = {"arrives": "^", "legal": "s", "bounded_05": "d", "success": "o"}
    for rate, mark in rates.items():
        label = rate.replace("_05", " at 5 %")
        ax.plot(history["valid_loss"], history[rate], mark + "-", ms=5, label=label)
    ax.set(xscale="log", xlabel=LOSS, ylabel="share of queries", ylim=(-0.03, 1.03))
    ax.set_title(title)
    ax.invert_xaxis()
    ax.legend()


def success_by(judged: Mapping[str, pd.DataFrame], by: str, ax: Axes, xlabel: str) -> None:
    """Draw success with 95 % intervals by group, one series a method."""
    names = list(judged)
    for i, (name, frame) in enumerate(judged.items()):
        groups = frame.groupby(by, observed=True)["success"]
        share, count = groups.mean(), groups.size()
        low, high = wilson(groups.sum(), count)
        x = np.arange(len(share)) + (i - (len(names) - 1) / 2) * 0.12
        bars = np.abs(np.stack([share - low, high - share]))
        learned = name.split("-")[0] in FAMILY
        color = colour(name, names) if learned else FAMILY["floor"]
        mark = "o" if learned else "v^<>"[i % 4]
        ax.errorbar(x, share, yerr=bars, fmt=mark, ms=5, capsize=2, color=color, label=name)
    ticks = [f"{group}\n(n={n:,})" for group, n in count.items()]
    ax.set_xticks(np.arange(len(ticks)), ticks)
    ax.set(xlabel=xlabel, ylabel="success", ylim=(-0.03, 1.03))
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def waterfall(
    labels: Sequence[str], values: Sequence[float], counts: Sequence[int], ax: Axes
) -> None:
    """Draw the share at each rung as a bar, its change from the rung before, and its interval."""
    values = np.asarray(values, float)
    low, high = wilson(values * np.asarray(counts), counts)
    before = np.concatenate([[0], values[:-1]])
    y = np.arange(len(values))
    ax.barh(y, values, color=FAINT, height=0.7)
    gain = np.where(values >= before, FAMILY["gru"], RED)
    ax.barh(y, np.abs(values - before), left=np.minimum(values, before), color=gain, height=0.7)
    ax.errorbar(
        values, y, xerr=np.abs([values - low, high - values]), fmt="none", ecolor=INK, capsize=3
    )
    for i, value in enumerate(values):
        beside = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        ax.annotate(f"{100 * value:.1f} %", (high[i], i), **beside)
    ax.set_yticks(y, labels)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1.12), xlabel=f"share of queries ({INTERVAL})")
