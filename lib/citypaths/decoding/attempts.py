"""Many attempts at each query at once: a prefix that several attempts share is computed once.

Attempts are independent draws from the model. Those of a query that agree so far are one row with a
count, so a thousand attempts of a confident model cost little more than its few distinct paths.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from citypaths.decoding.decode import NEVER, Moves, evaluating
from citypaths.map.graph import CityGraph
from citypaths.map.paths import Paths
from citypaths.models.base import PathModel

AT_ONCE = 2048  # draws whose every city is given a random score at once


@dataclass(frozen=True, eq=False)
class Attempts:
    """Distinct paths drawn for queries, and how often each was drawn.

    Attributes:
        paths: [A]. query: int64 [A], ascending, whose attempt it is. count: int64 [A].
        log_p: float64 [A], log-probability under the model (at the temperature; legal hops alone
            where they were checked).
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
    temperature: float = 1.0,
    checked_by: CityGraph | None = None,
    seed: int = 0,
) -> Attempts:
    """Draw `n` independent paths for each query from the model's distribution at `temperature`.

    With `checked_by`, a hop is looked up before it is taken and drawn again where it is no edge;
    no hop of a query is looked up twice.
    """
    if n < 1 or temperature <= 0 or max_hops < 1:
        raise ValueError(f"{n} attempts at temperature {temperature} of {max_hops} hops at most")
    began = time.perf_counter()
    with evaluating(model) as device:
        ids = [torch.as_tensor(np.asarray(x, np.int64), device=device) for x in (source, target)]
        moves = Moves.of(checked_by, device) if checked_by is not None else None
        run = _Drawing(model, *ids, n, temperature, moves, seed)
        while run.out.shape[1] <= max_hops and len(run.query):
            run.advance()
        return run.finish(began)


class _Drawing:
    """The attempts in progress: a row for each distinct prefix of each query."""

    def __init__(
        self, model: PathModel, source: Tensor, target: Tensor, n: int, temperature: float,
        moves: Moves | None, seed: int,
    ) -> None:  # fmt: skip
        self.model, self.target, self.temperature, self.moves = model, target, temperature, moves
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
        log_p, legal = (logits.float() / self.temperature).log_softmax(-1), None
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
        keys = torch.unique((self.query[at] * cities + self.out[at, -1]) * cities + to)
        known = torch.cat([self.known, keys.new_full((1,), -1)])
        new = keys[known[torch.searchsorted(self.known, keys)] != keys]
        self.known = _merged(self.known, new)

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


def _merged(rising: Tensor, more: Tensor) -> Tensor:
    """Return two rising sequences as one, without the cost of sorting the first again."""
    at = torch.searchsorted(rising, more) + torch.arange(len(more), device=more.device)
    out = rising.new_empty(len(rising) + len(more))
    old = torch.ones(len(out), dtype=torch.bool, device=more.device)
    old[at] = False
    out[at], out[old] = more, rising
    return out
