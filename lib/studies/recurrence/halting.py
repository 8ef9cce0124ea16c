"""Looped transformers that decide, city by city, after how many loops to halt."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from citypaths.data.batches import IGNORE, Batch
from citypaths.map.graph import CityGraph
from citypaths.models.base import nats, register
from citypaths.models.transformer import run
from studies.recurrence.looped import LoopedTransformer

SLACK = 0.01  # ACT halts once the probabilities add up to 1 - SLACK


def act_weights(probability: Tensor, spent: Tensor, last: bool) -> tuple[Tensor, Tensor]:
    """Return the weight [...] of this loop's state, and which positions go on after it.

    Args:
        probability: halting probability of this loop. spent: what earlier loops were given in
        all; 1 once halted. last: halt everywhere, with what remains.
    """
    goes_on = torch.zeros_like(spent, dtype=torch.bool)
    if not last:
        goes_on = (spent < 1) & (spent + probability < 1 - SLACK)
    return torch.where(goes_on, probability, 1 - spent), goes_on


def halting_log_probability(logits: Tensor) -> Tensor:
    """Return PonderNet's log p_n [..., N] from halting logits [..., N]; the last loop halts."""
    goes_on = F.logsigmoid(-logits[..., :-1]).cumsum(-1)
    reaches = F.pad(goes_on, (1, 0))
    halts = torch.cat([F.logsigmoid(logits[..., :-1]), torch.zeros_like(logits[..., :1])], -1)
    return reaches + halts


def geometric_log_prior(rate: float, loops: int) -> Tensor:
    """Return log probabilities [loops] of a geometric prior, its tail folded into the last."""
    return halting_log_probability(torch.full((loops,), rate).logit())


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) [...] of distributions given as logarithms [..., N]."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


class _Halting(LoopedTransformer):
    """What both have in common: a halting unit that reads the state after each loop."""

    def __init__(self, graph: CityGraph, *, loops: int = 8, **others: Any) -> None:
        super().__init__(graph, loops=loops, **others)
        if self.sampled or self.backprop or self.starts > 1:
            raise ValueError("halting takes neither sampled loops, nor a cut, nor several starts")
        self.halt = nn.Linear(self.width, 1)
        nn.init.zeros_(self.halt.weight)

    def loops_spent(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return the loops [B, T] before each city halts, of at most `loops`."""
        injected = run(self.prelude, self.embed(batch))[0]
        spent = self.halted(injected, None, self.take_loops(loops), False)[1]
        return self.without_prefix(spent)

    def recur(
        self, injected: Tensor, caches: list | None, loops: int, keep: bool
    ) -> tuple[Tensor, list]:
        """Return the state of each city where it halted, and the caches of every loop."""
        state, _, _, kept = self.halted(injected, caches, loops, keep)
        return state, kept

    @abstractmethod
    def halted(
        self, injected: Tensor, caches: list | None, loops: int, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor, list]:
        """Return states [B, T, width], loops spent [B, T], remainders [B, T], and caches."""

    def core_flops(self, loops: int) -> int:
        """Operations of all `loops`: cities that have halted are masked, not skipped."""
        return super().core_flops(loops) + 2 * self.width * loops

    @property
    def training_flops_per_step(self) -> float:
        """All loops, with the halting unit."""
        return super().training_flops_per_step + 6 * self.width * self.loops


@register("act")
class ACT(_Halting):
    """Adaptive computation time (Graves 2016) for the looped transformer, per city.

    The state that is read is the mean of the loops' states by their halting probabilities, which
    add up to 1; a city that has halted keeps its state, and so its keys and values.

    Args:
        ponder_cost: weight in the loss of the mean of loops spent plus remainder.
        others: see `LoopedTransformer`; `loops` is the most that may be spent.
    """

    def __init__(self, graph: CityGraph, *, ponder_cost: float = 0.01, **others: Any) -> None:
        super().__init__(graph, **others)
        self.ponder_cost = ponder_cost
        nn.init.constant_(self.halt.bias, -1.0)

    def halted(
        self, injected: Tensor, caches: list | None, loops: int, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor, list]:
        """See `_Halting.halted`; the remainder is the last loop's weight."""
        state, kept = self.first_state(injected, caches), []
        mixed, total = torch.zeros_like(injected), injected.new_zeros(injected.shape[:2])
        spent, remainder = torch.zeros_like(total), torch.zeros_like(total)
        for loop in range(loops):
            running = total < 1
            after, cache = self.loop(state, injected, caches[loop] if caches else None)
            state = torch.where(running[..., None], after, state)
            chance = torch.sigmoid(self.halt(state))[..., 0]
            weight, goes_on = act_weights(chance, total, last=loop == loops - 1)
            mixed = mixed + weight[..., None] * state
            total = torch.where(goes_on, total + weight, 1.0)
            spent = spent + running
            remainder = torch.where(running & ~goes_on, weight, remainder)
            if keep:
                kept.append(cache)
        return mixed, spent, remainder, kept

    def loss(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return the cross-entropy in nats per hop and, while training, the cost of pondering."""
        if not self.training:
            return super().loss(batch, loops)
        injected = run(self.prelude, self.embed(batch))[0]
        mixed, spent, remainder, _ = self.halted(injected, None, self.take_loops(loops), False)
        states = self.without_prefix(self.norm(run(self.coda, mixed)[0]))
        real = batch.labels != IGNORE
        pondered = self.without_prefix(spent + remainder)[real].mean()
        return nats(self.head(states), batch) + self.ponder_cost * pondered


@register("ponder")
class PonderNet(_Halting):
    """PonderNet (Banino et al. 2021) for the looped transformer, per city.

    Training weighs the loss after each loop by the probability of halting there, and draws that
    distribution towards a geometric prior. Otherwise a city halts, and keeps its state, once it
    would have halted with probability one half.

    Args:
        prior: rate of the geometric prior. beta: weight of the divergence from it.
        others: see `LoopedTransformer`; `loops` is the most that may be spent.
    """

    def __init__(
        self,
        graph: CityGraph,
        *,
        prior: float = 0.3,
        beta: float = 0.01,
        coda: int = 0,
        **others: Any,
    ) -> None:
        super().__init__(graph, coda=coda, **others)
        self.prior, self.beta = prior, beta
        nn.init.constant_(self.halt.bias, float(torch.tensor(prior).logit()))

    def halted(
        self, injected: Tensor, caches: list | None, loops: int, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor, list]:
        """See `_Halting.halted`; the remainder is the probability of going on."""
        state, kept = self.first_state(injected, caches), []
        log_on = injected.new_zeros(injected.shape[:2])
        spent, goes_on = torch.zeros_like(log_on), torch.ones_like(log_on, dtype=torch.bool)
        for loop in range(loops):
            after, cache = self.loop(state, injected, caches[loop] if caches else None)
            state = torch.where(goes_on[..., None], after, state)
            spent = spent + goes_on
            log_on = log_on + F.logsigmoid(-self.halt(state)[..., 0]) * goes_on
            goes_on = goes_on & (log_on.exp() > 0.5)
            if keep:
                kept.append(cache)
        return state, spent, log_on.exp(), kept

    def loss(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return nats per hop where each city halts or, while training, PonderNet's objective."""
        if not self.training:
            return super().loss(batch, loops)
        losses, halts = [], []
        injected = run(self.prelude, self.embed(batch))[0]
        state = self.first_state(injected)
        for _ in range(self.take_loops(loops)):
            state, _ = self.loop(state, injected, None)
            halts.append(self.without_prefix(self.halt(state)[..., 0]))
            read = self.without_prefix(self.norm(run(self.coda, state)[0]))
            losses.append(nats(self.head(read), batch, "none"))
        real = (batch.labels != IGNORE).flatten()
        log_p = halting_log_probability(torch.stack(halts, -1).flatten(0, 1)[real].float())
        expected = (log_p.exp() * torch.stack(losses, -1)[real]).sum(-1).mean()
        prior = geometric_log_prior(self.prior, len(losses)).to(log_p)
        return expected + self.beta * kl_divergence(log_p, prior).mean()

    @property
    def training_flops_per_step(self) -> float:
        """The coda and the head read every loop."""
        coda = sum(block.flops for block in self.coda)
        return super().training_flops_per_step + 3 * (self.loops - 1) * (coda + self.head.flops)
