"""Many attempts at each query at once, the best of them, and what their parts make together.

Attempts are independent draws from the model. A prefix that several of a query share is one row
with a count, computed once, so a thousand attempts of a confident model cost little more than its
few distinct paths.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.special import gammaln
from torch import Tensor

from citypaths.decoding.decode import NEVER, Moves, evaluating
from citypaths.decoding.scorers import Scorer
from citypaths.map.graph import CityGraph
from citypaths.map.paths import Found, Paths
from citypaths.models.base import PathModel

AT_ONCE = 2048  # draws whose every city is given a random score at once


@dataclass(frozen=True, eq=False)
class Attempts:
    """Distinct paths drawn for queries, and how often each was drawn.

    Attributes:
        paths: [A]. query: int64 [A], ascending, whose attempt it is. count: int64 [A].
        log_p: float64 [A], log-probability under the model, of legal hops alone where they were
            checked.
        hops: int64 [H, 3], each (query, city, next city) looked up; empty without look-ups.
        flops, lookups: float64 [queries]. seconds: of the call.
    """

    paths: Paths
    query: np.ndarray
    count: np.ndarray
    log_p: np.ndarray
    hops: np.ndarray
    flops: np.ndarray
    lookups: np.ndarray
    seconds: float

    @classmethod
    def concatenate(cls, parts: Sequence[Attempts]) -> Attempts:
        """Join attempts at several sets of queries, in order."""
        starts = np.cumsum([0, *(len(part.flops) for part in parts)])
        hops = [part.hops + [start, 0, 0] for part, start in zip(parts, starts, strict=False)]
        query = [part.query + start for part, start in zip(parts, starts, strict=False)]
        count, log_p, flops, lookups = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("count", "log_p", "flops", "lookups")
        )
        paths, seconds = Paths.concatenate([p.paths for p in parts]), sum(p.seconds for p in parts)
        whole = (np.concatenate(query), count, log_p, np.concatenate(hops), flops, lookups)
        return cls(paths, *whole, seconds)

    def used_hops(self) -> np.ndarray:
        """Return each distinct (query, city, next city) that some attempt takes, int64 [H, 3]."""
        path, a, b = self.paths.hops()
        return np.unique(np.stack([self.query[path], a, b], 1), axis=0)


def draw(
    model: PathModel,
    source,
    target,
    max_hops: int,
    n: int,
    *,
    checked_by: CityGraph | None = None,
    seed: int = 0,
) -> Attempts:
    """Draw `n` independent paths for each query from the model's distribution.

    With `checked_by`, a hop is looked up before it is taken and drawn again where it is no edge;
    no hop of a query is looked up twice.
    """
    if n < 1 or max_hops < 1:
        raise ValueError(f"attempts and hops are 1 or more, not {n} of {max_hops} hops at most")
    began = time.perf_counter()
    with evaluating(model) as device:
        ids = [torch.as_tensor(np.asarray(x, np.int64), device=device) for x in (source, target)]
        moves = Moves.of(checked_by, device) if checked_by is not None else None
        run = _Drawing(model, *ids, n, moves, seed)
        while run.out.shape[1] <= max_hops and len(run.query):
            run.advance()
        return run.finish(began)


class _Drawing:
    """The attempts in progress: a row for each distinct prefix of each query."""

    def __init__(
        self, model: PathModel, source: Tensor, target: Tensor, n: int, moves: Moves | None,
        seed: int,
    ) -> None:  # fmt: skip
        self.model, self.target, self.moves = model, target, moves
        self.random = torch.Generator(source.device).manual_seed(seed)
        self.query = torch.arange(len(source), device=source.device)
        self.count, self.out = torch.full_like(source, n), source[:, None]
        self.log_p = torch.zeros(len(source), dtype=torch.float64, device=source.device)
        self.flops = torch.zeros_like(self.log_p)
        self.known = source.new_zeros(0)  # hops looked up, (query * V + city) * V + next, rising
        self.ended: list[tuple[Tensor, ...]] = []
        self.state = model.start(source, target)
        self._leave(source == target)

    def _rows(self) -> tuple[Tensor, ...]:
        return self.query, self.count, self.log_p, self.out

    def _leave(self, gone: Tensor) -> None:
        """End the rows `gone` [R]; the others stay."""
        self.ended.append(tuple(x[gone] for x in self._rows()))
        self.query, self.count, self.log_p, self.out = (x[~gone] for x in self._rows())
        if bool(gone.any()):
            self.state = self.model.reorder(self.state, (~gone).nonzero().flatten())

    def advance(self) -> None:
        """Take one step on all rows."""
        price = self.model.flops_per_step() * torch.bincount(self.query, minlength=len(self.target))
        first = (price > 0) & (self.flops == 0)
        self.flops += price + first * self.model.flops_to_start
        logits, self.state = self.model.step(self.out[:, -1], self.state)
        log_p, legal = logits.float().log_softmax(-1), None
        if self.moves is not None:
            legal = self.moves.mask(self.out[:, -1], log_p)
            legal = legal - legal.logsumexp(-1, keepdim=True)
        self._branch(*self._draws(log_p, legal), log_p if legal is None else legal)

    def _draws(self, log_p: Tensor, legal: Tensor | None) -> tuple[Tensor, Tensor]:
        """Draw the next city of each attempt: rows [D] and cities [D]; row -1 where there is none.

        Checked attempts draw from the model's `log_p` [R, V] without replacement until a hop is an
        edge, which draws from `legal` [R, V]; what was tried in vain is looked up all the same.
        """
        row = torch.arange(len(log_p), device=log_p.device).repeat_interleave(self.count)
        city = self._pick(log_p.exp(), row)
        if legal is None:
            return row, city
        row = torch.where((legal > NEVER).any(-1)[row], row, -1)
        self._look_up(row[row >= 0], city[row >= 0])
        waiting = ((row >= 0) & (legal[row, city] == NEVER)).nonzero().flatten()
        for some in waiting.split(AT_ONCE):
            at = row[some]
            score = (
                log_p[at] - torch.empty_like(log_p[at]).exponential_(generator=self.random).log()
            )
            score.scatter_(1, city[some, None], NEVER)
            best, city[some] = score.masked_fill(legal[at] == NEVER, NEVER).max(-1)
            tried, to = (score >= best[:, None]).nonzero(as_tuple=True)
            self._look_up(at[tried], to)
        return row, city

    def _pick(self, weight: Tensor, row: Tensor) -> Tensor:
        """Draw a city for each of `row` [D] by the weights [R, V] of its row."""
        sums = weight.cumsum(-1, dtype=torch.float64)
        sums /= sums[:, -1:].clone()
        sums += torch.arange(len(weight), device=weight.device)[:, None]
        drawn = torch.rand(len(row), generator=self.random, device=row.device, dtype=torch.float64)
        at = torch.searchsorted(sums.flatten(), row + drawn, right=True)
        return (at - row * weight.shape[1]).clamp(0, weight.shape[1] - 1)

    def _look_up(self, at: Tensor, to: Tensor) -> None:
        """Look up the hops from rows `at` to cities `to`."""
        cities = self.model.cities
        hops = (self.query[at] * cities + self.out[at, -1]) * cities + to
        self.known = torch.cat([self.known, hops]).unique()

    def _branch(self, row: Tensor, city: Tensor, log_p: Tensor) -> None:
        """Make a row of each distinct prefix; end those that arrive, and those without a hop."""
        cities, moved = self.model.cities, torch.zeros_like(self.count, dtype=torch.bool)
        row, city = row[row >= 0], city[row >= 0]
        moved[row] = True
        self.ended.append(tuple(x[~moved] for x in self._rows()))
        pairs, count = torch.unique(row * cities + city, return_counts=True)
        parent, to = pairs // cities, pairs % cities
        self.query, self.count = self.query[parent], count
        self.log_p = self.log_p[parent] + log_p[parent, to]
        self.out = torch.cat([self.out[parent], to[:, None]], 1)
        self.state = self.model.reorder(self.state, parent)
        self._leave(to == self.target[self.query])

    def finish(self, began: float) -> Attempts:
        """Return all attempts: queries in order, the most often drawn of each first."""
        self._leave(torch.ones_like(self.query, dtype=torch.bool))
        query, count, log_p = (torch.cat([e[i] for e in self.ended]) for i in range(3))
        longest = self.out.shape[1]
        out = torch.cat([F.pad(e[3], (0, longest - e[3].shape[1]), value=-1) for e in self.ended])
        query, count, log_p, out = (x.cpu().numpy() for x in (query, count, log_p, out))
        order = np.lexsort((-count, query))
        known, cities = np.sort(self.known.cpu().numpy()), self.model.cities
        hops = np.stack([known // cities**2, known // cities % cities, known % cities], 1)
        lookups = np.bincount(hops[:, 0], minlength=len(self.target)).astype(float)
        paths = Paths.from_padded(out[order], (out[order] >= 0).sum(1))
        rest = (hops, self.flops.cpu().numpy(), lookups, time.perf_counter() - began)
        return Attempts(paths, query[order], count[order], log_p[order], *rest)


def best_of(
    model: PathModel, source, target, max_hops: int, *, n: int, scorer: Scorer, **options: Any
) -> Found:
    """Draw `n` attempts at each query and keep the one of least energy, on ties the most drawn.

    Each distinct path is scored once. A scorer that looks hops up pays for each distinct hop of a
    query, unless drawing looked them up. Options: `checked_by` and `seed`, as for `draw`.
    """
    began = time.perf_counter()
    source, target = np.asarray(source, np.int64), np.asarray(target, np.int64)
    attempts = draw(model, source, target, max_hops, n, **options)
    of, paths = attempts.query, attempts.paths
    energies = scorer.score(source[of], target[of], paths)
    flops = attempts.flops + np.bincount(of, scorer.flops(paths), minlength=len(source))
    lookups = attempts.lookups
    if not len(attempts.hops) and scorer.lookups(paths).any():
        lookups = lookups + np.bincount(attempts.used_hops()[:, 0], minlength=len(source))
    order = np.lexsort((np.arange(len(of)), energies, of))
    best = order[np.unique(of[order], return_index=True)[1]]
    spent = np.zeros(len(source))
    return Found(paths.take(best), flops, lookups, spent, time.perf_counter() - began)


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
    queries = len(attempts.flops)
    cell = pd.Series(energies).groupby([attempts.query, energies]).ngroup().to_numpy()
    total = np.bincount(attempts.query, attempts.count, minlength=queries)
    ns = np.asarray(ns)
    if ns.max() > total.min():
        raise ValueError(f"at most {int(total.min())} attempts were drawn, not {ns.max()}")
    count = np.bincount(cell, attempts.count)
    share = np.bincount(cell, attempts.count * good) / count
    query = np.zeros(len(count), np.int64)
    query[cell] = attempts.query
    before = np.cumsum(count) - count
    first = np.searchsorted(query, np.arange(queries))
    left = total[query] - (before - before[first][query])
    out = np.zeros((queries, len(ns)))
    for column, n in enumerate(ns):
        chance = _none_better(left, n, total[query]) - _none_better(left - count, n, total[query])
        out[:, column] = np.bincount(query, chance * share, minlength=queries)
    return out


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
