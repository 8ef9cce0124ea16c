"""The tables of both READMEs and `results.csv`, generated from the committed runs.

python -m studies.scoreboard.tables              # fill the tables
python -m studies.scoreboard.tables medium 0     # publish the runs of a size and seed first
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from citypaths.files import project_root, reports_dir, write_bytes
from citypaths.judging.ledger import (
    REGIMES,
    arms_of,
    largest_run,
    load_results,
    operations,
    percent,
    publish,
    quantity,
    write_csv,
)
from citypaths.judging.metrics import SLACK, over_few
from studies.learning import study as learning
from studies.learning import values as learning_values
from studies.scoreboard.board import frontier
from studies.search import exchange

SPENT = ["parameters", "training_flops"]


def markdown(table: pd.DataFrame) -> str:
    """Return a table of text as Markdown."""
    return table.to_markdown(index=False, disable_numparse=True, tablefmt="github")


def _intervals(rows: pd.DataFrame, name: str) -> list[str]:
    """A share with its interval, row by row."""
    return [percent(*row) for row in rows[[name, f"{name}_low", f"{name}_high"]].to_numpy()]


def _regimes(rows: pd.DataFrame) -> pd.Series:
    return rows["regime"].str.replace("_", "-")


def methods(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the largest run for people: one line a method."""
    rows = largest_run(rows)
    counts = {"FLOPs": "inference_flops", "look-ups": "lookups", "expansions": "expansions"}
    table = {"method": rows["method"], "model": rows["model"], "regime": _regimes(rows)}
    table |= {"success": _intervals(rows, "success")}
    table |= {"hard-subset": _intervals(rows, "hard_success")}
    table |= {name: rows[column].map(quantity) for name, column in counts.items()}
    return pd.DataFrame(table)


def baselines(rows: pd.DataFrame) -> str:
    """Return the methods of the largest run under a sentence about their queries."""
    count, hard = (int(largest_run(rows)[c].max()) for c in ("queries", "hard_queries"))
    head = f"{count:,} uncontained queries, {hard:,} of them hard."
    return f"{head}\n\n{markdown(methods(rows))}"


def frontiers(rows: pd.DataFrame) -> pd.DataFrame:
    """Return of the largest run, regime by regime, the methods that nothing cheaper equals."""
    rows = largest_run(rows)
    rows = rows.assign(operations=operations(rows))
    return methods(pd.concat(frontier(rows[rows["regime"] == regime]) for regime in REGIMES))


def held_out(rows: pd.DataFrame) -> pd.DataFrame:
    """Return arms trained around queries held out first: on these, and on training queries."""
    rows = largest_run(rows)
    known = rows[rows["subset"] == "training queries"].set_index("model")
    asked = rows[rows["subset"] != "training queries"]
    table = {"model": asked["model"], "success": _intervals(asked, "success")}
    table |= {"success on training queries": [percent(known["success"][m]) for m in asked["model"]]}
    table |= {"optimal": asked["optimal"].map(percent), "nats a hop": asked["loss"].round(3)}
    table |= {name.replace("_flops", " FLOPs"): asked[name].map(quantity) for name in SPENT}
    return pd.DataFrame(table | {"queries": asked["queries"]})


def over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Return success over seeds for every model and method that has several."""
    rows = rows[rows["model"] != "none"].assign(regime=_regimes(rows))
    by = ["model", "method", "regime"]
    groups = rows.groupby(by, sort=False)["success"].agg(["mean", "min", "max", "count"])
    groups = groups[groups["count"] > 1].reset_index()
    ends = groups[["min", "max"]].map(percent)
    columns = {"success, mean": groups["mean"].map(percent)}
    columns |= {"least - most": ends["min"] + " - " + ends["max"], "seeds": groups["count"]}
    return groups[by].assign(**columns)


def refinement(rows: pd.DataFrame) -> pd.DataFrame:
    """Return methods that go on in rounds, and best of N: success at first and at the end."""
    rows = largest_run(rows)
    rows = rows[rows["rounds"].notna() | (rows["family"] == "best of N")]
    table = []
    for (method, model, _), part in rows.groupby(["method", "model", "regime"], sort=False):
        part = part.sort_values("rounds")
        first, last = part.iloc[0], part.iloc[[-1]]
        line = {"method": method, "model": model, "regime": _regimes(last).item()}
        line["first guess"] = percent(first["success"]) if len(part) > 1 else "-"
        line["success after the last round"] = _intervals(last, "success")[0]
        table.append(line | {"FLOPs": quantity(last["inference_flops"].item())})
    return pd.DataFrame(table)


def exchanged(rows: pd.DataFrame) -> pd.DataFrame:
    """Return how smaller models that search compare with larger ones alone."""
    shown = exchange.matrix(exchange.gaps(rows)).reset_index()
    names = {"small": "smaller model, searching"}
    return shown.assign(regime=_regimes(shown))[["small", "regime", *shown.columns[2:]]].rename(
        columns=names
    )


def learned(rows: pd.DataFrame) -> pd.DataFrame:
    """Return accuracies and the value of learning, by metric and share of the paths learned."""
    found = learning_values.values(largest_run(rows), ["next_hop", "success", "hard_success"])
    found = found.set_index(["memory", "metric", "share"])
    table = []
    for (metric, share), cache in found.loc[learning.CACHE].iterrows():
        hops = found.loc[(learning.STITCHED, metric, share)]
        cells = [metric.replace("_", " "), f"{share:.0%}".replace("%", " %"), percent(cache["x"])]
        for row in (cache, hops):
            cells += [percent(row["z"]), learning_values.told(row)]
        table.append(cells)
    head = ["measured in", "learned", "alone", "+ cache of the rest", "value", "stitched", "value"]
    return pd.DataFrame(table, columns=head)


def race(rows: pd.DataFrame) -> pd.DataFrame:
    """Return arms at the loops they were trained with, over seeds."""
    rows = largest_run(rows)
    table = []
    for name, arm in rows[rows["method"] == "greedy"].groupby("model", sort=False):
        each = arm["success"]
        line = {"arm": name, "loops": f"{arm['loops'].iloc[0]:.0f}"}
        line["parameters"] = quantity(arm["parameters"].iloc[0])
        line["success, mean (least - most)"] = percent(each.mean(), each.min(), each.max())
        line["hard-subset"] = percent(arm["hard_success"].mean())
        line["nats a hop"] = f"{arm['loss'].mean():.3f}"
        line["FLOPs a query"] = quantity(arm["inference_flops"].mean())
        table.append(line | {"seeds": len(arm)})
    return pd.DataFrame(table)


def dial(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the mean success of every arm at each number of loops at test time."""
    rows = largest_run(rows)
    means = rows.groupby(["model", "loops"], sort=False)["success"].mean().unstack()
    means.columns = [f"{loops:.0f}" for loops in means]
    return means.map(percent).rename_axis("arm").reset_index()


def episodes(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a line a memory: success on unseen maps by their size, hops recalled; over seeds."""
    rows = largest_run(rows)
    rows = rows[(rows["subset"] == "") & rows["shown"].isna()]
    rows = rows.assign(arm=arms_of(rows), cities=rows["cities"].astype(int))
    cities = sorted(rows["cities"].unique())
    own = cities[1]  # the exams are two thirds of the training maps, those, and larger ones
    table = []
    for arm, part in rows.groupby("arm", sort=False):
        home = part[part["cities"] == own]
        line = {"memory": arm}
        for n in cities:
            each = part.loc[part["cities"] == n, "hard_success"]
            line[f"success, no direct hop, {n} cities"] = _spread(each)
        line[f"optimal, all queries, {own}"] = _spread(home["optimal"])
        line[f"recall, {own}"] = percent(home["recall"].mean())
        line["parameters"] = quantity(home["parameters"].iloc[0])
        line["FLOPs a query"] = quantity(home["inference_flops"].iloc[0])
        table.append(line | {"seeds": len(home)})
    return pd.DataFrame(table)


def _spread(values: pd.Series) -> str:
    mean, half = over_few(values)
    bounds = () if pd.isna(half) else (max(0.0, mean - half), min(1.0, mean + half))
    return percent(mean, *bounds)


def closures(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a line a method: success where the shortest path was closed, by share of hops."""
    rows = largest_run(rows)
    rows = rows[rows["subset"] == "path hit"]
    counts = rows.groupby("share", sort=False)["queries"].max()
    heads = {s: f"{100 * s:.1f}% of hops ({n:,.0f} answers)" for s, n in counts.items()}
    by = ["method", "model", "regime"]
    rows = rows.assign(cell=_intervals(rows, "success"), regime=_regimes(rows))
    cells = rows.set_index([*by, "share"])["cell"].unstack(sort=False)[list(heads)].fillna("-")
    spent = rows.groupby(by, sort=False)["lookups"].mean().map(quantity)
    return cells.rename(columns=heads).assign(**{"look-ups": spent}).reset_index()


# A table's name, such as "race-medium", says which of these, and at which size.
TABLES: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame | str], tuple[str, ...]]] = {
    "baseline": (baselines, ("floors", "decoders")),
    "seeds": (over_seeds, ("decoders",)),
    "priors": (over_seeds, ("priors",)),
    "held-out": (held_out, ("held out",)),
    "frontier": (frontiers, ("searches",)),
    "search": (methods, ("searches", "heuristics", "trees")),
    "refinement": (refinement, ("rounds", "references")),
    "exchange": (exchanged, ("ladder",)),
    "learning": (learned, ("learning",)),
    "closures": (closures, ("closures",)),
    "episodes": (episodes, ("episodes",)),
    "race": (race, ("race",)),
    "long": (race, ("extrapolation",)),
    "dial": (dial, ("dial",)),
}


def table(name: str, ledger: pd.DataFrame) -> str:
    """Return a table such as "race-medium", or a sentence that its runs are not recorded.

    Raises:
        ValueError: there is no such table.
    """
    if name == "slack":
        return f"at most {100 * SLACK:g} % longer than the shortest"
    kind, _, size = name.rpartition("-")
    if kind not in TABLES:
        raise ValueError(
            f"no table {name!r}; known: slack, {', '.join(f'{k}-SIZE' for k in TABLES)}"
        )
    make, studies = TABLES[kind]
    rows = ledger[(ledger["size"] == size) & ledger["study"].isin(studies)]
    made = make(rows) if len(rows) else pd.DataFrame()
    if not len(made):
        return f"No such run ({', '.join(studies)}) is recorded at size {size}."
    return made if isinstance(made, str) else markdown(made)


def fill_tables(text: str, ledger: pd.DataFrame) -> str:
    """Return Markdown with every `<!-- table NAME -->...<!-- end -->` part generated anew."""

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        gap = "" if name == "slack" else "\n"
        return f"<!-- table {name} -->{gap}{table(name, ledger)}{gap}<!-- end -->"

    return re.sub(r"<!-- table ([\w-]+) -->.*?<!-- end -->", fill, text, flags=re.DOTALL)


def main(arguments: list[str]) -> None:
    """Generate the tables of both READMEs; given a size and a seed, publish their runs first."""
    if arguments:
        size, seed = arguments
        for path in publish(size, int(seed)):
            sys.stderr.write(f"published: {path}\n")
    write_csv(reports_dir())
    ledger = load_results(reports_dir())
    pages = (project_root() / "README.md", reports_dir() / "README.md")
    for page in filter(Path.exists, pages):
        filled = fill_tables(page.read_text(encoding="utf-8"), ledger)
        write_bytes(page, filled.encode())
        sys.stderr.write(f"tables of {page.parent.name}/{page.name} generated from the ledger\n")


if __name__ == "__main__":
    main(sys.argv[1:])
