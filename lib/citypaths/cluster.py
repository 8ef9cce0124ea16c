r"""Datasets and sweeps of notebooks on Dask workers, from the command line or from Python.

    dask scheduler                               # on one machine, then on each machine a worker:
    dask worker tcp://HOST:8786 --nthreads 1     # in a checkout and an environment like these
    python -m citypaths.cluster generate --size medium --client tcp://HOST:8786
    python -m citypaths.cluster sweep notebooks/03-rnn-baselines.ipynb \
        -g seed 0 1 2 -g size small --client tcp://HOST:8786

Without --client the same is done here, one after another; `--client local` starts workers here.
A cluster is for machines that trust one another: see `citypaths.workers`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from citypaths import lab, sizes
from citypaths.data.dataset import Dataset
from citypaths.data.splits import SPLITS, Split
from citypaths.data.workers import ClusterError, Where
from citypaths.files import DataFileError, data_dir
from citypaths.notebooks import RunnerError, exit_status, read_parameters
from citypaths.sweeps import SweepError, sweep

__all__ = ["ClusterError", "SweepError", "generate", "sweep"]


def generate(size: str, split: Split = "pair", client: Where = None) -> Dataset:
    """Return a size's dataset, its missing shards made by the workers of `client`."""
    setting = sizes.get_size(size)
    graph = lab.size_graph(setting, make=True)
    return lab.size_dataset(setting, graph, split, make=True, client=client)


def read_grid(words: list[list[str]], documents: list[str]) -> dict[str, list[Any]]:
    """Read `-y` YAML mappings of lists and `-g` names with values; the latter win.

    Raises:
        RunnerError: a name without values, or a YAML document that is no mapping.
    """
    for name, *values in words:
        if not values:
            raise RunnerError(f"-g {name} wants at least one value, such as -g {name} 0 1")
    read = {n: [read_parameters([[n, v]], [])[n] for v in values] for n, *values in words}
    return read_parameters([], documents) | read


def parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    main = argparse.ArgumentParser(prog="python -m citypaths.cluster", description="Use workers.")
    commands = main.add_subparsers(dest="command", required=True)
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--client", help="tcp://HOST:8786 of a Dask scheduler, or local")
    make = commands.add_parser("generate", parents=[where], help="make a size's dataset")
    make.add_argument("--size", default="small", choices=sizes.SIZES)
    make.add_argument("--split", default="pair", choices=SPLITS)
    runs = commands.add_parser("sweep", parents=[where], help="run a notebook over a grid")
    runs.add_argument("notebook", type=Path)
    runs.add_argument("-g", nargs="+", action="append", default=[], metavar=("NAME", "VALUE"))
    runs.add_argument("-y", action="append", default=[], metavar="YAML", help="{name: [values]}")
    runs.add_argument("--out", type=Path, help="default: data/executed/sweep-NOTEBOOK")
    runs.add_argument("--timeout", type=float, help="seconds a run may take")
    runs.add_argument("--threads", type=int, default=1, help="cores a run may use (default: 1)")
    return main


def command_line(options: argparse.Namespace) -> str:
    """Carry out one command and return what to tell."""
    if options.command == "generate":
        made = generate(options.size, options.split, options.client)
        counts = ", ".join(f"{count:,} {name}" for name, count in made.counts.items())
        return f"{made.folder}: {counts} in {len(made.shards)} shards"
    grid = read_grid(options.g, options.y)
    out = options.out or data_dir() / "executed" / f"sweep-{options.notebook.stem}"
    limits = {"timeout": options.timeout, "threads": options.threads}
    rows = sweep(options.notebook, grid, out, options.client, **limits)
    return f"{len(rows)} ledger rows; executed copies in {out}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    told = (RunnerError, ClusterError, DataFileError, ImportError)

    def carry_out() -> None:
        print(command_line(parser().parse_args(arguments)))

    return exit_status(carry_out, told, "goes on from there")


if __name__ == "__main__":
    sys.exit(main())
