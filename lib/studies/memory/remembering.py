"""Memory of the known map: a key-value cache beside a frozen model, its dials and its controls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from citypaths import decoding
from citypaths.data.batches import batch_of
from citypaths.judging.methods import Scored, score
from citypaths.judging.queries import Queries
from citypaths.lab import mean_loss
from citypaths.map.paths import Paths
from citypaths.models.base import PathModel
from citypaths.training.loop import Trained
from studies.memory import Cached, KeyValueCache, Probed, Truncated, fit
from studies.memory.approximate import recall, rounded
from studies.memory.keys import Layer, states_of
from studies.memory.store import Store


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


def score_cached(
    queries: Queries, arm: str, trained: Trained, models: Mapping[str, PathModel]
) -> list[Scored]:
    """Score a model alone and with each memory, by name, greedy and with a beam of 8."""
    rows = []
    shared = {"parameters": trained.model.parameters_count, "regime": "closed_book"}
    shared |= {"model": arm, "training_flops": trained.training_flops}
    for memory, model in {"": trained.model.eval(), **models}.items():
        for method, decoder, options in (
            ("greedy", decoding.greedy, {}),
            ("beam 8", decoding.beam, {"width": 8}),
        ):
            found = queries.decode(decoder, model, **options)
            name = f"{method}, {memory}" if memory else method
            names = {"method": name, "budget": options.get("width", 1)}
            rows.append(score(queries, found, **shared, **names))
    return rows
