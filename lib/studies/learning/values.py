"""What learning is worth against memorizing: values with intervals, and operations in all."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy.stats import t as student

from citypaths.judging.ledger import operations, quantity
from studies.learning.study import ALONE, CACHE, CACHE_OF_ALL, STITCHED, STORED

METRICS = ("next_hop", "legal", "arrives", "success", "optimal", "hard_success")
MEMORIES = (CACHE, CACHE_OF_ALL, STORED, STITCHED)
PUBLISHED = 10.0  # CIFAR-10 (Orhan 2019)
NO_HELP = "memory does not help"
ROUNDING = 1e-9
NEAR = 0.1


def ratio_interval(top: np.ndarray, bottom: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of mean(top) / mean(bottom) over seeds (Fieller 1954).

    Not a number for one seed; (-inf, inf) where the bottom's mean is not clearly above or below 0.
    """
    n = len(top)
    if n < 2:
        return np.nan, np.nan
    spread = np.cov(top, bottom) * student.ppf(0.975, n - 1) ** 2 / n
    a, b = top.mean(), bottom.mean()
    square, middle, rest = b * b - spread[1, 1], a * b - spread[0, 1], a * a - spread[0, 0]
    if square <= 0:
        return -np.inf, np.inf
    root = np.sqrt(max(0.0, middle * middle - square * rest))
    return float((middle - root) / square), float((middle + root) / square)


def values(rows: pd.DataFrame, metrics: Iterable[str] = METRICS) -> pd.DataFrame:
    """Return what it is worth to learn the other paths rather than to memorize them.

    x is the learner of a share alone, y the learner of all, z the share with a memory of the
    others. Columns: memory, metric, share, x, y, z (means over seeds), learned (y - x), stored
    (z - x), value (learned / stored; missing where stored is not above 0), low and high (95 %, by
    `ratio_interval`), seeds.

    Args:
        rows: ledger rows of `study.trials`.
    """
    by = {name: part.set_index(["share", "seed"]) for name, part in rows.groupby("method")}
    table = []
    for memory in [m for m in MEMORIES if m in by]:
        for metric in metrics:
            own = by[ALONE][metric]
            seeds = pd.DataFrame({"x": own, "z": by[memory][metric]})
            seeds = seeds.join(own.loc[1.0].rename("y")).dropna()
            for share, part in seeds.groupby("share"):
                row = {"memory": memory, "metric": metric, "share": share}
                table.append(row | _value(part))
    return pd.DataFrame(table)


def _value(seeds: pd.DataFrame) -> dict[str, float]:
    """What is said of one memory, metric and share: x, y and z a seed."""
    learned, stored = seeds["y"] - seeds["x"], seeds["z"] - seeds["x"]
    row = seeds[["x", "y", "z"]].mean().to_dict()
    row |= {"learned": learned.mean(), "stored": stored.mean()}
    row |= {"value": np.nan, "low": np.nan, "high": np.nan, "seeds": len(seeds)}
    if row["stored"] > ROUNDING:
        low, high = ratio_interval(learned.to_numpy(), stored.to_numpy())
        row |= {"value": row["learned"] / row["stored"], "low": low, "high": high}
    return row


def told(row: pd.Series) -> str:
    """Return a value of `values` as text, with its interval where there are several seeds."""
    if np.isnan(row["value"]):
        return NO_HELP
    text = f"{row['value']:.2f}"
    if np.isnan(row["low"]):
        return text
    return text + (
        f" ({row['low']:.2f} to {row['high']:.2f})" if np.isfinite(row["low"]) else " (unbounded)"
    )


def board(table: pd.DataFrame, memory: str) -> pd.DataFrame:
    """Return `values` of one memory for people: a row a metric, a column a share.

    A cell says the value, and in points: what learning the others adds / what storing them adds.
    """
    some = table[table["memory"] == memory]
    gains = [f"{100 * a:+.1f} / {100 * b:+.1f}" for a, b in some[["learned", "stored"]].to_numpy()]
    cells = [f"{told(row)}; {gain}" for (_, row), gain in zip(some.iterrows(), gains, strict=True)]
    shown = some.assign(cell=cells, share=[f"{100 * share:g} %" for share in some["share"]])
    index, columns = (list(dict.fromkeys(shown[name])) for name in ("metric", "share"))
    cells = shown.set_index(["metric", "share"])["cell"].unstack()
    return cells.reindex(index=index, columns=columns).fillna("")


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over seeds of every method and share, with `operations` a query.

    A look-up is counted as on the scoreboard. Index: method, share.
    """
    named = rows.assign(operations=operations(rows))
    columns = [*METRICS, "training_flops", "operations", "lookups", "expansions"]
    return named.groupby(["method", "share"], sort=False)[columns].mean()


def totals(rows: pd.DataFrame, asked: Iterable[float]) -> pd.DataFrame:
    """Return operations of training and inference a query when so many are asked in all.

    Columns: method, share, asked, total, success.
    """
    table = means(rows).reset_index()
    each = [
        table.assign(asked=n, total=table["training_flops"] / n + table["operations"])
        for n in asked
    ]
    return pd.concat(each)[["method", "share", "asked", "total", "success"]].reset_index(drop=True)


def break_even(rows: pd.DataFrame) -> pd.DataFrame:
    """Return after how many queries the learner of everything has cost less than a memory.

    Columns: method, share, success, training (of the memory, its learner included), operations (a
    query), queries (0: from the first, infinite: never).
    """
    table = means(rows)
    everything = table.loc[(ALONE, 1.0)]
    table = table[table.index.get_level_values("method").isin(MEMORIES)].reset_index()
    ahead = everything["training_flops"] - table["training_flops"]
    saved = table["operations"] - everything["operations"]
    with np.errstate(divide="ignore", invalid="ignore"):
        queries = np.where(saved > 0, np.maximum(0.0, ahead / saved), np.inf)
    table["queries"] = np.where((ahead <= 0) & (saved >= 0), 0.0, queries)
    names = {"training_flops": "training"}
    columns = ["method", "share", "success", "training", "operations", "queries"]
    return table.rename(columns=names)[columns]


def _verdict(table: pd.DataFrame, memory: str) -> str:
    """At which shares learning is worth more than a memory, in words."""
    some = table[(table["memory"] == memory) & (table["metric"] == "success")]
    more = [f"{100 * share:g}" for share in some["share"][some["learned"] > some["stored"]]]
    if len(more) in (0, len(some)):
        return "at every share tried" if more else "at none of the shares tried"
    return f"at {', '.join(more)} %"


def sentence(rows: pd.DataFrame) -> str:
    """Return when to learn and when to memorize, from the numbers, at the share `NEAR` to this."""
    table = values(rows, ["success"]).set_index(["memory", "share"])
    shares = table.index.unique("share")
    share = min(shares, key=lambda each: (each == 0, abs(each - NEAR)))
    cache, hops = table.loc[(CACHE, share)], table.loc[(STITCHED, share)]
    even = break_even(rows).set_index(["method", "share"])["queries"]
    seeds = "one seed" if cache["seeds"] == 1 else f"{cache['seeds']:.0f} seeds"
    text = f"With {100 * share:g} % learned ({seeds}), learning the others too changes"
    text += f" success by {100 * cache['learned']:+.1f} points and caching them by"
    text += f" {100 * cache['stored']:+.1f} (value {told(cache)}; about {PUBLISHED:.0f} on"
    text += f" CIFAR-10, Orhan 2019), stitching their hops by {100 * hops['stored']:+.1f}"
    text += f" (value {told(hops)}{_why(hops)}): counted in success, learn rather than cache"
    flat = table.reset_index()
    text += f" {_verdict(flat, CACHE)}, rather than stitch {_verdict(flat, STITCHED)}"
    first = shares.min()
    text += f"; counted in operations, learning has paid against a cache at {100 * first:g} %"
    return (
        f"{text} {_after(even[CACHE, first])}, against stitching {_after(even[STITCHED, first])}."
    )


def _why(hops: pd.Series) -> str:
    below = hops["value"] < 1 and not hops["high"] >= 1
    return ", below 1: parts of shortest paths make new ones" if below else ""


def _after(queries: float) -> str:
    if queries == 0:
        return "from the first query"
    return f"after {quantity(queries)} queries" if np.isfinite(queries) else "never"
