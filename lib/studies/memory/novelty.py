"""Familiarity as a novelty signal: does nearness to the store tell old from new?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from citypaths import decoding
from citypaths.judging.queries import Queries
from citypaths.map.paths import Paths
from citypaths.models.base import PathModel
from studies.memory import KeyValueCache
from studies.memory.cache import familiarity
from studies.memory.keys import Layer
from studies.memory.remembering import cache_of


def auc(high: np.ndarray, low: np.ndarray) -> float:
    """Return how often a value of `high` is above one of `low`, ties as half; nan without both."""
    if not len(high) or not len(low):
        return float("nan")
    ranks = pd.Series(np.concatenate([high, low])).rank().to_numpy()[: len(high)]
    return float((ranks.sum() - len(high) * (len(high) + 1) / 2) / (len(high) * len(low)))


def novelty_table(
    model: PathModel, paths: Paths, hops: int, test: Queries, layer: Layer = "head", seed: int = 0
) -> pd.DataFrame:
    """Return how well nearness to the store tells familiar from new, as an AUC, a row a question.

    "a stored path, itself": against test queries; its own row is in the store. "a training path,
    left out": the same with its own rows left out. "part of a stored path": cut out of it anywhere.
    "a contained query": inside some training path, stored or not. "a known target": the store holds
    no path to half of the targets. "a good answer": nearness of the greedy answer to the store, of
    answers that succeed against others; no answer key is used.

    Columns: AUC, familiar and new (how many of each).
    """
    cache, new = cache_of(model, paths, hops, layer, seed), test.uncontained()
    random = np.random.default_rng(seed)
    owners = random.permutation(np.unique(cache.owners.cpu().numpy()))[: len(new)]
    taken, there = paths.take(owners), test.take(test.contained)

    def near(these: Paths, mine: np.ndarray | None = None) -> np.ndarray:
        return familiarity(model, cache, these, mine)

    others = near(new.rows.paths)
    table = {
        "a stored path, itself": (near(taken), others),
        "a training path, left out": (near(taken, owners), others),
        "part of a stored path": (near(_parts(taken, random)), others),
        "a contained query": (near(there.rows.paths), others),
        "a known target": _by_target(model, cache, paths, new, seed),
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
    found = new.decode(decoding.greedy, model)
    good = new.judge(found)["success"].to_numpy()
    values = near(found.paths)
    return values[good], values[~good]
