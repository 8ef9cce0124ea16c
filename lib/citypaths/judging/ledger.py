"""The ledger: one JSON a run, a row a scored method, one CSV of all rows.

Runs are recorded under `data/ledger`; `publish` moves them to `reports`, which is committed.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from citypaths.files import (
    DataFileError,
    atomic_write,
    digest,
    lock,
    project_root,
    records_dir,
    remove_parts,
    reports_dir,
    sealed,
    write_bytes,
    write_json,
)
from citypaths.sizes import SIZES, Size, settings_of

# What each column holds: text ("" is none), a flag, a number, or a share from 0 to 1.
COLUMNS = {
    "commit": "text",
    "dirty": "flag",
    "notebook": "text",
    "study": "text",  # which experiment of the notebook
    "size": "text",
    "seed": "number",
    "graph": "text",
    "orientation": "text",
    "split": "text",  # how the queries were held out
    "subset": "text",  # which of them: "" is all
    "queries": "number",
    "regime": "text",
    "family": "text",
    "model": "text",  # "none" without one
    "method": "text",
    "attempts": "number",  # paths drawn, beams or simulations a query
    "verifier": "text",  # what chooses among attempts
    "loops": "number",
    "rounds": "number",
    "share": "share",  # of hops closed, or of paths learned
    "cities": "number",  # on a map that is shown
    "shown": "number",  # paths shown of it
    "parameters": "number",
    "memory_numbers": "number",
    "training_flops": "number",
    "inference_flops": "number",
    "lookups": "number",
    "expansions": "number",
    "seconds_per_query": "number",
    "device": "text",
    "threads": "number",
    "loss": "number",
    "next_hop": "share",
    "recall": "share",
    "legal": "share",
    "arrives": "share",
    "bounded_00": "share",
    "bounded_01": "share",
    "bounded_05": "share",
    "bounded_10": "share",
    "success": "share",
    "success_low": "share",
    "success_high": "share",
    "optimal": "share",
    "exact": "share",
    "hard_queries": "number",
    "hard_success": "share",
    "hard_success_low": "share",
    "hard_success_high": "share",
    "run": "text",
}
GREAT_CIRCLE = 30  # operations of one look-up with its distance and estimate: a convention
REGIMES = ("closed_book", "checked", "open_map")
FAMILIES = (
    "floor",
    "graph search",
    "greedy",
    "sample",
    "beam",
    "best of N",
    "evolution",
    "tree search",
    "refinement",
    "more loops",
    "memory",
    "learning",
)
OUTSIDE_REPORTS = ("--", ".", ":(exclude)reports")
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
    """Write a run's JSON in `records_dir`, and its CSV anew; a rerun replaces its own rows.

    Args:
        rows: one dict a method, with the ledger's column names; `regime` and `family` are required.
        shared: columns that all rows have in common.

    Raises:
        ValueError: an unknown column, regime or family, or a value that its column does not hold.
    """
    names = {"notebook": notebook, "size": size.name, "seed": seed, "device": device}
    names |= _code() | {"threads": torch.get_num_threads()} | shared
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
        ValueError: a run whose name is no file name, or what `record` refuses.
    """
    if not re.fullmatch(r"\w[\w.-]*", body["run"]):
        raise ValueError(f"a run is named with letters, digits, dots and dashes: {body['run']!r}")
    for row in body["rows"]:
        _check(row)
    folder = records_dir()
    path = folder / "runs" / f"{body['run']}.json"
    with lock(path.parent / ".lock"):
        remove_parts(path.parent)
        remove_parts(folder, "results.csv")
        write_json(path, sealed(body))
        write_csv(folder)
    return path


def publish(size: str, seed: int) -> list[Path]:
    """Move a size's runs of a seed, and its figures, from `records_dir` to `reports_dir`.

    Returns: what was moved, at its new place.
    """
    here, there = records_dir(), reports_dir()
    if here == there:
        return []
    runs = [*here.glob(f"runs/*-{size}-seed{seed}.json")]
    runs += here.glob(f"runs/*-{size}-seed{seed}-*.json")
    others = {name for name in SIZES if name != size}
    figures = [p for p in here.glob("figures/*.png") if p.stem.rpartition("-")[2] not in others]
    moved = []
    with lock(here / "runs" / ".lock"), lock(there / "runs" / ".lock"):
        for path in sorted([*runs, *figures]):
            moved.append(there / path.relative_to(here))
            write_bytes(moved[-1], path.read_bytes())
            path.unlink()
        for folder in (here, there):
            write_csv(folder)
    return moved


def _check(row: dict[str, Any]) -> None:
    unknown = set(row) - set(COLUMNS)
    if unknown:
        raise ValueError(f"the ledger has no column {sorted(unknown)}; known: {', '.join(COLUMNS)}")
    for name, named in (("regime", REGIMES), ("family", FAMILIES)):
        if row.get(name) not in named:
            raise ValueError(f"{name} is one of {', '.join(named)}, not {row.get(name)!r}")
    for name, value in row.items():
        if value is not None and not KINDS[COLUMNS[name]][1](value):
            raise ValueError(f"{name} is {KINDS[COLUMNS[name]][0]}, not {value!r}")


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, bool | np.bool_)


KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "text": ("text", lambda x: isinstance(x, str)),
    "flag": ("true or false", lambda x: isinstance(x, bool | np.bool_)),
    "number": ("a number", _is_number),
    "share": (
        "a share from 0 to 1",
        lambda x: _is_number(x) and (math.isnan(x) or 0 <= x <= 1),
    ),
}


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Native numbers; what is not a number is null, so that the file is strict JSON."""
    plain = {k: v.item() if hasattr(v, "item") else v for k, v in row.items()}
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()
    }


def _code() -> dict[str, Any]:
    """The commit, and whether files differ from it; unknown where git does not say."""
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", *OUTSIDE_REPORTS)
    if not commit or changes is None:
        return {"commit": commit or "unknown", "dirty": None}
    return {"commit": commit, "dirty": bool(changes)}


def _git(*words: str) -> str | None:
    """What git prints in this repository; None where it fails."""
    try:
        command = ["git", "-C", str(project_root()), *words]
        run = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def load_results(*folders: Path) -> pd.DataFrame:
    """Return every row of every recorded run, text columns "" and others missing where unknown.

    Args:
        folders: with recorded `runs`; of two runs of a name the later folder's counts. Default:
            `reports_dir` and `records_dir`.

    Raises:
        DataFileError: a run's JSON is damaged; the message names it.
    """
    rows: list[dict[str, Any]] = []
    folders = folders or (reports_dir(), records_dir())
    paths = {path.name: path for folder in folders for path in (folder / "runs").glob("*.json")}
    for _, path in sorted(paths.items()):
        try:
            rows += _checked_rows(json.loads(path.read_text(encoding="utf-8")), path.stem)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataFileError(
                f"{path} is no recorded run ({error}): restore it or delete it"
            ) from error
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    for name, kind in COLUMNS.items():
        if kind == "text":
            table[name] = table[name].astype(object).where(table[name].notna(), "")
        elif kind != "flag":
            table[name] = pd.to_numeric(table[name])
    return table


def largest_run(rows: pd.DataFrame) -> pd.DataFrame:
    """Return of some rows of the ledger those of the run that has most of them."""
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


def write_csv(folder: Path) -> None:
    """Write `results.csv`: every row of the runs in a folder."""
    with atomic_write(folder / "results.csv") as part:
        load_results(folder).to_csv(part, index=False, float_format="%.6g")


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


def operations(rows: pd.DataFrame) -> pd.Series:
    """Return inference FLOPs a query, with `GREAT_CIRCLE` for each look-up."""
    lookups = GREAT_CIRCLE * rows["lookups"].fillna(0.0)
    return rows["inference_flops"].fillna(0.0) + lookups
