"""The scoreboard: every recorded method of a size on one axis of operations, from the ledger."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from citypaths.judging.ledger import (
    FAMILIES,
    REGIMES,
    load_results,
    operations,
    percent,
    quantity,
)
from citypaths.plots import FAINT, INK

# Ablations, curves, and edited maps: what has figures of its own, or is of other queries.
ASIDE = ("waterfall", "priors", "ladder", "curve", "closures", "bridges")
HUES = (  # of the families, in their order
    *("#aab4bd", "#4c72b0", "#55a868", "#a9d18e", "#dd8452", "#c44e52"),
    *("#f2a2a4", "#2aa7b8", "#8172b3", "#d4b03c", "#8c5a3c", "#da8bc3"),
)
ALIKE = ["model", "method", "regime", "verifier", "loops", "share"]
NUMBERS = ["parameters", "training_flops", "inference_flops", "lookups", "expansions"]
NUMBERS += ["operations", "seconds_per_query", "success", "hard_success", "optimal"]


def of_study(size: str, study: str) -> pd.DataFrame:
    """Return the ledger's rows of a study at a size, of all its runs."""
    rows = load_results()
    return rows[(rows["size"] == size) & (rows["study"] == study)]


def recorded(size: str, seed: int | None = None) -> pd.DataFrame:
    """Return the ledger's rows at a size on all uncontained queries, with their operations.

    Whatever notebook recorded them, but for the studies `ASIDE`. `operations` adds `GREAT_CIRCLE` a
    look-up to the inference FLOPs, so that searches without a model stand on the same axis.
    """
    rows = load_results()
    rows = rows[(rows["size"] == size) & (rows["split"] == "uncontained") & (rows["subset"] == "")]
    rows = rows[rows["success"].notna() & ~rows["study"].isin(ASIDE)]
    rows = rows if seed is None else rows[rows["seed"] == seed]
    return rows.assign(operations=operations(rows))


def best_of_each(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row a method of a model in a regime: the mean over its seeds, and how many.

    A method that was recorded after every round stands with the last; one that several notebooks
    recorded, with the one of most queries. A single seed keeps its Wilson interval; several have
    the least and the most of their means.
    """
    last = rows["rounds"].fillna(0)
    alike = rows.assign(last=last).groupby([*ALIKE, "notebook"], dropna=False)["last"]
    rows = rows[last == alike.transform("max")]
    for column, best in (("queries", "max"), ("notebook", "min")):
        kept = rows.groupby(ALIKE, dropna=False)[column].transform(best)
        rows = rows[rows[column] == kept]
    groups = rows.groupby(ALIKE, sort=False, dropna=False)
    table = groups[NUMBERS].mean()
    several = groups["seed"].nunique().rename("seeds")
    for column, own, extreme in (("low", "success_low", "min"), ("high", "success_high", "max")):
        spread = groups["success"].agg(extreme)
        table[column] = groups[own].first().where(several == 1, spread)
    named = groups[["notebook", "family", "size"]].first()
    return table.join(named).join(several).reset_index()


def frontier(rows: pd.DataFrame, success: str = "success") -> pd.DataFrame:
    """Return the rows that no row with fewer operations equals in success, in ascending order."""
    rows = rows.sort_values(["operations", success], ascending=[True, False])
    best = rows[success].cummax().shift(fill_value=-1.0)
    return rows[rows[success] > best]


def axes_of_compute(rows: pd.DataFrame, success: str = "hard_success") -> Figure:
    """Draw success against operations, a panel a regime, a colour a family, the frontier joined."""
    size = {"figsize": (13.5, 4.6), "layout": "constrained", "sharex": True, "sharey": True}
    fig, axes = plt.subplots(1, len(REGIMES), **size)
    hues = dict(zip(FAMILIES, HUES, strict=True))
    classical = frontier(rows[rows["model"] == "none"], success)
    for ax, regime in zip(axes, REGIMES, strict=True):
        part = rows[rows["regime"] == regime]
        best = frontier(part, success)
        ax.step(best["operations"], best[success], where="post", color=INK, lw=1)
        if regime != "open_map":
            style = {"color": FAINT, "lw": 1, "ls": "--", "where": "post"}
            ax.step(classical["operations"], classical[success], **style)
        for name, group in part.groupby("family"):
            ax.scatter(group["operations"], group[success], s=22, color=hues[name], label=name)
        ax.set(xscale="log", xlabel="operations a query", ylim=(-0.02, 1.05))
        text = f"\nbest: {_named(best.iloc[-1])}" if len(best) else ""
        ax.set_title(regime.replace("_", "-") + text, fontsize=11)
    axes[0].set_ylabel(success.replace("_", " "))
    found = {k: v for ax in axes for v, k in zip(*ax.get_legend_handles_labels(), strict=True)}
    found = {name: found[name] for name in FAMILIES if name in found}
    fig.legend(found.values(), found, loc="outside lower center", ncols=7, fontsize=9)
    return fig


def _named(row: pd.Series) -> str:
    names = [] if row["model"] == "none" else [row["model"]]
    share = [] if np.isnan(row["share"]) else [f"share {row['share']:g}"]
    return ", ".join([*names, row["method"], *share])


def board(rows: pd.DataFrame) -> pd.DataFrame:
    """Return `best_of_each` for people: a row a method, ordered by regime and success.

    The last column is the command that makes the row.
    """
    rows = rows.sort_values(["regime", "success"], ascending=[True, False])
    bounds = rows[["success", "low", "high"]].to_numpy()
    shown: Mapping[str, pd.Series | list[str]] = {
        "method": rows["method"],
        "model": rows["model"],
        "regime": rows["regime"].str.replace("_", "-"),
        "share": rows["share"].map(lambda share: "" if np.isnan(share) else f"{share:.0%}"),
        "success": [percent(*row) for row in bounds],
        "hard": rows["hard_success"].map(percent),
        "seeds": rows["seeds"],
        "parameters": rows["parameters"].map(quantity),
        "training": rows["training_flops"].map(quantity),
        "FLOPs": rows["inference_flops"].map(quantity),
        "look-ups": rows["lookups"].map(quantity),
        "seconds": rows["seconds_per_query"].map(quantity),
        "command": "make run SIZE=" + rows["size"] + " # " + rows["notebook"],
    }
    return pd.DataFrame(shown).reset_index(drop=True)


def baselines(size: str) -> pd.DataFrame:
    """Return the GRUs trained on equal numbers of paths, for `exchange.gaps`."""
    rows = of_study(size, "decoders")
    return rows[rows["model"].str.startswith("gru") & (rows["family"] != "sample")]


def overshoot(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the N at which the best of N succeeds most, and what the largest N loses.

    Args:
        rows: of the best of N by hops and verifier; those of all queries are left out.
    """
    table = {}
    for by, part in rows[rows["subset"] != ""].groupby(["subset", "verifier"], sort=False):
        line = part.groupby("attempts")["success"].mean()
        lost = line.max() - line.iloc[-1]
        table[by] = {"best N": line.idxmax(), "success": line.max(), "lost at most": lost}
    frame = pd.DataFrame(table).T
    frame.index.names = ["hops", "verifier"]
    return frame


def tops(frontiers: Mapping[str, pd.DataFrame]) -> str:
    """Return the best of each regime in words, a line a regime."""
    lines = []
    for regime, front in frontiers.items():
        row = front.iloc[-1]
        text = f"{str(regime).replace('_', '-')}: {_named(row)} solves {row['hard_success']:.1%}"
        spent = quantity(row["operations"])
        lines.append(f"{text} of the hard queries with {spent} operations.")
    return "\n".join(lines)
