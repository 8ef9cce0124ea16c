"""Is a path legal, does it arrive, is it short enough? Counts, intervals and breakdowns."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import t as student

from citypaths.map.graph import CityGraph
from citypaths.map.paths import PAD, Paths

SLACK = 0.05  # how much longer than the shortest a path of success may be
SLACKS = {"bounded_00": 0.0, "bounded_01": 0.01, "bounded_05": 0.05, "bounded_10": 0.10}
OPTIMAL_SLACK = 1e-4
RATES = ("legal", "arrives", *SLACKS, "success", "optimal", "exact")
ILLEGAL = ("", "not_a_city", "too_far", "wrong_way")


def judge(
    graph: CityGraph,
    source: np.ndarray,
    target: np.ndarray,
    optimal_km: np.ndarray,
    paths: Paths,
    reference: Paths | None = None,
) -> pd.DataFrame:
    """Judge each path against its query.

    Args:
        source, target: ids [n]. optimal_km: float64 [n], exact shortest length.
        paths: ids as decoded, source first; anything goes (unknown ids, empty paths).
        reference: shortest paths, for the exact-match column.

    Returns: one row a query: source, target, hops (of the judged path), km, ratio (km / optimal),
    legal, illegal (kind of the first illegal hop: not_a_city, too_far, wrong_way), arrives,
    bounded_00 / 01 / 05 / 10, success (legal, arrives, within `SLACK`), optimal (legal, arrives,
    within 1e-4), exact (the reference itself). Lengths count illegal hops as the crow flies.
    """
    n = len(source)
    if not len(paths) == len(target) == len(optimal_km) == n:
        raise ValueError(f"{n} queries but {len(paths)} paths")
    ids = paths.padded()
    ids = np.concatenate([ids, np.full((n, 2 - min(2, ids.shape[1])), PAD)], 1)
    a, b, real = ids[:, :-1], ids[:, 1:], np.arange(ids.shape[1] - 1) < paths.lengths[:, None] - 1
    kind = np.where(real, _illegality(graph, a, b), 0)
    first = np.argmax(kind > 0, axis=1)
    km = _length_mm(graph, a, b, kind, real).sum(1) / 1e6
    frame = pd.DataFrame({"source": source, "target": target, "hops": paths.lengths - 1, "km": km})
    shortest = np.asarray(optimal_km, float)
    nothing = np.where(km > 0, np.inf, 1.0)  # a query from a city to itself
    frame["ratio"] = np.where(shortest > 0, km / np.where(shortest > 0, shortest, 1), nothing)
    last = np.where(paths.lengths > 0, ids[np.arange(n), np.maximum(paths.lengths - 1, 0)], PAD)
    starts = np.where(paths.lengths > 0, ids[:, 0] == source, False)
    frame["legal"] = starts & (kind == 0).all(1)
    frame["illegal"] = np.array(ILLEGAL, object)[kind[np.arange(n), first]]
    frame["arrives"] = last == np.asarray(target)
    for name, slack in SLACKS.items():
        frame[name] = frame["ratio"].to_numpy() <= 1 + slack + 1e-12
    reached = frame["legal"] & frame["arrives"]
    frame["success"] = reached & (frame["ratio"] <= 1 + SLACK + 1e-12)
    frame["optimal"] = reached & (frame["ratio"] <= 1 + OPTIMAL_SLACK)
    frame["exact"] = _same(paths, reference) if reference is not None else False
    return frame


def _illegality(graph: CityGraph, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """0 legal, 1 not a city, 2 too far, 3 near enough but against the orientation, [n, hops]."""
    inside = (a >= 0) & (a < len(graph)) & (b >= 0) & (b < len(graph))
    backwards = graph.is_edge(b, a) | (a == b)
    kind = np.where(inside, np.where(backwards, 3, 2), 1)
    return np.where(graph.is_edge(a, b), 0, kind)


def _length_mm(graph: CityGraph, a, b, kind, real) -> np.ndarray:
    """Whole millimetres of each hop: the edge's own length, or the great circle when illegal."""
    at = graph.edge_index(a, b)
    edge = graph.mm[np.maximum(at, 0)] if len(graph.mm) else np.zeros(a.shape)
    clip = [np.clip(x, 0, len(graph) - 1) for x in (a, b)]
    flight = np.where(kind == 1, 0.0, np.rint(graph.distance_km(*clip) * 1e6))
    return np.where(real, np.where(at >= 0, edge, flight), 0.0)


def _same(paths: Paths, others: Paths) -> np.ndarray:
    """Whether each path is the other one, id by id, bool [n]."""
    rows = np.flatnonzero(paths.lengths == others.lengths)
    same = np.zeros(len(paths), bool)
    same[rows] = (paths.take(rows).padded() == others.take(rows).padded()).all(1)
    return same


def wilson(successes, count, z: float = 1.959964) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of Wilson's 95 % score interval for a proportion (Wilson 1927)."""
    k, n = np.asarray(successes, float), np.maximum(np.asarray(count, float), 1e-12)
    p = k / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    empty = np.asarray(count) == 0
    low, high = np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)
    return np.where(empty | (k == 0), 0.0, low), np.where(empty | (k == n), 1.0, high)


def over_few(values) -> tuple[float, float]:
    """Return the mean of values, and half its 95 % t interval (NaN for fewer than two values)."""
    each = np.asarray(values, float)
    if len(each) < 2:
        return float(each.mean()), np.nan
    spread = each.std(ddof=1) / len(each) ** 0.5
    return float(each.mean()), float(student.ppf(0.975, len(each) - 1) * spread)


def ledger_rates(judged: pd.DataFrame) -> dict[str, float]:
    """Return the ledger's counts and rates of judged queries, their `hard` subset beside all."""
    rates = judged[[rate for rate in RATES if rate in judged]].mean()
    row: dict[str, float] = {"queries": len(judged)} | rates.to_dict()
    hard = judged.loc[judged["hard"], "success"]
    for name, success in (("", judged["success"]), ("hard_", hard)):
        low, high = wilson(success.sum(), len(success))
        row |= {f"{name}success_low": float(low), f"{name}success_high": float(high)}
    return row | {"hard_queries": len(hard), "hard_success": hard.mean()}


def by_hops(hops: np.ndarray) -> pd.Categorical:
    """Return each query's group by hops of the shortest path: quartiles, and the longest 5 %."""
    if not len(hops):
        return pd.Categorical([], ordered=True)
    edges = np.unique(np.quantile(hops, [0, 0.25, 0.5, 0.75, 0.95]).astype(int))
    group = np.searchsorted(edges[1:], hops, side="left")
    highs = [*edges[1:], int(np.max(hops))]
    lows = [int(np.min(hops)), *(edges[1:] + 1)]
    names = [f"{lo}-{hi}" if lo < hi else f"{hi}" for lo, hi in zip(lows, highs, strict=True)]
    present = np.unique(group)
    codes = np.searchsorted(present, group)
    return pd.Categorical.from_codes(codes, [names[i] for i in present], ordered=True)


def by_count(count: np.ndarray) -> pd.Categorical:
    """Return each query's group by a count, in decades: 0, 1-9, 10-99, 100-999, 1,000 and more."""
    names = ["0", "1-9", "10-99", "100-999", "1,000+"]
    codes = np.searchsorted([1, 10, 100, 1000], count, side="right")
    return pd.Categorical.from_codes(codes, names, ordered=True)


def by_detour(ratio: np.ndarray) -> pd.Categorical:
    """Return each query's group by network km over great-circle km."""
    edges = [1.0, 1.02, 1.05, 1.1, 1.2, np.inf]
    names = ["< 1.02", "1.02-1.05", "1.05-1.1", "1.1-1.2", "> 1.2"]
    codes = np.clip(np.searchsorted(edges, ratio, side="right") - 1, 0, len(names) - 1)
    return pd.Categorical.from_codes(codes, names, ordered=True)
