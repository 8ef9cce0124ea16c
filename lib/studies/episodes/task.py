"""What an episode shows and asks: its dials, and episodes as streams of steps."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from citypaths.data.batches import IGNORE
from studies.episodes.atlas import Atlas, Maps, draw_maps, solve

BLANK, EDGE, SOLVED, CLOSED, ASK, STEP, RECALL = range(7)
KINDS = 7
KM_UNIT = 20.0  # km are shown in units of this


@dataclass(frozen=True)
class Task:
    """The dials of the benchmark "new maps in context".

    Attributes:
        cities, degree: cities on a map, and edges for each of them.
        symbols: names that cities may have; larger than the largest map it is to be tried on.
        show: "edges" in random order, or solved "paths".
        shown: how many solved paths.
        closures: edges that are closed after the map was shown, each told.
        delay: blank steps between what is shown and what is asked.
        recalls: times it is asked for any city one hop from a given one.
        queries: paths that are asked for. hops: the longest of them.
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

    Attributes:
        kind: int64, one of BLANK, EDGE, SOLVED, CLOSED, ASK, STEP, RECALL.
        here, onward, goal: int64, symbols + 1, or 0 for none. km: float32, in `KM_UNIT`s, or 0.
        labels: int64, the symbol to say, -100 for nothing.
    """

    kind: Tensor
    here: Tensor
    onward: Tensor
    goal: Tensor
    km: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.kind)

    def _each(self, change: Any) -> Steps:
        return Steps(*(change(getattr(self, column.name)) for column in fields(self)))

    def take(self, rows: Tensor) -> Steps:
        """Return some of the streams."""
        return self._each(lambda column: column[rows])

    def between(self, first: int, last: int | None = None) -> Steps:
        """Return the steps from `first` up to `last`."""
        return self._each(lambda column: column[:, first:last])

    def to(self, device: torch.device | str) -> Steps:
        """Return the steps on a device."""
        return self._each(lambda column: column.to(device, non_blocking=True))


@dataclass(frozen=True, eq=False)
class Episodes:
    """Episodes with their answers.

    Attributes:
        task, maps: what they were drawn with and from. shown: the steps before anything is asked.
        steps: all of them, the answers along the shortest paths.
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
    other the map has. A map on which nothing can be asked (closures) asks from its first city to
    its second, without labels; it is judged unreachable.
    """
    sizes = task.cities, task.edges, task.symbols
    maps = draw_maps(atlas, count, *sizes, random, task.closures)
    queries = _pairs(maps.hops, task.queries, task.hops, random)
    leaves = np.isfinite(maps.open_km).any(2)
    score = np.where(leaves, random.random(leaves.shape), 2.0).argsort(1, kind="stable")
    recalls = score[:, np.arange(task.recalls) % maps.cities]
    recalls = np.where(np.take_along_axis(leaves, recalls, 1), recalls, score[:, :1])
    front = [_edges(maps, random) if task.show == "edges" else _solved(maps, task.shown, random)]
    front += [_closures(maps)] if task.closures else []
    front += [_blanks(count, task.delay)] if task.delay else []
    shown = _joined(front)
    asked = [_recalls(maps, recalls, random)] if task.recalls else []
    asked += [_answer(maps, queries[:, q], task) for q in range(task.queries)]
    return Episodes(task, maps, _steps(shown), _steps(_joined([shown, *asked])), recalls, queries)


def question(maps: Maps, here: np.ndarray, goal: np.ndarray, think: int) -> Steps:
    """Return the steps that ask for a path from `here` to `goal` [B], and blanks to think."""
    return _steps(_question(maps, here, goal, think))


def ask(maps: Maps, here: np.ndarray, goal: np.ndarray, going: np.ndarray) -> Steps:
    """Return one step that asks for the next city; blank where not `going` [B]."""
    return _steps(_asking(maps, here, goal, going))


Columns = dict[str, np.ndarray]  # of `Steps`, [B, T]


def _columns(kind: np.ndarray, **given: np.ndarray) -> Columns:
    empty = {name: np.zeros(kind.shape, np.int64) for name in ("here", "onward", "goal")}
    empty |= {"km": np.zeros(kind.shape), "labels": np.full(kind.shape, IGNORE)}
    return {"kind": kind} | empty | given


def _blanks(count: int, steps: int) -> Columns:
    return _columns(np.full((count, steps), BLANK))


def _joined(parts: list[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts], 1) for name in parts[0]}


def _steps(columns: Columns) -> Steps:
    tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in columns.items()}
    return Steps(**tensors | {"km": tensors["km"].float()})


def _named(maps: Maps, city: np.ndarray) -> np.ndarray:
    """The symbols, plus one, of cities [B, T]."""
    return np.take_along_axis(maps.symbols, city, 1) + 1


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
    edges = int(np.isfinite(flat[0]).sum())
    score = np.where(np.isfinite(flat), random.random(flat.shape), 2.0)
    order = score.argsort(1, kind="stable")[:, :edges]
    km = np.take_along_axis(flat, order, 1) / KM_UNIT
    return _hops_named(maps, EDGE, order) | {"km": km}


def _closures(maps: Maps) -> Columns:
    """Every closed edge once, without its length."""
    flat = maps.closed.reshape(len(maps), -1)
    return _hops_named(maps, CLOSED, (~flat).argsort(1, kind="stable")[:, : int(flat[0].sum())])


def _hops_named(maps: Maps, kind: int, pair: np.ndarray) -> Columns:
    """Steps that name hops [B, T], numbered a * cities + b."""
    here, onward = (_named(maps, city) for city in np.divmod(pair, maps.cities))
    return _columns(np.full(pair.shape, kind), here=here, onward=onward)


def _solved(maps: Maps, paths: int, random: np.random.Generator) -> Columns:
    """Shortest paths of random pairs, on the map before closures, hop after hop."""
    _, onward, hops = solve(maps.km) if maps.closed.any() else (None, maps.onward, maps.hops)
    pairs = _pairs(hops, paths, int(hops.max()), random)
    row = np.arange(len(maps))
    lengths = hops[row[:, None], pairs[..., 0], pairs[..., 1]]
    total = int(lengths.sum(1).max())
    columns, at = _blanks(len(maps), total), total - lengths.sum(1)  # blanks first
    for path in range(paths):
        here, goal = pairs[:, path].T.copy()
        for _ in range(int(lengths[:, path].max())):
            going = here != goal
            step = onward[row, here, goal]
            where = row[going], at[going]
            columns["kind"][where] = SOLVED
            for name, city in (("here", here), ("onward", step), ("goal", goal)):
                columns[name][where] = maps.symbols[row, city][going] + 1
            columns["km"][where] = maps.km[row, here, step][going] / KM_UNIT
            here, at = np.where(going, step, here), at + going
    return columns


def _recalls(maps: Maps, asked: np.ndarray, random: np.random.Generator) -> Columns:
    """Asks for a city one hop away; any of them may be the label."""
    leads = np.isfinite(np.take_along_axis(maps.open_km, asked[..., None], 1))
    answer = np.where(leads, random.random(leads.shape), -1.0).argmax(2)
    label = np.where(leads.any(2), np.take_along_axis(maps.symbols, answer, 1), IGNORE)
    return _columns(np.full(asked.shape, RECALL), here=_named(maps, asked), labels=label)


def _answer(maps: Maps, query: np.ndarray, task: Task) -> Columns:
    """A query with the shortest path as its answer."""
    row, (here, goal) = np.arange(len(maps)), query.T.copy()
    parts = [_question(maps, here, goal, task.think)] if task.think else []
    for _ in range(int(maps.hops[row, here, goal].max())):
        going = (here != goal) & (maps.onward[row, here, goal] >= 0)
        step = np.where(going, maps.onward[row, here, goal], here)
        label = np.where(going, maps.symbols[row, step], IGNORE)
        parts.append(_asking(maps, here, goal, going) | {"labels": label[:, None]})
        here = step
    return _joined(parts) if parts else _blanks(len(maps), 0)


def _question(maps: Maps, here: np.ndarray, goal: np.ndarray, think: int) -> Columns:
    asks = _asking(maps, here, goal, np.ones(len(maps), bool))
    asks["kind"][:] = ASK
    return _joined([asks, _blanks(len(maps), think)])


def _asking(maps: Maps, here: np.ndarray, goal: np.ndarray, going: np.ndarray) -> Columns:
    named = {"here": _named(maps, here[:, None]), "goal": _named(maps, goal[:, None])}
    named = {name: np.where(going[:, None], symbol, 0) for name, symbol in named.items()}
    return _columns(np.where(going, STEP, BLANK)[:, None], **named)
