"""Toys of several test files: a model that is counted by hand, an exact value, short forms."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from citypaths.decoding import PathLength
from citypaths.map.graph import CityGraph
from citypaths.map.shortest_paths import shortest_path_trees
from citypaths.models import PathModel
from studies.memory.streams import Memory, numbers_held

STEP, START = 7, 3  # what `Markov` and `Perfect` say they cost


class Markov(PathModel):
    """Logits of the current city and the step alone: everything can be counted by hand.

    They sharpen with each step, or else paths that take the same hops in another order would tie.
    """

    def __init__(self, logits) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.as_tensor(logits, dtype=torch.float32))
        self.cities = len(self.table)

    def forward(self, batch, loops=None):
        return self.table[batch.cities] * (1 + 0.1 * torch.arange(batch.cities.shape[1])[:, None])

    def start(self, source, target, loops=None):
        return 0

    def step(self, city, state):
        return self.table[city] * (1 + 0.1 * state), state + 1

    def reorder(self, state, index):
        return state

    def flops_per_step(self, loops=None):
        return STEP

    @property
    def flops_to_start(self):
        return START


class Perfect(PathModel):
    """Steps along the true paths, unless a hop is `blocked`: there it goes back to the start."""

    def __init__(self, onward: np.ndarray, blocked: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.onward, self.blocked = onward, blocked
        self.weight, self.cities = nn.Parameter(torch.zeros(1)), len(onward)

    def forward(self, batch, loops=None):
        raise NotImplementedError

    def start(self, source, target, loops=None):
        return target

    def step(self, city, target):
        ahead = torch.as_tensor(self.onward)[target, city].long().clamp(min=0)
        if self.blocked is not None:
            ahead = torch.where(
                (city == self.blocked[0]) & (target == self.blocked[1]), city, ahead
            )
        return nn.functional.one_hot(ahead, self.cities).float(), target

    def reorder(self, state, index):
        return state[index]

    def flops_per_step(self, loops=None):
        return STEP

    @property
    def flops_to_start(self):
        return START


def markov(cities: int, seed: int, scale: float = 2.0) -> Markov:
    return Markov(scale * np.random.default_rng(seed).normal(size=(cities, cities)))


def every_path(model, source, target, most, graph=None) -> dict[tuple, float]:
    """Probability of each path that arrives within `most` hops, or is as long, by enumeration."""
    open_, done = {(source,): 1.0}, {}
    for t in range(most):
        grown = {}
        for path, p in open_.items():
            weights = (model.table[path[-1]] * (1 + 0.1 * t)).softmax(-1).tolist()
            if graph is not None:
                weights = [w * bool(graph.is_edge(path[-1], v)) for v, w in enumerate(weights)]
            for city, weight in enumerate(weights):
                if weight:
                    place = done if city == target else grown
                    place[*path, city] = p * weight / sum(weights)
        open_ = grown
    return done | open_


def next_cities(graph: CityGraph) -> np.ndarray:
    """The next city of the shortest path from each city (column) to each target (row), or -1."""
    onward = shortest_path_trees(graph, np.arange(len(graph))).next_city.T.astype(np.int64)
    return np.where(onward < len(graph), onward, -1)


def lists(found) -> list[list[int]]:
    return [path.tolist() for path in found.paths]


def spent(found) -> list[tuple]:
    return [tuple(row) for row in np.stack([found.flops, found.lookups, found.expansions], 1)]


def same(a, b) -> None:
    assert lists(a) == lists(b) and spent(a) == spent(b)


def kilometres(graph: CityGraph, source, target, found) -> np.ndarray:
    return PathLength(graph).score(np.asarray(source), np.asarray(target), found.paths)


def distinct_hops(paths) -> int:
    return len({hop for path in paths for hop in pairwise(path)})


class ExactValue:
    """True kilometres to go, infinite where there is no path."""

    flops_per_call = 0

    def __init__(self, graph: CityGraph, targets: np.ndarray) -> None:
        """Settle the tree of every one of `targets`; others cannot be asked for."""
        self.targets, self.graph = np.unique(np.asarray(targets)), graph
        km = shortest_path_trees(graph, self.targets).km
        self.km = torch.as_tensor(np.ascontiguousarray(km.T))
        self.row = torch.full((len(graph),), -1)
        self.row[torch.as_tensor(self.targets)] = torch.arange(len(self.targets))

    def togo(self, city, target):
        return self.km[self.row[target], city]


class Recorder:
    """Judges paths by kilometres as the exact verifier does, and remembers every path it scored."""

    def __init__(self, graph, flops: float = 0.0) -> None:
        self.exact, self.cost, self.rounds = PathLength(graph), flops, []

    def score(self, source, target, paths):
        ends = zip(source.tolist(), target.tolist(), strict=True)
        self.rounds.append(list(zip(ends, (tuple(p.tolist()) for p in paths), strict=True)))
        return self.exact.score(source, target, paths)

    def flops(self, paths):
        return self.cost * paths.lengths

    def lookups(self, paths):
        return self.exact.lookups(paths)


def counted_flops(call: Callable[[], Any]) -> int:
    """Return the operations torch counts while `call` runs (fused RNN kernels escape it)."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention escapes too
        call()
    return counter.get_total_flops()


def assert_a_step_leaves_its_state_alone(model: Memory, x: torch.Tensor, state: Any) -> None:
    """A stream read from a state gives a new one that holds as much, and changes not the old."""
    state = model(x, state)[1]
    copies = [part.clone() for part in state]
    assert numbers_held(model(x, state)[1]) == numbers_held(state)
    assert all(torch.equal(a, b) for a, b in zip(state, copies, strict=True))
