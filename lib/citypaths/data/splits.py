"""Which (source, target) pairs train and which test: pure functions of the pair and the seed.

`pair`     an unordered pair is in one part only (a test row may still lie inside a training path:
           the dataset flags those as contained).
`ordered`  the leaky split of ordered pairs: a -> b may train while b -> a tests.
`target`   test rows end at cities no training or validation row ends at.
`region`   training and validation paths stay out of a disc; test rows begin or end inside it.
`long`     test paths have more hops than any training or validation path.
`held_out` test and validation pairs are drawn first, as in `pair`; a training path that passes
           through both ends of one, in either direction, is rejected: nothing is contained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numba import njit

from citypaths.map.graph import CityGraph, hash_next, hash_state, unit_hash
from citypaths.map.paths import Paths
from citypaths.map.shortest_paths import count_reachable, paths, shortest_path_trees

TRAIN, VALID, TEST = 0, 1, 2
PARTS = ("train", "valid", "test")
Split = Literal["pair", "ordered", "target", "region", "long", "held_out"]
SPLITS = ("pair", "ordered", "target", "region", "long", "held_out")


@dataclass(frozen=True)
class Recipe:
    """All that decides a dataset's rows: two datasets with one recipe hold the same bytes.

    Attributes:
        graph: fingerprint of the City DAG.
        train_rate, valid_rate, test_rate: share of the eligible pairs taken into each part.
        held_share: share of target cities (or of all cities, for a region) held out.
        max_train_hops: longest training path of the `long` split, 0 elsewhere.
    """

    graph: str
    seed: int
    split: Split
    train_rate: float
    valid_rate: float
    test_rate: float
    held_share: float = 0.1
    max_train_hops: int = 0

    def __post_init__(self) -> None:
        rates = (self.train_rate, self.valid_rate, self.test_rate, self.held_share)
        if self.split not in SPLITS:
            raise ValueError(f"split is one of {', '.join(SPLITS)}, not {self.split!r}")
        if not all(0 <= rate <= 1 for rate in rates) or sum(rates[:3]) > 1 + 1e-9:
            raise ValueError(f"rates are shares of the pairs and sum to at most 1, not {rates[:3]}")
        if self.split == "long" and self.max_train_hops < 1:
            raise ValueError("the long split needs max_train_hops of at least 1")

    def to_json(self) -> dict:
        return asdict(self)


def recipe_for(
    graph: CityGraph,
    *,
    train: int,
    valid: int,
    test: int,
    seed: int = 0,
    split: Split = "pair",
    long_quantile: float = 0.75,
) -> Recipe:
    """Return the recipe that samples about so many paths into each part.

    The counts are goals, met in expectation; when more are asked than there are reachable pairs,
    the rates shrink in proportion (of `held_out` that of training alone, whose paths are counted
    before those that contain a query are rejected). `long_quantile` of sampled hop counts bounds
    training paths.
    """
    reachable = count_reachable(graph)
    if not reachable:
        raise ValueError(f"no city of {graph} reaches another: raise connected_km")
    sample = _sampled_paths(graph, seed) if split in ("region", "long") else None
    bound = int(np.quantile(sample.lengths - 1, long_quantile)) if split == "long" else 0
    blank = Recipe(graph.fingerprint, seed, split, 0.0, 0.0, 0.0, max_train_hops=bound)
    trains, tests = _eligible_shares(blank, graph, sample)
    eligible = reachable * np.array([trains or 1.0, trains or 1.0, tests or 1.0])
    rates = np.array([train, valid, test], float) / eligible
    if split == "held_out":  # what is held out keeps its count; training takes what is left
        rates[0] = min(rates[0], max(0.0, 1.0 - rates[1:].sum()))
    rates = rates / max(1.0, rates.sum())
    train_rate, valid_rate, test_rate = rates.tolist()
    return replace(blank, train_rate=train_rate, valid_rate=valid_rate, test_rate=test_rate)


def _eligible_shares(recipe: Recipe, graph: CityGraph, sample: Paths | None) -> tuple[float, float]:
    """Shares of the reachable pairs that may train and that may test."""
    if recipe.split == "target":
        return 1 - recipe.held_share, recipe.held_share
    if sample is None:
        return 1.0, 1.0
    trains, tests = (
        admit(recipe, graph, np.full(len(sample), part, np.uint8), sample) for part in (TRAIN, TEST)
    )
    if recipe.split == "region":
        ends = np.stack([sample.tokens[sample.offsets[:-1]], sample.tokens[sample.offsets[1:] - 1]])
        tests = held_cities(recipe, graph)[ends].any(0)
    return float(trains.mean()), float(tests.mean())


def _sampled_paths(graph: CityGraph, seed: int, trees: int = 512) -> Paths:
    draw = unit_hash(seed, np.arange(len(graph)), 0x686F7073)
    rooted = shortest_path_trees(graph, np.sort(np.argsort(draw)[:trees]))
    source, column = np.nonzero(rooted.reachable)
    keep = unit_hash(seed, source, column) < 20_000 / max(len(source), 20_000)
    return paths(rooted, np.stack([source[keep], rooted.targets[column[keep]]], 1))


Drawer = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def pair_drawer(recipe: Recipe, graph: CityGraph) -> Drawer:
    """Return the function that draws pairs: (targets, next_city) -> (source, row, part).

    It depends on the pair and the recipe alone, so any grouping of targets, in any number of
    threads, draws the same. next_city: [trees, cities], as in `Trees` but a row a target; `row`
    counts along `targets`. Sorted by row then source.
    """
    ids = np.arange(len(graph))
    state, limits = hash_state(recipe.seed, ids), _limits(recipe)
    held = held_cities(recipe, graph) if recipe.split in ("target", "region") else None
    by_target = held if held is not None else np.zeros(0, bool)
    by_source = by_target if recipe.split == "region" else np.zeros(0, bool)

    def draw(targets: np.ndarray, next_city: np.ndarray):
        switches = recipe.split == "ordered", by_target, by_source
        return _draw(targets, next_city, state, limits, *switches)

    return draw


def _limits(recipe: Recipe) -> np.ndarray:
    """Below which hash a pair is a test, a validation or a training pair, int64 [3]."""
    edges = np.cumsum([recipe.test_rate, recipe.valid_rate, recipe.train_rate])
    edges[-1] += 1e-12 if edges[-1] >= 1 else 0
    return np.ceil(edges * 2**53).astype(np.int64)


@njit(cache=True, nogil=True)
def _longer(array):
    """A copy with room for as many again."""
    copy = np.empty(2 * len(array), array.dtype)
    copy[: len(array)] = array
    return copy


@njit(cache=True, nogil=True)
def _draw(targets, next_city, state, limits, ordered, by_target, by_source):
    trees, cities = next_city.shape
    source, row = np.empty(1024, np.int32), np.empty(1024, np.int32)
    part, rows = np.empty(1024, np.uint8), 0
    for t in range(trees):
        target, last = targets[t], cities - 1
        while last >= 0 and next_city[t, last] >= cities:
            last -= 1
        for s in range(last + 1):
            if ordered or s < target:
                u = hash_next(state[s], target)
            else:
                u = hash_next(state[target], s)
            if u >= limits[2] or next_city[t, s] >= cities:
                continue
            drawn = TEST if u < limits[0] else VALID if u < limits[1] else TRAIN
            if len(by_target):
                inside = by_target[target] or (len(by_source) > 0 and by_source[s])
                if inside != (drawn == TEST):
                    continue
            if rows == len(source):
                source, row, part = _longer(source), _longer(row), _longer(part)
            source[rows], row[rows], part[rows] = s, t, drawn
            rows += 1
    return source[:rows], row[:rows], part[:rows]


@lru_cache(maxsize=1)  # for the shards of one dataset; it keeps the graph in memory
def held_cities(recipe: Recipe, graph: CityGraph) -> np.ndarray:
    """Return which cities the `target` or `region` split holds out, bool [cities].

    Held-out targets are hashed one by one; a region is the `held_share` of cities nearest to one
    city drawn by hash among those of the largest component.
    """
    draw = unit_hash(recipe.seed, np.arange(len(graph)), 0x68656C64)
    if recipe.split == "target":
        return draw < recipe.held_share
    centre = int(np.argmin(np.where(graph.components() == 0, draw, 2.0)))
    km = graph.distance_km(centre, np.arange(len(graph)))
    nearest = np.argsort(km, kind="stable")[: max(1, round(recipe.held_share * len(graph)))]
    return np.isin(np.arange(len(graph)), nearest)


def admit(recipe: Recipe, graph: CityGraph, part: np.ndarray, found: Paths) -> np.ndarray:
    """Return which sampled rows the split keeps once their paths are known, bool [rows]."""
    if recipe.split == "region":
        touched = np.add.reduceat(held_cities(recipe, graph)[found.tokens], found.offsets[:-1])
        return (part == TEST) | (touched == 0)
    if recipe.split == "long":
        return (part == TEST) == (found.lengths - 1 > recipe.max_train_hops)
    if recipe.split == "held_out":
        state = hash_state(recipe.seed, np.arange(len(graph)))
        held = _passes_held(found.tokens, found.offsets, state, _limits(recipe)[1])
        return (part != TRAIN) | ~held
    return np.ones(len(part), bool)


@njit(cache=True, nogil=True)
def _passes_held(tokens, offsets, state, limit):
    """Whether each path passes through both ends of a held-out pair, bool [paths].

    Paths to one target form a tree, so what was found from a city on holds for all that join it.
    """
    passes = np.zeros(len(offsets) - 1, np.bool_)
    known, dirty = np.zeros(len(state), np.int64), np.zeros(len(state), np.bool_)
    target, stamp = -1, 0
    for p in range(len(passes)):
        first, last = offsets[p], offsets[p + 1] - 1
        if tokens[last] != target:
            target, stamp = tokens[last], stamp + 1
        begin = first
        while begin < last and known[tokens[begin]] != stamp:
            begin += 1
        found = begin < last and dirty[tokens[begin]]
        for i in range(begin - 1, first - 1, -1):
            a = np.int64(tokens[i])
            j = i + 1
            while not found and j <= last:
                b = np.int64(tokens[j])
                found = hash_next(state[min(a, b)], max(a, b)) < limit
                j += 1
            known[a], dirty[a] = stamp, found
        passes[p] = found
    return passes
