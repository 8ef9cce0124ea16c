"""What notebook 07 does with episodes: arms of equal size, their training, and exams."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch

from citypaths import lab
from citypaths.judging.ledger import arms_of
from citypaths.judging.methods import Method
from citypaths.judging.metrics import ledger_rates
from citypaths.sizes import Size
from citypaths.training.loop import Evaluate, Trained
from citypaths.training.recipes import EPISODES_A_BATCH, recipe
from studies.episodes.atlas import Atlas
from studies.episodes.exam import Answers, answer, judge, recall, walk_at_random, walk_nearest
from studies.episodes.memory import Tap, blanked, numbers_held, swapped
from studies.episodes.model import EpisodeModel, Lessons, make_memory
from studies.episodes.task import Episodes, Task, draw_episodes

PARAMETERS = 48_000  # of the memory of every arm, at most
EXAM = 9_000  # seed of exams, which no training has
Runs = Mapping[tuple[str, int], Trained]  # by arm and seed


@cache
def fitted(kind: str, width: int, parameters: int, **settings: Any) -> int:
    """Return the largest `hidden`, a multiple of 4, of a memory with at most so many parameters.

    Raises:
        ValueError: not even the smallest fits.
    """

    def count(hidden: int) -> int:
        return make_memory(kind, width, hidden=hidden, **settings).parameters_count

    fit = bisect_right(range(4, 2048, 4), parameters, key=count)
    if not fit:
        raise ValueError(f"a {kind} of width {width} has more than {parameters:,} parameters")
    return 4 * fit


def task_of(size: Size) -> Task:
    """Return the task that a size trains on."""
    return Task(cities=size.map_cities, degree=2.5, closures=3, delay=8, queries=8, recalls=10)


def train_arm(size: Size, atlas: Atlas, label: str, seed: int) -> Trained:
    """Train (or load) an arm on a size's episodes, watched on episodes of its own."""
    arm, task = recipe(size, label, "episodes"), task_of(size)
    lessons = Lessons(task, atlas, EPISODES_A_BATCH, least=max(4, 2 * size.map_cities // 3))
    fits = {"symbols": task.symbols, "hidden": fitted(**arm.settings, parameters=PARAMETERS)}
    watch = watched(asked(task.varied(closures=0, delay=0), atlas, 64, seed=1))
    return lab.train_arm(size, lessons, arm, seed, watch, settings=fits)


def asked(task: Task, atlas: Atlas, count: int, seed: int = 0) -> Episodes:
    """Return episodes for an exam."""
    return draw_episodes(task, atlas, count, np.random.default_rng([EXAM, seed]))


def watched(episodes: Episodes) -> Evaluate:
    """Return an evaluation for the training history: loss, success and recall on episodes."""

    def evaluate(model: EpisodeModel) -> dict[str, float]:
        loss = float(model.loss(episodes.steps.to(next(model.parameters()).device)))
        return {"valid_loss": loss, **marks(episodes, answer(model, episodes))}

    return evaluate


def marks(episodes: Episodes, answers: Answers) -> dict[str, float]:
    """Return success, hard-subset success and recall of answers."""
    judged = judge(episodes, answers)
    hard = judged[judged["hard"]]
    rates = {"success": judged["success"].mean(), "hard_success": hard["success"].mean()}
    return rates | {"recall": float(recall(episodes, answers).mean())}


def cards(trained: Runs) -> pd.DataFrame:
    """Return one row an arm: its size, what it holds, and what it costs (means over seeds).

    Columns: parameters, numbers held (after 128 steps), FLOPs a step, steps, training
    FLOPs and seconds.
    """
    table = {}
    for label, some in _by_arm(trained).items():
        model = some[0].model.eval()
        with torch.inference_mode():
            _, state = model.memory(torch.zeros(1, 128, model.memory.width, device=lab.device()))
        table[label] = {
            "parameters": model.memory.parameters_count,
            "numbers held": numbers_held(state),
            "FLOPs a step": model.flops_per_step(),
            "steps": some[0].steps,
            "training FLOPs": some[0].training_flops,
            "seconds": np.mean([one.seconds for one in some]),
        }
    return pd.DataFrame(table).T


def _by_arm(trained: Runs) -> dict[str, list[Trained]]:
    labels = dict.fromkeys(label for label, _ in trained)
    return {label: [one for (name, _), one in trained.items() if name == label] for label in labels}


def learning_curves(trained: Runs) -> pd.DataFrame:
    """Return the histories of all arms with the seconds spent until each evaluation.

    Seconds are the run's, in proportion to the steps read so far.
    """
    parts = []
    for (label, seed), one in trained.items():
        spent = one.seconds * one.history["tokens"] / one.history["tokens"].max()
        parts.append(one.history.assign(arm=label, seed=seed, seconds=spent))
    return pd.concat(parts, ignore_index=True)


def exams(task: Task, held: Atlas, foreign: Atlas, count: int) -> dict[str, Episodes]:
    """Return all exams by name, `count` episodes each.

    Two dials are turned: cities on the map, all its edges shown, and solved paths shown. The other
    exams show the edges of maps as large as in training: closures told after the map, blank steps
    before the questions, maps of another atlas.
    """
    n, plain = task.cities, task.varied(closures=0, delay=0, show="edges")
    tasks = {f"{m} cities": plain.varied(cities=m) for m in (2 * n // 3, n, 4 * n // 3, 2 * n)}
    for m in (n // 3, n, 2 * n, 4 * n):
        tasks[f"{m} paths shown"] = plain.varied(show="paths", shown=m)
    tasks |= {f"{m} closed": plain.varied(closures=m) for m in (1, n // 2)}
    tasks["delay 64"] = plain.varied(delay=64)
    drawn = {name: asked(one, held, count) for name, one in tasks.items()}
    return drawn | {foreign.name: asked(plain, foreign, count)}


def row(name: str, episodes: Episodes, answers: Answers, method: Method) -> dict[str, Any]:
    """Return the ledger's row of a method's answers to an exam.

    `cities` and `shown` (solved paths) are the dials; another exam's name is the `subset`.
    """
    task, rates = episodes.task, ledger_rates(judge(episodes, answers))
    shown = task.shown if task.show == "paths" else None
    dialled = shown is not None or name == f"{task.cities} cities"
    what = {"study": "episodes", "split": "episodes", "subset": "" if dialled else name}
    what |= {"cities": task.cities, "shown": shown, "lookups": 0.0, "expansions": 0.0}
    what |= {"recall": float(recall(episodes, answers).mean())} if task.recalls else {}
    return rates | method.columns | what


def examine(trained: Runs, exams: Mapping[str, Episodes]) -> list[dict[str, Any]]:
    """Return ledger rows of every (arm, seed) on every exam."""
    rows = []
    for (label, seed), one in trained.items():
        method = Method.of(label, one, name="greedy", family="memory", regime="closed_book")
        for name, episodes in exams.items():
            found = row(name, episodes, answer(one.model, episodes), method) | {"seed": seed}
            steps = episodes.steps.kind.shape[1] / episodes.task.queries
            rows.append(found | {"inference_flops": steps * one.model.flops_per_step()})
    return rows


def floor_rows(exams: Mapping[str, Episodes]) -> list[dict[str, Any]]:
    """Return ledger rows of the walks that know the map but do not plan, on every exam."""
    rows = []
    for name, episodes in exams.items():
        walks = {"random walk": walk_at_random(episodes, np.random.default_rng(0))}
        walks["nearest hop"] = walk_nearest(episodes)
        for walk, answers in walks.items():
            method = Method(name=walk, family="floor", regime="open_map", training_flops=0.0)
            found = row(name, episodes, answers, method)
            rows.append(found | {"seed": 0, "inference_flops": 0.0})
    return rows


def over_seeds(rows: Iterable[Mapping[str, Any]], column: str = "hard_success") -> pd.DataFrame:
    """Return a ledger column by arm and exam: the mean over seeds."""
    frame = pd.DataFrame(list(rows)).assign(arm=arms_of)
    exam = ["cities", "shown", "subset"]
    table = frame.groupby(["arm", *exam], sort=False, dropna=False)[column].mean().unstack(exam)
    table.columns = [
        subset or (f"{cities} cities" if pd.isna(shown) else f"{shown:.0f} paths shown")
        for cities, shown, subset in table.columns
    ]
    return table


TAPS: dict[str, tuple[Tap | None, torch.dtype | None]] = {
    "as it is": (None, None),
    "reads blanked": (blanked, None),
    "reads swapped": (swapped, None),
    "half precision": (None, torch.bfloat16),
}
SHARES = (0.5, 2.0)


def influence(trained: Runs, episodes: Episodes) -> pd.DataFrame:
    """Return hard-subset success of every arm (mean over seeds) when its memory is tampered with.

    From the first question on, reads are blanked or taken from another episode; the memory is kept
    in bfloat16 throughout; or it has a share of its size in training, where no weight depends on
    that. Columns: `TAPS` and `SHARES`; what does not change was not used.
    """
    table: dict[str, dict[str, float]] = {}
    for label, some in _by_arm(trained).items():
        models = [one.model for one in some]
        cells = {name: [_hard(m, episodes, *how) for m in models] for name, how in TAPS.items()}
        dial = next((d for d in ("slots", "memory") if hasattr(models[0].memory, d)), None)
        for share in SHARES if dial else ():
            cells[f"{share:g} x memory"] = [_resized(m, dial, share, episodes) for m in models]
        table[label] = {name: float(np.mean(each)) for name, each in cells.items()}
    return pd.DataFrame(table).T


def _hard(model: EpisodeModel, episodes: Episodes, *how: Any) -> float:
    return marks(episodes, answer(model, episodes, *how))["hard_success"]


def _resized(model: EpisodeModel, dial: str, share: float, episodes: Episodes) -> float:
    own = getattr(model.memory, dial)
    setattr(model.memory, dial, max(1, round(share * own)))
    try:
        return _hard(model, episodes)
    finally:
        setattr(model.memory, dial, own)
