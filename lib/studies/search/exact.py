"""Kilometres to go that need no learning: the true ones, and the great circle below them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from citypaths.map.graph import CityGraph
from citypaths.map.great_circle import arc_km, unit_sphere
from citypaths.map.shortest_paths import shortest_path_trees


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
