r"""Datasets and sweeps of notebooks on Dask workers, from the command line or from Python.

    dask scheduler                               # on one machine, then on each machine a worker:
    dask worker tcp://HOST:8786 --nthreads 1     # in a checkout and an environment like these
    python -m commands.cluster generate --size medium --client tcp://HOST:8786
    python -m commands.cluster sweep notebooks/03-rnn-baselines.ipynb \
        -g seed 0 1 2 -g size small --client tcp://HOST:8786

Without --client the same is done here, one after another; `--client local` starts workers here.
Whoever reaches the scheduler can run code: a cluster is for machines that trust one another.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from itertools import product, starmap
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from tqdm import tqdm

from citypaths import lab, sizes
from citypaths.data.splits import SPLITS
from citypaths.data.workers import ClusterError, Where, connected, spread
from citypaths.files import DataFileError, data_dir, digest, read_json, write_bytes, write_json
from citypaths.judging import ledger
from commands.notebooks import (
    RunnerError,
    check_parameters,
    exit_status,
    only_writer,
    parse_value,
    read_notebook,
)

NAMED = ("size", "seed", "overrides")  # parameters that a recorded run has in its name
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
LAST = 4000  # characters kept of what a failed run said


def sweep(
    notebook: Path, grid: dict[str, list[Any]], out: Path, client: Where = None
) -> pd.DataFrame:
    """Run a notebook for every combination of a grid and file what the runs record.

    Every run is a process of its own with its own ledger folder, kernel and working directory, on
    a worker when there is a client. Its executed copy goes to `out` and its records to the ledger
    here. A run is skipped when `out` has its records, of the same parameters and cells; a change of
    the package is not noticed. Interrupted, the sweep leaves workers to end what they have begun.

    Args:
        notebook: the notebook; what it reads must be there on every worker.
        grid: values by parameter; no parameter at all is one run with the defaults.
        out: folder of the executed notebooks.
        client: as for `make_dataset`; None runs one after another, on this machine.

    Returns:
        The ledger rows of all runs, in the order of the grid.

    Raises:
        RunnerError: an unknown parameter or no list of values: nothing was run. Or some runs
            failed, told at the end: part of a sweep must not pass for the whole. The others are
            finished and filed, and the same call skips them.
        ClusterError, ImportError: the cluster cannot be used.
    """
    runs, failed = _runs(notebook, grid), {}
    several = [n for n, values in grid.items() if len(values) > 1 and n not in NAMED]
    with only_writer(out / notebook.name):
        todo = [name for name in runs if not (out / f"{name}.json").exists()]
        jobs = [(name, notebook.read_bytes(), runs[name]) for name in todo]
        bar = tqdm(desc=notebook.stem, unit="run", total=len(runs), initial=len(runs) - len(jobs))
        with bar, connected(client if jobs else None) as cluster:
            ended = spread(cluster, run_apart, jobs) if cluster else starmap(run_apart, jobs)
            for name, executed, records, error in ended:
                _file(out, name, executed, records, error, {n: runs[name][n] for n in several})
                if error:
                    failed[name] = f"{_words(runs[name])}: {error}"
                bar.update()
    if failed:
        lines = (failed[name] for name in runs if name in failed)
        raise RunnerError("\n".join([f"{len(failed)} of {len(runs)} runs failed", *lines]))
    bodies = [body for name in runs for body in read_json(out / f"{name}.json", "the sweep")]
    rows = [row for body in bodies for row in ledger.rows_of(body)]
    return pd.DataFrame(rows, columns=list(ledger.COLUMNS))


def _words(run: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in run.items())


def _runs(notebook: Path, grid: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
    """The parameters of every run by its name, which tells them and the notebook's cells."""
    check_parameters(notebook, grid)
    for name, values in grid.items():
        if not isinstance(values, list | tuple | range) or not len(values):
            raise RunnerError(f"a grid has a list of values for {name}, not {values!r}")
    try:
        points = [json.loads(json.dumps(point)) for point in product(*grid.values())]
    except TypeError as error:
        raise RunnerError(f"a grid holds plain values ({error})") from None
    cells, runs = [cell.source for cell in read_notebook(notebook).cells], {}
    for run in (dict(zip(grid, point, strict=True)) for point in points):
        slug = re.sub(r"[^\w-]+", "_", "".join(f"-{name}{value}" for name, value in run.items()))
        runs[f"{notebook.stem}{slug[:80]}-{digest([run, cells])}"] = run
    return runs


def _file(
    out: Path, name: str, executed: bytes, records: list[dict], error: str, extra: dict[str, Any]
) -> None:
    """Keep a run's executed copy; file its records, a copy of which marks the run as done.

    `extra` are parameters that name the records apart from those of other points of the grid.
    """
    failed = out / f"{name}.failed.ipynb"
    if executed:
        write_bytes(failed if error else out / f"{name}.ipynb", executed)
    if error:
        return
    if extra:
        apart = {"parameters": extra}
        records = [b | {"run": f"{b['run']}-{digest(extra)}"} | apart for b in records]
    for body in records:
        ledger.file_record(body)
    write_json(out / f"{name}.json", records)
    failed.unlink(missing_ok=True)


def run_apart(
    name: str, source: bytes, parameters: dict[str, Any]
) -> tuple[str, bytes, list[dict[str, Any]], str]:
    """Run a notebook given as bytes in a process, a ledger and a folder of its own, one thread.

    Returns:
        The name; the executed copy, up to the failed cell where one failed (may be empty); the
        records it wrote; and what went wrong, empty for a run that ended well.
    """
    with tempfile.TemporaryDirectory(prefix="citypaths-") as made:
        folder = Path(made)
        notebook, out = folder / f"{name}.ipynb", folder / "out" / f"{name}.ipynb"
        notebook.write_bytes(source)
        command = [sys.executable, "-m", "commands.notebooks", "run", str(notebook), str(out)]
        command += ["-y", yaml.safe_dump(parameters)]
        environment = os.environ | dict.fromkeys(THREADS, "1")  # sums depend on it
        environment |= {"CITYPATHS_REPORTS": str(folder / "reports")}
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        run = subprocess.run(command, env=environment, **pipes)
        said = run.stderr.strip()[-LAST:].removeprefix("error: ") or f"status {run.returncode}"
        said = said.replace(f"{out.parent}/", "").replace(f"{folder}/", "")
        kept = out.with_suffix(".failed.ipynb") if run.returncode else out
        executed = kept.read_bytes() if kept.exists() else b""
        paths = sorted(folder.glob("reports/runs/*.json"))
        records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        return name, executed, records, said if run.returncode else ""


def read_value(text: str) -> Any:
    """Read a value as papermill does, and a list or a mapping as YAML."""
    return yaml.safe_load(text) if text[:1] in ("[", "{") else parse_value(text)


def parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    main = argparse.ArgumentParser(prog="python -m commands.cluster", description="Use workers.")
    commands = main.add_subparsers(dest="command", required=True)
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--client", help="tcp://HOST:8786 of a Dask scheduler, or local")
    make = commands.add_parser("generate", parents=[where], help="make a size's dataset")
    make.add_argument("--size", default="small", choices=sizes.SIZES)
    make.add_argument("--split", default="pair", choices=SPLITS)
    runs = commands.add_parser("sweep", parents=[where], help="run a notebook over a grid")
    runs.add_argument("notebook", type=Path)
    runs.add_argument("-g", nargs="+", action="append", default=[], metavar=("NAME", "VALUE"))
    runs.add_argument("--out", type=Path, help="default: data/executed/sweep-NOTEBOOK")
    return main


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""

    def carry_out() -> None:
        options = parser().parse_args(arguments)
        if options.command == "generate":
            size = sizes.get_size(options.size)
            graph = lab.size_graph(size, make=True)
            where = {"make": True, "client": options.client}
            made = lab.size_dataset(size, graph, options.split, **where)
            counts = ", ".join(f"{count:,} {name}" for name, count in made.counts.items())
            print(f"{made.folder}: {counts} in {len(made.shards)} shards")
            return
        grid = {name: [read_value(text) for text in values] for name, *values in options.g}
        out = options.out or data_dir() / "executed" / f"sweep-{options.notebook.stem}"
        rows = sweep(options.notebook, grid, out, options.client)
        print(f"{len(rows)} ledger rows; executed copies in {out}")

    told = (RunnerError, ClusterError, DataFileError, ImportError)
    return exit_status(carry_out, told, "goes on from there")


if __name__ == "__main__":
    sys.exit(main())
