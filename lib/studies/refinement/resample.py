"""Energy-guided resampling of segments: descent on one path a query by large neighbourhoods.

The model draws the way between two cities of a path anew, as a query of its own, and a short-cut
leaves out what lies between them; the path of least energy stays (large neighbourhood search, Shaw
1998; 2-opt, Croes 1958).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from citypaths.decoding import Scorer
from citypaths.decoding.budget import Budget
from citypaths.decoding.decode import greedy
from citypaths.map.graph import CityGraph
from citypaths.map.paths import PAD, Found, Paths
from citypaths.models.base import PathModel
from studies.search.spending import Spending
from studies.search.variation import (
    Brood,
    arriving,
    draw,
    joined,
    last_of,
    lengths_of,
    padded_to,
    segments,
    settle,
)


class HopScorer(Scorer, Protocol):
    """A scorer that says where on a path its energy comes from."""

    def hop_energies(self, source: np.ndarray, target: np.ndarray, paths: Paths) -> np.ndarray:
        """Return the energy of each hop, 0 or more, float64 [N, hops of the longest path]."""


def resample_segments(
    model: PathModel,
    source,
    target,
    max_hops: int,
    *,
    energy: Scorer,
    rounds: int = 8,
    tries: int = 4,
    where: Literal["random", "worst"] = "random",
    temperature: float = 1.0,
    checked_by: CityGraph | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    **options: Any,
) -> list[Found]:
    """Improve the greedy path of each query by `rounds` of drawing one of its segments anew.

    A round proposes a short-cut over the segment and `tries` draws, and moves to the best if its
    energy is lower. A path that does not arrive is drawn anew from one of its cities to the target.

    Args:
        energy: of paths that arrive. where: segments anywhere, or around a hop chosen in proportion
            to its energy, which asks for a `HopScorer` (what hops cost comes with their score).
        temperature: of the draws. checked_by: short-cuts and draws take no hop that is not an edge.
        budget: of a query, the greedy path first. options: of `search.sample`.

    Returns: the paths after 0, 1, ... `rounds`, all of them with the compute from the beginning.

    Raises:
        ValueError: fewer than 0 rounds or 1 try, an unknown place, or queries that are not pairs.
        TypeError: the worst hops of a scorer that does not say.
    """
    if rounds < 0 or tries < 1:
        raise ValueError(f"rounds are 0 or more and tries 1 or more, not {rounds} and {tries}")
    if where not in ("random", "worst"):
        raise ValueError(f"where is random or worst, not {where!r}")
    if where == "worst" and not hasattr(energy, "hop_energies"):
        raise TypeError(f"{type(energy).__name__} has no hop_energies: choose where='random'")
    source, target = np.asarray(source, np.int64), np.asarray(target, np.int64)
    if len(source) != len(target):
        raise ValueError(f"{len(source)} sources but {len(target)} targets")
    run = _Descent(
        model, source, target, max_hops, energy, tries, where == "worst", temperature, checked_by,
        options, Spending(len(source), model.cities, budget or Budget()),
        np.random.default_rng(seed),
    )  # fmt: skip
    run.begin()
    founds = [run.found()]
    for _ in range(rounds):
        run.advance()
        founds.append(run.found())
    return founds


@dataclass
class _Descent:
    """Paths in progress: `paths` [Q, W], `level` [Q] their energies, infinite where none."""

    model: PathModel
    source: np.ndarray
    target: np.ndarray
    max_hops: int
    energy: Scorer
    tries: int
    worst: bool
    temperature: float
    checked_by: CityGraph | None
    options: dict[str, Any]
    spending: Spending
    random: np.random.Generator
    began: float = field(default_factory=time.perf_counter)

    def found(self) -> Found:
        paths = Paths.from_padded(self.paths, lengths_of(self.paths))
        flops, lookups = self.spending.flops.copy(), self.spending.lookups.copy()
        seconds = time.perf_counter() - self.began
        return Found(paths, flops, lookups, np.zeros(len(paths)), seconds)

    def begin(self) -> None:
        """Take the greedy paths; the source alone where they cost too much."""
        options = {"checked_by": self.checked_by} | self.options
        found = greedy(self.model, self.source, self.target, self.max_hops, **options)
        ids, at = padded_to(found.paths, self.max_hops + 1), np.arange(len(self.source))
        looked = ids if self.checked_by is not None else np.full_like(ids, PAD)
        costs = found.flops[:, None], found.lookups[:, None]
        brood = Brood(ids[:, None], looked[:, None], *costs)
        before, ends = np.full_like(ids, PAD)[:, None], (self.source, self.target)
        level = settle(brood, before, at, ends, self.energy, self.spending)[:, 0]
        paid = ~np.isnan(level)
        self.level = np.where(paid, level, np.inf)
        self.paths = np.where(paid[:, None], ids, PAD)
        self.paths[:, 0] = self.source

    def advance(self) -> None:
        """Propose short-cuts and draws for one segment a path; keep what is better."""
        at = np.flatnonzero(self.spending.going)
        if not len(at):
            return
        ends, before = (self.source[at], self.target[at]), self.paths[at]
        closed = arriving(before[:, None], *ends)[:, 0]
        i, j = self._segment(at, closed)
        brood = self._proposals(before, i, np.where(closed, j, self.max_hops), ends[1], closed)
        level = settle(brood, before[:, None], at, ends, self.energy, self.spending)
        level = np.where(np.isnan(level), np.inf, level)
        rows, best = np.arange(len(at)), level.argmin(1)
        better = level[rows, best] < self.level[at]
        self.paths[at] = np.where(better[:, None], brood.paths[rows, best], before)
        self.level[at] = np.where(better, level[rows, best], self.level[at])

    def _segment(self, at: np.ndarray, closed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions i < j of one segment a path."""
        lengths, chance = lengths_of(self.paths[at]), self.random.random((3, len(at)))
        i, j = segments(lengths, chance[:2])
        rows = np.flatnonzero(closed & (lengths > 1))
        if self.worst and len(rows):
            kept = self.paths[at[rows]]
            paths, ends = Paths.from_padded(kept, lengths[rows]), (self.source, self.target)
            weights = self.energy.hop_energies(*(end[at[rows]] for end in ends), paths)
            hop = _in_proportion(weights, lengths[rows] - 1, chance[2, rows])
            i[rows] = (chance[0, rows] * (hop + 1)).astype(np.int64)
            j[rows] = hop + 1 + (chance[1, rows] * (lengths[rows] - 1 - hop)).astype(np.int64)
        return i, j

    def _proposals(self, before, i, j, target, closed) -> Brood:
        """A short-cut from position i to j and `tries` draws, for paths [A, W]."""
        rows, count = np.arange(len(before)), 1 + self.tries
        begin, goal = before[rows, i], np.where(closed, before[rows, j], target)
        middle = np.full((len(before), count, self.max_hops + 1), PAD)
        middle[:, 0, 0], middle[:, 0, 1] = begin, goal
        flops, lookups = np.zeros((2, len(before), count))
        wide = (np.repeat(x, self.tries) for x in (begin, goal))
        options = self.options | {"seed": int(self.random.integers(2**31))}
        options |= {"temperature": self.temperature, "checked_by": self.checked_by}
        made = draw(self.model, *wide, self.max_hops, **options)
        middle[:, 1:] = made[0].reshape(len(before), self.tries, -1)
        flops[:, 1:], lookups[:, 1:] = (x.reshape(len(before), -1) for x in made[1:])
        flat = middle.reshape(-1, middle.shape[2])
        head, first, after = (np.repeat(x, count, 0) for x in (before, i, j + 1))
        paths = joined(head, first, flat, head, after).reshape(middle.shape)
        paths[last_of(middle) != goal[:, None]] = PAD
        looked = np.full_like(middle, PAD)
        if self.checked_by is not None:
            looked, lookups[:, 0] = middle, 1
            paths[~self.checked_by.is_edge(begin, goal), 0] = PAD
        return Brood(paths, looked, flops, lookups)


def _in_proportion(weights: np.ndarray, count: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """Choose one of the first `count` [N] of weights [N, .] by `chance`; evenly if all are 0."""
    inside = np.arange(weights.shape[1]) < count[:, None]
    weights = np.where(inside, weights, 0.0)
    weights = np.where(weights.sum(1, keepdims=True) > 0, weights, inside)
    share = np.cumsum(weights, 1)
    return (share <= chance[:, None] * share[:, -1:]).sum(1)
