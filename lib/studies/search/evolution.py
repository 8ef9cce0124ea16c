"""Evolution of whole paths: a model varies them, a scorer selects them.

Children come of drawing the rest of a path anew from any of its cities, of drawing a segment anew
between two of them, and of splicing two parents at a city that both visit.
"""

from __future__ import annotations

import numpy as np

from citypaths.decoding import Scorer
from citypaths.map.graph import CityGraph
from citypaths.map.paths import PAD, Found
from citypaths.models.base import PathModel
from studies.search.population import (
    Population,
    joined,
    last_of,
    lengths_of,
    segments,
    shared_city,
)

SEGMENT, SPLICE = 1, 2  # 0: a re-route
MIX = (1 / 3, 2 / 3, 1.0)  # cumulative chances of a re-route, a segment and a splice


def evolve(
    model: PathModel,
    source,
    target,
    max_hops: int,
    *,
    fitness: Scorer,
    population: int = 16,
    generations: int = 8,
    checked_by: CityGraph | None = None,
    seed: int = 0,
) -> Found:
    """Evolve `population` paths a query, as many children a generation; return the best of each.

    Args:
        fitness: energies of paths that arrive. checked_by: see `Population`.

    Raises:
        ValueError: an empty population, or queries that are not pairs.
    """
    args = (model, source, target, max_hops, population, fitness, checked_by, seed)
    paths = Evolution(*args)
    for _ in range(generations):
        paths.advance()
    return paths.found()


class Evolution(Population):
    """Paths drawn from a model, and as many children as parents in each generation."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        queries, size, width = self.paths.shape
        wide = (np.repeat(x, size) for x in (np.arange(queries), self.source, self.target))
        self.select(self.draw(*wide).reshape(queries, size, width))

    def children(self) -> np.ndarray:
        """Vary parents drawn uniformly with replacement; where two share no city, re-route."""
        queries, size, width = self.paths.shape
        chance = self.random.random((6, queries, size))
        alive = (lengths_of(self.paths) > 0).sum(1)[:, None]
        first, second = (
            self.paths[np.arange(queries)[:, None], (u * alive).astype(int)].reshape(-1, width)
            for u in chance[:2]
        )
        kind = np.searchsorted(MIX, chance[2].ravel(), "right")
        i, j = segments(lengths_of(first), chance[3:5].reshape(2, -1))
        shared = shared_city(first, second, chance[5].ravel())
        spliced, inner = (kind == SPLICE) & (shared[:, 0] >= 0), kind == SEGMENT
        rows, query = np.arange(len(first)), np.repeat(np.arange(queries), size)
        goal = np.where(inner, first[rows, j], self.target[query])
        middle, drawn = np.full_like(first, PAD), ~spliced
        middle[drawn] = self.draw(query[drawn], first[rows, i][drawn], goal[drawn])
        tail = np.where(spliced[:, None], second, first)
        after = np.where(spliced, shared[:, 1], np.where(inner, j + 1, width))
        born = joined(first, np.where(spliced, shared[:, 0], i), middle, tail, after)
        born[inner & (last_of(middle) != goal)] = PAD
        return born.reshape(queries, size, width)
