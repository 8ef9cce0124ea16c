"""Exact scorers: the checker's verdict on a path, the true kilometres to go, and a lower bound."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from citypaths.graph import CityGraph, unit_sphere
from citypaths.models.planner import arc_km
from citypaths.paths import Paths
from citypaths.shortest_paths import shortest_path_trees


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


class ExactValue:
    """True kilometres to go, infinite where there is no path: an oracle for tests and ceilings."""

    flops_per_call = 0

    def __init__(self, graph: CityGraph, targets: np.ndarray) -> None:
        """Settle the tree of every one of `targets`; others cannot be asked for."""
        self.targets, self.graph = np.unique(np.asarray(targets)), graph
        km = shortest_path_trees(graph, self.targets).km
        self.km = torch.as_tensor(np.ascontiguousarray(km.T))
        self.row = torch.full((len(graph),), -1)
        self.row[torch.as_tensor(self.targets)] = torch.arange(len(self.targets))

    def togo(self, city: Tensor, target: Tensor) -> Tensor:
        """See `Value.togo`."""
        return self.km[self.row[target], city]


class GreatCircle:
    """Great-circle km to go: free in every regime, never too much, and nowhere infinite."""

    flops_per_call = 0

    def __init__(self, graph: CityGraph, device: torch.device | str = "cpu") -> None:
        """Keep the cities' places on `device`."""
        self.sphere = torch.as_tensor(unit_sphere(graph.lat, graph.lon)).to(device)
        self.device = self.sphere.device

    def togo(self, city: Tensor, target: Tensor) -> Tensor:
        """See `Value.togo`."""
        return arc_km(self.sphere, city, target)
