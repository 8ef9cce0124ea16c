"""What a scorer is: energies of whole paths, or kilometres still to go from a city."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from torch import Tensor

from citypaths.map.graph import CityGraph
from citypaths.map.paths import Paths

LOST = 1e9  # energy of what is no path from the source to the target


class Scorer(Protocol):
    """Energies of whole paths: lower is better."""

    def score(self, source: np.ndarray, target: np.ndarray, paths: Paths) -> np.ndarray:
        """Return energies, float64 [N], of `paths` (one each) for queries given as ids [N]."""

    def flops(self, paths: Paths) -> np.ndarray:
        """Return the floating-point operations of scoring each path, float64 [N]."""

    def lookups(self, paths: Paths) -> np.ndarray:
        """Return the look-ups of scoring each path, float64 [N]: 0 for what is learned."""


class Value(Protocol):
    """Kilometres still to go."""

    def togo(self, city: Tensor, target: Tensor) -> Tensor:
        """Return kilometres from each city [N] to its target [N]; float [N], 0 at the target."""

    @property
    def flops_per_call(self) -> int:
        """Return the floating-point operations of one estimate."""


class PathLength:
    """The exact verifier: kilometres of a legal path that arrives, else infinity.

    Each hop of a path is a look-up: is it an edge, how long is it?
    """

    def __init__(self, graph: CityGraph) -> None:
        self.graph = graph

    def score(self, source: np.ndarray, target: np.ndarray, paths: Paths) -> np.ndarray:
        """See `Scorer.score`."""
        ids, lengths = paths.padded(), paths.lengths
        ids = np.pad(ids, ((0, 0), (0, max(0, 2 - ids.shape[1]))), constant_values=-1)
        inside = np.arange(ids.shape[1] - 1) < lengths[:, None] - 1
        at = self.graph.edge_index(ids[:, :-1], ids[:, 1:])
        mm = np.where(inside, self.graph.mm[np.maximum(at, 0)] if len(self.graph.mm) else 0.0, 0.0)
        last = ids[np.arange(len(ids)), np.maximum(lengths - 1, 0)]
        good = (np.where(inside, at, 0) >= 0).all(1) & (lengths > 0)
        good &= (ids[:, 0] == source) & (last == target)
        return np.where(good, mm.sum(1) / 1e6, np.inf)

    def flops(self, paths: Paths) -> np.ndarray:
        """Return zeros: nothing is learned."""
        return np.zeros(len(paths))

    def lookups(self, paths: Paths) -> np.ndarray:
        """Return the hops of each path."""
        return np.maximum(paths.lengths - 1, 0).astype(float)


class Sum:
    """The weighted sum of scorers, each of which is paid for."""

    def __init__(self, *parts: Any, weights: tuple[float, ...] | None = None) -> None:
        self.parts = parts
        self.weights = weights or (1.0,) * len(parts)
        if len(self.weights) != len(parts):
            raise ValueError(f"{len(parts)} scorers but {len(self.weights)} weights")

    def score(self, source: np.ndarray, target: np.ndarray, paths: Paths) -> np.ndarray:
        """See `Scorer.score`."""
        terms = (
            w * p.score(source, target, paths)
            for w, p in zip(self.weights, self.parts, strict=True)
        )
        return np.sum(list(terms), axis=0)

    def flops(self, paths: Paths) -> np.ndarray:
        """Return those of all parts."""
        return np.sum([p.flops(paths) for p in self.parts], axis=0)

    def lookups(self, paths: Paths) -> np.ndarray:
        """Return those of all parts."""
        return np.sum([p.lookups(paths) for p in self.parts], axis=0)
