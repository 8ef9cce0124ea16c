"""A* on the open map with kilometres to go that are learned, exact, or the great circle."""

from __future__ import annotations

import time
from math import inf

import numpy as np
import torch

from citypaths.decoding.budget import Budget
from citypaths.decoding.scorers import Value
from citypaths.judging.floors import ROUNDED
from citypaths.map.frontier import expand_best, sphere_points
from citypaths.map.graph import CityGraph
from citypaths.map.paths import Found, Paths

UNLIMITED = Budget()
TABLE_CELLS = 2**23  # estimates in memory at once: 64 MiB


def a_star(
    graph: CityGraph,
    source,
    target,
    *,
    value: Value | None = None,
    weight: float = 1.0,
    g_weight: float = 1.0,
    reopen: bool = True,
    budget: Budget = UNLIMITED,
    chunk: int | None = None,
) -> Found:
    """Search by least `g_weight` x km so far + `weight` x estimated km to go, batched over queries.

    A city reached needs one estimate, and the source and the target none; `Found.flops` counts one
    `flops_per_call` for each, although the estimates of a target come as one dense table. A query
    without a path, or whose budget ends before the target is reached, gives the source alone; one
    whose budget ends later gives the best path so far (Hart, Nilsson and Raphael 1968; Pohl 1970).

    Args:
        value: kilometres to go, infinite where there is no path; None is the great circle.
        weight, g_weight: (1, 1) is A*, (w, 1) weighted A*, (1, 0) greedy best-first search, and
            (0, 1) Dijkstra, which asks for no estimate.
        reopen: expand a city again when a shorter way to it turns up. An inconsistent heuristic
            needs that to be exact where it is admissible; without it, it is cheaper. Greedy
            best-first search (`g_weight` 0) never does.
        budget: limits a query; it stops before it would exceed any.
        chunk: targets whose tables are in memory together (default: 64 MiB of them).

    Raises:
        ValueError: weights below 0 or both 0, unlike numbers of sources and targets, an id that is
            no city, a `chunk` below 1, or an estimate that is NaN.
    """
    began = time.perf_counter()
    source, target = _checked(graph, source, target, weight, g_weight)
    cells = TABLE_CELLS // max(1, len(graph)) if chunk is None else chunk
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is at least 1, not {chunk}")
    cost = value.flops_per_call if value is not None else 0
    h_weight = weight if value is not None else weight * ROUNDED
    rules = (float(g_weight), float(h_weight), reopen and g_weight > 0, _limits(budget, cost))
    edges = (graph.indptr, graph.indices, graph.mm / 1e6, sphere_points(graph))
    goals, goal = np.unique(target, return_inverse=True)
    order, done = np.argsort(goal, kind="stable"), []
    for first in range(0, len(goals), max(1, cells)):
        table = _table(graph, value if weight else None, goals[first : first + max(1, cells)])
        mine = order[(goal[order] >= first) & (goal[order] < first + max(1, cells))]
        done.append(
            expand_best(*edges, source[mine], target[mine], table, goal[mine] - first, *rules)
        )
    back = np.argsort(order)
    paths = Paths.concatenate([Paths(tokens, offsets) for tokens, offsets, _ in done]).take(back)
    spent = np.concatenate([np.zeros((0, 3)), *(part for _, _, part in done)])[back]
    seconds = time.perf_counter() - began
    return Found(paths, spent[:, 2] * cost, spent[:, 0], spent[:, 1], seconds)


def _checked(graph: CityGraph, source, target, *weights: float) -> tuple[np.ndarray, np.ndarray]:
    source, target = np.asarray(source, np.int64), np.asarray(target, np.int64)
    if len(source) != len(target):
        raise ValueError(f"{len(source)} sources but {len(target)} targets")
    if not all(0 <= w < inf for w in weights) or not any(weights):
        raise ValueError(f"weights are 0 or more, and not both 0, not {weights}")
    for ids in (source, target):
        if not ((ids >= 0) & (ids < len(graph))).all():
            raise ValueError(f"sources and targets are ids from 0 to {len(graph) - 1}")
    return source, target


def _limits(budget: Budget, cost: float) -> np.ndarray:
    """Most look-ups, expansions and estimates."""
    estimates = budget.flops // cost if cost and budget.flops < inf else inf
    return np.array([budget.lookups, budget.expansions, estimates], float)


@torch.inference_mode()
def _table(graph: CityGraph, value: Value | None, targets: np.ndarray) -> np.ndarray:
    """Estimates from every city to each target, float64 [targets, V]; no row without a value."""
    if value is None:
        return np.zeros((0, 0))
    goals = torch.as_tensor(targets)
    if hasattr(value, "table"):
        table = value.table(goals)
    else:
        cities = torch.arange(len(graph))
        table = torch.stack([value.togo(cities, goal.expand(len(cities))) for goal in goals])
    if table.isnan().any():
        raise ValueError("an estimate of the kilometres to go is not a number")
    return np.ascontiguousarray(table.cpu().numpy(), np.float64)
