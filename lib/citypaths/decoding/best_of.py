"""Best of N: draw many attempts, keep the one a scorer likes best; or stitch them together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import gammaln

from citypaths.decoding.attempts import Attempts, draw
from citypaths.decoding.scorers import Scorer
from citypaths.map.graph import CityGraph
from citypaths.map.paths import Found, Paths
from citypaths.models.base import PathModel


def best_of(
    model: PathModel, source, target, max_hops: int, *, n: int, scorer: Scorer, **options: Any
) -> Found:
    """Draw `n` attempts at each query and keep the one of least energy, on ties the most drawn.

    Options are those of `draw`: `temperature`, `checked_by`, `seed`. Each distinct path is scored
    once, and a hop that was looked up is known.
    """
    began = time.perf_counter()
    attempts = draw(model, source, target, max_hops, n, **options)
    energies, flops, lookups = scored(attempts, scorer, source, target)
    found = attempts.paths.take(_first_of_least(attempts, energies))
    spent = np.zeros(len(found))
    return Found(found, flops, lookups, spent, time.perf_counter() - began)


def scored(
    attempts: Attempts, scorer: Scorer, source, target
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the energies [A] of attempts, and each query's FLOPs and look-ups, scoring included.

    A scorer that looks up hops pays for each distinct hop of a query that is not known yet.
    """
    source, target = np.asarray(source, np.int64), np.asarray(target, np.int64)
    of, paths = attempts.query, attempts.paths
    energies = scorer.score(source[of], target[of], paths)
    flops = attempts.flops + np.bincount(of, scorer.flops(paths), minlength=len(source))
    lookups = attempts.lookups
    if not len(attempts.hops) and scorer.lookups(paths).any():
        lookups = lookups + np.bincount(attempts.used_hops()[:, 0], minlength=len(source))
    return energies, flops, lookups


def _first_of_least(attempts: Attempts, energies: np.ndarray) -> np.ndarray:
    """The attempt [queries] of least energy of each query; the most drawn of a query come first."""
    order = np.lexsort((np.arange(len(energies)), energies, attempts.query))
    return order[np.unique(attempts.query[order], return_index=True)[1]]


def expected_best(
    attempts: Attempts, energies: np.ndarray, good: np.ndarray, ns: Sequence[int]
) -> np.ndarray:
    """Return how often the best of N by energy is good, for each N, exactly: [queries, len(ns)].

    The mean over all subsets of N of the attempts drawn, which has far less noise than one subset.
    On equal energies each of the attempts is kept as often.

    Args:
        energies: [A], lower is kept. good: [A], what to average, such as success.

    Raises:
        ValueError: an N above the number of attempts drawn.
    """
    queries, cell = len(attempts.flops), _ranked(attempts.query, energies)
    total = np.bincount(attempts.query, attempts.count, minlength=queries)
    ns = np.asarray(ns)
    if ns.max() > total.min():
        raise ValueError(f"at most {int(total.min())} attempts were drawn, not {ns.max()}")
    order, first = np.unique(cell, return_index=True)[0], np.zeros(0)
    count = np.bincount(cell, attempts.count)[order]
    share = np.bincount(cell, attempts.count * good)[order] / count
    query = np.zeros(len(order), np.int64)
    query[cell] = attempts.query
    before = np.cumsum(count) - count
    first = np.searchsorted(query, np.arange(queries))
    left = total[query] - (before - before[first][query])
    out = np.zeros((queries, len(ns)))
    for column, n in enumerate(ns):
        chance = _none_better(left, n, total[query]) - _none_better(left - count, n, total[query])
        out[:, column] = np.bincount(query, chance * share, minlength=queries)
    return out


def _ranked(query: np.ndarray, energies: np.ndarray) -> np.ndarray:
    """Number the distinct (query, energy) pairs in ascending order, int64 [A]."""
    order = np.lexsort((energies, query))
    new = np.ones(len(order), np.int64)
    new[1:] = (np.diff(query[order]) > 0) | (energies[order][1:] != energies[order][:-1])
    cell = np.empty(len(order), np.int64)
    cell[order] = np.cumsum(new) - 1
    return cell


def _none_better(left: np.ndarray, n: int, total: np.ndarray) -> np.ndarray:
    """The chance that all `n` of `total` fall among the `left` worst: C(left, n) / C(total, n)."""
    enough = left >= n
    left = np.where(enough, left, n)
    log = gammaln(left + 1) - gammaln(left - n + 1) - gammaln(total + 1) + gammaln(total - n + 1)
    return np.where(enough, np.exp(log), 0.0)


def stitched(
    model: PathModel, source, target, max_hops: int, *, n: int, checked_by: CityGraph, **options
) -> Found:
    """Draw `n` checked attempts and return the shortest path over all hops that were looked up.

    What was looked up for one attempt serves all: parts of several attempts join where they visit
    the same city, whether or not any of them arrived. A query that no hops join gives its most
    drawn attempt.
    """
    began = time.perf_counter()
    attempts = draw(model, source, target, max_hops, n, checked_by=checked_by, **options)
    paths = stitch(checked_by, attempts.hops, source, target)
    first = attempts.paths.take(np.searchsorted(attempts.query, np.arange(len(paths))))
    lists = [a if len(a) else b for a, b in zip(paths, first, strict=True)]
    costs = (attempts.flops, attempts.lookups, np.zeros(len(paths)))
    return Found(Paths.from_lists(lists), *costs, time.perf_counter() - began)


def stitch(graph: CityGraph, hops: np.ndarray, source, target) -> Paths:
    """Return the shortest path of each query over its own `hops` [H, 3] that are edges.

    Args:
        hops: each (query, city, next city). Returns: an empty path where nothing joins the ends.
    """
    source, target = np.asarray(source, np.int64), np.asarray(target, np.int64)
    edge = graph.edge_index(hops[:, 1], hops[:, 2])
    hops, mm = hops[edge >= 0], graph.mm[edge[edge >= 0]]
    n, queries = len(graph), np.arange(len(source))
    ends = np.concatenate([queries * n + source, queries * n + target])
    keys = np.concatenate([hops[:, 0] * n + hops[:, 1], hops[:, 0] * n + hops[:, 2], ends])
    node, where = np.unique(keys, return_inverse=True)
    a, b, ends = np.split(where, [len(hops), 2 * len(hops)])
    start, goal = np.split(ends, 2)
    togo = np.full(len(node), np.inf)
    togo[goal] = 0.0
    while True:
        before = togo.copy()
        np.minimum.at(togo, a, mm + togo[b])
        if np.array_equal(before, togo):
            break
    after = np.full(len(node), -1)
    tight = np.isfinite(togo[a]) & (togo[a] == mm + togo[b])
    after[a[tight]] = b[tight]
    after[goal] = -1
    return Paths.from_lists(
        [_follow(node % n, after, *ends) for ends in zip(start, goal, strict=True)]
    )


def _follow(city: np.ndarray, after: np.ndarray, start: int, goal: int) -> list[int]:
    """The cities from node `start` to `goal`; none where they are not joined."""
    at, path = start, [int(city[start])]
    while at != goal and after[at] >= 0:
        at = after[at]
        path.append(int(city[at]))
    return path if at == goal else []
