"""The ledger: one JSON a run, one CSV of all rows, and the tables generated from it."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from citypaths.files import (
    DataFileError,
    atomic_write,
    lock,
    project_root,
    remove_parts,
    reports_dir,
    sealed,
    write_bytes,
    write_json,
)
from citypaths.sizes import SIZES, Size, digest, settings_of

COLUMNS = (
    "commit",
    "dirty",
    "notebook",
    "size",
    "seed",
    "graph",
    "orientation",
    "split",
    "regime",
    "model",
    "parameters",
    "method",
    "budget",
    "training_flops",
    "inference_flops",
    "lookups",
    "expansions",
    "seconds_per_query",
    "device",
    "queries",
    "loss",
    "next_hop",
    "legal",
    "arrives",
    "bounded_00",
    "bounded_01",
    "bounded_05",
    "bounded_10",
    "success",
    "success_low",
    "success_high",
    "optimal",
    "exact",
    "hard_queries",
    "hard_success",
    "hard_success_low",
    "hard_success_high",
    "recall",
    "run",
)
REGIMES = ("closed_book", "checked", "open_map")
RATES = (*COLUMNS[COLUMNS.index("next_hop") : COLUMNS.index("hard_queries")], "hard_success")
RATES += ("recall",)
UNSEALED = {"run", "rows", "settings", "versions", "machine"}
PACKAGES = ("torch", "numpy", "scipy", "pandas", "networkx", "numba", "pyarrow")


def record(
    notebook: str,
    size: Size,
    seed: int,
    rows: list[dict[str, Any]],
    *,
    device: str = "cpu",
    **shared: Any,
) -> Path:
    """Write a run's JSON and rebuild `reports/results.csv`; a rerun replaces its own rows.

    Args:
        rows: one dict a method, with the ledger's column names; `regime` is required.
        shared: columns that all rows have in common.

    Raises:
        ValueError: an unknown column or regime, or a rate outside [0, 1].
    """
    git = {
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "dirty": bool(_git("status", "--porcelain", "--", ".", ":(exclude)reports")),
    }
    names = {
        "notebook": notebook,
        "size": size.name,
        "seed": seed,
        "device": device,
        **git,
        **shared,
    }
    complete = [{**names, **row} for row in rows]
    for row in complete:  # before they are made plain: an infinite rate is no missing one
        _check(row)
    changed = settings_of(size) != settings_of(SIZES.get(size.name, size))
    run = f"{notebook}-{size.name}-seed{seed}" + (
        f"-{digest(settings_of(size))}" if changed else ""
    )
    body = {"run": run, "rows": [_plain(row) for row in complete], "settings": settings_of(size)}
    body["versions"] = {name: importlib.metadata.version(name) for name in PACKAGES}
    body["machine"] = {"python": platform.python_version(), "processor": platform.machine()}
    return file_record(body)


def file_record(body: dict[str, Any]) -> Path:
    """Write the JSON of a run that was recorded here or elsewhere, and rebuild the CSV.

    Args:
        body: what `record` writes: at least `run` and `rows`.

    Raises:
        ValueError: a run whose name is no file name, an unknown column or regime, or a rate
            outside [0, 1].
    """
    if not re.fullmatch(r"\w[\w.-]*", body["run"]):
        raise ValueError(f"a run is named with letters, digits, dots and dashes: {body['run']!r}")
    for row in body["rows"]:
        _check(row)
    path = reports_dir() / "runs" / f"{body['run']}.json"
    with lock(reports_dir() / "runs" / ".lock"):
        remove_parts(path.parent)
        remove_parts(reports_dir(), "results.csv")
        write_json(path, sealed(body))
        _write_csv()
    return path


def _check(row: dict[str, Any]) -> None:
    unknown = set(row) - set(COLUMNS)
    if unknown:
        raise ValueError(f"the ledger has no column {sorted(unknown)}; known: {', '.join(COLUMNS)}")
    if row.get("regime") not in REGIMES:
        raise ValueError(f"regime is one of {', '.join(REGIMES)}, not {row.get('regime')!r}")
    for name in RATES:
        value = row.get(name)
        number = value is None or hasattr(value, "__float__")
        if not number or not (value is None or math.isnan(value) or 0 <= value <= 1):
            raise ValueError(f"{name} is a share from 0 to 1, not {value!r}")


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Native numbers; what is not a number is null, so that the file is strict JSON."""
    plain = {k: v.item() if hasattr(v, "item") else v for k, v in row.items()}
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()
    }


def _git(*words: str) -> str:
    try:
        command = ["git", "-C", str(project_root()), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def load_results() -> pd.DataFrame:
    """Return every row of every recorded run.

    Raises:
        DataFileError: a run's JSON is damaged; the message names it.
    """
    rows: list[dict[str, Any]] = []
    for path in sorted((reports_dir() / "runs").glob("*.json")):
        try:
            rows += _checked_rows(json.loads(path.read_text(encoding="utf-8")), path.stem)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataFileError(
                f"{path} is no recorded run ({error}): restore it or delete it"
            ) from error
    return pd.DataFrame(rows, columns=list(COLUMNS))


def largest_run(notebook: str, size: str) -> pd.DataFrame:
    """Return the rows of a notebook's run at a size; of several runs, the one with most rows."""
    rows = load_results()
    rows = rows[(rows["notebook"] == notebook) & (rows["size"] == size)]
    return rows if rows.empty else rows[rows["run"] == rows["run"].value_counts().idxmax()]


def arms_of(rows: pd.DataFrame) -> pd.Series:
    """Return what to call each ledger row: its model, or its method where there is none."""
    return rows["model"].where(rows["model"] != "none", rows["method"])


def rows_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the ledger's rows of one recorded run."""
    return [row | {"run": body["run"]} for row in body["rows"]]


def _checked_rows(body: dict[str, Any], run: str) -> list[dict[str, Any]]:
    """The rows of a run's JSON; runs recorded by an older version carry no checksum."""
    if not isinstance(body, dict):
        raise ValueError("it holds no rows")
    if set(body) != UNSEALED and body != sealed(body):
        raise ValueError("it fails its checksum")
    if body["run"] != run:
        raise ValueError(f"it is a copy of {body['run']}")
    for row in body["rows"]:
        _check(row)
    return rows_of(body)


def _write_csv() -> None:
    with atomic_write(reports_dir() / "results.csv") as part:
        load_results().to_csv(part, index=False, float_format="%.6g")


def percent(value: float, low: float | None = None, high: float | None = None) -> str:
    """Return a share as text, "41.3 % (39.0-43.6)" where bounds are given."""
    if value is None or pd.isna(value):
        return "-"
    bounds = f" ({100 * low:.1f}-{100 * high:.1f})" if low is not None and not pd.isna(low) else ""
    return f"{100 * value:.1f} %{bounds}"


def quantity(value: float) -> str:
    """Return a large number as text with three digits, such as 4.61 M."""
    if value is None or pd.isna(value):
        return "-"
    if math.isinf(value):
        return str(value)
    for power, unit in ((12, " T"), (9, " G"), (6, " M"), (3, " k")):
        if abs(value) >= 0.9995 * 10**power:  # what three digits round up to it
            return f"{value / 10**power:.3g}{unit}"
    return f"{value:.3g}"


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
    ladder = rows["model"].str.endswith(", equal training")
    curve = rows["method"].str.contains(r"^best of \d+ by ")
    return table(rows[~ladder & ~curve])


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
    from citypaths import exchange, scoreboard  # they read this module

    gaps = exchange.gaps(scoreboard.ladder_rows(size))
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
    from citypaths import learning, learning_values  # they read this module

    rows = learning_values.recorded(size)
    if rows.empty:
        return f"No run of `08-learning-or-memorizing` is recorded at size {size}."
    found = learning_values.values(rows, ["next_hop", "success", "hard_success"])
    found = found.set_index(["memory", "metric", "share"])
    lines = ["| measured in | learned | alone | + cache of the rest | value | stitched | value |"]
    lines.append("|---" * 7 + "|")
    for (metric, share), cache in found.loc[learning.CACHE].iterrows():
        hops = found.loc[(learning.STITCHED, metric, share)]
        cells = [metric.replace("_", " "), f"{share:g} %", percent(cache["x"])]
        for row in (cache, hops):
            cells += [percent(row["z"]), learning_values.told(row)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def best_of_curves(rows: pd.DataFrame) -> dict[str, dict[str, pd.Series]]:
    """Return success of the best of N by hops and verifier, a Series by N, from ledger rows."""
    rows = rows[rows["method"].astype(str).str.match(r"best of \d+ by ")]
    rows = rows[rows["split"].str.endswith(" hops")]
    group = rows["split"].str.extract(r", (.*) hops$")[0]
    verifier = rows["method"].str.extract(r" by (.*)$")[0]
    curves: dict[str, dict[str, pd.Series]] = {}
    for (hops, name), part in rows.groupby([group, verifier], sort=False):
        curves.setdefault(str(hops), {})[str(name)] = part.set_index("budget")["success"]
    ordered = sorted(curves, key=lambda hops: int(hops.split("-")[0]))
    return {hops: curves[hops] for hops in ordered}


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
    from citypaths import memory_tables  # it reads this module

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
    """Generate the tables of both READMEs from the ledger (`python -m citypaths.results`)."""
    pages = (project_root() / "README.md", reports_dir() / "README.md")
    for page in filter(Path.exists, pages):
        filled = fill_tables(page.read_text(encoding="utf-8"))
        write_bytes(page, filled.encode())
        sys.stderr.write(f"tables of {page.parent.name}/{page.name} generated from the ledger\n")


if __name__ == "__main__":
    main()
