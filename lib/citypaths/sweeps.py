"""A notebook over a grid of parameters, here or on Dask workers, its runs filed in the ledger."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from tqdm import tqdm

from citypaths import sizes
from citypaths.apart import Outcome, run_apart
from citypaths.data.workers import ClusterError, Where, connected, spread
from citypaths.files import write_bytes
from citypaths.judging import ledger as results
from citypaths.notebooks import RunnerError, check_parameters, only_writer, read_notebook, tags

NAMED = ("size", "seed", "overrides")  # parameters that a recorded run has in its name


class SweepError(RunnerError):
    """Runs of a sweep failed; the others are finished and filed, and the same call skips them.

    Attributes:
        failed: one row a failed run: its parameters and `message`.
        rows: the ledger rows of the finished runs.
    """

    def __init__(self, failed: pd.DataFrame, rows: pd.DataFrame, runs: int) -> None:
        lines = [f"{len(failed)} of {runs} runs failed"]
        for run in failed.to_dict("records"):
            message = run.pop("message")
            lines.append(f"{', '.join(f'{n}={v}' for n, v in run.items())}: {message}")
        super().__init__("\n".join(lines))
        self.failed, self.rows = failed, rows


def sweep(
    notebook: Path,
    grid: dict[str, list[Any]],
    out: Path,
    client: Where = None,
    *,
    timeout: float | None = None,
    threads: int = 1,
) -> pd.DataFrame:
    """Run a notebook for every combination of a grid and file what the runs record.

    Every run is a process of its own with its own ledger folder, kernel and working directory, on
    a worker when there is a client. Its executed copy goes to `out` and its records to the ledger
    here. A run is skipped when `out` has its copy, with the same parameters and cells; a change of
    the package is not noticed. Interrupted, the sweep leaves workers to end what they have begun.

    Args:
        notebook: the notebook; what it reads must be there on every worker.
        grid: values by parameter; no parameter at all is one run with the defaults.
        out: folder of the executed notebooks.
        client: see `workers.connected`; None runs one after another, on this machine.
        timeout: seconds after which a run is stopped and counts as failed.
        threads: cores a run may use, the same everywhere since floating-point sums depend on it.

    Returns:
        The ledger rows of all runs, in the order of the grid.

    Raises:
        RunnerError: an unknown parameter or no list of values; nothing was run.
        SweepError: some runs failed, told at the end: part of a sweep must not pass for the whole.
        ClusterError, ImportError: the cluster cannot be used.
    """
    runs = _runs(notebook, grid)
    several = [n for n, values in grid.items() if len(values) > 1 and n not in NAMED]
    failed = {}
    with only_writer(out / notebook.name):
        records = {name: _records(out, name, notebook, runs[name]) for name in runs}
        todo = {name: runs[name] for name in runs if records[name] is None}
        bar = tqdm(desc=notebook.stem, unit="run", total=len(runs), initial=len(runs) - len(todo))
        with bar:
            for name, outcome in _outcomes(client, notebook, todo, timeout, threads):
                records[name] = _keep(outcome, out, name, {n: runs[name][n] for n in several})
                if outcome.error:
                    failed[name] = runs[name] | {"message": outcome.error}
                bar.update()
    rows = [row for bodies in records.values() for body in bodies for row in results.rows_of(body)]
    table = pd.DataFrame(rows, columns=list(results.COLUMNS))
    if failed:
        listed = [failed[name] for name in runs if name in failed]
        raise SweepError(pd.DataFrame(listed), table, len(runs))
    return table


def _runs(notebook: Path, grid: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
    """The parameters of every run by its name, which tells them."""
    check_parameters(notebook, grid)
    for name, values in grid.items():
        if not isinstance(values, list | tuple | range) or not len(values):
            raise RunnerError(f"a grid has a list of values for {name}, not {values!r}")
    try:
        points = [json.loads(json.dumps(point)) for point in product(*grid.values())]
    except TypeError as error:
        raise RunnerError(f"a grid holds plain values ({error})") from None
    runs = [dict(zip(grid, point, strict=True)) for point in points]
    return {f"{notebook.stem}{_slug(run)}-{sizes.digest(run)}": run for run in runs}


def _slug(parameters: dict[str, Any]) -> str:
    words = "".join(f"-{name}{value}" for name, value in parameters.items())
    return re.sub(r"[^\w-]+", "_", words)[:80]


def _records(
    out: Path, name: str, notebook: Path, parameters: dict[str, Any]
) -> list[dict[str, Any]] | None:
    """What an earlier sweep's run recorded; None when there is none of this notebook as it is."""
    if not (out / f"{name}.ipynb").exists():
        return None
    executed = read_notebook(out / f"{name}.ipynb")
    cells = [c.source for c in executed.cells if "injected-parameters" not in tags(c)]
    same = cells == [cell.source for cell in read_notebook(notebook).cells]
    kept = executed.metadata.get("citypaths", {})
    return kept["records"] if same and kept.get("parameters") == parameters else None


def _outcomes(
    client: Where,
    notebook: Path,
    todo: dict[str, dict[str, Any]],
    timeout: float | None,
    threads: int,
) -> Iterator[tuple[str, Outcome]]:
    """Run what is to do and yield every run's outcome as it ends."""
    jobs = [(name, notebook.read_bytes(), todo[name], timeout, threads) for name in todo]
    with connected(client if jobs else None) as cluster:
        for (name, *_), fetch in spread(cluster, run_apart, jobs):
            yield name, _outcome(fetch)


def _outcome(fetch: Callable[[], Outcome]) -> Outcome:
    """A run's outcome; an error beside the notebook fails this run, a lost cluster all."""
    try:
        return fetch()
    except ClusterError:
        raise
    except Exception as error:
        return Outcome(b"", [], f"{type(error).__name__}: {error}")


def _keep(outcome: Outcome, out: Path, name: str, extra: dict[str, Any]) -> list[dict[str, Any]]:
    """File a run's records, then write its executed copy, which holds them and marks it done."""
    failed = out / f"{name}.failed.ipynb"
    if outcome.error:
        if outcome.notebook:
            write_bytes(failed, outcome.notebook)
        return []
    records = [_named_apart(body, extra) for body in outcome.records]
    for body in records:
        results.file_record(body)
    executed = nbformat.reads(outcome.notebook.decode(), as_version=4)
    parameters = executed.metadata.papermill.parameters
    executed.metadata["citypaths"] = {"parameters": parameters, "records": records}
    write_bytes(out / f"{name}.ipynb", nbformat.writes(executed).encode())
    failed.unlink(missing_ok=True)
    return records


def _named_apart(body: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """A record that no other point of the grid replaces, though size and seed be the same."""
    if not extra:
        return body
    return body | {"run": f"{body['run']}-{sizes.digest(extra)}", "parameters": extra}
