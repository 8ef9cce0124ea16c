"""Refining with a masked path model: guess every slot at once, then hide some and guess again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from citypaths.map.graph import unit_hash
from citypaths.map.paths import Found, Paths
from studies.refinement.masked import Masked, lowest

LONGEST_RUN = 8  # slots drawn anew at once
RISE = 1e-4  # nats that a change must win: less is rounding


@dataclass(frozen=True)
class Plan:
    """How to refine.

    Attributes:
        rounds: after the first guess; each predicts a shrinking share of the slots again.
        redraws: rounds after those; each draws one run of slots anew.
        lengths: how many of the most probable lengths to refine side by side.
        temperature: of the draws. seed: of all of them.
    """

    rounds: int = 8
    redraws: int = 0
    lengths: int = 1
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.rounds, self.redraws) < 0 or self.lengths < 1 or self.temperature <= 0:
            raise ValueError(f"rounds of 0 or more, a length and a warm draw, not {self}")


def refine_masked(
    model: Masked, source, target, max_hops: int, *, batch: int = 32, **plan
) -> list[Found]:
    """Predict whole paths in rounds; return the first guess, then what each round comes to.

    The first guess fills all slots at once. Round r of R hides the least sure of them, a share of
    1 - r / (R + 1), and predicts those again from the rest (Ghazvininejad et al. 2019). A redraw
    hides a short run of slots, more likely where doubt is, draws it, and keeps the change where the
    model's own pseudo-likelihood rises: that of odd slots given the even ones, and the reverse. A
    round costs one pass of the network a length, a redraw three. Costs are cumulative.

    Args:
        source, target: ids [n]. plan: the fields of `Plan`. batch: queries refined together.

    Raises:
        ValueError: `max_hops` below 1, queries that do not pair up, or a plan that is none.
    """
    if max_hops < 1:
        raise ValueError(f"max_hops is at least 1, not {max_hops}")
    source, target = np.asarray(source, np.int64), np.asarray(target, np.int64)
    if len(source) != len(target):
        raise ValueError(f"{len(source)} sources but {len(target)} targets")
    settings, was_training = Plan(**plan), model.training
    model.eval()
    with torch.inference_mode():
        parts = [
            list(_refine(model, source[i : i + batch], target[i : i + batch], max_hops, settings))
            for i in range(0, max(1, len(source)), batch)
        ]
    model.train(was_training)
    return [Found.concatenate(part) for part in zip(*parts, strict=True)]


def _refine(model: Masked, source, target, max_hops: int, plan: Plan) -> Iterator[Found]:
    began = time.perf_counter()
    canvas = Canvas.start(model, source, target, max_hops, plan)
    for done in range(1 + plan.rounds + plan.redraws):
        if done <= plan.rounds:
            canvas.predict(1 - done / (plan.rounds + 1))
        else:
            canvas.redraw(done)
        yield canvas.found(max_hops, time.perf_counter() - began)


@dataclass
class Canvas:
    """Paths in the making, a row for each of a query's lengths: N rows of S slots.

    Attributes:
        copies: rows a query. prior: [N], log p of the row's length. hops: int64 [N], slots in use.
        tokens: int64 [N, S]. free: bool [N, S], what may be hidden. sure: [N, S], log p of each
            token when it was predicted, 0 where not free. passes: of the network so far. judged:
            `sure` holds pseudo-likelihoods.
    """

    model: Masked
    plan: Plan
    copies: int
    source: Tensor
    target: Tensor
    prior: Tensor
    hops: Tensor
    tokens: Tensor
    free: Tensor
    sure: Tensor
    passes: int = 0
    judged: bool = False

    @classmethod
    def start(cls, model: Masked, source, target, max_hops: int, plan: Plan) -> Canvas:
        """Choose the lengths and hide every slot but the target's."""
        device = next(model.parameters()).device
        ends = torch.as_tensor(np.stack([source, target]), device=device)
        log_p = F.log_softmax(model.length_logits(*ends).float(), -1)[:, :max_hops]
        prior, at = (x.flatten() for x in log_p.topk(min(plan.lengths, log_p.shape[1])))
        copies, hops = min(plan.lengths, log_p.shape[1]), at + 1
        source, target = ends.repeat_interleave(copies, 1)
        tokens = torch.full((len(hops), max([1, *hops.tolist()])), model.mask, device=device)
        tokens.scatter_(1, hops[:, None] - 1, target[:, None])
        sure, free = torch.zeros(tokens.shape, device=device), model.hidable(hops, tokens.shape[1])
        return cls(model, plan, copies, source, target, prior, hops, tokens, free, sure)

    @property
    def energy(self) -> Tensor:
        """What each row's tokens and length are unlikely by, [N] nats."""
        return -self.sure.sum(1) - self.prior

    def predict(self, share: float) -> None:
        """Hide the `share` of the slots that is least sure, and predict it."""
        hidden = lowest(
            self.sure, self.free, (share * self.free.sum(1, keepdim=True) - 1e-6).ceil()
        )
        sure, chosen = self._look(self.tokens, hidden).max(-1)
        self.tokens = torch.where(hidden, chosen, self.tokens)
        self.sure = torch.where(hidden, sure, self.sure)

    def redraw(self, done: int) -> None:
        """Draw a run of slots anew; keep it in the rows whose pseudo-likelihood rises."""
        if not self.judged:
            self.sure, self.judged = self._likelihood(self.tokens), True
        hidden = self._segment(done)
        tokens = torch.where(hidden, self._draw(self._look(self.tokens, hidden), done), self.tokens)
        sure = self._likelihood(tokens)
        better = ((sure - self.sure).sum(1) > RISE)[:, None]
        self.tokens = torch.where(better, tokens, self.tokens)
        self.sure = torch.where(better, sure, self.sure)

    def _look(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Log p [N, S, V] of what the hidden slots hold, given the others: one pass."""
        self.passes += 1
        tokens = tokens.masked_fill(hidden, self.model.mask)
        return F.log_softmax(self.model(self.source, self.target, tokens, self.hops).float(), -1)

    def _likelihood(self, tokens: Tensor) -> Tensor:
        """Log p [N, S] of each free token, odd ones given the even and the reverse; else 0."""
        sure = torch.zeros_like(self.sure)
        odd = torch.arange(tokens.shape[1], device=tokens.device) % 2 == 1
        for half in (odd, ~odd):
            hidden = self.free & half
            at = tokens.masked_fill(~hidden, 0)[..., None]
            sure = torch.where(hidden, self._look(tokens, hidden).gather(2, at)[..., 0], sure)
        return sure

    def _uniform(self, done: int, count: int) -> Tensor:
        """Numbers [N, count] that depend on seed, query, length and round alone."""
        keys = torch.stack([self.source, self.target, self.hops]).cpu().numpy()[..., None]
        draws = unit_hash(self.plan.seed, *keys, done, np.arange(count))
        return torch.as_tensor(draws, dtype=torch.float32, device=self.tokens.device)

    def _draw(self, log_p: Tensor, done: int) -> Tensor:
        """Cities [N, S] drawn at the plan's temperature."""
        mass = F.softmax(log_p / self.plan.temperature, -1).cumsum(-1)
        at = self._uniform(done, log_p.shape[1])[..., None] * mass[..., -1:]
        return torch.searchsorted(mass, at, right=True)[..., 0].clamp(max=log_p.shape[2] - 1)

    def _segment(self, done: int) -> Tensor:
        """A run of slots, bool [N, S], around one drawn in proportion to its doubt, -log p."""
        known = self.model.slots  # not the slots in use: draws must not depend on the batch
        middle, length, shift = self._uniform(done, known + 3)[:, known:].T.contiguous()
        mass = ((1e-3 - self.sure) * self.free).cumsum(1)
        centre = torch.searchsorted(mass, (middle * mass[:, -1])[:, None], right=True)
        length = 1 + (length * LONGEST_RUN).floor()[:, None]
        first = centre - (shift[:, None] * length).floor()
        place = torch.arange(self.tokens.shape[1], device=mass.device)
        return self.free & (place >= first) & (place < first + length)

    def found(self, max_hops: int, seconds: float) -> Found:
        """Return each query's most probable path so far, and what all its rows cost."""
        best = self.energy.view(-1, self.copies).argmin(1)
        rows = best + self.copies * torch.arange(len(best), device=best.device)
        columns = (self.source, self.target, self.hops, self.tokens)
        source, target, hops, tokens = (x[rows].cpu().numpy() for x in columns)
        flops = self.passes * self.model.flops_per_pass(self.hops.cpu().numpy())
        flops = flops.reshape(-1, self.copies).sum(1) + self.model.length_flops
        none = np.zeros(len(rows))
        paths = read_out(source, target, hops, tokens, max_hops)
        return Found(paths, flops * (source != target), none, none.copy(), seconds)


def read_out(
    source: np.ndarray, target: np.ndarray, hops: np.ndarray, tokens: np.ndarray, max_hops: int
) -> Paths:
    """Return the paths that slots [n, S] spell: up to the target, repeats left out."""
    ids = np.concatenate([source[:, None], tokens], 1)
    inside = np.arange(ids.shape[1]) <= hops[:, None]
    inside &= np.cumsum(ids == target[:, None], 1) - (ids == target[:, None]) == 0
    inside[:, 1:] &= ids[:, 1:] != ids[:, :-1]
    inside &= np.cumsum(inside, 1) <= max_hops + 1
    return Paths(ids[inside], np.append(0, np.cumsum(inside.sum(1))))
