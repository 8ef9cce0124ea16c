"""Depth recurrence: one transformer layer applied again and again to every city.

With the layer's input x injected at every loop, h <- norm(layer(h + x)): as often as told, with a
loss after every loop, or until each city halts by itself.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from citypaths.data.batches import IGNORE, Batch
from citypaths.map.graph import CityGraph
from citypaths.models.base import nats, register
from citypaths.models.transformer import Block, Cache, Memory, SequenceModel

MOST_STARTS, MOST_PLACES = 16, 256  # of the table of noise that decoding repeats
SLACK = 0.01  # ACT halts once the probabilities add up to 1 - SLACK


class DepthRecurrence(SequenceModel):
    """One layer shared over all loops; each loop attends to the same loop of earlier cities.

    Universal Transformer: Dehghani et al. 2018. A subclass implements `recur`.

    Args:
        graph: decides the vocabulary and the coordinates.
        width, heads: of the layer. loops: applications of it when not told otherwise.
        others: of every sequence model, such as `coordinates`.
    """

    def __init__(
        self, graph: CityGraph, *, width: int = 128, heads: int = 4, loops: int = 8, **others: Any
    ) -> None:
        super().__init__(graph, width, loops=loops, **others)
        self.block = Block(width, heads, depth=loops)
        self.settle = nn.LayerNorm(width)  # keeps the state's size over many loops
        self.norm = nn.LayerNorm(width)

    def loop(self, state: Tensor, inputs: Tensor, cache: Cache | None) -> tuple[Tensor, Cache]:
        """Apply the layer once to states [B, T, width], the inputs injected."""
        state, cache = self.block(state + inputs, cache)
        return self.settle(state), cache

    @abstractmethod
    def recur(
        self, inputs: Tensor, caches: list[Cache] | None, loops: int
    ) -> tuple[Tensor, list[Cache]]:
        """Return states [B, T, width] after the loops, and the keys and values of each loop.

        Args:
            inputs: [B, T, width]. caches: those of earlier cities, one a loop; none yet if empty;
                None where none are to be kept.
        """

    def encode(self, inputs: Tensor, loops: int) -> Tensor:
        """Return states [B, T, width] after `loops` loops."""
        return self.norm(self.recur(inputs, None, loops)[0])

    def encode_step(self, inputs: Tensor, memory: Memory, loops: int) -> tuple[Tensor, Memory]:
        """Advance one city; each loop has keys and values of its own."""
        state, memory = self.recur(inputs[:, None], memory or [], loops)
        return self.norm(state[:, 0]), memory

    def core_flops(self, loops: int) -> int:
        """Operations of all loops."""
        return loops * self.block.flops


@register("looped")
class LoopedTransformer(DepthRecurrence):
    """A layer looped a number of times that is fixed, or drawn anew for each training batch.

    Yang et al. 2023; random numbers of loops, truncated gradients and random first states: Geiping
    et al. 2025. `starts` is how many random first states to try when not training: each city takes
    the one whose last loop moved it least.

    Args:
        graph: decides the vocabulary and the coordinates.
        sampled: draw the loops of each training batch from this range, both ends included.
        backprop: gradients go through the last so many loops (0: all).
        noise: standard deviation of the random first state (0: it is zero). When not training the
            noise is a fixed function of start and position, so that decoding repeats.
        others: width, heads and loops, and what every sequence model takes.
    """

    def __init__(
        self,
        graph: CityGraph,
        *,
        sampled: tuple[int, int] | None = None,
        backprop: int = 0,
        noise: float = 0.0,
        **others: Any,
    ) -> None:
        super().__init__(graph, **others)
        if sampled is not None and not 1 <= sampled[0] <= sampled[1]:
            raise ValueError(f"sampled is (fewest, most) loops, not {sampled}")
        self.sampled, self.backprop, self.noise, self.starts = sampled, backprop, noise, 1
        table = torch.empty(0)
        if noise:
            draw = torch.Generator().manual_seed(0)
            table = noise * torch.randn(MOST_STARTS, MOST_PLACES, self.width, generator=draw)
        self.register_buffer("table", table, persistent=False)

    def take_loops(self, loops: int | None) -> int:
        """Return the loops to take; drawn by chance while training with `sampled`."""
        if loops is None and self.training and self.sampled is not None:
            low, high = self.sampled
            return int(torch.randint(low, high + 1, ()))  # on the CPU: no device waits
        return super().take_loops(loops)

    def recur(
        self, inputs: Tensor, caches: list[Cache] | None, loops: int
    ) -> tuple[Tensor, list[Cache]]:
        """Loop from one or several first states; gradients go through the last loops alone."""
        starts, kept = 1 if self.training else self.starts, []
        inputs = inputs.repeat_interleave(starts, 0)
        state = before = self.first_state(inputs, caches, starts)
        for loop in range(loops):
            before, learns = state, not self.backprop or loop >= loops - self.backprop
            with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
                state, cache = self.loop(state, inputs, caches[loop] if caches else None)
            if caches is not None:
                kept.append(replace(cache, group=starts))
        return (_steadiest(state, before, starts) if starts > 1 else state), kept

    def first_state(self, inputs: Tensor, caches: list[Cache] | None, starts: int) -> Tensor:
        """Return the states before the first loop; positions count on from the caches'."""
        if not self.noise:
            return torch.zeros_like(inputs)
        if self.training:
            return self.noise * torch.randn_like(inputs)
        (rows, steps, _), place = inputs.shape, caches[0].length if caches else 0
        places = torch.arange(place, place + steps, device=inputs.device) % MOST_PLACES
        return self.table[:starts, places].repeat(rows // starts, 1, 1).to(inputs.dtype)

    def core_flops(self, loops: int) -> int:
        """Operations of every loop of every start."""
        return self.starts * super().core_flops(loops)

    @property
    def training_flops_per_step(self) -> float:
        """Mean over the loops drawn; loops without gradients cost their forward pass alone."""
        low, high = self.sampled or (self.loops, self.loops)
        counts = range(low, high + 1)
        learnt = [min(n, self.backprop or n) for n in counts]
        loops = (sum(counts) + 2 * sum(learnt)) / len(counts)
        return 3 * (self.inputs.flops + self.head.flops) + loops * self.block.flops


def _steadiest(state: Tensor, before: Tensor, starts: int) -> Tensor:
    """For each city the start whose last loop moved the state least, relative to its size."""
    moved = ((state - before).norm(dim=-1) / state.norm(dim=-1)).unflatten(0, (-1, starts))
    best = moved.argmin(1)[:, None, :, None].expand(-1, 1, -1, state.shape[-1])
    return state.unflatten(0, (-1, starts)).gather(1, best)[:, 0]


@register("top_recurrent")
class TopRecurrent(DepthRecurrence):
    """A layer fed its own output `loops` times, with a loss after every one.

    The scheme that was tried in 2021: the input is given once, and no norm stands between loops.
    """

    def __init__(self, graph: CityGraph, *, loops: int = 4, **others: Any) -> None:
        super().__init__(graph, loops=loops, **others)
        self.settle = nn.Identity()

    def recur(
        self, inputs: Tensor, caches: list[Cache] | None, loops: int
    ) -> tuple[Tensor, list[Cache]]:
        """Loop from the input itself."""
        state, kept = inputs, []
        for loop in range(loops):
            state, cache = self.block(state, caches[loop] if caches else None)
            if caches is not None:
                kept.append(cache)
        return state, kept

    def loss(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return the mean cross-entropy in nats per hop, over all loops while training."""
        if not self.training:
            return super().loss(batch, loops)
        state, losses = self.embed(batch), []
        for _ in range(self.take_loops(loops)):
            state, _ = self.block(state)
            losses.append(nats(self.head(self.norm(state)), batch))
        return torch.stack(losses).mean()

    @property
    def training_flops_per_step(self) -> float:
        """The head reads every loop."""
        return super().training_flops_per_step + 3 * (self.loops - 1) * self.head.flops


class Halting(DepthRecurrence):
    """A halting unit reads the state after each loop; a city spends `loops` at most."""

    def __init__(self, graph: CityGraph, **others: Any) -> None:
        super().__init__(graph, **others)
        self.halt = nn.Linear(self.width, 1)
        nn.init.zeros_(self.halt.weight)

    @abstractmethod
    def halted(
        self, inputs: Tensor, caches: list[Cache] | None, loops: int
    ) -> tuple[Tensor, Tensor, Tensor, list[Cache]]:
        """Return states [B, T, width], loops spent [B, T], remainders [B, T], and caches."""

    def recur(
        self, inputs: Tensor, caches: list[Cache] | None, loops: int
    ) -> tuple[Tensor, list[Cache]]:
        """Return the state of each city where it halted, and the caches of every loop."""
        state, _, _, kept = self.halted(inputs, caches, loops)
        return state, kept

    def loops_spent(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return the loops [B, T] before each city halts, of at most `loops`."""
        return self.halted(self.embed(batch), None, self.take_loops(loops))[1]

    def core_flops(self, loops: int) -> int:
        """Operations of all `loops`: cities that have halted are masked, not skipped."""
        return super().core_flops(loops) + 2 * self.width * loops


@register("act")
class ACT(Halting):
    """Adaptive computation time (Graves 2016) for the looped transformer, per city.

    The state that is read is the mean of the loops' states by their halting probabilities, which
    add up to 1; a city that has halted keeps its state, and so its keys and values.
    """

    ponder_cost = 0.01  # weight in the loss of the mean of loops spent plus remainder

    def __init__(self, graph: CityGraph, **others: Any) -> None:
        super().__init__(graph, **others)
        nn.init.constant_(self.halt.bias, -1.0)

    def halted(
        self, inputs: Tensor, caches: list[Cache] | None, loops: int
    ) -> tuple[Tensor, Tensor, Tensor, list[Cache]]:
        """Return mean states, loops spent, remainders (the last loop's weight), and caches."""
        state, mixed, kept = torch.zeros_like(inputs), torch.zeros_like(inputs), []
        total = inputs.new_zeros(inputs.shape[:2])
        spent, remainder = torch.zeros_like(total), torch.zeros_like(total)
        for loop in range(loops):
            running = total < 1
            after, cache = self.loop(state, inputs, caches[loop] if caches else None)
            state = torch.where(running[..., None], after, state)
            chance = torch.sigmoid(self.halt(state))[..., 0]
            weight, goes_on = act_weights(chance, total, last=loop == loops - 1)
            mixed = mixed + weight[..., None] * state
            total = torch.where(goes_on, total + weight, 1.0)
            spent = spent + running
            remainder = torch.where(running & ~goes_on, weight, remainder)
            if caches is not None:
                kept.append(cache)
        return mixed, spent, remainder, kept

    def loss(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return the cross-entropy in nats per hop and, while training, the cost of pondering."""
        if not self.training:
            return super().loss(batch, loops)
        mixed, spent, remainder, _ = self.halted(self.embed(batch), None, self.take_loops(loops))
        states, real = self.norm(mixed), batch.labels != IGNORE
        pondered = (spent + remainder)[real].mean()
        return nats(self.head(states), batch) + self.ponder_cost * pondered


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


@register("ponder")
class PonderNet(Halting):
    """PonderNet (Banino et al. 2021) for the looped transformer, per city.

    Training weighs the loss after each loop by the probability of halting there, and draws that
    distribution towards a geometric prior. Otherwise a city halts, and keeps its state, once it
    would have halted with probability one half.
    """

    prior, beta = 0.3, 0.01  # rate of the geometric prior, weight of the divergence from it

    def __init__(self, graph: CityGraph, **others: Any) -> None:
        super().__init__(graph, **others)
        nn.init.constant_(self.halt.bias, float(torch.tensor(self.prior).logit()))

    def halted(
        self, inputs: Tensor, caches: list[Cache] | None, loops: int
    ) -> tuple[Tensor, Tensor, Tensor, list[Cache]]:
        """Return states, loops spent, remainders (the chance of going on), and caches."""
        state, kept = torch.zeros_like(inputs), []
        log_on = inputs.new_zeros(inputs.shape[:2])
        spent, goes_on = torch.zeros_like(log_on), torch.ones_like(log_on, dtype=torch.bool)
        for loop in range(loops):
            after, cache = self.loop(state, inputs, caches[loop] if caches else None)
            state = torch.where(goes_on[..., None], after, state)
            spent = spent + goes_on
            log_on = log_on + F.logsigmoid(-self.halt(state)[..., 0]) * goes_on
            goes_on = goes_on & (log_on.exp() > 0.5)
            if caches is not None:
                kept.append(cache)
        return state, spent, log_on.exp(), kept

    def loss(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return nats per hop where each city halts or, while training, PonderNet's objective."""
        if not self.training:
            return super().loss(batch, loops)
        losses, halts, inputs = [], [], self.embed(batch)
        state = torch.zeros_like(inputs)
        for _ in range(self.take_loops(loops)):
            state, _ = self.loop(state, inputs, None)
            halts.append(self.halt(state)[..., 0])
            losses.append(nats(self.head(self.norm(state)), batch, "none"))
        real = (batch.labels != IGNORE).flatten()
        log_p = halting_log_probability(torch.stack(halts, -1).flatten(0, 1)[real].float())
        expected = (log_p.exp() * torch.stack(losses, -1)[real]).sum(-1).mean()
        prior = geometric_log_prior(self.prior, len(losses)).to(log_p)
        return expected + self.beta * kl_divergence(log_p, prior).mean()

    @property
    def training_flops_per_step(self) -> float:
        """The head reads every loop."""
        return super().training_flops_per_step + 3 * (self.loops - 1) * self.head.flops


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
