"""Memory of the known map: what a cache beside a frozen model adds, and what controls say of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from citypaths import decoding
from citypaths.data.batches import batch_of
from citypaths.decoding import Attempts, PathLength
from citypaths.judging.methods import Method, Scored, score_methods
from citypaths.judging.queries import Queries
from citypaths.lab import mean_loss
from citypaths.map.paths import Found, Paths
from citypaths.models.base import PathModel
from citypaths.training.loop import Trained
from studies.memory.cache import (
    KeyValueCache,
    Private,
    Probed,
    Store,
    Truncated,
    rounded,
    states_of,
)
from studies.memory.mixture import DECODERS, Cached, familiarity, fit

OWN_THETAS = (5.0, 10.0, 20.0, 40.0, 80.0)
OWN_WEIGHTS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)


def some_paths(paths: Paths, hops: int) -> np.ndarray:
    """Return the places of paths drawn by chance, so many that they have about `hops` hops.

    Fewer are among more.
    """
    order = np.random.default_rng(0).permutation(len(paths))
    enough = int(np.searchsorted(np.cumsum(paths.lengths[order] - 1), hops)) + 1
    return order[:enough]


def cache_of(model: PathModel, paths: Paths, hops: int) -> KeyValueCache:
    """Store about `hops` hops of paths drawn by chance; owners are places among all the paths."""
    some = some_paths(paths, hops)
    return KeyValueCache.of(model.eval(), paths.take(some), owners=some)


def size_table(
    model: PathModel, paths: Paths, hops: Sequence[int], valid: Queries, test: Queries
) -> pd.DataFrame:
    """Return one row a size of the cache, fitted on `valid`; each smaller one is part of the next.

    Columns: rows, theta, weight, nats alone and nats (a hop, on `test`).
    """
    rows, alone = [], mean_loss(model, test)
    for count in hops:
        cache = cache_of(model, paths, count)
        best, _ = fit(model, cache, valid.rows.paths)
        row = {"rows": len(cache), "theta": best.theta, "weight": best.weight}
        rows.append(row | {"nats alone": alone, "nats": mean_loss(best, test)})
    return pd.DataFrame(rows)


def retrieval_table(fitted: Cached, test: Queries, ks: Sequence[int]) -> pd.DataFrame:
    """Return how retrieval of less or of cheaper neighbours changes recall and loss, a row a way.

    Each way is read with the theta and weight that were fitted for exact retrieval.

    Columns: k, recall (of the true k neighbours), nats, flops (of one read).
    """
    cache, k = fitted.store, fitted.k
    batch = batch_of(test.rows, cache.keys.device)
    with torch.inference_mode():
        states = states_of(fitted.model, batch)[0][batch.labels >= 0]
        exact = cache.nearest(states, max(*ks, k))[1]
    rows = []
    for name, store, count in _ways(cache, ks, k):
        with torch.inference_mode():
            found = recall(exact[:, :count], store.nearest(states, count)[1])
        how = {"theta": fitted.theta, "weight": fitted.weight, "k": count}
        nats = mean_loss(Cached(fitted.model, store, **how), test)
        row = {"retrieval": name, "k": count, "recall": found, "nats": nats}
        rows.append(row | {"flops": store.flops})
    return pd.DataFrame(rows).set_index("retrieval")


def _ways(cache: KeyValueCache, ks: Sequence[int], k: int) -> Iterable[tuple[str, Store, int]]:
    """Name, store and k of each way to retrieve."""
    yield from (("exact", cache, count) for count in ks)
    for name, kind in (("16-bit keys", torch.float16), ("8-bit keys", torch.float8_e4m3fn)):
        yield name, rounded(cache, kind), k
    width = cache.keys.shape[1]
    for dimensions in (width // 2, width // 4, width // 8):
        yield f"{dimensions} of {width} directions", Truncated(cache, dimensions), k
    lists = max(2, round(len(cache) ** 0.5))
    for probes in (1, 4, 16):
        if probes <= lists:
            yield f"{probes} of {lists} lists", Probed(cache, lists, probes), k


def recall(exact: torch.Tensor, found: torch.Tensor) -> float:
    """Return the share of the true neighbours [N, k] that are among those found [N, k]."""
    return float((exact[:, :, None] == found[:, None, :]).any(2).float().mean())


def swapped_values(cache: KeyValueCache) -> KeyValueCache:
    """Return the cache with its values permuted among the rows: a control."""
    order = torch.randperm(len(cache), generator=torch.Generator().manual_seed(0))
    return replace(cache, values=cache.values[order.to(cache.values.device)])


def control_table(fitted: Cached, test: Queries) -> pd.DataFrame:
    """Return what reads do: as they are, values swapped among rows, blanked, and rows alone.

    Columns: nats, success (greedy), hard_success, other paths (share of answers that the reads
    changed).
    """
    model, how = fitted.model, {"theta": fitted.theta, "k": fitted.k}
    arms = {
        "reads blanked": Cached(model, fitted.store, weight=0.0, **how),
        "reads": fitted,
        "reads swapped": Cached(model, swapped_values(fitted.store), weight=fitted.weight, **how),
        "reads alone": Cached(model, fitted.store, weight=1.0, **how),
    }
    rows, before = {}, None
    for name, arm in arms.items():
        found = test.decode(decoding.greedy, arm)
        judged, paths = test.judge(found), [path.tolist() for path in found.paths]
        before = before or paths
        rows[name] = {
            "nats": mean_loss(arm, test),
            "success": judged["success"].mean(),
            "hard_success": judged.loc[judged["hard"], "success"].mean(),
            "other paths": np.mean([a != b for a, b in zip(paths, before, strict=True)]),
        }
    return pd.DataFrame(rows).T


def score_cached(queries: Queries, arm: str, trained: Trained, fitted: Cached) -> list[Scored]:
    """Score a model alone and with a cache, greedy and with a beam of 8."""

    def decoded(model: PathModel, decoder: Callable[..., Found], asked: Queries) -> Found:
        return asked.decode(decoder, model)

    methods = []
    for suffix, model in (("", trained.model.eval()), (", cache", fitted)):
        for name, (family, width, decoder) in DECODERS.items():
            what = {"family": "memory" if suffix else family, "regime": "closed_book"}
            what |= {"attempts": width, "run": partial(decoded, model, decoder)}
            what |= {"memory_numbers": fitted.store.numbers} if suffix else {}
            methods.append(Method.of(arm, trained, name=name + suffix, **what))
    return score_methods(methods, queries, study="known map")


def arrived(attempts: Attempts, queries: Queries, shortest: bool = False) -> np.ndarray:
    """Return which attempts [A] are legal and arrive; only the shortest of each query if asked."""
    of = attempts.query
    ends = queries.rows.source[of], queries.rows.target[of]
    km = PathLength(queries.graph).score(*ends, attempts.paths)
    good = np.isfinite(km) & (attempts.paths.lengths > 1)
    if shortest:
        least = np.full(len(queries), np.inf)
        np.minimum.at(least, of[good], km[good])
        good &= km == least[of]
    return good


def own_attempts(
    model: PathModel, queries: Queries, valid: Queries, n: int, shortest: bool = False
) -> tuple[Cached, Attempts]:
    """Return the model with a store for each query of its own checked attempts, and those.

    Theta and weight are fitted on validation queries with attempts of their own.

    Args:
        n: attempts at each query. shortest: store those of least length alone.
    """

    def stored(asked: Queries, seed: int) -> tuple[Private, Attempts]:
        attempts = asked.decode(decoding.draw, model, n=n, checked_by=asked.graph, seed=seed)
        keep = arrived(attempts, asked, shortest)
        cache = KeyValueCache.of(model, attempts.paths.take(keep), owners=attempts.query[keep])
        return Private(cache, asked.rows.source, asked.rows.target), attempts

    known, _ = stored(valid, 1)
    best, _ = fit(model, known, valid.rows.paths, OWN_THETAS, OWN_WEIGHTS)
    own, attempts = stored(queries, 0)
    return Cached(model, own, theta=best.theta, weight=best.weight), attempts


def score_attempts(
    queries: Queries, valid: Queries, arm: str, trained: Trained, n: int
) -> list[Scored]:
    """Score a store of the query's own checked attempts against keeping the best of them.

    Both pay for the same attempts and look-ups; the store then decodes once more, greedy.
    """
    model = trained.model.eval()

    def once_more(shortest: bool, asked: Queries) -> Found:
        private, attempts = own_attempts(model, asked, valid, n, shortest)
        found = asked.decode(decoding.greedy, private)
        spent = {"flops": found.flops + attempts.flops, "lookups": attempts.lookups}
        return replace(found, **spent, seconds=found.seconds + attempts.seconds)

    def best(asked: Queries) -> Found:
        options = {"n": n, "checked_by": asked.graph, "scorer": PathLength(asked.graph)}
        return asked.decode(decoding.best_of, model, **options)

    shared = {"regime": "checked", "attempts": n}
    methods = [
        Method.of(arm, trained, name=f"own attempts, {kind} of {n}", family="memory",
                  run=partial(once_more, kind == "shortest"), **shared)
        for kind in ("all", "shortest")
    ]  # fmt: skip
    best_of = {"name": f"best of {n}", "family": "best of N", "verifier": "exact length"}
    methods.append(Method.of(arm, trained, run=best, **best_of, **shared))
    return score_methods(methods, queries, study="known map")


def auc(high: np.ndarray, low: np.ndarray) -> float:
    """Return how often a value of `high` is above one of `low`, ties as half; nan without both."""
    if not len(high) or not len(low):
        return float("nan")
    ranks = pd.Series(np.concatenate([high, low])).rank().to_numpy()[: len(high)]
    return float((ranks.sum() - len(high) * (len(high) + 1) / 2) / (len(high) * len(low)))


def novelty_table(model: PathModel, paths: Paths, hops: int, test: Queries) -> pd.DataFrame:
    """Return how well nearness to a cache tells familiar from new, as an AUC, a row a question.

    "a stored path, itself": against test queries; its own row is in the cache. "a training path,
    left out": the same with its own rows left out. "part of a stored path": cut out of it anywhere.
    "a contained query": inside some training path, stored or not. "a known target": the cache holds
    no path to half of the targets. "a good answer": nearness of the greedy answer to the cache, of
    answers that succeed against others; no answer key is used.

    Columns: AUC, familiar and new (how many of each).
    """
    cache, new = cache_of(model, paths, hops), test.uncontained()
    random = np.random.default_rng(0)
    owners = random.permutation(np.unique(cache.owners.cpu().numpy()))[: len(new)]
    taken, there = paths.take(owners), test.take(test.contained)
    near = partial(familiarity, model, cache)
    others = near(new.rows.paths)
    table = {
        "a stored path, itself": (near(taken), others),
        "a training path, left out": (near(taken, owners), others),
        "part of a stored path": (near(_parts(taken, random)), others),
        "a contained query": (near(there.rows.paths), others),
        "a known target": _by_target(model, cache, paths, new),
        "a good answer": _by_success(near, model, new),
    }
    rows = {
        name: {"AUC": auc(*pair), "familiar": len(pair[0]), "new": len(pair[1])}
        for name, pair in table.items()
    }
    return pd.DataFrame(rows).T


def _parts(paths: Paths, random: np.random.Generator) -> Paths:
    """A part of each path of at least four cities: up to half of its hops left out."""
    parts = []
    for path in (p for p in paths if len(p) > 3):
        keep = int(random.integers((len(path) + 2) // 2, len(path)))
        first = int(random.integers(0, len(path) - keep + 1))
        parts.append(path[first : first + keep])
    return Paths.from_lists(parts)


def _by_target(
    model: PathModel, cache: KeyValueCache, paths: Paths, new: Queries
) -> tuple[np.ndarray, np.ndarray]:
    """Familiarity of queries by whether paths to their target stayed in the cache."""
    known = np.random.default_rng(0).random(len(new.graph)) < 0.5
    ends = paths.tokens[paths.offsets[1:] - 1].astype(np.int64)
    keep = torch.as_tensor(known[ends], device=cache.owners.device)[cache.owners]
    near = familiarity(model, cache.rows(keep), new.rows.paths)
    return near[known[new.rows.target]], near[~known[new.rows.target]]


def _by_success(
    near: Callable[..., Any], model: PathModel, new: Queries
) -> tuple[np.ndarray, np.ndarray]:
    """Familiarity of greedy answers by whether they succeed."""
    found = new.decode(decoding.greedy, model)
    good = new.judge(found)["success"].to_numpy()
    values = near(found.paths)
    return values[good], values[~good]
