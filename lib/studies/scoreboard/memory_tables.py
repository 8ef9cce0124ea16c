"""The README's tables of notebook 07, from the ledger: new maps in context, and edited maps."""

from __future__ import annotations

import pandas as pd

from citypaths.judging.ledger import arms_of, largest_run, percent, quantity
from citypaths.judging.metrics import over_few

NOTEBOOK = "07-external-memory"
EXAM = r"episodes, edges, (\d+) cities"


def recorded(size: str) -> pd.DataFrame:
    """Return the rows of notebook 07's run at a size; of several runs, the one with most rows."""
    return largest_run(NOTEBOOK, size)


def _missing(size: str) -> str:
    return f"No run of `{NOTEBOOK}` is recorded at size {size}."


def episodes_table(size: str) -> str:
    """Return a line an arm: success on unseen maps by their size, hops recalled; over seeds."""
    rows = recorded(size)
    rows = rows[rows["split"].str.fullmatch(EXAM)]
    if rows.empty:
        return _missing(size)
    rows = rows.assign(cities=rows["split"].str.extract(EXAM)[0].astype(int))
    rows["arm"] = arms_of(rows)
    cities = sorted(rows["cities"].unique())
    own = cities[1]  # the exams are two thirds of the training maps, those, and larger ones
    head = [f"success, no direct hop, {n} cities" for n in cities]
    head += [
        f"optimal, all queries, {own}",
        f"recall, {own}",
        "parameters",
        "FLOPs a query",
        "seeds",
    ]
    lines = ["| memory | " + " | ".join(head) + " |", "|---" * (1 + len(head)) + "|"]
    for arm, part in rows.groupby("arm", sort=False):
        home = part[part["cities"] == own]
        cells = [_spread(part.loc[part["cities"] == n, "hard_success"]) for n in cities]
        cells += [_spread(home["optimal"]), percent(home["recall"].mean())]
        cells += [quantity(home[c].iloc[0]) for c in ("parameters", "inference_flops")]
        lines.append(f"| {arm} | {' | '.join(cells)} | {len(home)} |")
    return "\n".join(lines)


def _spread(values: pd.Series) -> str:
    mean, half = over_few(values)
    bounds = () if pd.isna(half) else (max(0.0, mean - half), min(1.0, mean + half))
    return percent(mean, *bounds)


def closures_table(size: str) -> str:
    """Return a line a method: success on queries whose shortest path was closed, by share."""
    rows = recorded(size)
    rows = rows[(rows["study"] == "closures") & (rows["subset"] == "path hit")]
    if rows.empty:
        return _missing(size)
    count = rows.groupby("share")["queries"].max()
    head = [f"{share:.1%} of hops ({n:,.0f} answers)" for share, n in count.items()]
    lines = ["| method | model | regime | " + " | ".join(head) + " | look-ups |"]
    lines.append("|---" * (4 + len(head)) + "|")
    for (method, model, regime), part in rows.groupby(["method", "model", "regime"], sort=False):
        by = part.set_index("share")[["success", "success_low", "success_high"]]
        cells = [percent(*by.loc[s]) if s in by.index else "-" for s in count.index]
        cells = [method, model, regime.replace("_", "-"), *cells]
        lines.append(f"| {' | '.join(cells)} | {quantity(part['lookups'].mean())} |")
    return "\n".join(lines)
