"""Train arms of the table of recipes from the command line, in one process or under torchrun.

    python -m commands.train --size small --arm gru-128 --seed 0
    python -m commands.train --size medium --arm feedback looped-sampled --seed 1
    torchrun --nproc_per_node 8 -m commands.train --size full --arm gru-512

The model lands in the folder where the notebook looks for it, and is not trained again there.
"""

from __future__ import annotations

import argparse
import json
import sys

import studies.recurrence
import studies.refinement
import studies.search  # noqa: F401  they register their networks
from citypaths import lab
from citypaths.files import DataFileError
from citypaths.sizes import Size, get_size
from citypaths.training import recipes
from citypaths.training.distributed import Team, join, leave
from citypaths.training.loop import Diverged, Trained


def parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    main = argparse.ArgumentParser(prog="python -m commands.train", description="Train arms.")
    main.add_argument("--size", default="small", help="tiny, small, medium or full")
    main.add_argument(
        "--arm", nargs="+", help="such as gru-128 or feedback (default: all of notebook 03)"
    )
    main.add_argument("--seed", type=int, default=0)
    main.add_argument(
        "--overrides", type=json.loads, default={}, metavar="JSON", help='{"budget": 1e12}'
    )
    return main


def train_arms(size: Size, arms: list[str], seed: int, team: Team) -> dict[str, Trained]:
    """Train arms of a size as its notebooks do; rank 0 watches what notebook 03 watches.

    Raises:
        DataFileError: the size's graph or dataset is not there: a notebook makes it.
    """
    dataset = lab.size_dataset(size, lab.size_graph(size))
    watch = lab.watch(lab.Queries.of(dataset, "valid").uncontained().first(500))
    watched = recipes.arms(size, "baselines")
    return {
        arm: lab.train_arm(
            size, dataset, arm, seed, watch if team.first and arm in watched else None
        )
        for arm in arms
    }


def run(arguments: list[str] | None = None) -> None:
    """Train what the arguments name; rank 0 prints a line an arm."""
    options = parser().parse_args(arguments)
    try:
        size = get_size(options.size, options.overrides)
        arms = options.arm or list(recipes.arms(size, "baselines"))
        for arm in arms:
            recipes.recipe(size, arm)
    except ValueError as error:
        parser().error(str(error))
    team = join()
    trained = train_arms(size, arms, options.seed, team)
    if team.first:
        for arm, done in trained.items():
            last = done.history.iloc[-1]
            loss = f"{last.get('valid_loss', last['batch_loss']):.3f}"
            kind = "validation" if "valid_loss" in last else "batch"
            print(f"{arm}: {done.steps} steps, {done.seconds:.0f} s, {kind} loss {loss}")
    leave()


def main(arguments: list[str] | None = None) -> int:
    """Run; return 1 after an error that explains itself."""
    try:
        run(arguments)
    except (DataFileError, Diverged) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
