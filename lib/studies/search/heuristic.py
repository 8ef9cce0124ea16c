"""A* on the open map with kilometres to go that are learned, exact, or the great circle."""

from __future__ import annotations

import numpy as np
import torch

from citypaths.decoding.scorers import Value
from citypaths.map.best_first import best_first
from citypaths.map.graph import CityGraph
from citypaths.map.paths import Found


def a_star(
    graph: CityGraph,
    source,
    target,
    *,
    value: Value | None = None,
    weight: float = 1.0,
    g_weight: float = 1.0,
    reopen: bool = True,
) -> Found:
    """Search by least `g_weight` x km so far + `weight` x estimated km to go, batched over queries.

    `Found.flops` counts one `flops_per_call` for each city reached, although the estimates of a
    target come as one dense table.

    Args:
        value: kilometres to go, infinite where there is no path; None is the great circle.
        weight, g_weight, reopen: as in `best_first`.
    """
    if value is None:
        return best_first(graph, source, target, g_weight, weight, reopen=reopen)

    @torch.inference_mode()
    def togo(targets: np.ndarray) -> np.ndarray:
        goals, cities = torch.as_tensor(targets), torch.arange(len(graph))
        if hasattr(value, "table"):
            return value.table(goals).cpu().numpy()
        rows = [value.togo(cities, goal.expand(len(cities))) for goal in goals]
        return torch.stack(rows).cpu().numpy()

    options = {"togo": togo, "flops": value.flops_per_call, "reopen": reopen}
    return best_first(graph, source, target, g_weight, weight, **options)
