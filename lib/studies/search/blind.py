"""Blind search: random legal walks without a model, the floor of all searches."""

from __future__ import annotations

import time

import numpy as np
from numba import njit

from citypaths.decoding.budget import Budget
from citypaths.map.graph import CityGraph, hash_next, hash_state
from citypaths.map.paths import Found, Paths


def blind(
    graph: CityGraph,
    source,
    target,
    max_hops: int,
    *,
    walks: int = 64,
    budget: Budget | None = None,
    seed: int = 0,
) -> Found:
    """Return the shortest of `walks` random walks that arrive, else the first walk.

    A walk draws uniformly among the out-edges of a city until the target, a dead end or `max_hops`.
    Every city it leaves is an expansion, and each of its out-edges a look-up. A query's walks
    depend on its source, its target and `seed` alone. Where a city is too dear for the budget the
    query stops, and the walk there does not arrive.

    Raises:
        ValueError: no walks, no hops, not as many sources as targets, or unknown cities.
    """
    if walks < 1 or max_hops < 1:
        raise ValueError(f"walks and max_hops are at least 1, not {walks} and {max_hops}")
    began, budget = time.perf_counter(), budget or Budget()
    source, target = (np.ascontiguousarray(x, np.int64) for x in (source, target))
    if len(source) != len(target):
        raise ValueError(f"{len(source)} sources but {len(target)} targets")
    ends = np.concatenate([source, target])
    if ((ends < 0) | (ends >= len(graph))).any():
        raise ValueError(f"cities of this graph are 0 to {len(graph) - 1}")
    state = hash_state(seed, source, target)
    limits = float(budget.lookups), float(budget.expansions)
    args = (graph.indptr, graph.indices, graph.mm, source, target, state)
    out, lengths, spent = _walks(*args, max_hops, walks, *limits)
    paths, seconds = Paths.from_padded(out, lengths), time.perf_counter() - began
    return Found(paths, np.zeros(len(paths)), spent[:, 0], spent[:, 1], seconds)


@njit(cache=True)
def _walks(indptr, indices, mm, sources, targets, states, max_hops, walks, lookups, expansions):
    """Walk; step t of walk w takes the number hashed with w * max_hops + t."""
    out = np.full((len(sources), max_hops + 1), -1, np.int64)
    lengths = np.zeros(len(sources), np.int64)
    spent = np.zeros((len(sources), 2))
    way = np.empty(max_hops + 1, np.int64)
    for q in range(len(sources)):
        least, going, way[0] = np.inf, True, sources[q]
        for w in range(walks):
            city, hops, total = sources[q], 0, 0.0
            while going and city != targets[q] and hops < max_hops:
                low, degree = indptr[city], indptr[city + 1] - indptr[city]
                if degree == 0:
                    break
                if spent[q, 0] + degree > lookups or spent[q, 1] + 1 > expansions:
                    going = False
                    break
                spent[q, 0] += degree
                spent[q, 1] += 1
                word = hash_next(states[q], w * max_hops + hops)
                edge = low + int(word * 2.0**-53 * degree)
                city, hops, total = indices[edge], hops + 1, total + mm[edge]
                way[hops] = city
            arrived = city == targets[q] and total < least
            if w == 0 or arrived:
                lengths[q] = hops + 1
                out[q, : hops + 1] = way[: hops + 1]
            if arrived:
                least = total
            if not going or sources[q] == targets[q]:
                break
    return out, lengths, spent
