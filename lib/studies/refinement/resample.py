"""Energy-guided resampling of segments: descent on one path a query by large neighbourhoods.

The model draws the way between two cities of a path anew, as a query of its own, and a short-cut
leaves out what lies between them; the path of least energy stays (large neighbourhood search, Shaw
1998; 2-opt, Croes 1958).
"""

from __future__ import annotations

import numpy as np

from citypaths.decoding import Scorer, greedy
from citypaths.map.graph import CityGraph
from citypaths.map.paths import PAD, Found
from citypaths.models.base import PathModel
from studies.search.evolution import (
    Population,
    arriving,
    joined,
    last_of,
    lengths_of,
    segments,
)

TRIES = 4  # draws of a segment in each round


def resample_segments(
    model: PathModel,
    source,
    target,
    max_hops: int,
    *,
    energy: Scorer,
    rounds: int = 8,
    checked_by: CityGraph | None = None,
    seed: int = 0,
) -> list[Found]:
    """Improve the greedy path of each query by `rounds` of drawing one of its segments anew.

    A round proposes a short-cut over the segment and `TRIES` draws, and moves to the best if its
    energy is lower. A path that does not arrive is drawn anew from one of its cities to the target.

    Args:
        energy: of paths that arrive. checked_by: short-cuts and draws take no hop that is no edge.

    Returns: the paths after 0, 1, ... `rounds`, all of them with the compute from the beginning.

    Raises:
        ValueError: queries that are not pairs.
    """
    descent = Descent(model, source, target, max_hops, 1, energy, checked_by, seed)
    founds = [descent.found()]
    for _ in range(rounds):
        descent.advance()
        founds.append(descent.found())
    return founds


class Descent(Population):
    """One path a query, greedy at first; children are it with one segment drawn anew."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        options = {"checked_by": self.graph}
        drawn = greedy(self.model, self.source, self.target, self.max_hops, **options)
        self.select(self.pay(np.arange(len(self.source)), drawn)[:, None])

    def children(self) -> np.ndarray:
        """Return a short-cut over one segment of each path, and `TRIES` draws of it."""
        before, (queries, _, width) = self.paths[:, 0], self.paths.shape
        rows, count = np.arange(queries), 1 + TRIES
        closed = arriving(self.paths, self.source, self.target)[:, 0]
        i, j = segments(lengths_of(before), self.random.random((3, queries))[:2])
        begin, goal = before[rows, i], np.where(closed, before[rows, j], self.target)
        middle = np.full((queries, count, width), PAD)
        middle[:, 0, 0], middle[:, 0, 1] = begin, goal
        wide = (np.repeat(x, TRIES) for x in (rows, begin, goal))
        middle[:, 1:] = self.draw(*wide).reshape(queries, TRIES, width)
        after = np.where(closed, j, width) + 1
        head, first, after = (np.repeat(x, count, 0) for x in (before, i, after))
        born = joined(head, first, middle.reshape(-1, width), head, after).reshape(middle.shape)
        born[last_of(middle) != goal[:, None]] = PAD
        if self.graph is not None:
            self.look_up(rows, middle[:, 0])
            born[~self.graph.is_edge(begin, goal), 0] = PAD
        return born
