"""Which (source, target) pairs train and which test: pure functions of the pair and the seed.

`pair`     an unordered pair is in one part only (a test row may still lie inside a training path:
           the dataset flags those as contained).
`ordered`  the leaky split of ordered pairs: a -> b may train while b -> a tests.
`target`   test rows end at cities no training or validation row ends at.
`region`   training and validation paths stay out of a disc; test rows begin or end inside it.
`long`     test paths have more hops than any training or validation path.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np

from citypaths.graph import CityGraph
from citypaths.hashing import unit_hash
from citypaths.paths import Paths
from citypaths.shortest_paths import Trees, count_reachable, paths, shortest_path_trees

TRAIN, VALID, TEST, UNUSED = 0, 1, 2, 3
PARTS = ("train", "valid", "test")
Split = Literal["pair", "ordered", "target", "region", "long"]
SPLITS = ("pair", "ordered", "target", "region", "long")


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
    held_share: float = 0.1,
    long_quantile: float = 0.75,
) -> Recipe:
    """Return the recipe that samples about so many paths into each part.

    The counts are goals, met in expectation; when more are asked than there are reachable pairs,
    the rates shrink in proportion. `long_quantile` of sampled hop counts bounds training paths.
    """
    reachable = count_reachable(graph)
    if not reachable:
        raise ValueError(f"no city of {graph} reaches another: raise connected_km")
    sample = _sampled_paths(graph, seed) if split in ("region", "long") else None
    bound = int(np.quantile(sample.lengths - 1, long_quantile)) if split == "long" else 0
    blank = Recipe(graph.fingerprint, seed, split, 0.0, 0.0, 0.0, held_share, bound)
    trains, tests = _eligible_shares(blank, graph, sample)
    eligible = reachable * np.array([trains or 1.0, trains or 1.0, tests or 1.0])
    rates = np.array([train, valid, test], float) / eligible
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


def sample_pairs(recipe: Recipe, graph: CityGraph, trees: Trees) -> tuple[np.ndarray, np.ndarray]:
    """Return the (source, target) pairs drawn for the targets of `trees`, and their parts.

    Returns: int64 [rows, 2] sorted by target then source, and uint8 [rows] of TRAIN, VALID, TEST.
    """
    target, source = np.nonzero(trees.reachable.T)
    target = trees.targets[target].astype(np.int64)
    part = _draw(recipe, graph, source, target)
    keep = part != UNUSED
    return np.stack([source[keep], target[keep]], 1), part[keep]


def _draw(recipe: Recipe, graph: CityGraph, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    first, second = np.minimum(source, target), np.maximum(source, target)
    if recipe.split == "ordered":
        first, second = source, target
    u = unit_hash(recipe.seed, first, second)
    edges = np.cumsum([recipe.test_rate, recipe.valid_rate, recipe.train_rate])
    edges[-1] += 1e-12 if edges[-1] >= 1 else 0
    part = np.array([TEST, VALID, TRAIN, UNUSED], np.uint8)[np.searchsorted(edges, u, side="right")]
    if recipe.split in ("target", "region"):
        held = held_cities(recipe, graph)
        inside = held[target] | (held[source] if recipe.split == "region" else False)
        part = np.where((part == TEST) == inside, part, UNUSED)
    return part.astype(np.uint8)


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
    return np.ones(len(part), bool)
