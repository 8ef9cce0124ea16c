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
from citypaths.training.loop import Trained
from citypaths.training.recipes import EPISODES_A_BATCH, recipe
from studies.episodes.exam import Answers, answer, judge, recall, walks
from studies.episodes.maps import Atlas
from studies.episodes.model import EpisodeModel, Lessons, make_memory
from studies.episodes.task import Episodes, Task, draw_episodes
from studies.memory.streams import numbers_held

PARAMETERS = 48_000  # of the memory of every arm, at most
EXAM = 9_000  # seed of exams, which no training has
Runs = Mapping[tuple[str, int], Trained]  # by arm and seed


@cache
def fitted(kind: str, width: int, parameters: int, **settings: Any) -> int:
    """Return the largest `hidden`, a multiple of 4, of a memory with at most so many parameters."""

    def count(hidden: int) -> int:
        return make_memory(kind, width, hidden=hidden, **settings).parameters_count

    if fits := bisect_right(range(4, 2048, 4), parameters, key=count):
        return 4 * fits
    raise ValueError(f"a {kind} of width {width} has more than {parameters:,} parameters")


def task_of(size: Size) -> Task:
    """Return the task that a size trains on."""
    return Task(cities=size.map_cities, degree=2.5, closures=3, delay=8, queries=8, recalls=10)


def asked(task: Task, atlas: Atlas, count: int, seed: int = 0) -> Episodes:
    """Return episodes for an exam."""
    return draw_episodes(task, atlas, count, np.random.default_rng([EXAM, seed]))


def marks(episodes: Episodes, answers: Answers) -> dict[str, float]:
    """Return success, hard-subset success and recall of answers."""
    judged, named = judge(episodes, answers), float(recall(episodes, answers).mean())
    hard = judged.loc[judged["hard"], "success"].mean()
    return {"success": judged["success"].mean(), "hard_success": hard, "recall": named}


def train_arm(size: Size, atlas: Atlas, label: str, seed: int) -> Trained:
    """Train (or load) an arm on a size's episodes, watched on episodes of its own."""
    arm, task = recipe(size, label, "episodes"), task_of(size)
    lessons = Lessons(task, atlas, EPISODES_A_BATCH, least=max(4, 2 * size.map_cities // 3))
    fits = {"symbols": task.symbols, "hidden": fitted(**arm.settings, parameters=PARAMETERS)}
    watched = asked(task.varied(closures=0, delay=0), atlas, 64, seed=1)

    def watch(model: EpisodeModel) -> dict[str, float]:
        loss = model.loss(watched.steps.to(next(model.parameters()).device))
        return {"valid_loss": float(loss), **marks(watched, answer(model, watched))}

    return lab.train_arm(size, lessons, arm, seed, watch, settings=fits)


def _by_arm(trained: Runs) -> dict[str, list[Trained]]:
    labels = dict.fromkeys(label for label, _ in trained)
    return {label: [one for (name, _), one in trained.items() if name == label] for label in labels}


def cards(trained: Runs) -> pd.DataFrame:
    """Return one row an arm: its size, what it holds after 128 steps, and what it costs."""
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


def learning_curves(trained: Runs) -> pd.DataFrame:
    """Return the histories of all arms, with seconds in proportion to the steps read so far."""
    parts = []
    for (label, seed), one in trained.items():
        read = one.history["tokens"] / one.history["tokens"].max()
        parts.append(one.history.assign(arm=label, seed=seed, seconds=one.seconds * read))
    return pd.concat(parts, ignore_index=True)


def exams(task: Task, held: Atlas, foreign: Atlas, count: int) -> dict[str, Episodes]:
    """Return all exams by name, `count` episodes each.

    Two dials are turned: cities on the map, all its edges shown, and solved paths shown. The others
    show edges, too: closures told after the map, a delay before the questions, a foreign atlas.
    """
    n, plain = task.cities, task.varied(closures=0, delay=0, show="edges")
    tasks = {f"{m} cities": plain.varied(cities=m) for m in (2 * n // 3, n, 4 * n // 3, 2 * n)}
    for m in (n // 3, n, 2 * n, 4 * n):
        tasks[f"{m} paths shown"] = plain.varied(show="paths", shown=m)
    tasks |= {f"{m} closed": plain.varied(closures=m) for m in (1, n // 2)}
    tasks["delay 64"] = plain.varied(delay=64)
    drawn = {name: asked(one, held, count) for name, one in tasks.items()}
    return drawn | {foreign.name: asked(plain, foreign, count)}


def examine(trained: Runs, exams: Mapping[str, Episodes]) -> list[dict[str, Any]]:
    """Return ledger rows of every (arm, seed), and of the walks that know the map, on every exam.

    `cities` and `shown` (solved paths) are the dials; another exam's name is the `subset`.
    """
    rows = []
    for (label, seed), one in trained.items():
        method = Method.of(label, one, name="greedy", family="memory", regime="closed_book")
        for name, episodes in exams.items():
            steps = episodes.steps.kind.shape[1] / episodes.task.queries
            spent = {"seed": seed, "inference_flops": steps * one.model.flops_per_step()}
            rows.append(_row(name, episodes, answer(one.model, episodes), method) | spent)
    for name, episodes in exams.items():
        for walk, answers in walks(episodes).items():
            method = Method(name=walk, family="floor", regime="open_map", training_flops=0.0)
            spent = {"seed": 0, "inference_flops": 0.0}
            rows.append(_row(name, episodes, answers, method) | spent)
    return rows


def _row(name: str, episodes: Episodes, answers: Answers, method: Method) -> dict[str, Any]:
    task, rates = episodes.task, ledger_rates(judge(episodes, answers))
    shown = task.shown if task.show == "paths" else None
    dialled = shown is not None or name == f"{task.cities} cities"
    what = {"study": "episodes", "split": "episodes", "subset": "" if dialled else name}
    what |= {"cities": task.cities, "shown": shown, "lookups": 0.0, "expansions": 0.0}
    return rates | method.columns | what | {"recall": float(recall(episodes, answers).mean())}


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


TAMPERED: dict[str, dict[str, Any]] = {
    "as it is": {},
    "reads blanked": {"tap": torch.zeros_like},
    "reads swapped": {"tap": lambda reads: reads.roll(1, 0)},
    "half precision": {"rounding": torch.bfloat16},
    "0.5 x memory": {"share": 0.5},
    "2 x memory": {"share": 2.0},
}


def influence(trained: Runs, episodes: Episodes) -> pd.DataFrame:
    """Return hard-subset success of every arm (mean over seeds) when its memory is tampered with.

    From the first question on, reads are blanked or another episode's; or the memory is kept in
    bfloat16; or it has a share of its size in training. What does not change was not used.
    """

    def mean(some: list[Trained], how: dict[str, Any]) -> float:
        answers = (answer(one.model, episodes, **how) for one in some)
        return float(np.mean([marks(episodes, each)["hard_success"] for each in answers]))

    table = {
        label: {
            name: mean(some, how)
            for name, how in TAMPERED.items()
            if "share" not in how or some[0].model.memory.sized
        }
        for label, some in _by_arm(trained).items()
    }
    return pd.DataFrame(table).T
