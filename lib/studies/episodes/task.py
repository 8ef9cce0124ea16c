"""What an episode shows and asks: its dials, and episodes as streams of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from citypaths.data.batches import IGNORE
from studies.episodes.maps import Atlas, Maps, draw_maps, solve

KINDS = 7
BLANK, EDGE, SOLVED, CLOSED, ASK, STEP, RECALL = range(KINDS)
KM_UNIT = 20.0  # km are shown in units of this
Columns = dict[str, np.ndarray]  # of `Steps`, [B, T]


@dataclass(frozen=True)
class Task:
    """The dials of the benchmark "new maps in context".

    Attributes:
        cities, degree: cities on a map, and edges for each of them.
        symbols: names that cities may have; larger than the largest map it is to be tried on.
        show, shown: "edges" in random order, or so many solved "paths".
        closures: edges that are closed after the map was shown, each told.
        delay: blank steps between what is shown and what is asked.
        recalls: times it is asked for any city one hop from a given one.
        queries, hops: paths that are asked for, and the longest of them.
        think: blank steps between a query and the first city of its answer.
    """

    cities: int = 8
    degree: float = 2.0
    symbols: int = 32
    show: Literal["edges", "paths"] = "edges"
    shown: int = 16
    closures: int = 0
    delay: int = 0
    recalls: int = 4
    queries: int = 4
    hops: int = 5
    think: int = 0

    def __post_init__(self) -> None:
        if self.show not in ("edges", "paths"):
            raise ValueError(f"an episode shows edges or paths, not {self.show!r}")
        least = {"closures": 0, "delay": 0, "recalls": 0, "think": 0, "shown": 1, "queries": 1}
        for name, low in (least | {"hops": 1, "cities": 2}).items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} is at least {low}, not {getattr(self, name)}")

    @property
    def edges(self) -> int:
        """Edges of each map."""
        return min(round(self.degree * self.cities), self.cities * (self.cities - 1) // 2)

    def varied(self, **dials: Any) -> Task:
        """Return the task with some dials turned."""
        return replace(self, **dials)


@dataclass(frozen=True)
class Steps:
    """Steps of streams, all [B, T]: what is read, and what is to be said.

    Kinds, symbols + 1 (0 for none) and labels (-100 for nothing) are int64, km float32 in units of
    20 km, or 0.
    """

    kind: Tensor
    here: Tensor
    onward: Tensor
    goal: Tensor
    km: Tensor
    labels: Tensor

    @classmethod
    def of(cls, columns: Columns) -> Steps:
        """Return steps on the CPU."""
        tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in columns.items()}
        return cls(**tensors | {"km": tensors["km"].float()})

    def __len__(self) -> int:
        return len(self.kind)

    def each(self, change: Callable[[Tensor], Tensor]) -> Steps:
        """Return the steps with every column changed."""
        return Steps(*(change(getattr(self, column.name)) for column in fields(self)))

    def take(self, rows: Tensor) -> Steps:
        """Return some of the streams."""
        return self.each(lambda column: column[rows])

    def to(self, device: torch.device | str) -> Steps:
        """Return the steps on a device."""
        return self.each(lambda column: column.to(device, non_blocking=True))


@dataclass(frozen=True, eq=False)
class Episodes:
    """Episodes with their answers.

    Attributes:
        task, maps: what they were drawn with and from.
        shown: the steps before anything is asked. steps: all, answers along the shortest paths.
        recalls: int64 [B, R], cities asked for a hop. queries: int64 [B, Q, 2], source and target.
    """

    task: Task
    maps: Maps
    shown: Steps
    steps: Steps
    recalls: np.ndarray
    queries: np.ndarray

    def __len__(self) -> int:
        return len(self.maps)


def draw_episodes(task: Task, atlas: Atlas, count: int, random: np.random.Generator) -> Episodes:
    """Draw episodes: maps, what is shown of them, and what is asked.

    Queries are reachable pairs of at most `task.hops` hops, each number of hops as likely as any
    other the map has. Where nothing can be asked (closures) it is asked from the first city to the
    second, without labels; that is judged unreachable.
    """
    sizes = task.cities, task.edges, task.symbols, task.closures
    maps = draw_maps(atlas, count, random, *sizes)
    queries = _pairs(maps.hops, task.queries, task.hops, random)
    leaves = np.isfinite(maps.open_km).any(2)
    score = np.where(leaves, random.random(leaves.shape), 2.0).argsort(1, kind="stable")
    recalls = score[:, np.arange(task.recalls) % maps.cities]
    recalls = np.where(np.take_along_axis(leaves, recalls, 1), recalls, score[:, :1])
    front = [_edges(maps, random) if task.show == "edges" else _solved(maps, task.shown, random)]
    front += [_closures(maps), _blanks(maps, task.delay)]
    asked = [_recalls(maps, recalls, random)] if task.recalls else []
    asked += [_answer(maps, queries[:, q], task.think) for q in range(task.queries)]
    shown, steps = Steps.of(_joined(front)), Steps.of(_joined(front + asked))
    return Episodes(task, maps, shown, steps, recalls, queries)


def question(maps: Maps, here: np.ndarray, goal: np.ndarray, think: int) -> Columns:
    """Return the steps that ask for a path from `here` to `goal` [B], and blanks to think."""
    kind = np.full((len(maps), 1), ASK)
    asks = _columns(maps, kind, here=here[:, None], goal=goal[:, None])
    return _joined([asks, _blanks(maps, think)])


def asking(maps: Maps, here: np.ndarray, goal: np.ndarray, going: np.ndarray) -> Columns:
    """Return one step that asks for the next city; blank where not `going` [B]."""
    kind = np.where(going, STEP, BLANK)[:, None]
    return _columns(maps, kind, here=here[:, None], goal=goal[:, None])


def _columns(
    maps: Maps, kind: np.ndarray, km: np.ndarray | float = 0.0, **cities: np.ndarray
) -> Columns:
    """Steps of kinds [B, T] that name cities [B, T] by their symbols, plus one; blank ones none."""
    said, none = kind != BLANK, np.zeros(kind.shape, np.int64)
    names = {"here": none, "onward": none, "goal": none}
    for name, city in cities.items():
        names[name] = np.where(said, np.take_along_axis(maps.symbols, city, 1) + 1, 0)
    km = np.where(said, km, 0.0) / KM_UNIT
    return {"kind": kind, **names, "km": km, "labels": np.full(kind.shape, IGNORE)}


def _blanks(maps: Maps, steps: int) -> Columns:
    return _columns(maps, np.full((len(maps), steps), BLANK))


def _joined(parts: list[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts], 1) for name in parts[0]}


def _pairs(hops: np.ndarray, count: int, longest: int, random: np.random.Generator) -> np.ndarray:
    """Draw pairs [B, count, 2] with 1 to `longest` hops, every number of hops alike likely."""
    flat = hops.reshape(len(hops), -1)
    kept = (flat >= 1) & (flat <= longest)
    each = np.stack([((flat == h) & kept).sum(1) for h in range(longest + 1)], 1)
    share = 1 / np.maximum(np.take_along_axis(each, np.minimum(flat, longest), 1), 1)
    weight = np.where(kept, share, 0)
    weight[:, 1] += ~kept.any(1)  # from the first city to the second
    ends = weight.cumsum(1)
    at = random.random((len(hops), count, 1)) * ends[:, None, -1:]
    pair = (ends[:, None] <= at).sum(2)
    return np.stack(np.divmod(pair, hops.shape[1]), -1)


def _edges(maps: Maps, random: np.random.Generator) -> Columns:
    """Every edge once, in random order."""
    flat = maps.km.reshape(len(maps), -1)
    order = np.where(np.isfinite(flat), random.random(flat.shape), 2.0).argsort(1, kind="stable")
    order = order[:, : int(np.isfinite(flat[0]).sum())]
    return _hops(maps, EDGE, order, np.take_along_axis(flat, order, 1))


def _closures(maps: Maps) -> Columns:
    """Every closed edge once, without its length."""
    flat = maps.closed.reshape(len(maps), -1)
    return _hops(maps, CLOSED, (~flat).argsort(1, kind="stable")[:, : int(flat[0].sum())])


def _hops(maps: Maps, kind: int, order: np.ndarray, km: np.ndarray | float = 0.0) -> Columns:
    here, onward = np.divmod(order, maps.cities)
    return _columns(maps, np.full(order.shape, kind), km, here=here, onward=onward)


def _recalls(maps: Maps, asked: np.ndarray, random: np.random.Generator) -> Columns:
    """Asks for a city one hop away; any of them may be the label."""
    leads = np.isfinite(np.take_along_axis(maps.open_km, asked[..., None], 1))
    answer = np.where(leads, random.random(leads.shape), -1.0).argmax(2)
    label = np.where(leads.any(2), np.take_along_axis(maps.symbols, answer, 1), IGNORE)
    return _columns(maps, np.full(asked.shape, RECALL), here=asked) | {"labels": label}


def _along(onward: np.ndarray, here: np.ndarray, goal: np.ndarray) -> Iterator[tuple]:
    """Each hop of the shortest paths from `here` to `goal` [B]: here, next, and who still goes."""
    row = np.arange(len(onward))
    while (going := (here != goal) & (onward[row, here, goal] >= 0)).any():
        step = np.where(going, onward[row, here, goal], here)
        yield here, step, going
        here = step


def _solved(maps: Maps, paths: int, random: np.random.Generator) -> Columns:
    """Shortest paths of random pairs, on the map before closures, hop after hop, blanks first."""
    _, onward, hops = solve(maps.km) if maps.closed.any() else (None, maps.onward, maps.hops)
    parts, row = [], np.arange(len(maps))
    for source, goal in _pairs(hops, paths, int(hops.max()), random).transpose(1, 2, 0):
        for here, step, going in _along(onward, source, goal):
            kind, km = np.where(going, SOLVED, BLANK), maps.km[row, here, step]
            named = {"here": here[:, None], "onward": step[:, None], "goal": goal[:, None]}
            parts.append(_columns(maps, kind[:, None], km[:, None], **named))
    columns = _joined(parts)
    said = columns["kind"] != BLANK
    order = said.argsort(1, kind="stable")[:, -said.sum(1).max() :]
    return {name: np.take_along_axis(column, order, 1) for name, column in columns.items()}


def _answer(maps: Maps, query: np.ndarray, think: int) -> Columns:
    """A query with the shortest path as its answer."""
    source, goal = query.T
    parts = [question(maps, source, goal, think) if think else _blanks(maps, 0)]
    for here, step, going in _along(maps.onward, source, goal):
        label = np.where(going, maps.symbols[np.arange(len(maps)), step], IGNORE)
        parts.append(asking(maps, here, goal, going) | {"labels": label[:, None]})
    return _joined(parts)
