"""Learning or memorizing: train on some of the paths, store the others, and ask what each adds."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from citypaths import decoding
from citypaths.data.batches import batch_of
from citypaths.data.dataset import Dataset
from citypaths.decoding.decode import Moves
from citypaths.judging.floors import stored_hops
from citypaths.judging.methods import Scored, score
from citypaths.judging.queries import Queries
from citypaths.lab import arm_settings, device, mean_loss
from citypaths.map.best_first import best_first
from citypaths.map.graph import CityGraph
from citypaths.map.paths import Paths
from citypaths.models import PathModel, build
from citypaths.sizes import Size
from citypaths.training.loop import Trained
from studies.learning.shares import Share, halves
from studies.memory import Cached, KeyValueCache, fit
from studies.search import exchange

ALONE = "greedy"
CACHE = "greedy + cache"
CACHE_OF_ALL = "greedy + cache of all"
STORED = "greedy, stored hops"
STITCHED = "stitched hops"
GRID = {
    "thetas": (10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0),
    "weights": (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99),
    "k": 64,
}
FITS = ("share", "seed", "method", "rows", "theta", "weight", "nats", "nats alone")


def name_of(size: Size) -> str:
    """Return the learner's name: the smallest width of the ladder of notebook 05."""
    return f"gru-{exchange.widths(size)[0]}"


def learner(size: Size, dataset: Dataset, share: int, seed: int) -> Trained:
    """Train (or load) the learner on `share` percent of the training paths, chosen by `seed`.

    Every share takes the same number of steps, that of the ladder's rung, which is the learner of
    100 %. At 0 % it keeps its first weights. The learning rate was not tuned to the share.
    """
    width = exchange.widths(size)[0]
    if share:
        paths = dataset if share == 100 else Share.of(dataset, share / 100, seed)
        return exchange.train_rung(size, paths, width, seed)
    torch.manual_seed(seed)
    model = build("rnn", dataset.graph, **arm_settings(f"gru-{width}")).to(device())
    return Trained(model, pd.DataFrame(), 0, 0, 0.0)


def next_hops(model: PathModel, queries: Queries, stored: CityGraph | None = None) -> float:
    """Return the share of hops of the queries' shortest paths that the model finds, taught the way.

    Args:
        stored: choose among this graph's hops alone.
    """
    where = next(model.parameters()).device
    moves, right, count = Moves.of(stored, where) if stored is not None else None, 0, 0
    with torch.inference_mode():
        by_length = np.argsort(queries.rows.hops, kind="stable")  # a cache searches for padding too
        for part in np.array_split(by_length, max(1, len(queries) // 50)):
            batch = batch_of(queries.rows.take(part), where)
            real = batch.labels >= 0
            scores = model(batch)[real].float()
            scores = scores if moves is None else moves.mask(batch.cities[real], scores)
            found = scores.max(-1)
            hit = (found.indices == batch.labels[real]) & (found.values > float("-inf"))
            right, count = right + int(hit.sum()), count + len(hit)
    return right / count


def stitched_next_hops(stored: CityGraph, queries: Queries) -> float:
    """Return the share of hops of the queries' shortest paths that begin the stored shortest way.

    It is asked anew from every city of the path, as a model is that is taught the way.
    """
    paths = queries.rows.paths
    row, a, b = paths.hops()
    found = best_first(stored, a, queries.rows.target[row]).paths
    second = found.tokens[np.minimum(found.offsets[:-1] + 1, len(found.tokens) - 1)]
    return float(((found.lengths > 1) & (second == b)).mean())


def alone(queries: Queries, trained: Trained, **names: Any) -> Scored:
    """Score the learner by itself, greedy and closed-book."""
    found = queries.decode(decoding.greedy, trained.model.eval())
    names |= {"next_hop": next_hops(trained.model, queries)}
    names |= {"loss": mean_loss(trained.model, queries)}
    return score(queries, found, method=ALONE, regime="closed_book", **names)


def with_cache(queries: Queries, cached: Cached, method: str, **names: Any) -> Scored:
    """Score the learner with a cache; to fill the cache is counted as training."""
    found = queries.decode(decoding.beam, cached, width=1)  # greedy that leaves out who has arrived
    filled = cached.model.flops_per_step() * len(cached.cache)
    names |= {"training_flops": names["training_flops"] + filled}
    names |= {"next_hop": next_hops(cached, queries)}
    return score(queries, found, method=method, regime="closed_book", **names)


def with_hops(queries: Queries, trained: Trained, paths: Paths, **names: Any) -> list[Scored]:
    """Score what only stored hops allow: the learner among them, and their shortest ways.

    Look-ups and expansions are of the stored hops, not of the true map.
    """
    stored = stored_hops(queries.graph, [paths])
    found = queries.decode(decoding.greedy, trained.model, checked_by=stored)
    right = next_hops(trained.model, queries, stored)
    among = score(queries, found, method=STORED, regime="checked", next_hop=right, **names)
    found = best_first(stored, queries.rows.source, queries.rows.target)
    names |= {"model": "none", "parameters": 0, "training_flops": 0}
    names |= {"next_hop": stitched_next_hops(stored, queries)}
    return [among, score(queries, found, method=STITCHED, regime="open_map", **names)]


def of_share(
    size: Size, dataset: Dataset, queries: Queries, valid: Paths, share: int, seed: int
) -> tuple[list[Scored], list[dict[str, Any]]]:
    """Score everything that a learner of `share` percent and a store of the other paths allow.

    Returns: scored methods (`budget` is the share), and for each cache a dict of `FITS`.

    Args:
        valid: validation paths on which sharpness and share of a cache are fitted.
    """
    trained = learner(size, dataset, share, seed)
    names = {"model": f"{name_of(size)}, {share} %", "seed": seed, "budget": share}
    names |= {"parameters": trained.model.parameters_count}
    names |= {"training_flops": trained.training_flops}
    scored, fits = [alone(queries, trained, **names)], []
    if share == 100:
        return scored, fits
    for method, cache in caches(trained.model, dataset, share, seed).items():
        cached, tried = fit(trained.model, cache, valid, **GRID)
        scored.append(with_cache(queries, cached, method, **names))
        best = (cached.theta, cached.weight, min(tried.values()), tried[cached.theta, 0.0])
        line = (share, seed, method, len(cache), *best)
        fits.append(dict(zip(FITS, line, strict=True)))
    rest = halves(dataset, share / 100, seed)[1]
    return scored + with_hops(queries, trained, rest, **names), fits


def caches(model: PathModel, dataset: Dataset, share: int, seed: int) -> dict[str, KeyValueCache]:
    """Return the learner's cache of the paths it did not learn, and the one of all, by method."""
    learned, rest = halves(dataset, share / 100, seed)
    table = {CACHE: KeyValueCache.of(model, rest)}
    if len(learned):
        own = KeyValueCache.of(model, learned, len(rest) + np.arange(len(learned)))
        table[CACHE_OF_ALL] = table[CACHE].joined(own)
    return table


def trials(
    size: Size, dataset: Dataset, queries: Queries, valid: Paths, seeds: Iterable[int]
) -> tuple[list[Scored], pd.DataFrame]:
    """Score every share of the size and 100 %, for every seed; and how the caches were fitted."""
    scored, fits = [], []
    one = partial(of_share, size, dataset, queries, valid)
    for seed in seeds:
        for share in dict.fromkeys((*size.shares, 100)):
            found, fitted = one(share, seed)
            scored, fits = scored + found, fits + fitted
    return scored, pd.DataFrame(fits, columns=list(FITS))
