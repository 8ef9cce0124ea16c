"""Evolution of whole paths: a model varies them, a scorer selects them.

A population of paths a query; children by drawing the rest of a path anew from any of its cities,
by drawing a segment anew between two of them, and by splicing two parents at a city that both
visit. The model is asked afresh from the city where a draw begins, as if it were the source.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from citypaths.decoding import Scorer
from citypaths.decoding.budget import Budget
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
    segments,
    settle,
    shared_city,
)

REROUTE, SEGMENT, SPLICE = 0, 1, 2


def evolve(
    model: PathModel,
    source,
    target,
    max_hops: int,
    *,
    fitness: Scorer,
    population: int = 16,
    generations: int = 8,
    **options: Any,
) -> Found:
    """Return the best path of each query after `generations`; options: see `generations_of`."""
    sizes = {"population": population, "generations": generations}
    return generations_of(model, source, target, max_hops, fitness=fitness, **sizes, **options)[-1]


def generations_of(
    model: PathModel,
    source,
    target,
    max_hops: int,
    *,
    fitness: Scorer,
    population: int = 16,
    generations: int = 8,
    temperature: float = 1.0,
    checked_by: CityGraph | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    mix: tuple[float, float, float] = (1.0, 1.0, 1.0),
    **options: Any,
) -> list[Found]:
    """Evolve `population` paths a query, as many children a generation; the best survive.

    Paths that do not arrive rank last. No two paths of a query are equal, and its best is never
    lost: mu + lambda selection (Rechenberg 1973).

    Args:
        fitness: energies of paths that arrive. mix: how often a child comes of a re-route, of a
            segment drawn anew, of a splice; where two parents share no city, of a re-route.
        temperature, checked_by, options: see `search.sample`. budget: of a query, first come first
            served.

    Returns: the best so far after the first draw and after each generation: `generations` + 1, all
        of them with the compute from the beginning.

    Raises:
        ValueError: a population or mix that is empty, fewer than 0 generations, or queries that
            are not pairs.
    """
    if population < 1 or generations < 0:
        least = "a population is at least 1 and generations at least 0"
        raise ValueError(f"{least}, not {population} and {generations}")
    if len(mix) != 3 or min(mix) < 0 or not 0 < sum(mix) < np.inf:
        raise ValueError(f"mix is three chances of 0 or more, not all 0, and not {mix}")
    options |= {"temperature": temperature, "checked_by": checked_by}
    source, target = np.asarray(source, np.int64), np.asarray(target, np.int64)
    if len(source) != len(target):
        raise ValueError(f"{len(source)} sources but {len(target)} targets")
    shape = len(source), population, max(1, max_hops) + 1
    run = _Evolution(
        model, source, target, max_hops, fitness, np.cumsum(mix) / sum(mix), options,
        Spending(len(source), model.cities, budget or Budget()), np.random.default_rng(seed),
        np.full(shape, PAD), np.full(shape[:2], np.nan),
    )  # fmt: skip
    run.begin()
    founds = [run.found()]
    for _ in range(generations):
        run.advance()
        founds.append(run.found())
    return founds


@dataclass
class _Evolution:
    """Populations in progress: `paths` [Q, P, W] and `energy` [Q, P], best first, then no path."""

    model: PathModel
    source: np.ndarray
    target: np.ndarray
    max_hops: int
    fitness: Scorer
    mix: np.ndarray
    options: dict[str, Any]
    spending: Spending
    random: np.random.Generator
    paths: np.ndarray
    energy: np.ndarray
    began: float = field(default_factory=time.perf_counter)

    def found(self) -> Found:
        """The best paths so far; the source alone where not one path could be paid."""
        best = self.paths[:, 0].copy()
        best[:, 0] = self.source
        paths = Paths.from_padded(best, lengths_of(best))
        flops, lookups = self.spending.flops.copy(), self.spending.lookups.copy()
        seconds = time.perf_counter() - self.began
        return Found(paths, flops, lookups, np.zeros(len(paths)), seconds)

    def begin(self) -> None:
        """Draw the first population."""
        queries, size, width = self.paths.shape
        wide = (np.repeat(x, size) for x in (self.source, self.target))
        ids, flops, lookups = self._draw(*wide)
        shape = queries, size
        paths = ids.reshape(*shape, width)
        flops, lookups = flops.reshape(shape), lookups.reshape(shape)
        self._select(np.arange(queries), Brood(paths, self._looked(paths), flops, lookups))

    def advance(self) -> None:
        """Replace each population by the best of itself and its children."""
        at = np.flatnonzero(self.spending.going)
        if len(at):
            self._select(at, self._children(at))

    def _draw(self, source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, ...]:
        seed = int(self.random.integers(2**31))
        return draw(self.model, source, target, self.max_hops, seed=seed, **self.options)

    def _looked(self, drawn: np.ndarray) -> np.ndarray:
        """The drawn cities if drawing looks hops up, else none."""
        return drawn if self.options["checked_by"] is not None else np.full_like(drawn, PAD)

    def _children(self, at: np.ndarray) -> Brood:
        """As many children as parents, of parents drawn uniformly with replacement."""
        shape = len(at), self.paths.shape[1]
        chance = self.random.random((6, *shape))
        alive = (lengths_of(self.paths[at]) > 0).sum(1)[:, None]
        first, second = (
            self.paths[at[:, None], (u * alive).astype(int)].reshape(-1, self.paths.shape[2])
            for u in chance[:2]
        )
        target = np.repeat(self.target[at], shape[1])
        kind, where = np.searchsorted(self.mix, chance[2].ravel(), "right"), chance[3:5]
        parts = self._vary(first, second, target, kind, where.reshape(2, -1), chance[5].ravel())
        return Brood(*(part.reshape(*shape, *part.shape[1:]) for part in parts))

    def _vary(self, first, second, target, kind, where, chance) -> tuple[np.ndarray, ...]:
        """Children, cities drawn, operations and look-ups of parents [N, W] and their mates."""
        i, j = segments(lengths_of(first), where)
        shared = shared_city(first, second, chance)
        spliced = (kind == SPLICE) & (shared[:, 0] >= 0)
        inner = kind == SEGMENT
        rows = np.arange(len(first))
        middle = np.full((len(first), self.max_hops + 1), PAD)
        flops, lookups, drawn = np.zeros(len(first)), np.zeros(len(first)), ~spliced
        goal = np.where(inner, first[rows, j], target)
        made = self._draw(first[rows, i][drawn], goal[drawn])
        middle[drawn], flops[drawn], lookups[drawn] = made
        tail = np.where(spliced[:, None], second, first)
        after = np.where(spliced, shared[:, 1], np.where(inner, j + 1, tail.shape[1]))
        children = joined(first, np.where(spliced, shared[:, 0], i), middle, tail, after)
        lost = inner & (last_of(middle) != goal)
        children[lost] = PAD
        return children, self._looked(middle), flops, lookups

    def _select(self, at: np.ndarray, brood: Brood) -> None:
        """Keep the best of what is there and a brood: those that arrive first, then the older."""
        ends = self.source[at], self.target[at]
        born = settle(brood, self.paths[at], at, ends, self.fitness, self.spending)
        paths = np.concatenate([self.paths[at], brood.paths], 1)
        energy = np.concatenate([self.energy[at], born], 1)
        rank = np.where(np.isnan(energy), 2, np.where(arriving(paths, *ends), 0, 1))
        order = np.lexsort((energy, rank), axis=1)[:, : self.paths.shape[1]]
        rows = np.arange(len(at))[:, None]
        kept = energy[rows, order]
        self.energy[at] = kept
        self.paths[at] = np.where(np.isnan(kept)[..., None], PAD, paths[rows, order])
