"""Learning or memorizing: train on some of the paths, store the others, and ask what each adds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from citypaths import decoding
from citypaths.data.batches import batch_of
from citypaths.data.dataset import Dataset
from citypaths.data.shards import Rows, count_rows
from citypaths.data.splits import TRAIN, Recipe
from citypaths.judging.floors import stored_hops
from citypaths.judging.methods import Method, Scored, score
from citypaths.judging.queries import Queries
from citypaths.lab import device, mean_loss, train_arm
from citypaths.map.best_first import best_first
from citypaths.map.graph import CityGraph, unit_hash
from citypaths.map.paths import Found, Paths
from citypaths.models import PathModel, build
from citypaths.sizes import Size
from citypaths.training.loop import Trained
from citypaths.training.recipes import arms, recipe
from studies.memory import KeyValueCache, Roads, fit

ALONE = "greedy"
CACHE = "greedy + cache"
CACHE_OF_ALL = "greedy + cache of all"
STORED = "greedy, stored hops"
STITCHED = "stitched hops"
THETAS = (10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99)
SALT = 0x5348415245  # the split draws the same pairs by hashes of its own


def in_share(rows: Rows, share: float, draw: int) -> np.ndarray:
    """Return which rows lie in a share (0 to 1) of the pairs, bool [rows].

    A larger share of the same `draw` holds all of a smaller one.
    """
    return unit_hash(draw, rows.source, rows.target, SALT) < share


@dataclass(frozen=True)
class SharedRecipe(Recipe):
    """A dataset's recipe with the `share` (0 to 1) of its training paths that a `draw` leaves."""

    share: float = 1.0
    draw: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ValueError(f"share is above 0 and at most 1, not {self.share}")


@dataclass(frozen=True, eq=False)
class Share(Dataset):
    """A dataset with a share of its training paths; validation and test rows are the whole's."""

    whole: Dataset

    @classmethod
    def of(cls, whole: Dataset, share: float, draw: int = 0) -> Share:
        """Return the share (0 to 1) of a dataset that a draw leaves; every shard is read once.

        Raises:
            ValueError: the share is not above 0 and at most 1.
        """
        recipe = SharedRecipe(**whole.recipe.to_json(), share=share, draw=draw)
        fewer = cls(whole.folder, whole.graph, recipe, whole.shards, whole)
        counts = [count_rows(fewer.shard(i)) for i in range(len(whole.shards))]
        shards = [entry | count for entry, count in zip(whole.shards, counts, strict=True)]
        return cls(whole.folder, whole.graph, recipe, shards, whole)

    def shard(self, i: int) -> Rows:
        """Read shard i of the whole and leave out the training paths that are not in the share."""
        rows, recipe = self.whole.shard(i), self.recipe
        return rows.take((rows.part != TRAIN) | in_share(rows, recipe.share, recipe.draw))

    def queries(self, part: str) -> tuple[Rows, np.ndarray]:
        """Return the rows of a part and which are contained in training paths of the whole."""
        return self.whole.queries(part)


def halves(dataset: Dataset, share: float, draw: int) -> tuple[Paths, Paths]:
    """Return the training paths in a share (0 to 1) and the others; either may be empty."""
    rows = dataset.rows("train")
    inside = in_share(rows, share, draw)
    return rows.paths.take(inside), rows.paths.take(~inside)


def name_of(size: Size) -> str:
    """Return the learner's name: the smallest width of the ladder of notebook 05."""
    return f"gru-{recipe(size, arms(size, 'learning')[0]).settings['width']}"


def learner(size: Size, dataset: Dataset, share: float, seed: int) -> Trained:
    """Train (or load) the learner on a share (0 to 1) of the training paths, chosen by `seed`.

    Every share takes the same number of steps, that of the ladder's rung, which is the learner of
    all. At 0 it keeps its first weights. The learning rate was not tuned to the share.
    """
    arm = arms(size, "learning")[0]
    if share:
        paths = dataset if share == 1 else Share.of(dataset, share, seed)
        return train_arm(size, paths, arm, seed)
    torch.manual_seed(seed)
    model = build("rnn", dataset.graph, **recipe(size, arm).settings).to(device())
    return Trained(model, pd.DataFrame(), 0, 0, 0.0)


def next_hops(model: PathModel, queries: Queries) -> float:
    """Return the share of hops of the queries' shortest paths that the model finds, taught the way.

    A hop that the model gives no probability is not found.
    """
    where, right, count = next(model.parameters()).device, 0, 0
    with torch.inference_mode():
        by_length = np.argsort(queries.rows.hops, kind="stable")  # a cache searches for padding too
        for part in np.array_split(by_length, max(1, len(queries) // 50)):
            batch = batch_of(queries.rows.take(part), where)
            real = batch.labels >= 0
            hit = model(batch)[real].float().argmax(-1) == batch.labels[real]
            right, count = right + int(hit.sum()), count + len(hit)
    return right / count


def stitched_next_hops(stored: CityGraph, queries: Queries) -> float:
    """Return the share of hops of the queries' shortest paths that begin the stored shortest way.

    It is asked anew from every city of the path, as a model is that is taught the way.
    """
    row, a, b = queries.rows.paths.hops()
    found = best_first(stored, a, queries.rows.target[row]).paths
    second = found.tokens[np.minimum(found.offsets[:-1] + 1, len(found.tokens) - 1)]
    return float(((found.lengths > 1) & (second == b)).mean())


def caches(model: PathModel, learned: Paths, rest: Paths) -> dict[str, KeyValueCache]:
    """Return the cache of the paths that were not learned, and the one of all, by method."""
    table = {CACHE: KeyValueCache.of(model, rest)}
    if len(learned):
        own = KeyValueCache.of(model, learned, len(rest) + np.arange(len(learned)))
        table[CACHE_OF_ALL] = table[CACHE].joined(own)
    return table


def of_share(
    size: Size, dataset: Dataset, queries: Queries, valid: Paths, share: float, seed: int
) -> tuple[list[Scored], list[dict[str, Any]]]:
    """Score everything that a learner of a share (0 to 1) and a store of the other paths allow.

    To fill a cache is counted as training. Look-ups and expansions of stored hops are of the store,
    not of the true map.

    Args:
        valid: validation paths on which sharpness and weight of a cache are fitted.

    Returns: scored methods, and for each cache how it was fitted.
    """
    trained = learner(size, dataset, share, seed)
    model, (learned, rest) = trained.model.eval(), halves(dataset, share, seed)

    def scored(name: str, family: str, regime: str, found: Found, next_hop: float, **names: Any):
        names |= {"name": name, "family": family, "regime": regime, "share": share}
        method = Method.of(name_of(size), trained, **names)
        columns = {"study": "learning", "seed": seed, "next_hop": next_hop}
        return score(queries, found, method, **columns)

    found = queries.decode(decoding.greedy, model)
    alone = scored(ALONE, "greedy", "closed_book", found, next_hops(model, queries))
    alone.row["loss"] = mean_loss(model, queries)
    if share == 1:
        return [alone], []
    rows, fits = [alone], []
    for name, cache in caches(model, learned, rest).items():
        cached, tried = fit(model, cache, valid, THETAS, WEIGHTS)
        fitted = {"share": share, "seed": seed, "method": name, "rows": len(cache)}
        fitted |= {"theta": cached.theta, "weight": cached.weight}
        fits.append(fitted | {"nats": min(tried.values()), "nats alone": tried[cached.theta, 0.0]})
        found = queries.decode(decoding.beam, cached, width=1)  # greedy; who arrived is left out
        held = {"training_flops": trained.training_flops + model.flops_per_step() * len(cache)}
        held |= {"memory_numbers": cache.numbers}
        right = next_hops(cached, queries)
        rows.append(scored(name, "memory", "closed_book", found, right, **held))
    return rows + _with_hops(queries, model, rest, scored), fits


def _with_hops(
    queries: Queries, model: PathModel, paths: Paths, scored: Callable[..., Scored]
) -> list[Scored]:
    """What only the hops of stored paths allow: the learner among them, and shortest ways."""
    stored = stored_hops(queries.graph, [paths])
    held = {"memory_numbers": 2 * len(stored.indices)}
    found = queries.decode(decoding.greedy, model, checked_by=stored)
    right = next_hops(Roads(model, stored), queries)
    among = scored(STORED, "memory", "checked", found, right, **held)
    found = best_first(stored, queries.rows.source, queries.rows.target)
    held |= {"model": "none", "parameters": 0, "training_flops": 0}
    right = stitched_next_hops(stored, queries)
    return [among, scored(STITCHED, "graph search", "open_map", found, right, **held)]


def trials(
    size: Size, dataset: Dataset, queries: Queries, valid: Paths, seeds: Iterable[int]
) -> tuple[list[Scored], pd.DataFrame]:
    """Score every share of the size and all paths, for every seed; and how caches were fitted."""
    scored, fits = [], []
    for seed in seeds:
        for percent in dict.fromkeys((*size.shares, 100)):
            found, fitted = of_share(size, dataset, queries, valid, percent / 100, seed)
            scored, fits = scored + found, fits + fitted
    return scored, pd.DataFrame(fits)
