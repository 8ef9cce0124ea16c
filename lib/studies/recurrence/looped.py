"""Depth recurrence: transformers that apply the same layers again and again to every city."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from citypaths.data.batches import Batch
from citypaths.map.graph import CityGraph
from citypaths.models.base import nats, register
from citypaths.models.sequence import Memory, SequenceModel
from citypaths.models.transformer import Block, run

Injection = Literal["none", "add", "concat"]
MOST_STARTS, MOST_PLACES = 16, 256  # of the table of noise that decoding repeats


@register("looped")
class LoopedTransformer(SequenceModel):
    """A prelude, a core of shared layers applied `loops` times, and a coda.

    The core sees the prelude's output at every loop (Yang et al. 2023; Geiping et al. 2025); with
    one core layer and neither prelude nor coda it is the Universal Transformer (Dehghani et al.
    2018). Each loop attends to the same loop of earlier cities.

    Args:
        graph: decides the vocabulary and the coordinates.
        width, heads, expansion: of each layer. prelude, core, coda: numbers of layers.
        loops: times the core is applied when not told otherwise.
        sampled: draw the loops of each training batch from this range, both ends included.
        backprop: gradients go through the last so many loops (0: all).
        injection: how the prelude's output joins the state: not at all, added, or both through a
            linear map that starts as their sum.
        normalise: layer norm after each loop, so that many loops keep the state's size.
        noise: standard deviation of the random first state (0: it is zero). When not training the
            noise is a fixed function of start and position, so that decoding repeats.
        starts: first states to try when not training; each city takes the one whose last loop
            moved it least.
        others: see `SequenceModel` and `CityInput`.
    """

    def __init__(
        self,
        graph: CityGraph,
        *,
        width: int = 128,
        heads: int = 4,
        expansion: int = 4,
        prelude: int = 1,
        core: int = 1,
        coda: int = 1,
        loops: int = 8,
        sampled: tuple[int, int] | None = None,
        backprop: int = 0,
        injection: Injection = "concat",
        normalise: bool = True,
        noise: float = 0.0,
        starts: int = 1,
        **others: Any,
    ) -> None:
        super().__init__(graph, width, loops=loops, **others)
        if core < 1:
            raise ValueError("the core, which is looped, has at least one layer")
        if injection not in ("none", "add", "concat"):
            raise ValueError(f"injection is none, add or concat, not {injection!r}")
        if injection == "none" and (noise or backprop):
            raise ValueError("without injection the first state is the input: no noise, no cut")
        if not 1 <= starts <= MOST_STARTS or (starts > 1 and not noise):
            raise ValueError(f"1 to {MOST_STARTS} starts, more than one with noise, not {starts}")
        if sampled is not None and not 1 <= sampled[0] <= sampled[1]:
            raise ValueError(f"sampled is (fewest, most) loops, not {sampled}")
        self.sampled = None if sampled is None else (sampled[0], sampled[1])
        self.backprop, self.injection, self.noise, self.starts = backprop, injection, noise, starts
        depth = prelude + core * loops + coda
        self.prelude, self.core, self.coda = (
            nn.ModuleList(Block(width, heads, depth, expansion) for _ in range(layers))
            for layers in (prelude, core, coda)
        )
        self.settle = nn.LayerNorm(width) if normalise else nn.Identity()
        self.norm = nn.LayerNorm(width)
        self.adapter = nn.Linear(2 * width, width, bias=False) if injection == "concat" else None
        if self.adapter is not None:
            self.adapter.weight.data.copy_(torch.eye(width).repeat(1, 2))
        table = torch.empty(0)
        if noise:
            draw = torch.Generator().manual_seed(0)
            table = noise * torch.randn(MOST_STARTS, MOST_PLACES, width, generator=draw)
        self.register_buffer("table", table, persistent=False)

    def take_loops(self, loops: int | None) -> int:
        """Return the loops to take; drawn by chance while training with `sampled`."""
        if loops is None and self.training and self.sampled is not None:
            low, high = self.sampled
            return int(torch.randint(low, high + 1, ()))  # on the CPU: no device waits
        return super().take_loops(loops)

    def encode(self, inputs: Tensor, loops: int) -> Tensor:
        """Return states [B, T, width] after `loops` loops."""
        return self._think(inputs, None, loops)[0]

    def encode_step(self, inputs: Tensor, memory: Memory, loops: int) -> tuple[Tensor, Memory]:
        """Advance one city; each loop has keys and values of its own."""
        x, memory = self._think(inputs[:, None], memory or {}, loops)
        return x[:, 0], memory

    def _think(self, inputs: Tensor, memory: Memory, loops: int) -> tuple[Tensor, Memory]:
        """Run inputs [B, T, width]; a memory (a dict, empty at first) is gone on from and kept."""
        keep, memory = memory is not None, memory or {}
        injected, prelude = run(self.prelude, inputs, memory.get("prelude"))
        state, cores = self.recur(injected, memory.get("core"), loops, keep)
        state, coda = run(self.coda, state, memory.get("coda"))
        return self.norm(state), {"prelude": prelude, "core": cores, "coda": coda}

    def recur(
        self, injected: Tensor, caches: list | None, loops: int, keep: bool
    ) -> tuple[Tensor, list]:
        """Return the state [B, T, width] after the loops and, to `keep`, the caches of each."""
        starts = 1 if self.training else self.starts
        wide = injected.repeat_interleave(starts, 0)
        state, kept = self.first_state(wide, caches, starts), []
        before = state
        for loop in range(loops):
            before = state
            with torch.set_grad_enabled(torch.is_grad_enabled() and self._learns(loop, loops)):
                state, cache = self.loop(state, wide, caches[loop] if caches else None)
            if keep:
                kept.append([replace(layer, group=starts) for layer in cache])
        return (_steadiest(state, before, starts) if starts > 1 else state), kept

    def loop(self, state: Tensor, injected: Tensor, caches: list | None) -> tuple[Tensor, list]:
        """Apply the core once."""
        if self.injection == "add":
            state = state + injected
        elif self.adapter is not None:
            state = self.adapter(torch.cat([state, injected], -1))
        state, cache = run(self.core, state, caches)
        return self.settle(state), cache

    def first_state(self, injected: Tensor, caches: list | None = None, starts: int = 1) -> Tensor:
        """Return the state before the first loop: the input itself without injection, or noise.

        Positions count on from those in the caches.
        """
        if self.injection == "none":
            return injected
        if not self.noise:
            return torch.zeros_like(injected)
        if self.training:
            return self.noise * torch.randn_like(injected)
        (rows, steps, _), place = injected.shape, caches[0][0].length if caches else 0
        places = torch.arange(place, place + steps, device=injected.device) % MOST_PLACES
        return self.table[:starts, places].repeat(rows // starts, 1, 1).to(injected.dtype)

    def unrolled(self, inputs: Tensor, loops: int) -> Iterator[Tensor]:
        """Yield what the head reads, [B, T, width], after each of the loops; from one start."""
        injected = run(self.prelude, inputs)[0]
        state = self.first_state(injected)
        for _ in range(loops):
            state, _ = self.loop(state, injected, None)
            yield self.norm(run(self.coda, state)[0])

    def _learns(self, loop: int, loops: int) -> bool:
        return not self.backprop or loop >= loops - self.backprop

    @property
    def _loop_flops(self) -> int:
        adapter = 4 * self.width**2 if self.adapter is not None else 0
        return adapter + sum(block.flops for block in self.core)

    @property
    def _ends_flops(self) -> int:
        return sum(block.flops for block in (*self.prelude, *self.coda))

    def core_flops(self, loops: int) -> int:
        """Operations of the prelude, of every loop of every start, and of the coda."""
        return self._ends_flops + loops * self.starts * self._loop_flops

    @property
    def training_flops_per_step(self) -> float:
        """Mean over the loops drawn; loops without gradients cost their forward pass alone."""
        low, high = self.sampled or (self.loops, self.loops)
        counts = range(low, high + 1)
        learnt = [min(n, self.backprop or n) for n in counts]
        loops = (sum(counts) + 2 * sum(learnt)) / len(counts)
        ends = self.inputs.flops + self._ends_flops + self.head.flops
        return 3 * ends + loops * self._loop_flops


@register("top_recurrent")
class TopRecurrent(LoopedTransformer):
    """The top layer of a stack fed its own output `loops` times, with a loss after every one.

    The scheme that was tried in 2021: no injection, no norm between loops, no prelude apart from
    the layers below.

    Args:
        layers: of the stack, the recurrent one included.
        others: see `LoopedTransformer`.
    """

    def __init__(self, graph: CityGraph, *, layers: int = 3, loops: int = 4, **others: Any) -> None:
        fixed: dict[str, Any] = {"core": 1, "coda": 0, "injection": "none", "normalise": False}
        super().__init__(graph, prelude=layers - 1, loops=loops, **fixed, **others)

    def loss(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return the mean cross-entropy in nats per hop, over all loops while training."""
        if not self.training:
            return super().loss(batch, loops)
        every = [
            nats(self.head(self.without_prefix(state)), batch)
            for state in self.unrolled(self.embed(batch), self.take_loops(loops))
        ]
        return torch.stack(every).mean()

    @property
    def training_flops_per_step(self) -> float:
        """The head reads every loop."""
        return super().training_flops_per_step + 3 * (self.loops - 1) * self.head.flops


def _steadiest(state: Tensor, before: Tensor, starts: int) -> Tensor:
    """For each city the start whose last loop moved the state least, relative to its size."""
    moved = ((state - before).norm(dim=-1) / state.norm(dim=-1)).unflatten(0, (-1, starts))
    best = moved.argmin(1)[:, None, :, None].expand(-1, 1, -1, state.shape[-1])
    return state.unflatten(0, (-1, starts)).gather(1, best)[:, 0]
