"""The scoreboard: every recorded method of a size on one axis of operations, from the ledger."""

from __future__ import annotations

import re
from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from citypaths.judging.ledger import load_results, operations, percent, quantity
from citypaths.plots import FAINT, INK

NOTEBOOKS = (
    "03-rnn-baselines", "04-test-time-recurrence", "05-search", "06-iterative-refinement",
)  # fmt: skip
FAMILIES = {
    "graph search": r"A\*|Dijkstra|first|hop|geo-greedy|walk",
    "tree search": r"tree search|by value",
    "best of N": r"best of|stitched|evolution",
    "beam": r"beam",
    "refinement": r"round|masked|conductor|segment|filled|repaired",
    "more loops": r"loops|starts",
    "greedy or sample": r".",
}
ALIKE = ["notebook", "model", "method", "regime"]
RUNG, CURVE = ", equal training$", r"^best of \d+ by |^waterfall"
ASIDE = ("ladder", "curve")


def recorded(size: str, seed: int | None = None) -> pd.DataFrame:
    """Return the ledger's rows at a size on uncontained queries, with their family and operations.

    Left out: ablations, the ladder of equal training and curves by attempts, which have figures of
    their own. `operations` adds `GREAT_CIRCLE` a look-up to the inference FLOPs, so that searches
    without a model stand on the same axis.
    """
    rows = load_results()
    rows = rows[(rows["size"] == size) & rows["notebook"].isin(NOTEBOOKS)]
    rows = rows[(rows["split"] == "uncontained") & rows["success"].notna()]
    rows = rows if seed is None else rows[rows["seed"] == seed]
    rows = rows[~rows["model"].str.contains(RUNG) & ~rows["method"].str.contains(CURVE)]
    rows = rows[~rows["study"].isin(ASIDE)]
    return rows.assign(family=rows["method"].map(family), operations=operations(rows))


def family(method: str) -> str:
    """Return what kind of search a method is, by its name."""
    return next(name for name, pattern in FAMILIES.items() if re.search(pattern, method))


def best_of_each(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row a (notebook, model, method, regime): the mean over its seeds, and how many.

    A method that was recorded at several budgets, such as rounds, stands with the largest; one that
    several notebooks recorded, with the one of most queries. A single seed keeps its Wilson
    interval; several have the least and the most of their means.
    """
    rows = rows[
        rows["budget"].fillna(1) == rows.groupby(ALIKE)["budget"].transform("max").fillna(1)
    ]
    named = rows.assign(plain=rows["method"].str.removesuffix(", checked"))
    most = named.groupby(["model", "plain", "regime"])["queries"].transform("max")
    rows = rows[rows["queries"] == most]
    rows = rows[rows["notebook"] == rows.groupby(ALIKE[1:])["notebook"].transform("min")]
    groups = rows.groupby(ALIKE, sort=False)
    numbers = [*("parameters", "training_flops", "inference_flops", "lookups", "expansions")]
    numbers += ["operations", "seconds_per_query", "success", "hard_success", "optimal"]
    table = groups[numbers].mean()
    several = groups["seed"].nunique().rename("seeds")
    each = {"low": ("success_low", "min"), "high": ("success_high", "max")}
    for column, (own, extreme) in each.items():
        spread = groups["success"].agg(extreme)
        table[column] = groups[own].first().where(several == 1, spread)
    table["family"], table["seeds"] = groups["family"].first(), several
    return table.reset_index()


def frontier(rows: pd.DataFrame, success: str = "success") -> pd.DataFrame:
    """Return the rows that no row with fewer operations equals in success, in ascending order."""
    rows = rows.sort_values(["operations", success], ascending=[True, False])
    best = rows[success].cummax().shift(fill_value=-1.0)
    return rows[rows[success] > best]


def axes_of_compute(rows: pd.DataFrame, success: str = "hard_success") -> Figure:
    """Draw success against operations, a panel a regime, a colour a family, the frontier joined."""
    regimes = ("closed_book", "checked", "open_map")
    size = {"figsize": (13.5, 4.6), "layout": "constrained", "sharex": True, "sharey": True}
    fig, axes = plt.subplots(1, 3, **size)
    hues = dict(zip(FAMILIES, sns.color_palette("deep", len(FAMILIES)), strict=True))
    classical = frontier(rows[rows["model"] == "none"], success)
    for ax, regime in zip(axes, regimes, strict=True):
        part = rows[rows["regime"] == regime]
        best = frontier(part, success)
        ax.step(best["operations"], best[success], where="post", color=INK, lw=1)
        if regime != "open_map":
            style = {"color": FAINT, "lw": 1, "ls": "--", "where": "post"}
            ax.step(classical["operations"], classical[success], **style)
        for name, group in part.groupby("family"):
            ax.scatter(group["operations"], group[success], s=22, color=hues[name], label=name)
        ax.set(xscale="log", xlabel="operations a query", ylim=(-0.02, 1.05))
        ax.set_title(regime.replace("_", "-"))
        if len(best):
            ax.text(
                0.03, 0.03, f"best: {_named(best.iloc[-1])}", transform=ax.transAxes, fontsize=9
            )
    axes[0].set_ylabel(success.replace("_", " "))
    found = {k: v for ax in axes for v, k in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(found.values(), found, loc="outside lower center", ncols=7, fontsize=9)
    return fig


def _named(row: pd.Series) -> str:
    return row["method"] if row["model"] == "none" else f"{row['model']}, {row['method']}"


def board(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a table for people: a row a method, ordered by regime and success, with its command.

    Args:
        rows: of `best_of_each`, with the size in a column `size`.
    """
    rows = rows.sort_values(["regime", "success"], ascending=[True, False])
    shown: Mapping[str, pd.Series | list[str]] = {
        "method": rows["method"],
        "model": rows["model"],
        "regime": rows["regime"].str.replace("_", "-"),
        "success": [percent(*row) for row in rows[["success", "low", "high"]].to_numpy()],
        "hard": rows["hard_success"].map(percent),
        "seeds": rows["seeds"],
        "parameters": rows["parameters"].map(quantity),
        "training": rows["training_flops"].map(quantity),
        "FLOPs": rows["inference_flops"].map(quantity),
        "look-ups": rows["lookups"].map(quantity),
        "seconds": rows["seconds_per_query"].map(quantity),
        "command": [command(n, s) for n, s in rows[["notebook", "size"]].to_numpy()],
    }
    return pd.DataFrame(shown).reset_index(drop=True)


def command(notebook: str, size: str) -> str:
    """Return the shell command that makes a notebook's rows at a size."""
    return f"make run SIZE={size} # {notebook}"


def ladder_rows(size: str) -> pd.DataFrame:
    """Return the rows of the ladder of equal training at a size, see `citypaths.exchange`."""
    rows = load_results()
    rows = rows[rows["size"] == size]
    rung = rows["model"].astype(str).str.contains(RUNG)  # as the ladder was named once
    names = rows["model"].astype(str).str.replace(RUNG, "", regex=True)
    return rows.assign(model=names)[rung | (rows["study"] == "ladder")]


def baseline_rows(size: str) -> pd.DataFrame:
    """Return notebook 03's GRUs, trained on equal numbers of paths, for `exchange.gaps`."""
    rows = recorded(size)
    rows = rows[(rows["notebook"] == NOTEBOOKS[0]) & rows["model"].str.startswith("gru")]
    return rows[rows["method"] != "sample"]


def curve_rows(size: str) -> pd.DataFrame:
    """Return the rows of the best-of-N curves at a size."""
    rows = load_results()
    return rows[(rows["size"] == size) & (rows["study"] == "curve")]


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
