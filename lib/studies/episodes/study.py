"""What notebook 07 does with episodes: arms of equal size, their training, and exams."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch

from citypaths import lab
from citypaths.judging.ledger import arms_of
from citypaths.judging.metrics import ledger_rates
from citypaths.lab import device
from citypaths.sizes import Size
from citypaths.training.loop import Evaluate, Trained
from citypaths.training.recipes import EPISODES_A_BATCH, recipe
from studies.episodes.atlas import Atlas
from studies.episodes.core import Tap, blanked, numbers_held, swapped
from studies.episodes.exam import Answers, answer, judge, recall, walk_at_random, walk_nearest
from studies.episodes.model import EpisodeModel, Lessons
from studies.episodes.networks import make_memory
from studies.episodes.task import Episodes, Task, draw_episodes, varied

PARAMETERS = 48_000  # of the memory of every arm, at most
EXAM = 9_000  # seed of exams, which no training has


@cache
def fitted(kind: str, width: int, parameters: int, **settings: Any) -> int:
    """Return the largest `hidden`, a multiple of 4, of a memory with at most so many parameters.

    Raises:
        ValueError: not even the smallest fits.
    """
    count = lambda hidden: make_memory(kind, width, hidden=hidden, **settings).parameters_count  # noqa: E731
    if count(4) > parameters:
        raise ValueError(f"a {kind} of width {width} has more than {parameters:,} parameters")
    low, high = 4, 8
    while count(high) <= parameters:
        low, high = high, 2 * high
    while high - low > 4:
        middle = (low + high) // 8 * 4
        low, high = (middle, high) if count(middle) <= parameters else (low, middle)
    return low


def task_of(size: Size) -> Task:
    """Return the task that a size trains on."""
    return Task(cities=size.map_cities, degree=2.5, closures=3, delay=8, queries=8, recalls=10)


def lessons_of(size: Size, atlas: Atlas) -> Lessons:
    """Return the training episodes of a size."""
    return Lessons(task_of(size), atlas, EPISODES_A_BATCH, least=max(4, 2 * size.map_cities // 3))


def train_arm(size: Size, atlas: Atlas, label: str, seed: int) -> Trained:
    """Train (or load) an arm on a size's episodes, watched on episodes of its own."""
    arm, lessons = recipe(size, label, "episodes"), lessons_of(size, atlas)
    hidden = fitted(**arm.settings, parameters=PARAMETERS)
    fits = {"symbols": lessons.task.symbols, "hidden": hidden}
    watch = watched(asked(varied(lessons.task, closures=0, delay=0), atlas, 64, seed=1))
    return lab.train_arm(size, lessons, arm, seed, watch, settings=fits)


def cards(trained: Mapping[tuple[str, int], Trained]) -> pd.DataFrame:
    """Return one row an arm: its size, what it holds, and what it costs (means over seeds).

    Columns: parameters, numbers held (after 128 steps), FLOPs a step, steps, training
    FLOPs and seconds.
    """
    table = {}
    for label in dict.fromkeys(name for name, _ in trained):
        some = [one for (name, _), one in trained.items() if name == label]
        model = some[0].model.eval()
        with torch.inference_mode():
            _, state = model.memory(torch.zeros(1, 128, model.memory.width, device=device()))
        row = {"parameters": model.memory.parameters_count, "numbers held": numbers_held(state)}
        row |= {"FLOPs a step": model.flops_per_step(), "steps": some[0].steps}
        row |= {"training FLOPs": some[0].training_flops}
        table[label] = row | {"seconds": np.mean([one.seconds for one in some])}
    return pd.DataFrame(table).T


def asked(task: Task, atlas: Atlas, count: int, seed: int = 0) -> Episodes:
    """Return episodes for an exam."""
    return draw_episodes(task, atlas, count, np.random.default_rng([EXAM, seed]))


def watched(episodes: Episodes) -> Evaluate:
    """Return an evaluation for the training history: loss, success and recall on episodes."""

    def evaluate(model: EpisodeModel) -> dict[str, float]:
        where = next(model.parameters()).device
        loss = float(model.loss(episodes.steps.to(where)))
        return {"valid_loss": loss, **marks(episodes, answer(model, episodes))}

    return evaluate


def marks(episodes: Episodes, answers: Answers) -> dict[str, float]:
    """Return success, hard-subset success and recall of answers."""
    judged = judge(episodes, answers)
    hard = judged[judged["hard"]]
    rates = {"success": judged["success"].mean(), "hard_success": hard["success"].mean()}
    return rates | {"recall": float(recall(episodes, answers).mean())}


def row(episodes: Episodes, answers: Answers, **names: Any) -> dict[str, Any]:
    """Return the ledger's row of answers; `names` are further columns."""
    found = ledger_rates(judge(episodes, answers))
    if episodes.task.recalls:
        found["recall"] = float(recall(episodes, answers).mean())
    return found | {"regime": "closed_book", "lookups": 0.0, "expansions": 0.0} | names


def examine(
    trained: Mapping[tuple[str, int], Trained], exams: Mapping[str, Episodes]
) -> list[dict[str, Any]]:
    """Return ledger rows of every (arm, seed) on every exam; its name goes into `split`."""
    rows = []
    for (label, seed), one in trained.items():
        for name, episodes in exams.items():
            rows.append(_row_of(label, seed, one, episodes, answer(one.model, episodes), name))
    return rows


def _row_of(
    label: str, seed: int, trained: Trained, episodes: Episodes, answers: Answers, name: str
) -> dict[str, Any]:
    model, task = trained.model, episodes.task
    steps = episodes.steps.kind.shape[1] / task.queries
    names = {"model": label, "seed": seed, "method": "greedy", "split": name}
    names |= {"parameters": model.parameters_count, "training_flops": trained.training_flops}
    names |= {"inference_flops": steps * model.flops_per_step(), "budget": task.cities}
    return row(episodes, answers, **names)


def floor_rows(exams: Mapping[str, Episodes]) -> list[dict[str, Any]]:
    """Return ledger rows of the walks that know the map but do not plan, on every exam."""
    rows = []
    for name, episodes in exams.items():
        walks = {"random walk": walk_at_random(episodes, np.random.default_rng(0))}
        walks["nearest hop"] = walk_nearest(episodes)
        for method, answers in walks.items():
            names = {"model": "none", "seed": 0, "method": method, "split": name}
            names |= {"budget": episodes.task.cities, "inference_flops": 0.0}
            found = row(episodes, answers, **names, training_flops=0.0)
            rows.append(found | {"regime": "open_map"})
    return rows


DIALS = {
    r"episodes, edges, \d+ cities": "cities on the map, its edges shown",
    r"episodes, paths, \d+ shown": "solved paths shown",
}


def abroad(task: Task, atlas: Atlas, count: int) -> dict[str, Episodes]:
    """Return an exam with all edges of maps of another atlas shown."""
    plain = varied(task, closures=0, delay=0, show="edges")
    return {f"episodes, edges, {atlas.name}": asked(plain, atlas, count)}


def sizes_of_map(
    task: Task, atlas: Atlas, cities: Iterable[int], count: int
) -> dict[str, Episodes]:
    """Return exams with all edges shown, by cities on the map: `episodes, edges, 12 cities`."""
    plain = varied(task, closures=0, delay=0, show="edges")
    return {
        f"episodes, edges, {n} cities": asked(varied(plain, cities=n), atlas, count) for n in cities
    }


def shown_paths(task: Task, atlas: Atlas, shown: Iterable[int], count: int) -> dict[str, Episodes]:
    """Return exams with solved paths shown, by their number: `episodes, paths, 8 shown`."""
    plain = varied(task, closures=0, delay=0, show="paths")
    return {
        f"episodes, paths, {n} shown": asked(varied(plain, shown=n), atlas, count) for n in shown
    }


def disturbed(
    task: Task, atlas: Atlas, count: int, closures: Sequence[int], delays: Sequence[int]
) -> dict[str, Episodes]:
    """Return exams with closures told after the map, and with blank steps before the questions."""
    plain = varied(task, closures=0, delay=0, show="edges")
    exams = {
        f"episodes, edges, {n} closed": asked(varied(plain, closures=n), atlas, count)
        for n in closures
    }
    return exams | {
        f"episodes, edges, delay {n}": asked(varied(plain, delay=n), atlas, count) for n in delays
    }


def exams(task: Task, held: Atlas, foreign: Atlas, count: int) -> dict[str, Episodes]:
    """Return all exams of notebook 07 by name, `count` episodes each."""
    n = task.cities
    asks = sizes_of_map(task, held, (2 * n // 3, n, 4 * n // 3, 2 * n), count)
    asks |= shown_paths(task, held, (n // 3, n, 2 * n, 4 * n), count)
    asks |= disturbed(task, held, count, (1, n // 2), (64,))
    return asks | abroad(task, foreign, count)


TAPS: dict[str, tuple[Tap | None, torch.dtype | None]] = {
    "as it is": (None, None),
    "reads blanked": (blanked, None),
    "reads swapped": (swapped, None),
    "half precision": (None, torch.bfloat16),
}


def influence(trained: Mapping[tuple[str, int], Trained], episodes: Episodes) -> pd.DataFrame:
    """Return hard-subset success of every arm (mean over seeds) when its memory is tampered with.

    From the first question on, reads are blanked or taken from another episode; or the memory is
    kept in bfloat16 throughout. Columns: `TAPS`; what does not change was not used.
    """
    table: dict[str, dict[str, list[float]]] = {}
    for (label, _), one in trained.items():
        cells = table.setdefault(label, {name: [] for name in TAPS})
        for name, (tap, dtype) in TAPS.items():
            marked = marks(episodes, answer(one.model, episodes, tap, dtype))
            cells[name].append(marked["hard_success"])
    means = {
        label: {name: np.mean(v) for name, v in cells.items()} for label, cells in table.items()
    }
    return pd.DataFrame(means).T


def memory_sizes(
    trained: Mapping[tuple[str, int], Trained],
    episodes: Episodes,
    shares: Sequence[float] = (0.5, 2.0),
) -> pd.DataFrame:
    """Return hard-subset success (mean over seeds) with the memory made smaller or larger at test.

    Rows: arms whose memory has a size that no weight depends on; columns: share of that in
    training.
    """
    table: dict[str, dict[str, float]] = {}
    for label in dict.fromkeys(name for name, _ in trained):
        some = [one.model for (name, _), one in trained.items() if name == label]
        dial = next((d for d in ("slots", "memory") if hasattr(some[0].memory, d)), None)
        if dial is None:
            continue
        table[label] = {
            f"{share:g} x memory": np.mean([_resized(m, dial, share, episodes) for m in some])
            for share in shares
        }
    return pd.DataFrame(table).T


def _resized(model: EpisodeModel, dial: str, share: float, episodes: Episodes) -> float:
    own = getattr(model.memory, dial)
    setattr(model.memory, dial, max(1, round(share * own)))
    try:
        return marks(episodes, answer(model, episodes))["hard_success"]
    finally:
        setattr(model.memory, dial, own)


def learning_curves(trained: Mapping[tuple[str, int], Trained]) -> pd.DataFrame:
    """Return the histories of all arms with the seconds spent until each evaluation.

    Seconds are the run's, in proportion to the steps read so far.
    """
    parts = []
    for (label, seed), one in trained.items():
        history = one.history.assign(arm=label, seed=seed)
        parts.append(
            history.assign(seconds=one.seconds * history["tokens"] / history["tokens"].max())
        )
    return pd.concat(parts, ignore_index=True)


def over_seeds(rows: Iterable[Mapping[str, Any]], column: str = "hard_success") -> pd.DataFrame:
    """Return a ledger column by arm and exam: the mean over seeds."""
    frame = pd.DataFrame(list(rows))
    frame["arm"] = arms_of(frame)
    return frame.pivot_table(column, "arm", "split", sort=False, dropna=False)
