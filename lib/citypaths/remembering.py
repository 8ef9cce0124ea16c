"""Memory of the known map: a key-value cache beside a frozen model, its dials and its controls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from citypaths import search
from citypaths.batches import batch_of
from citypaths.lab import Queries, mean_loss
from citypaths.memories import Cached, KeyValueCache, Private, Probed, Truncated, fit, fit_private
from citypaths.memories.approximate import recall, rounded
from citypaths.memories.cache import familiarity
from citypaths.memories.keys import Layer, states_of
from citypaths.memories.store import Store
from citypaths.models.base import PathModel
from citypaths.paths import Paths
from citypaths.scorers import PathLength
from citypaths.scoring import Scored, score
from citypaths.search import Attempts
from citypaths.train import Trained


def some_paths(paths: Paths, hops: int, seed: int = 0) -> np.ndarray:
    """Return the places of paths drawn by chance, so many that they have about `hops` hops."""
    order = np.random.default_rng(seed).permutation(len(paths))
    enough = int(np.searchsorted(np.cumsum(paths.lengths[order] - 1), hops)) + 1
    return order[:enough]


def cache_of(
    model: PathModel, paths: Paths, hops: int, layer: Layer = "head", seed: int = 0
) -> KeyValueCache:
    """Store about `hops` hops of paths drawn by chance; owners are places among all the paths."""
    some = some_paths(paths, hops, seed)
    return KeyValueCache.of(model.eval(), paths.take(some), owners=some, layer=layer)


def _fitted(
    model: PathModel, store: Store, valid: Queries, test: Queries, k: int
) -> dict[str, Any]:
    """Fit on validation queries; return the cached model and its row of a table."""
    best, _ = fit(model, store, valid.rows.paths, k=k)
    row = {"rows": len(store), "theta": best.theta, "weight": best.weight}
    return row | {"nats alone": mean_loss(model, test), "nats": mean_loss(best, test)}


def layer_table(
    model: PathModel, paths: Paths, hops: int, valid: Queries, test: Queries, k: int = 64
) -> pd.DataFrame:
    """Return one row a layer of the key: what was fitted on `valid`, nats a hop on `test`."""
    layers: tuple[Layer, ...] = ("recurrent", "head", "both")
    rows = {
        layer: _fitted(model, cache_of(model, paths, hops, layer), valid, test, k)
        for layer in layers
    }
    return pd.DataFrame(rows).T.rename_axis("layer")


def size_table(
    model: PathModel, paths: Paths, hops: Sequence[int], valid: Queries, test: Queries,
    k: int = 64, layer: Layer = "head",
) -> pd.DataFrame:  # fmt: skip
    """Return one row a size of the store; each smaller store is part of the next."""
    rows = [_fitted(model, cache_of(model, paths, count, layer), valid, test, k) for count in hops]
    return pd.DataFrame(rows)


def retrieval_table(fitted: Cached, test: Queries, ks: Sequence[int]) -> pd.DataFrame:
    """Return how retrieval of less or of cheaper neighbours changes recall and loss, a row a way.

    Each way is read with the theta and weight that were fitted for exact retrieval.

    Columns: k, recall (of the true k neighbours), nats, flops (of one read).
    """
    cache, k = fitted.cache, fitted.k
    batch = batch_of(test.rows, cache.keys.device)
    with torch.inference_mode():
        states = states_of(fitted.model, batch, cache.layer)[0][batch.labels >= 0]
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


def _ways(cache: KeyValueCache, ks: Sequence[int], k: int) -> Iterable[tuple[str, Any, int]]:
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


def swapped_values(cache: KeyValueCache, seed: int = 0) -> KeyValueCache:
    """Return the cache with its values permuted among the rows: a control."""
    order = torch.randperm(len(cache), generator=torch.Generator().manual_seed(seed))
    return replace(cache, values=cache.values[order.to(cache.values.device)])


def control_table(fitted: Cached, test: Queries) -> pd.DataFrame:
    """Return what reads do: as they are, values swapped among rows, blanked, and rows alone.

    Columns: nats, success (greedy), hard_success, other paths (share of answers that the reads
    changed).
    """
    model, how = fitted.model, {"theta": fitted.theta, "k": fitted.k}
    swapped = Cached(model, swapped_values(fitted.cache), weight=fitted.weight, **how)
    arms: dict[str, PathModel] = {
        "reads blanked": Cached(model, fitted.cache, weight=0.0, **how),
        "reads": fitted,
        "reads swapped": swapped,
        "reads alone": Cached(model, fitted.cache, weight=1.0, **how),
    }
    rows, before = {}, None
    for name, arm in arms.items():
        found = test.decode(search.greedy, arm)
        judged, paths = test.judge(found), [path.tolist() for path in found.paths]
        before = before or paths
        rows[name] = {
            "nats": mean_loss(arm, test),
            "success": judged["success"].mean(),
            "hard_success": judged.loc[judged["hard"], "success"].mean(),
            "other paths": np.mean([a != b for a, b in zip(paths, before, strict=True)]),
        }
    return pd.DataFrame(rows).T


def score_cached(
    queries: Queries, arm: str, trained: Trained, models: Mapping[str, PathModel]
) -> list[Scored]:
    """Score a model alone and with each memory, by name, greedy and with a beam of 8."""
    rows = []
    shared = {"parameters": trained.model.parameters_count, "regime": "closed_book"}
    shared |= {"model": arm, "training_flops": trained.training_flops}
    for memory, model in {"": trained.model.eval(), **models}.items():
        for method, decoder, options in (
            ("greedy", search.greedy, {}),
            ("beam 8", search.beam, {"width": 8}),
        ):
            found = queries.decode(decoder, model, **options)
            name = f"{method}, {memory}" if memory else method
            names = {"method": name, "budget": options.get("width", 1)}
            rows.append(score(queries, found, **shared, **names))
    return rows


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
    model: PathModel, queries: Queries, valid: Queries, n: int, seed: int, shortest: bool = False
) -> tuple[Private, Attempts]:
    """Return the model with a store for each query of its own checked attempts, and those.

    Theta and weight are fitted on validation queries with attempts of their own.

    Args:
        n: attempts at each query. shortest: store those of least length alone.
    """

    def stored(asked: Queries, number: int) -> tuple[tuple[Any, ...], Attempts]:
        attempts = asked.decode(search.draw, model, n=n, checked_by=asked.graph, seed=number)
        keep = arrived(attempts, asked, shortest)
        cache = KeyValueCache.of(model, attempts.paths.take(keep), owners=attempts.query[keep])
        return (cache, asked.rows.source, asked.rows.target), attempts

    fitted = fit_private(model, *stored(valid, seed + 1)[0], valid.rows.paths)
    args, attempts = stored(queries, seed)
    return Private(model, *args, **fitted), attempts


def score_attempts(
    queries: Queries, valid: Queries, arm: str, trained: Trained, ns: Sequence[int], seed: int = 0
) -> list[Scored]:
    """Score a store of the query's own checked attempts against keeping the best of them.

    Both pay for the same attempts and look-ups; the store then decodes once more, greedy.
    """
    model, rows = trained.model.eval(), []
    shared = {"model": arm, "parameters": model.parameters_count, "regime": "checked"}
    shared |= {"training_flops": trained.training_flops}
    for n in ns:
        for stored in ("all", "shortest"):
            private, attempts = own_attempts(model, queries, valid, n, seed, stored == "shortest")
            found = queries.decode(search.greedy, private)
            spent = {"flops": found.flops + attempts.flops, "lookups": attempts.lookups}
            found = replace(found, **spent, seconds=found.seconds + attempts.seconds)
            names = {"method": f"own attempts, {stored} of {n}", "budget": n}
            rows.append(score(queries, found, **shared, **names))
        options = {"n": n, "seed": seed, "checked_by": queries.graph}
        best = queries.decode(search.best_of, model, scorer=PathLength(queries.graph), **options)
        names = {"method": f"best of {n}, checked", "budget": n}
        rows.append(score(queries, best, **shared, **names))
    return rows


def auc(high: np.ndarray, low: np.ndarray) -> float:
    """Return how often a value of `high` is above one of `low`, ties as half."""
    ranks = pd.Series(np.concatenate([high, low])).rank().to_numpy()[: len(high)]
    return float((ranks.sum() - len(high) * (len(high) + 1) / 2) / (len(high) * len(low)))


def novelty_table(
    model: PathModel, paths: Paths, hops: int, test: Queries, layer: Layer = "head", seed: int = 0
) -> pd.DataFrame:
    """Return how well nearness to the store tells familiar from new, as an AUC, a row a question.

    "a stored path, itself": against test queries; its own row is in the store. "a training path,
    left out": the same with its own rows left out. "a contained query": inside some training path.
    "a known target": the store holds no path to half of the targets. "a good answer": nearness of
    the greedy answer to the store, of answers that succeed against others; no answer key is used.

    Columns: AUC, familiar and new (how many of each).
    """
    cache, new = cache_of(model, paths, hops, layer, seed), test.uncontained()
    owners = np.unique(cache.owners.cpu().numpy())[: len(new)]
    taken, there = paths.take(owners), test.take(test.contained)

    def near(these: Paths, mine: np.ndarray | None = None) -> np.ndarray:
        return familiarity(model, cache, these, mine)

    others = near(new.rows.paths)
    table = {
        "a stored path, itself": (near(taken), others),
        "a training path, left out": (near(taken, owners), others),
        "a contained query": (near(there.rows.paths), others),
        "a known target": _by_target(model, cache, paths, new, seed),
        "a good answer": _by_success(near, model, new),
    }
    rows = {
        name: {"AUC": auc(*pair), "familiar": len(pair[0]), "new": len(pair[1])}
        for name, pair in table.items()
    }
    return pd.DataFrame(rows).T


def _by_target(
    model: PathModel, cache: KeyValueCache, paths: Paths, new: Queries, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Familiarity of queries by whether paths to their target stayed in the store."""
    known = np.random.default_rng(seed).random(len(new.graph)) < 0.5
    ends = paths.tokens[paths.offsets[1:] - 1].astype(np.int64)
    keep = torch.as_tensor(known[ends], device=cache.owners.device)[cache.owners]
    near = familiarity(model, cache.rows(keep), new.rows.paths)
    return near[known[new.rows.target]], near[~known[new.rows.target]]


def _by_success(
    near: Callable[[Paths], np.ndarray], model: PathModel, new: Queries
) -> tuple[np.ndarray, np.ndarray]:
    """Familiarity of greedy answers by whether they succeed."""
    found = new.decode(search.greedy, model)
    good = new.judge(found)["success"].to_numpy()
    values = near(found.paths)
    return values[good], values[~good]
