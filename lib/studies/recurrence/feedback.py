"""The feedback transformer (Fan et al. 2020): every layer attends to memories of whole past steps.

A step's memory is a learned mixture of all its layers' states, the top one too, so that what the
highest layer found at one step is there for the lowest at the next: a recurrence over time of any
depth, where a transformer's stack ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from citypaths.data.batches import Batch
from citypaths.map.graph import CityGraph
from citypaths.models.base import register
from citypaths.models.sequence import Memory, SequenceModel
from citypaths.models.transformer import CONTEXT
from studies.recurrence.feedback_layer import FeedbackLayer, KeysValues, folded, joined
from studies.recurrence.feedback_scan import scan
from studies.recurrence.feedback_types import Shared


@register("feedback")
class FeedbackTransformer(SequenceModel):
    """A stack whose layers all attend to one memory a past step, made of all layers' states.

    With `loops` every city is read that many times in a row, each reading a step with a memory.
    With `chunk` above one, that many steps run in parallel: between them each layer attends to its
    own input, and memories reach only later chunks; a chunk as long as the path is a transformer.

    Args:
        graph: decides the vocabulary and the coordinates.
        width, layers, heads: size of the stack. expansion: of the feed-forward networks.
        chunk: steps in parallel.
        others: see `SequenceModel` and `CityInput`.

    Raises:
        ValueError: heads that do not divide the width, or a chunk below one.
    """

    def __init__(
        self,
        graph: CityGraph,
        *,
        width: int = 128,
        layers: int = 3,
        heads: int = 4,
        expansion: int = 4,
        chunk: int = 1,
        **others: Any,
    ) -> None:
        super().__init__(graph, width, **others)
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        if chunk < 1:
            raise ValueError(f"a chunk is at least one step, not {chunk}")
        self.heads, self.chunk, self.expansion = heads, chunk, expansion
        blocks = (FeedbackLayer(width, heads, layers, expansion) for _ in range(layers))
        self.blocks = nn.ModuleList(blocks)
        self.mix = nn.Parameter(torch.zeros(1 + layers))
        self.norm_memory = nn.LayerNorm(width)
        self.to_memory = nn.Linear(width, 2 * width, bias=False)
        self.null = nn.Parameter(torch.zeros(2, heads, width // heads))
        slopes = torch.logspace(math.log10(2), -1, heads) if heads > 1 else torch.tensor([0.5])
        self.log_slope = nn.Parameter(slopes.log())
        self.norm = nn.LayerNorm(width)

    def encode(self, inputs: Tensor, loops: int) -> Tensor:
        """Return states [B, T, width], one step (or chunk of steps) after the other."""
        inputs = inputs.repeat_interleave(loops, 1)
        with torch.autocast(inputs.device.type, enabled=False):
            inputs = inputs.to(self.mix.dtype)
            top = self._scan(inputs) if self.chunk == 1 else self._chunks(inputs)
            return self.norm(top[:, loops - 1 :: loops])

    def _scan(self, inputs: Tensor) -> Tensor:
        x, steps = inputs.transpose(0, 1).contiguous(), inputs.shape[1]
        queries = F.linear(F.layer_norm(x, x.shape[-1:]), *self.blocks[0].first_query())
        mix, bias = self.mix.softmax(0), self.bias(0, steps, steps)
        memory = folded(self.norm_memory, self.to_memory)
        shared = Shared(x, queries, mix, bias, self.null, *memory)
        layers = [block.weights(first=not i) for i, block in enumerate(self.blocks)]
        return scan(shared, layers).transpose(0, 1)

    def _chunks(self, inputs: Tensor) -> Tensor:
        memory, tops = self._empty(len(inputs)), []
        for x in inputs.split(self.chunk, 1):
            states, _ = self._chunk(x, memory, [self._none(len(x))] * len(self.blocks))
            memory = joined(memory, self._remember(states))
            tops.append(states[-1])
        return torch.cat(tops, 1)

    def _chunk(
        self, x: Tensor, memory: KeysValues, own: list[KeysValues]
    ) -> tuple[list[Tensor], list[KeysValues]]:
        """Run the stack over x [B, n, d], each layer attending to its own inputs in the chunk too.

        Takes and returns each layer's keys and values in the chunk; those of x itself come last,
        and the bias hides them where they are not past.
        """
        states, kept = [x], []
        first = memory[0].shape[2] - 1 + own[0][0].shape[2]
        bias = self.bias(first, x.shape[1], first + x.shape[1])
        for block, past in zip(self.blocks, own, strict=True):
            kept.append(joined(past, self._keys_values(states[-1])))
            states.append(block(states[-1], joined(memory, kept[-1]), bias))
        return states, kept

    def _stack(self, x: Tensor, memory: KeysValues, bias: Tensor) -> list[Tensor]:
        """Return the states of input x [B, n, d] and of the layers, all attending to a memory."""
        states = [x]
        for block in self.blocks:
            states.append(block(states[-1], memory, bias))
        return states

    def bias(self, first: int, steps: int, memories: int) -> Tensor:
        """Return [H, steps, 1 + memories]: minus how far memories are, minus infinity if not past.

        Memories count from the first step of all, steps from `first`; the null comes before them.
        """
        at = torch.arange(first + steps, device=self.mix.device)
        gap = at[first:, None] - at[:memories]
        near = -self.log_slope.exp()[:, None, None] * gap.to(self.mix.dtype)
        return F.pad(near.masked_fill(gap <= 0, -math.inf), (1, 0))

    def _keys_values(self, rows: Tensor) -> KeysValues:
        """Return keys and values [B, H, n, width / H] of memories (or states) [B, n, width]."""
        both = self.to_memory(self.norm_memory(rows)).unflatten(-1, (2, self.heads, -1))
        keys, values = both.permute(2, 0, 3, 1, 4)
        return keys, values

    def _remember(self, states: list[Tensor]) -> KeysValues:
        """Return keys and values of the mixture of a step's states, each [B, n, width]."""
        weighed = zip(self.mix.softmax(0), states, strict=True)
        return self._keys_values(sum(weight * state for weight, state in weighed))

    def _empty(self, paths: int) -> KeysValues:
        """Return a memory of the null alone."""
        both = self.null[:, None, :, None].repeat(1, paths, 1, 1, 1)
        return both[0], both[1]

    def _none(self, paths: int) -> KeysValues:
        """Return no keys and values."""
        none = self.null.new_empty(paths, self.heads, 0, self.null.shape[-1])
        return none, none

    def encode_step(self, inputs: Tensor, memory: Memory, loops: int) -> tuple[Tensor, Memory]:
        """Advance `loops` steps; the memory holds keys and values of the past."""
        step = self._step_alone if self.chunk == 1 else self._step_in_chunk
        for _ in range(loops):
            top, memory = step(inputs[:, None], memory)
        return self.norm(top[:, 0]), memory

    def _step_alone(self, x: Tensor, memory: KeysValues | None) -> tuple[Tensor, KeysValues]:
        memory = memory or self._empty(len(x))
        past = memory[0].shape[2] - 1
        states = self._stack(x, memory, self.bias(past, 1, past))
        return states[-1], joined(memory, self._remember(states))

    def _step_in_chunk(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """The memory: of earlier chunks; of this one, not yet seen; each layer's in this one."""
        none = self._none(len(x))
        fresh = none, [none] * len(self.blocks)
        shared, coming, own = memory or (self._empty(len(x)), *fresh)
        states, own = self._chunk(x, shared, own)
        coming = joined(coming, self._remember(states))
        if coming[0].shape[2] == self.chunk:
            return states[-1], (joined(shared, coming), *fresh)
        return states[-1], (shared, coming, own)

    def core_flops(self, loops: int) -> int:
        """Operations of `loops` inner steps, attending to all inner steps of CONTEXT cities."""
        square, depth = 2 * self.width**2, len(self.blocks)
        fixed = square * (depth * (2 + 2 * self.expansion) + 2)
        seen = loops * (loops + 1) // 2 + loops**2 * (CONTEXT - 1)
        if self.chunk > 1:  # a layer's own keys and values, and one score more, which is hidden
            fixed, seen = fixed + 2 * square * depth, seen + loops
        return loops * fixed + 4 * self.width * depth * seen

    def sweeps(self, batch: Batch, count: int, loops: int | None = None) -> Tensor:
        """Return logits [B, T, V] after some parallel sweeps towards the exact ones.

        The first sweep takes the inputs for memories, each later one the memories of the sweep
        before. After n sweeps the first n steps are exact (steps of the prefix and loops count).

        Raises:
            ValueError: fewer than one sweep, or a model with chunks.
        """
        if count < 1:
            raise ValueError(f"at least one sweep, not {count}")
        loops = self.take_loops(loops)
        sweeps = self._sweeps(self.embed(batch), loops)
        states = next(islice(sweeps, count - 1, None))
        return self.head(self.without_prefix(states))

    def _sweeps(self, inputs: Tensor, loops: int) -> Iterator[Tensor]:
        """Yield the encoder's states [B, T, width] after one sweep, two and so on."""
        if self.chunk > 1:
            raise ValueError("sweeps are for models without chunks")
        x = inputs.repeat_interleave(loops, 1)
        bias = self.bias(0, x.shape[1], x.shape[1])
        new = self._keys_values(x)
        while True:
            states = self._stack(x, joined(self._empty(len(x)), new), bias)
            yield self.norm(states[-1][:, loops - 1 :: loops])
            new = self._remember(states)

    @torch.no_grad()
    def sweeps_needed(self, batch: Batch, tolerance: float = 1e-3, loops: int | None = None) -> int:
        """Return the sweeps until every state of a city is as near the exact one, relatively.

        It measures how much recurrence over time the model uses: each sweep carries what the top
        layer found at one step to the steps after it, once.
        """
        loops, real = self.take_loops(loops), batch.labels >= 0
        inputs = self.embed(batch)
        exact = self.without_prefix(self.encode(inputs, loops))[real]
        for count, states in enumerate(self._sweeps(inputs, loops), 1):
            apart = (self.without_prefix(states)[real] - exact).norm(dim=-1)
            if count == loops * inputs.shape[1] or (apart <= tolerance * exact.norm(dim=-1)).all():
                return count
        raise AssertionError("the last sweep is exact")
