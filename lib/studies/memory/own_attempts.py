"""Test-time memory: a model that reads its own checked attempts at the same query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from citypaths import decoding
from citypaths.decoding import Attempts, PathLength
from citypaths.judging.methods import Scored, score
from citypaths.judging.queries import Queries
from citypaths.models.base import PathModel
from citypaths.training.loop import Trained
from studies.memory import KeyValueCache, Private, fit_private


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
        attempts = asked.decode(decoding.draw, model, n=n, checked_by=asked.graph, seed=number)
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
            found = queries.decode(decoding.greedy, private)
            spent = {"flops": found.flops + attempts.flops, "lookups": attempts.lookups}
            found = replace(found, **spent, seconds=found.seconds + attempts.seconds)
            names = {"method": f"own attempts, {stored} of {n}", "budget": n}
            rows.append(score(queries, found, **shared, **names))
        options = {"n": n, "seed": seed, "checked_by": queries.graph}
        best = queries.decode(decoding.best_of, model, scorer=PathLength(queries.graph), **options)
        names = {"method": f"best of {n}, checked", "budget": n}
        rows.append(score(queries, best, **shared, **names))
    return rows
