"""Episodes answered step by step, and judged: paths on maps never seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from citypaths.judging.metrics import OPTIMAL_SLACK, SLACK, SLACKS
from studies.episodes.model import EpisodeModel
from studies.episodes.task import Episodes, Steps, asking, question
from studies.memory.streams import Tap

SPARE = 2  # hops more than the longest asked for


@dataclass(frozen=True, eq=False)
class Answers:
    """Cities that a method answered, int64: paths [B, Q, longest], source first, recalled [B, R].

    They are -1 after the end of a path, and for a symbol that is not on the map.
    """

    paths: np.ndarray
    recalled: np.ndarray


@torch.inference_mode()
def answer(
    model: EpisodeModel,
    episodes: Episodes,
    tap: Tap | None = None,
    rounding: torch.dtype | None = None,
    share: float = 1.0,
) -> Answers:
    """Show episodes to a model, then decode greedily, its own cities fed back.

    `tap` changes, from the first question on, what the memory returns; the memory is kept in the
    type `rounding`, and has a `share` of its own size.
    """
    memory, device = model.eval().memory, next(model.parameters()).device
    maps, task, first = episodes.maps, episodes.task, episodes.shown.kind.shape[1]
    city_of = torch.from_numpy(maps.city_of(task.symbols)).to(device)

    def named(steps: Steps) -> np.ndarray:
        """Read steps; return the cities [B, T] that the model names."""
        nonlocal state
        logits, state = model(steps.to(device), state)
        return city_of.gather(1, logits.argmax(-1)).cpu().numpy()

    def say(here: np.ndarray, going: np.ndarray) -> np.ndarray:
        if not going.any():
            return here
        return named(Steps.of(asking(maps, np.maximum(here, 0), goal, going)))[:, 0]

    changed: dict[str, Any] = {"rounding": rounding, "tap": None}
    if memory.sized:
        changed[memory.sized] = max(1, round(share * getattr(memory, memory.sized)))
    before, paths = {name: getattr(memory, name) for name in changed}, []
    vars(memory).update(changed)
    try:
        _, state = model(episodes.shown.to(device))
        memory.tap = tap
        asked = episodes.steps.each(lambda column: column[:, first : first + task.recalls])
        recalled = named(asked) if task.recalls else np.zeros((len(maps), 0), np.int64)
        for source, goal in episodes.queries.transpose(1, 2, 0):
            if task.think:
                named(Steps.of(question(maps, source, goal, task.think)))
            paths.append(_followed(source, goal, task.hops + SPARE, say))
    finally:
        vars(memory).update(before)
    return Answers(np.stack(paths, 1), recalled)


def _followed(
    here: np.ndarray, goal: np.ndarray, hops: int, say: Callable[..., np.ndarray]
) -> np.ndarray:
    """Cities [..., hops + 1] from `here` until the goal or no city, as `say` names them."""
    path, going = [here], np.ones(here.shape, bool)
    for _ in range(hops):
        said = say(here, going)
        path.append(np.where(going, said, -1))
        here = np.where(going, said, here)
        going = going & (said != goal) & (said >= 0)
    return np.stack(path, -1)


def walks(episodes: Episodes) -> dict[str, Answers]:
    """Return walks that know the edges: a hop to the goal if there is one, else any or the next."""
    draw = np.random.default_rng(0).random
    some = _walked(episodes, lambda km: np.where(np.isfinite(km), draw(km.shape), np.inf))
    return {"random walk": some, "nearest hop": _walked(episodes, lambda km: km)}


def _walked(episodes: Episodes, cost: Callable[[np.ndarray], np.ndarray]) -> Answers:
    maps, row = episodes.maps, np.arange(len(episodes))[:, None]
    source, goal = np.moveaxis(episodes.queries, -1, 0)

    def say(here: np.ndarray, going: np.ndarray) -> np.ndarray:
        km = maps.open_km[row, np.maximum(here, 0)]
        direct = np.isfinite(np.take_along_axis(km, goal[..., None], 2))[..., 0]
        said = np.where(direct, goal, cost(km).argmin(2))
        return np.where(np.isfinite(km).any(2), said, -1)

    paths = _followed(source, goal, episodes.task.hops + SPARE, say)
    return Answers(paths, cost(maps.open_km[row, episodes.recalls]).argmin(2))


def judge(episodes: Episodes, answers: Answers) -> pd.DataFrame:
    """Judge answered paths: one row a query that has an answer.

    Columns: episode, query, shortest_hops, hard (no hop leads from source to target), legal,
    arrives, bounded_00, _01, _05, _10, success, optimal (within 1e-4), exact.
    """
    maps, (count, queries, _) = episodes.maps, answers.paths.shape
    row = np.repeat(np.arange(count), queries)
    paths = answers.paths.reshape(count * queries, -1)
    source, target = episodes.queries.reshape(-1, 2).T
    a, b = paths[:, :-1], paths[:, 1:]
    at_goal, steps = b == target[:, None], np.arange(1, paths.shape[1])
    arrives = at_goal.any(1)
    taken = steps <= np.where(arrives, at_goal.argmax(1) + 1, paths.shape[1])[:, None]
    open_km = maps.open_km[row[:, None], np.maximum(a, 0), np.maximum(b, 0)]
    km = np.where(taken, np.where((a < 0) | (b < 0), np.inf, open_km), 0)
    best, legal = maps.togo[row, source, target], np.isfinite(km).all(1)
    with np.errstate(invalid="ignore"):
        ratio = np.where(arrives & legal, km.sum(1) / best, np.inf)

    shortest = _followed(source, target, len(steps), lambda at, _: maps.onward[row, at, target])
    hops = maps.hops[row, source, target]
    table = {"episode": row, "query": np.tile(np.arange(queries), count), "shortest_hops": hops}
    table |= {"hard": hops > 1, "legal": legal, "arrives": arrives}
    for name, slack in {**SLACKS, "success": SLACK}.items():
        table[name] = ratio <= (1 + slack) * (1 + 1e-9)
    table["optimal"] = ratio <= 1 + OPTIMAL_SLACK
    judged = pd.DataFrame(table | {"exact": arrives & (paths == shortest).all(1)})
    return judged[np.isfinite(best)].reset_index(drop=True)


def recall(episodes: Episodes, answers: Answers) -> np.ndarray:
    """Return for each city asked whether the one named is a hop away, bool [B, R]."""
    maps, row = episodes.maps, np.arange(len(episodes))[:, None]
    named = np.maximum(answers.recalled, 0)
    return (answers.recalled >= 0) & np.isfinite(maps.open_km[row, episodes.recalls, named])
