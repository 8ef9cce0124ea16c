"""Episodes answered step by step, and judged: paths on maps never seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from citypaths.judging.metrics import OPTIMAL_SLACK, SLACKS
from studies.episodes.memory import State, Tap
from studies.episodes.model import EpisodeModel
from studies.episodes.task import Episodes, ask, question

SPARE = 2  # hops more than the longest asked for


@dataclass(frozen=True, eq=False)
class Answers:
    """What a method answered to episodes.

    Attributes:
        paths: int64 [B, Q, longest], cities of each map, source first; -1 after the end, or for a
            symbol that is not on the map. recalled: int64 [B, R], the city named, or -1.
    """

    paths: np.ndarray
    recalled: np.ndarray


@torch.inference_mode()
def answer(
    model: EpisodeModel,
    episodes: Episodes,
    tap: Tap | None = None,
    dtype: torch.dtype | None = None,
) -> Answers:
    """Show episodes to a model, then decode greedily, its own cities fed back.

    Args:
        tap: what is done, from the first question on, to what the memory returns.
        dtype: in which the memory is kept.
    """
    memory, device = model.eval().memory, next(model.parameters()).device
    task, first = episodes.task, episodes.shown.kind.shape[1]
    city_of = torch.from_numpy(episodes.maps.city_of(task.symbols)).to(device)
    recalled, paths = np.zeros((len(episodes), 0), np.int64), []
    rounding, memory.rounding = memory.rounding, dtype
    try:
        _, state = model.read(episodes.shown.to(device))
        memory.tap = tap
        if task.recalls:
            asks = episodes.steps.between(first, first + task.recalls).to(device)
            logits, state = model.read(asks, state)
            recalled = city_of.gather(1, logits.argmax(-1)).cpu().numpy()
        for number in range(task.queries):
            path, state = _path(model, episodes, number, state, city_of)
            paths.append(path)
    finally:
        memory.tap, memory.rounding = None, rounding
    return Answers(np.stack(paths, 1), recalled)


def _path(
    model: EpisodeModel, episodes: Episodes, number: int, state: State, city_of: Tensor
) -> tuple[np.ndarray, State]:
    """Decode one query of every episode; returns cities [B, longest] and the state after."""
    maps, device = episodes.maps, city_of.device
    here, goal = episodes.queries[:, number].T.copy()
    if episodes.task.think:
        _, state = model.read(question(maps, here, goal, episodes.task.think).to(device), state)

    def say(here: np.ndarray, going: np.ndarray) -> np.ndarray:
        nonlocal state
        if not going.any():
            return here
        logits, state = model.read(ask(maps, np.maximum(here, 0), goal, going).to(device), state)
        return city_of.gather(1, logits[:, -1].argmax(-1, keepdim=True))[:, 0].cpu().numpy()

    return _followed(here, goal, episodes.task.hops + SPARE, say), state


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
    steps = np.arange(1, paths.shape[1])
    ended = np.where((b == target[:, None]).any(1), (b == target[:, None]).argmax(1) + 1, 0)
    taken = steps <= np.where(ended, ended, paths.shape[1])[:, None]
    open_km = maps.open_km[row[:, None], np.maximum(a, 0), np.maximum(b, 0)]
    km = np.where(taken, np.where((a < 0) | (b < 0), np.inf, open_km), 0)
    best, arrives = maps.togo[row, source, target], ended > 0
    legal = np.isfinite(km).all(1)
    with np.errstate(invalid="ignore"):
        ratio = np.where(arrives & legal, km.sum(1) / best, np.inf)

    here, exact = source, np.ones(len(row), bool)
    for column in range(1, paths.shape[1]):
        going = here != target
        here = np.where(going, maps.onward[row, here, target], here)
        exact &= np.where(going, paths[:, column] == here, True)

    table = {"episode": row, "query": np.tile(np.arange(queries), count)}
    hops = maps.hops[row, source, target]
    table |= {"shortest_hops": hops, "hard": hops > 1, "legal": legal, "arrives": arrives}
    for name, more in SLACKS.items():
        table[name] = ratio <= (1 + more) * (1 + 1e-9)
    table |= {"success": table["bounded_05"], "optimal": ratio <= 1 + OPTIMAL_SLACK}
    judged = pd.DataFrame(table | {"exact": exact & (here == target)})
    return judged[np.isfinite(best)].reset_index(drop=True)


def recall(episodes: Episodes, answers: Answers) -> np.ndarray:
    """Return for each city asked whether the one named is a hop away, bool [B, R]."""
    maps, row = episodes.maps, np.arange(len(episodes))[:, None]
    named = np.maximum(answers.recalled, 0)
    return (answers.recalled >= 0) & np.isfinite(maps.open_km[row, episodes.recalls, named])


def walk_at_random(episodes: Episodes, random: np.random.Generator) -> Answers:
    """Return random legal walks: what knowing the edges alone is worth."""
    return _walked(episodes, lambda km: np.where(np.isfinite(km), random.random(km.shape), np.inf))


def walk_nearest(episodes: Episodes) -> Answers:
    """Return walks that take the shortest hop each time."""
    return _walked(episodes, lambda km: km)


def _walked(episodes: Episodes, cost: Callable[[np.ndarray], np.ndarray]) -> Answers:
    """Walks that take a hop to the goal where there is one, else the cheapest."""
    maps, row = episodes.maps, np.arange(len(episodes))[:, None]
    source, goal = episodes.queries[..., 0], episodes.queries[..., 1]

    def say(here: np.ndarray, going: np.ndarray) -> np.ndarray:
        km = maps.open_km[row, np.maximum(here, 0)]
        direct = np.isfinite(np.take_along_axis(km, goal[..., None], 2))[..., 0]
        said = np.where(direct, goal, cost(km).argmin(2))
        return np.where(np.isfinite(km).any(2), said, -1)

    paths = _followed(source, goal, episodes.task.hops + SPARE, say)
    return Answers(paths, cost(maps.open_km[row, episodes.recalls]).argmin(2))
