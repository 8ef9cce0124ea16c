"""The tables of both READMEs, generated from the ledger (`python -m studies.scoreboard.tables`)."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from citypaths.files import project_root, reports_dir, write_bytes
from citypaths.judging.ledger import largest_run, load_results, percent, quantity
from studies.learning import study as learning
from studies.learning import values as learning_values
from studies.scoreboard import board, memory_tables
from studies.search import exchange


def table(rows: pd.DataFrame) -> str:
    """Return ledger rows as a Markdown table for people: one line a method."""
    names = "method model regime success hard-subset FLOPs look-ups expansions"
    lines = ["| " + names.replace(" ", " | ") + " |", "|---" * 8 + "|"]
    for row in rows.to_dict("records"):
        hard = (row["hard_success"], row["hard_success_low"], row["hard_success_high"])
        cells = [row["method"], row["model"], row["regime"].replace("_", "-")]
        cells += [percent(row["success"], row["success_low"], row["success_high"]), percent(*hard)]
        cells += [quantity(row[c]) for c in ("inference_flops", "lookups", "expansions")]
        lines.append("| " + " | ".join(str(c) for c in cells) + " |")
    return "\n".join(lines)


def _baselines(size: str) -> pd.DataFrame:
    """Notebook 03's rows on the eastward graph's uncontained queries, the waterfall left out."""
    rows = load_results()
    rows = rows[(rows["notebook"] == "03-rnn-baselines") & (rows["size"] == size)]
    rows = rows[rows["split"] == "uncontained"]
    return rows[~rows["method"].astype(str).str.startswith("waterfall")]


def baseline_table(size: str) -> str:
    """Return the README's table of notebook 03 at a size: floors and greedy, beam, checked RNNs."""
    rows = _baselines(size)
    rows = rows[rows["run"] == f"03-rnn-baselines-{size}-seed0"]
    if rows.empty:
        return f"No run of `03-rnn-baselines` is recorded at size {size}."
    count, hard = (int(rows[c].max()) for c in ("queries", "hard_queries"))
    head = f"{count:,} uncontained queries, {hard:,} of them hard."
    return head + "\n\n" + table(rows)


def seeds_table(size: str) -> str:
    """Return success over seeds for every model and decoder that has several at a size."""
    rows = _baselines(size)
    rows = rows[rows["model"] != "none"]
    return _over_seeds(rows, ["model", "method"], f"No arm has several seeds at size {size}.")


def priors_table(size: str) -> str:
    """Return success over seeds for every cheap prior at a size."""
    rows = load_results()
    rows = rows[(rows["notebook"] == "03-priors") & (rows["size"] == size)]
    return _over_seeds(rows, ["method", "model"], f"No priors are recorded at size {size}.")


def _over_seeds(rows: pd.DataFrame, by: list[str], missing: str) -> str:
    groups = rows.groupby(by, sort=False)["success"].agg(["mean", "min", "max", "count"])
    groups = groups[groups["count"] > 1]
    if groups.empty:
        return missing
    lines = [f"| {' | '.join(by)} | success, mean | least - most | seeds |", "|---" * 5 + "|"]
    for names, row in groups.iterrows():
        spread = f"{percent(row['min'])} - {percent(row['max'])}"
        cells = [*names, percent(row["mean"]), spread, int(row["count"])]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def search_table(size: str) -> str:
    """Return notebook 05's searches and heuristics at a size."""
    rows = load_results()
    rows = rows[rows["run"] == f"05-search-{size}-seed0"]
    if rows.empty:
        return f"No run of `05-search` is recorded at size {size}."
    aside = rows["study"].isin(board.ASIDE) | rows["model"].str.contains(board.RUNG)
    return table(rows[~aside & ~rows["method"].str.contains(board.CURVE)])


def refinement_table(size: str) -> str:
    """Return notebook 06's methods at a size: success at first, and after the last round."""
    rows = load_results()
    rows = rows[(rows["run"] == f"06-iterative-refinement-{size}-seed0") & (rows["budget"] >= 0)]
    rounds = rows.groupby(["model", "method", "regime"], sort=False)
    lines = ["| method | model | regime | first guess | success after the last round | FLOPs |"]
    lines.append("|---" * 6 + "|")
    for (model, method, regime), part in rounds:
        first, last = part.loc[part["budget"].idxmin()], part.loc[part["budget"].idxmax()]
        before = percent(first["success"]) if len(part) > 1 else "-"
        after = percent(last["success"], last["success_low"], last["success_high"])
        cells = [method, model, regime.replace("_", "-"), before, after]
        lines.append("| " + " | ".join([*cells, quantity(last["inference_flops"])]) + " |")
    if rows.empty:
        return f"No run of `06-iterative-refinement` is recorded at size {size}."
    return "\n".join(lines)


def exchange_table(size: str) -> str:
    """Return how smaller models that search compare with larger ones alone at a size."""
    gaps = exchange.gaps(board.ladder_rows(size))
    if gaps.empty:
        return f"No ladder of equal training is recorded at size {size}."
    shown = exchange.matrix(gaps)
    lines = ["| smaller model, searching | regime | " + " | ".join(shown.columns) + " |"]
    lines.append("|---" * (2 + shown.shape[1]) + "|")
    for (regime, small), cells in shown.iterrows():
        lines.append(f"| {small} | {regime.replace('_', '-')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def learning_table(size: str) -> str:
    """Return notebook 08's accuracies and the value of learning at a size, by share learned."""
    rows = largest_run(learning_values.NOTEBOOK, size)
    if rows.empty:
        return f"No run of `08-learning-or-memorizing` is recorded at size {size}."
    found = learning_values.values(rows, ["next_hop", "success", "hard_success"])
    found = found.set_index(["memory", "metric", "share"])
    lines = ["| measured in | learned | alone | + cache of the rest | value | stitched | value |"]
    lines.append("|---" * 7 + "|")
    for (metric, share), cache in found.loc[learning.CACHE].iterrows():
        hops = found.loc[(learning.STITCHED, metric, share)]
        cells = [metric.replace("_", " "), f"{100 * share:g} %", percent(cache["x"])]
        for row in (cache, hops):
            cells += [percent(row["z"]), learning_values.told(row)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _recurrence(size: str, split: str = "uncontained") -> pd.DataFrame:
    rows = load_results()
    return rows[(rows["run"] == f"04-test-time-recurrence-{size}-seed0") & (rows["split"] == split)]


def race_table(size: str, split: str = "uncontained") -> str:
    """Return notebook 04's arms at the loops they were trained with, over seeds."""
    rows = _recurrence(size, split)
    rows = rows[rows["method"] == "greedy"]
    if rows.empty:
        return f"No run of `04-test-time-recurrence` is recorded at size {size}."
    lines = [
        "| arm | loops | parameters | success, mean (least - most) | hard-subset | nats a hop "
    ]
    lines[0] += "| FLOPs a query | seeds |"
    lines.append("|---" * 8 + "|")
    for name, arm in rows.groupby("model", sort=False):
        each = arm["success"]
        cells = [name, f"{arm['budget'].iloc[0]:.0f}", quantity(arm["parameters"].iloc[0])]
        cells.append(percent(each.mean(), each.min(), each.max()))
        cells += [percent(arm["hard_success"].mean()), f"{arm['loss'].mean():.3f}"]
        cells += [quantity(arm["inference_flops"].mean()), str(len(arm))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def dial_table(size: str) -> str:
    """Return the mean success of notebook 04's arms at each number of loops at test time."""
    rows = _recurrence(size)
    rows = rows[rows["method"].str.contains(" loops", na=False)]
    if rows.empty:
        return f"No run of `04-test-time-recurrence` is recorded at size {size}."
    means = rows.groupby(["model", "budget"], sort=False)["success"].mean().unstack()
    lines = [f"| arm | {' | '.join(f'{loops:.0f}' for loops in means)} |"]
    lines.append("|---" * (1 + means.shape[1]) + "|")
    for name, each in means.iterrows():
        lines.append(f"| {name} | {' | '.join(percent(value) for value in each)} |")
    return "\n".join(lines)


def memory_table(size: str, of: str) -> str:
    """Return notebook 07's table of `of`, "episodes" or "closures", at a size."""
    return {"episodes": memory_tables.episodes_table, "closures": memory_tables.closures_table}[of](
        size
    )


TABLES: dict[str, Callable[[], str]] = {
    "baseline-small": lambda: baseline_table("small"),
    "baseline-medium": lambda: baseline_table("medium"),
    "seeds-medium": lambda: seeds_table("medium"),
    "priors-small": lambda: priors_table("small"),
    "search-small": lambda: search_table("small"),
    "refinement-small": lambda: refinement_table("small"),
    "exchange-small": lambda: exchange_table("small"),
    "exchange-medium": lambda: exchange_table("medium"),
    "learning-small": lambda: learning_table("small"),
    "closures-small": lambda: memory_table("small", "closures"),
    "episodes-small": lambda: memory_table("small", "episodes"),
    "episodes-medium": lambda: memory_table("medium", "episodes"),
    "race-small": lambda: race_table("small"),
    "race-medium": lambda: race_table("medium"),
    "long-medium": lambda: race_table("medium", "longest 5 %"),
    "dial-medium": lambda: dial_table("medium"),
}


def fill_tables(text: str) -> str:
    """Return Markdown with every `<!-- table NAME -->...<!-- end -->` part generated anew."""

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in TABLES:
            raise ValueError(f"no table {name!r}; known: {', '.join(TABLES)}")
        return f"<!-- table {name} -->\n{TABLES[name]()}\n<!-- end -->"

    return re.sub(r"<!-- table ([\w-]+) -->.*?<!-- end -->", fill, text, flags=re.DOTALL)


def main() -> None:
    """Generate the tables of both READMEs from the ledger ."""
    pages = (project_root() / "README.md", reports_dir() / "README.md")
    for page in filter(Path.exists, pages):
        filled = fill_tables(page.read_text(encoding="utf-8"))
        write_bytes(page, filled.encode())
        sys.stderr.write(f"tables of {page.parent.name}/{page.name} generated from the ledger\n")


if __name__ == "__main__":
    main()
